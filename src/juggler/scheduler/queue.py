"""The requests that wait for one instance.

Order: a due request first (the earliest due), else by priority, else by arrival. All operations take logarithmic
time at most, also with thousands of requests waiting; the weighted waiting time of the whole queue is kept as two
sums.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

from juggler.ids import InstanceId, RequestId
from juggler.scheduler.events import Kind

_AHEAD_S = 0.001
"""By how much a promoted request is due before the one that was first."""

_ANY_PRIORITY = -(2**31)

CLAIM_KEPT_S = 10.0
"""How long an empty queue keeps the claim of who gave up: clients that try again by themselves pause for up to 8 s
(openai-python, ``MAX_RETRY_DELAY``)."""

STALE_KEPT = 64
"""A heap is made anew when it has this many entries more than twice the requests that wait."""


@dataclass(slots=True)
class Waiting:
    """One request that waits or runs."""

    id: RequestId
    instance: InstanceId
    kind: Kind
    priority: int
    arrived_at: float
    due_at: float
    timeout_at: float
    weight: float
    client: str = ""
    """Who asks; empty: nobody in particular."""
    forwarded_at: float | None = None
    answering: bool = False
    """The first byte of the answer has come."""
    own_limit: bool | None = None
    """``timeout_at`` is the request's own wish, not the operator's limit; None: not known."""
    promoted: bool = False
    """The operator moved it to the front, and nobody else with it."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A shut gate: only requests that came before it was shut, of the waiting class or better, still pass."""

    shut_at: float
    hard_stop: float
    """After this time nothing passes any more."""
    priority: int
    """The best priority of those the gate was shut for."""

    @classmethod
    def nobody(cls, now: float) -> "Gate":
        """Shut for good by an order: its hard stop is now."""
        return cls(now, now, _ANY_PRIORITY)

    def passes(self, request: Waiting, now: float) -> bool:
        return now < self.hard_stop and request.arrived_at < self.shut_at and request.priority >= self.priority


@dataclass(slots=True)
class Total:
    """How many requests wait in all queues together, so that nobody has to add them up per request."""

    waiting: int = 0


