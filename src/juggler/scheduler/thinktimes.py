"""When clients come back: think times learned per client and instance, and what they say about the next return.

A think time runs from the answer to a client's request to its next request at the same instance. A client that is
answered elsewhere first, to a request it made later, counts as *not back*: in a pipeline or with one client that
alternates, holding a model for it would be in vain (scheduling.md sections 3, 8 and 10.6).
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_EDGE_S = 0.05
GROWTH = 1.25
BINS = 49
"""Twice as fine as scheduling.md has them: a hold ends at an edge, and a bin of half its length is waited in vain."""
EDGES = tuple(FIRST_EDGE_S * GROWTH**power for power in range(BINS))
"""Upper edges of the bins in seconds: 0.05 s to over half an hour."""

DECAY = 0.95
"""Weight of everything seen before, per new sample."""

UNIT_MOST = 1e9
"""Before a sample's weight loses digits the old ones are made smaller after all, once in some 400 samples."""

PRIOR_WEIGHT = 2.0
PRIOR_SOON = 0.2
"""Before anything is known: two samples' worth of belief that one client in five comes back soon."""

SOON_BINS = 24
"""``Soon`` is within 10 s; the prior spreads over these bins alike."""

CLIENT_SHRINKAGE = 3.0
"""A client's own histogram counts against this many samples' worth of the instance's."""

CLIENTS_KEPT = 256
"""Clients told apart per instance; the longest unseen is forgotten."""

RETURNING_KEPT = 4
"""Clients looked at for the next return, the latest answered ones."""


class Histogram:
    """Weights of the bins; the last one stands for "not back".

    Every request counts in two of them, hardly any looks at the weights: so a new sample counts for more, instead of
    every old one for less.
    """

    __slots__ = ("_counts", "_unit", "total")

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self._counts = list(weights) if weights is not None else [0.0] * (BINS + 1)
        self._unit = 1.0
        """What a sample counts for now."""
        self.total = sum(self._counts)

    @property
    def weights(self) -> list[float]:
        """The latest sample has 1."""
        return [count / self._unit for count in self._counts]

    def add(self, seconds: float) -> None:
        """Count one think time; infinity, or more than the last edge, means not back."""
        self.add_to(bin_of(seconds))

    def add_to(self, index: int) -> None:
        """Count one think time by its bin."""
        self._unit /= DECAY
        if self._unit > UNIT_MOST:
            self._counts, self._unit = [count / self._unit for count in self._counts], 1.0
        self._counts[index] += self._unit
        self.total = self.total * DECAY + 1.0


def bin_of(seconds: float) -> int:
    """The bin of a think time; ``BINS`` for not back."""
    if seconds <= FIRST_EDGE_S:
        return 0
    if seconds > EDGES[-1]:
        return BINS
    return min(math.ceil(math.log(seconds / FIRST_EDGE_S) / math.log(GROWTH) - 1e-9), BINS - 1)


_PRIOR = [PRIOR_SOON / SOON_BINS] * SOON_BINS + [0.0] * (BINS - SOON_BINS) + [1.0 - PRIOR_SOON]


@dataclass(slots=True)
class _Client:
    histogram: Histogram
    answered_at: float | None = None
    """Its last answer here, while it may still come back."""
    last_answer_at: float = -math.inf


