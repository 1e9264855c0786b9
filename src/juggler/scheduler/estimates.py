"""What is known of an instance's times, learned while it runs (scheduling.md section 8)."""

from collections.abc import Mapping
from dataclasses import dataclass

from juggler.scheduler.policy import Policy
from juggler.scheduler.thinktimes import ThinkTimes

_SLOW = 0.15
_FAST = 0.3

COLD_BYTES_PER_S = 1e9
CACHED_BYTES_PER_S = 8e9
START_S = 2.0
"""Assumed before the first load of a known size: a start takes this and the reading of its files."""

SILENCE_GAPS = 3.0
"""A silence this many mean gaps long says that requests have become rarer: of requests that come by chance only one in
twenty is that late."""

WARM_GROWTH = 1.05
"""Before any warm answer was seen the least first byte stands in for one, a little larger with each sample: a hold
must not destroy the evidence for itself (scheduling.md section 10.7)."""


@dataclass(slots=True)
class Ewma:
    """Exponentially weighted mean; the first sample counts in full."""

    value: float
    """Seconds. A guess until ``samples`` is above zero."""
    alpha: float
    samples: int = 0

    def add(self, sample: float) -> None:
        self.value = sample if self.samples == 0 else self.value + self.alpha * (sample - self.value)
        self.samples += 1


class Estimates:
    """Load, unload, stop and service times in seconds, first bytes, think times, and how often requests come."""

    __slots__ = (
        "_least_first_byte",
        "arrivals",
        "first_arrival",
        "first_byte_loaded",
        "first_byte_warm",
        "last_arrival",
        "load_cached",
        "load_cold",
        "load_lately",
        "service",
        "stop",
        "think",
        "unload",
        "wake",
    )

    LEARNED = (
        "load_cold",
        "load_cached",
        "load_lately",
        "wake",
        "unload",
        "stop",
        "service",
        "first_byte_warm",
        "first_byte_loaded",
    )
    """What is worth keeping over a restart of the juggler."""

    def __init__(self, policy: Policy) -> None:
        self.load_cold = Ewma(policy.first_load_s, _FAST)
        """From start to ready, the files read from disk."""
        self.load_cached = Ewma(policy.first_load_s, _FAST)
        """From start to ready, the files in the page cache."""
        self.load_lately = Ewma(policy.first_load_s, _FAST)
        """From start to ready, wherever the files were: what a reload will take, once others have had their turn."""
        self.wake = Ewma(policy.first_load_s / 4, _FAST)
        """From wake to ready after a soft unload."""
        self.unload = Ewma(policy.first_unload_s, _FAST)
        """From the order of a soft unload to its verification."""
        self.stop = Ewma(policy.first_unload_s, _FAST)
        """From the order of a stop until nothing is left."""
        self.service = Ewma(policy.first_service_s, _SLOW)
        """From hand-over to the last byte."""
        self.first_byte_warm = Ewma(0.0, _FAST)
        """From hand-over to the first byte, for clients whose last answer is younger than the load."""
        self.first_byte_loaded = Ewma(0.0, _FAST)
        """The same for clients whose last answer is older than the load: their prompt is processed anew."""
        self.think = ThinkTimes()
        self._least_first_byte = 0.0
        self.arrivals = 0
        self.first_arrival = 0.0
        self.last_arrival = 0.0

    def arrived(self, now: float) -> None:
        """Count one work request."""
        if self.arrivals == 0:
            self.first_arrival = now
        self.arrivals += 1
        self.last_arrival = now

    def rate(self, now: float) -> float:
        """Requests per second: the smaller of the mean rate and what the present silence allows."""
        if self.arrivals == 0:
            return 0.0
        mean = self.arrivals / max(now - self.first_arrival, 1.0)
        return min(mean, SILENCE_GAPS / max(now - self.last_arrival, 0.001))

    def size_known(self, size_bytes: int) -> None:
        """Better guesses for a first load, from the size of what it reads."""
        if size_bytes > 0:
            if not self.load_cold.samples:
                self.load_cold.value = START_S + size_bytes / COLD_BYTES_PER_S
            if not self.load_cached.samples:
                self.load_cached.value = START_S + size_bytes / CACHED_BYTES_PER_S

    def loaded(self, seconds: float, share: float | None) -> None:
        """A start took this long; ``share`` of its files was in the page cache, None: nobody knows."""
        self.load_lately.add(seconds)
        if share is not None and share < 0.5:
            self.load_cold.add(seconds)
        else:
            self.load_cached.add(seconds)

    def load_s(self, share: float | None) -> float:
        """Expected seconds of a start with this share of its files in the page cache."""
        cold, cached = self.load_cold, self.load_cached
        if not cold.samples and cached.samples:
            return cached.value if share is None or share >= 0.5 else max(cached.value, cold.value)
        if not cached.samples and cold.samples:
            return cold.value
        if share is None:
            share = 1.0 if cached.samples else 0.0
        return cold.value + (min(cached.value, cold.value) - cold.value) * share

    def reload_s(self, share: float | None) -> float:
        """Expected seconds of a start some time from now: its files may have been pushed out by then."""
        return self.load_lately.value if self.load_lately.samples else self.load_s(share)

    @property
    def load_samples(self) -> int:
        return self.load_cold.samples + self.load_cached.samples

    def first_byte(self, seconds: float, *, warm: bool) -> None:
        """One answer began this long after its request was handed over, to a client that was answered here before."""
        (self.first_byte_warm if warm else self.first_byte_loaded).add(seconds)
        grown = self._least_first_byte * WARM_GROWTH
        self._least_first_byte = min(seconds, grown) if grown else seconds

    def lost_s(self) -> float:
        """What a reload costs each client beyond the load: its prompt cache."""
        if not self.first_byte_loaded.samples:
            return 0.0
        warm = self.first_byte_warm.value if self.first_byte_warm.samples else self._least_first_byte
        return max(0.0, self.first_byte_loaded.value - warm)

    def exported(self) -> dict[str, object]:
        """What has been learned, as plain JSON data."""
        times = {name: getattr(self, name) for name in self.LEARNED}
        learned: dict[str, object] = {
            name: [round(one.value, 4), min(one.samples, 1000)] for name, one in times.items() if one.samples
        }
        if self.think.overall.total:
            learned["think"] = self.think.exported()
        return learned

    def restore(self, learned: Mapping[str, object]) -> None:
        """Take up what ``exported`` gave; what does not look like it is passed over."""
        for name in self.LEARNED:
            pair = learned.get(name)
            if not isinstance(pair, list) or len(pair) != 2:
                continue
            value, samples = pair
            if isinstance(value, (int, float)) and isinstance(samples, int) and 0 <= value < 1e6 and samples > 0:
                one: Ewma = getattr(self, name)
                one.value, one.samples = float(value), samples
        self.think.restore(learned.get("think"))
