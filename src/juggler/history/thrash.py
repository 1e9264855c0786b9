"""Two models that take turns in the memory and get little done. Pure: looks at spans, whoever kept them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from juggler.history.timeline import Span
from juggler.units import MINUTES, format_duration

WINDOW_S = 5 * MINUTES
SWAPS_LEAST = 4
"""So often at least one of the two had to go for the other within the window, in turns."""

_SERVES = frozenset({"busy", "draining"})
_SWAPS = frozenset({"starting", "waking", "unloading", "stopping"})


@dataclass(frozen=True, slots=True)
class Thrash:
    """Two instances that alternate, in their worst window; instants since 1970."""

    instances: tuple[str, str]
    swaps: int
    from_at: float
    to_at: float
    text: str

    def plain(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "instances": list(self.instances),
            "swaps": self.swaps,
            "from_at": round(self.from_at, 3),
            "to_at": round(self.to_at, 3),
            "text": self.text,
        }


def thrashing(spans: Iterable[Span], now: float, name_of: Callable[[str], str]) -> list[Thrash]:
    """The pairs that alternate and swap longer than they serve, each once, the worst first.

    Args:
        spans: In any order.
        now: Where spans end that last, since 1970.
        name_of: The operator's name of an instance.
    """
    by_instance: dict[str, list[Span]] = {}
    turns: dict[tuple[str, str], list[Span]] = {}
    for span in sorted(spans, key=lambda one: one.from_at):
        by_instance.setdefault(span.instance, []).append(span)
        if span.evicted_by is not None and span.evicted_by != span.instance:
            low, high = sorted((span.instance, span.evicted_by))
            turns.setdefault((low, high), []).append(span)
    found = []
    for pair, evictions in turns.items():
        both = by_instance.get(pair[0], []) + by_instance.get(pair[1], [])
        worst = _worst(pair, evictions, both, now, name_of)
        if worst is not None:
            found.append(worst)
    return sorted(found, key=lambda one: -one.swaps)


def _worst(
    pair: tuple[str, str], evictions: list[Span], both: list[Span], now: float, name_of: Callable[[str], str]
) -> Thrash | None:
    worst: Thrash | None = None
    first = 0
    for last, span in enumerate(evictions):
        while evictions[first].from_at < span.from_at - WINDOW_S:
            first += 1
        window = evictions[first : last + 1]
        swaps = _alternations(window)
        if swaps < SWAPS_LEAST or (worst is not None and swaps <= worst.swaps):
            continue
        from_at, to_at = window[0].from_at, min(window[0].from_at + WINDOW_S, now)
        serving_s = _seconds(both, _SERVES, from_at, to_at)
        swapping_s = _seconds(both, _SWAPS, from_at, to_at)
        if serving_s < swapping_s:
            text = _text(name_of(pair[0]), name_of(pair[1]), swaps, to_at - from_at, serving_s, swapping_s)
            worst = Thrash(pair, swaps, from_at, to_at, text)
    return worst


def _alternations(window: list[Span]) -> int:
    """Evictions in turns: the same victim twice in a row counts once."""
    return sum(1 for at, span in enumerate(window) if at == 0 or span.instance != window[at - 1].instance)


def _seconds(spans: Iterable[Span], states: frozenset[str], from_at: float, to_at: float) -> float:
    return sum(
        max(0.0, min(to_at if span.to_at is None else span.to_at, to_at) - max(span.from_at, from_at))
        for span in spans
        if span.state in states
    )


def _text(one: str, other: str, swaps: int, window_s: float, serving_s: float, swapping_s: float) -> str:
    return (
        f"{one} and {other} took turns {swaps} times within {format_duration(window_s)}: "
        f"{format_duration(serving_s)} of serving, {format_duration(swapping_s)} of swapping. They do not fit "
        "together: smaller models or more memory would help, or `scheduler.dial: throughput`"
    )