class ThinkTimes:
    """The think times of one instance's clients."""

    __slots__ = ("_clients", "overall")

    def __init__(self) -> None:
        self.overall = Histogram()
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def asked(self, client: str, now: float) -> None:
        """The client sent a request here."""
        known = self._clients.get(client)
        if known is not None and known.answered_at is not None:
            self._learn(known, now - known.answered_at)

    def answered(self, client: str, now: float) -> None:
        """The client got an answer from here; it may come back."""
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client(Histogram())
            while len(self._clients) > CLIENTS_KEPT:
                self._clients.popitem(last=False)
        known.answered_at = known.last_answer_at = now
        self._clients.move_to_end(client)

    def last_answer(self, client: str) -> float | None:
        """When the client was answered here last, as far as that is remembered."""
        known = self._clients.get(client)
        return known.last_answer_at if known is not None else None

    def answered_elsewhere(self, client: str, arrived_at: float) -> bool:
        """Another instance answered a request that the client made at ``arrived_at``.

        Returns whether the client is not awaited here any more.
        """
        known = self._clients.get(client)
        if known is None or known.answered_at is None:
            return True
        if known.answered_at > arrived_at:
            return False
        self._learn(known, math.inf)
        return True

    def _learn(self, client: _Client, seconds: float) -> None:
        client.answered_at = None
        index = bin_of(seconds)
        client.histogram.add_to(index)
        self.overall.add_to(index)

    def returning(self, now: float) -> "Return | None":
        """The chance over time that one of the clients last answered comes back; None if nobody may."""
        latest = (one for one in reversed(self._clients.values()) if one.answered_at is not None)
        survivors = []
        for client in itertools.islice(latest, RETURNING_KEPT):
            assert client.answered_at is not None
            survivor = _Survivor(self._weights(client), now - client.answered_at)
            if survivor.possible:
                survivors.append(survivor)
        return Return(survivors) if survivors else None

    def _weights(self, client: _Client) -> list[float]:
        """Chances per bin: the client's own samples, the instance's for lack of them, the prior for lack of those."""
        scale = PRIOR_WEIGHT + self.overall.total
        own = client.histogram
        shrunk = CLIENT_SHRINKAGE + own.total
        return [
            (mine + CLIENT_SHRINKAGE * (all_ + PRIOR_WEIGHT * prior) / scale) / shrunk
            for mine, all_, prior in zip(own.weights, self.overall.weights, _PRIOR, strict=True)
        ]

    def exported(self) -> list[float]:
        """The instance's own histogram, to be kept over a restart; clients are forgotten."""
        return [round(weight, 4) for weight in self.overall.weights]

    def restore(self, weights: object) -> None:
        """Take up what ``exported`` gave; anything else is passed over."""
        if isinstance(weights, list) and len(weights) == BINS + 1:
            numbers = [float(one) for one in weights if isinstance(one, (int, float)) and 0 <= one < 1e6]
            if len(numbers) == BINS + 1:
                self.overall = Histogram(numbers)


class _Survivor:
    """Chance that one client is not back ``t`` seconds from now, given that it is not back yet."""

    __slots__ = ("_alive", "_elapsed", "_tail", "times")

    def __init__(self, weights: list[float], elapsed: float) -> None:
        self._elapsed = elapsed
        tail = [0.0] * (BINS + 1)  # chance of coming later than the upper edge of each bin
        rest = weights[BINS]
        for index in range(BINS - 1, -1, -1):
            tail[index] = rest
            rest += weights[index]
        tail[BINS] = weights[BINS]
        self._tail = tail
        self._alive = 1.0
        self._alive = self._beyond(elapsed)
        self.times = tuple(edge - elapsed for edge in EDGES if edge > elapsed)

    @property
    def possible(self) -> bool:
        return self._alive > 1e-9 and bool(self.times)

    def _beyond(self, seconds: float) -> float:
        """Chance of a think time above ``seconds``; straight within a bin."""
        index = bin_of(seconds)
        if index >= BINS:
            return self._tail[BINS]
        low = EDGES[index - 1] if index else 0.0
        above = self._tail[index - 1] if index else 1.0
        part = (seconds - low) / (EDGES[index] - low)
        return above + (self._tail[index] - above) * min(max(part, 0.0), 1.0)

    def __call__(self, seconds: float) -> float:
        return self._beyond(self._elapsed + seconds) / self._alive


class Return:
    """The first return among some clients."""

    __slots__ = ("_survivors",)

    def __init__(self, survivors: list[_Survivor]) -> None:
        self._survivors = survivors

    def steps(self, limit: float) -> "list[tuple[float, float]]":
        """(seconds from now, chance that nobody is back by then), at every edge up to ``limit`` and at ``limit``."""
        times = sorted({time for one in self._survivors for time in one.times if time < limit})
        times.append(limit)
        return [(time, math.prod(one(time) for one in self._survivors)) for time in times]


@dataclass(frozen=True, slots=True)
class Stakes:
    """What a hold can win and what it costs, in seconds of waiting."""

    away_s: float
    """Until the other side would be done, were it let in now: unload, load, serve what waits."""
    back_s: float
    """Then until this one would serve again: unload, reload, and what its clients lose by the reload."""
    service_s: float
    """What serving the returned request first costs each of those who wait."""
    waiting: float
    """Weight of all who wait meanwhile."""
    limit_s: float
    """Longest hold that is allowed."""


def best_hold_s(coming: Return, stakes: Stakes) -> float:
    """How long to wait for a return: where expected gain less expected cost is greatest; 0 if nowhere above zero."""
    if stakes.limit_s <= 0:
        return 0.0
    best_value, best_s = 0.0, 0.0
    gained = waited = before = 0.0
    alive = 1.0
    fixed = stakes.back_s - stakes.waiting * stakes.service_s
    for time, left in coming.steps(stakes.limit_s):
        middle = (before + time) / 2
        gained += (alive - left) * (max(0.0, stakes.away_s - middle) + fixed)
        waited += (time - before) * (alive + left) / 2
        value = gained - stakes.waiting * waited
        if value > best_value:
            best_value, best_s = value, time
        before, alive = time, left
    return best_s
