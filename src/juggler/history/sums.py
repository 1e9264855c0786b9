"""Sums over the requests of a day: how much of their time went into waiting for models. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from juggler.history.records import Facts

WHOLE = ""
"""The name under which the sums of all endpoints together are kept."""


@dataclass(slots=True)
class Sums:
    """What requests needed. Only those that work count with their time: a socket may be open for days."""

    requests: int = 0
    failures: int = 0
    """Those that were refused, or got no answer, or one that blames the server."""
    total_s: float = 0.0
    """From arrival to end."""
    waited_s: float = 0.0
    """Until they were let in, for whatever reason."""
    loading_s: float = 0.0
    """Of that, of those whose model had to be loaded: their turn, memory being freed, and the load itself."""
    swaps: int = 0
    """Loads that others had to make room for."""
    loads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, other: "Sums") -> None:
        """Sums of both together."""
        for name in NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def count(self, facts: Facts) -> None:
        """One more request."""
        self.requests += 1
        if facts.outcome == "error" or facts.outcome == "refused":
            self.failures += 1
        self.bytes_up += facts.bytes_up
        self.bytes_down += facts.bytes_down
        if facts.works:
            waited_s = facts.queue_s + facts.load_s
            self.total_s += facts.total_s
            self.waited_s += waited_s
            if facts.load_s > 0.0:
                self.loading_s += waited_s

    def plain(self) -> dict[str, object]:
        """As JSON data; ``share_waiting`` is the share of all request time that waited for loads."""
        return {
            "requests": self.requests,
            "failures": self.failures,
            "total_s": round(self.total_s, 3),
            "waited_s": round(self.waited_s, 3),
            "loading_s": round(self.loading_s, 3),
            "share_waiting": round(self.loading_s / self.total_s, 4) if self.total_s > 0.0 else None,
            "swaps": self.swaps,
            "loads": self.loads,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


NAMES = tuple(one.name for one in fields(Sums))
"""In the order of the class."""

BySums = dict[str, Sums]
"""Sums by endpoint, and of all together under ``WHOLE``."""


def add_all(to: BySums, more: Mapping[str, Sums]) -> None:
    """Add sums endpoint by endpoint."""
    for endpoint, sums in more.items():
        to.setdefault(endpoint, Sums()).add(sums)


def plain_day(day: str, sums: Mapping[str, Sums]) -> dict[str, object]:
    """One day as JSON data."""
    whole = sums.get(WHOLE, Sums()).plain()
    endpoints = {name: one.plain() for name, one in sorted(sums.items()) if name != WHOLE}
    return {"day": day, **whole, "endpoints": endpoints}
