"""What is known of an instance's times, learned while it runs."""

from dataclasses import dataclass

from juggler.scheduler.policy import Policy

_SLOW = 0.15
_FAST = 0.3


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
    """Load, unload, stop and service times in seconds, and how often requests come."""

    __slots__ = ("arrivals", "first_arrival", "last_arrival", "load", "service", "stop", "unload", "wake")

    def __init__(self, policy: Policy) -> None:
        self.load = Ewma(policy.first_load_s, _FAST)
        """From start to ready, a free machine assumed."""
        self.wake = Ewma(policy.first_load_s / 4, _FAST)
        """From wake to ready after a soft unload."""
        self.unload = Ewma(policy.first_unload_s, _FAST)
        """From the order of a soft unload to its verification."""
        self.stop = Ewma(policy.first_unload_s, _FAST)
        """From the order of a stop until nothing is left."""
        self.service = Ewma(policy.first_service_s, _SLOW)
        """From hand-over to the last byte."""
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
        """Requests per second: the smaller of the mean rate and what the present silence suggests."""
        if self.arrivals == 0:
            return 0.0
        mean = self.arrivals / max(now - self.first_arrival, 1.0)
        return min(mean, 1.0 / max(now - self.last_arrival, 0.001))