class RequestQueue:
    """See the module's docstring. Iteration is in arrival order."""

    def __init__(self, total: Total) -> None:
        self._total = total
        self._by_priority: dict[int, dict[RequestId, Waiting]] = {}
        self._index: dict[RequestId, Waiting] = {}
        self._due: list[tuple[float, RequestId]] = []
        self._timeouts: list[tuple[float, RequestId]] = []
        self._weight = 0.0
        self._weighted_arrivals = 0.0
        self.claim = math.inf
        """When the earliest of those who gave up, since somebody was last let in, was or would have been due: the
        others, and who comes within ``CLAIM_KEPT_S``, wait in their place. Else nobody would ever be due where all
        clients give up before that, and one model is never idle."""
        self._claim_ends_at = math.inf

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._index.values())

    def add(self, request: Waiting) -> None:
        if not self._index and request.arrived_at > self._claim_ends_at:
            self.claim = math.inf
        self._by_priority.setdefault(request.priority, {})[request.id] = request
        self._index[request.id] = request
        self._total.waiting += 1
        heapq.heappush(self._due, (request.due_at, request.id))
        heapq.heappush(self._timeouts, (request.timeout_at, request.id))
        self._weight += request.weight
        self._weighted_arrivals += request.weight * request.arrived_at

    def remove(self, request: RequestId) -> Waiting:
        """Take it out wherever it stands.

        Raises:
            KeyError: It does not wait here.
        """
        waiting = self._index.pop(request)
        self._total.waiting -= 1
        same = self._by_priority[waiting.priority]
        del same[request]
        if not same:
            del self._by_priority[waiting.priority]
        if self._index:
            self._weight -= waiting.weight
            self._weighted_arrivals -= waiting.weight * waiting.arrived_at
            if len(self._due) > 2 * len(self._index) + STALE_KEPT:
                self._forget_the_gone()
        else:  # floating-point dust must not survive an empty queue
            self._weight = self._weighted_arrivals = 0.0
            self._due.clear()
            self._timeouts.clear()
        return waiting

    def give_up(self, request: RequestId, now: float) -> Waiting:
        """Take out one that waits no longer, and was not let in; its claim stays.

        Raises:
            KeyError: It does not wait here.
        """
        waiting = self.remove(request)
        if waiting.kind is Kind.WORK and not waiting.promoted:
            self.claim = min(self.claim, waiting.due_at)
            self._claim_ends_at = now + CLAIM_KEPT_S
        return waiting

    def promote(self, request: RequestId, now: float) -> None:
        """Make it due before every other one here.

        Raises:
            KeyError: It does not wait here.
        """
        waiting = self._index[request]
        earliest = self.earliest_due()
        first = now if earliest is None else min(now, earliest)
        if waiting.due_at > first or self._earliest(self._due) is not waiting:
            waiting.due_at = first - _AHEAD_S
            waiting.promoted = True
            heapq.heappush(self._due, (waiting.due_at, request))
            if len(self._due) > 2 * len(self._index) + STALE_KEPT:
                self._forget_the_gone()

    def head(self, now: float, gate: Gate | None = None) -> Waiting | None:
        """Who is next, or None if nobody is (or may pass the gate)."""
        due = self._earliest(self._due)
        if due is not None and due.due_at <= now and (gate is None or gate.passes(due, now)):
            return due
        for priority in sorted(self._by_priority, reverse=True):
            first = next(iter(self._by_priority[priority].values()))
            if gate is None or gate.passes(first, now):
                return first
        return None

    def earliest_due(self) -> float | None:
        """When this queue is due, by who waits in it or by who gave up; None if nobody waits."""
        heap = self._due
        if heap and heap[0][1] in self._index:
            return min(heap[0][0], self.claim)
        due = self._earliest(heap)
        return min(due.due_at, self.claim) if due else None

    def earliest_timeout(self) -> float | None:
        heap = self._timeouts
        if heap and heap[0][1] in self._index:
            return heap[0][0]
        first = self._earliest(heap)
        return first.timeout_at if first else None

    def next_timeout(self, now: float) -> Waiting:
        """Take out the request whose timeout comes first; like everybody who gives up, it leaves its claim.

        Raises:
            IndexError: The queue is empty.
        """
        first = self._earliest(self._timeouts)
        if first is None:
            raise IndexError("empty queue")
        return self.give_up(first.id, now)

    def oldest(self) -> Waiting | None:
        """Who has waited longest."""
        return next(iter(self._index.values()), None)  # a dict keeps the order in which they came

    def oldest_arrival(self) -> float | None:
        oldest = self.oldest()
        return oldest.arrived_at if oldest is not None else None

    def best_priority(self) -> int | None:
        return max(self._by_priority, default=None)

    def weight(self) -> float:
        """Growth per second of ``waited``."""
        return self._weight

    def waited(self, now: float) -> float:
        """Weighted seconds waited so far by all together."""
        return max(0.0, self._weight * now - self._weighted_arrivals)

    def pop_all(self) -> list[Waiting]:
        """Empty the queue; returns what was in it."""
        return [self.remove(request) for request in list(self._index)]

    def _forget_the_gone(self) -> None:
        """Behind one that waits long thousands may come and go, and their entries would never come to the top."""
        self._due = [(one.due_at, one.id) for one in self._index.values()]
        self._timeouts = [(one.timeout_at, one.id) for one in self._index.values()]
        heapq.heapify(self._due)
        heapq.heapify(self._timeouts)

    def _earliest(self, heap: list[tuple[float, RequestId]]) -> Waiting | None:
        while heap:
            waiting = self._index.get(heap[0][1])
            if waiting is not None:
                return waiting
            heapq.heappop(heap)  # its request left in the meantime
        return None
