"""What is counted for the metrics. Plain numbers: whole batches are counted at once, and nothing is locked.

Made by hand, not of the client library's counters and histograms, because those take a lock and look up labels for
each number: with thousands of requests per second that is more than all the rest of the recording. ``metrics`` turns
these numbers into the library's families when somebody asks.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from juggler.history.records import OUTCOMES, Facts
from juggler.history.timeline import FAILURES
from juggler.ids import InstanceId

WAIT_BUCKETS = (0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
LOAD_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FIRST_BYTE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOTAL_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0)
"""Upper bounds in seconds; whatever is longer counts in one more."""


class Histogram:
    """How many values fell into which bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class EndpointTally:
    """Of one endpoint's requests. Histograms are of those that work: a socket may be open for days."""

    __slots__ = ("bytes_down", "bytes_up", "first_byte", "load", "outcomes", "total", "wait")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.bytes_up = 0
        self.bytes_down = 0
        self.wait = Histogram(WAIT_BUCKETS)
        self.load = Histogram(WAIT_BUCKETS)
        self.first_byte = Histogram(FIRST_BYTE_BUCKETS)
        self.total = Histogram(TOTAL_BUCKETS)

    def count(self, facts: Facts) -> None:
        self.outcomes[facts.outcome] += 1
        self.bytes_up += facts.bytes_up
        self.bytes_down += facts.bytes_down
        if not facts.works:
            return
        self.total.observe(facts.total_s)
        self.wait.observe(facts.queue_s + facts.load_s)
        if facts.load_s > 0.0:
            self.load.observe(facts.load_s)
        if facts.first_byte_s is not None:
            self.first_byte.observe(facts.first_byte_s)


@dataclass(slots=True)
class InstanceTally:
    """Of one instance."""

    load: Histogram = field(default_factory=lambda: Histogram(LOAD_BUCKETS))
    evictions: int = 0
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES.values(), 0))


class Tallies:
    """All of them. What the configuration no longer names is dropped: labels must not pile up."""

    def __init__(self) -> None:
        self.endpoints: dict[str, EndpointTally] = {}
        self.instances: dict[InstanceId, InstanceTally] = {}
        self.swaps: Counter[str] = Counter()
        """Decisions that freed memory, by cause."""
        self.lost_requests = 0
        """Ended while more came than were taken; they are in no other number here."""

    def of_endpoint(self, endpoint: str) -> EndpointTally:
        tally = self.endpoints.get(endpoint)
        if tally is None:
            tally = self.endpoints[endpoint] = EndpointTally()
        return tally

    def of_instance(self, instance: InstanceId) -> InstanceTally:
        tally = self.instances.get(instance)
        if tally is None:
            tally = self.instances[instance] = InstanceTally()
        return tally

    def keep(self, endpoints: Collection[str], instances: Collection[InstanceId]) -> None:
        """Have exactly these: new ones begin at zero, those that are gone are forgotten."""
        self.endpoints = {one: self.endpoints.get(one) or EndpointTally() for one in endpoints}
        self.instances = {one: self.instances.get(one) or InstanceTally() for one in instances}
