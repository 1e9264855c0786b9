"""Which residents must go so that something else fits. Pure and silent: it is asked speculatively."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from juggler.ids import InstanceId
from juggler.scheduler.commands import Mode
from juggler.scheduler.ledger import Amounts, added, shortage

ENUMERATED = 12
"""Up to this many candidates all minimal sets are looked at (4096 subsets); beyond it the cheapest this many."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A resident that may be taken."""

    instance: InstanceId
    at: float
    """Earliest time it may be taken; may be infinite."""
    cost: float
    """What taking it costs, in the weighted seconds of those who will want it back."""
    last_used: float
    """Breaks ties: least recently used first."""
    by_unload: Amounts | None
    """What a soft unload frees; None where there is none."""
    by_stop: Amounts
    """What a stop frees."""
    in_use: bool = False
    """Somebody works on it or waits for it."""


@dataclass(frozen=True, slots=True)
class VictimSet:
    """A minimal set that frees enough, each with the mode that the sums were made with."""

    victims: tuple[tuple[InstanceId, Mode], ...]
    at: float
    """When all of them may be taken."""
    cost: float
    in_use: int
    """How many of them are in use."""


def cheapest(missing: Amounts, candidates: Sequence[Candidate]) -> VictimSet | None:
    """The minimal set that frees ``missing``, by (earliest time all may be taken, total cost, recency).

    Soft unloads are tried first where allowed. Plain stops, where those free too little, or only by taking more of
    those that are in use.

    Returns:
        None if even all candidates together free too little.
    """
    ranked = sorted(candidates, key=lambda one: (one.at, one.cost, one.last_used, one.instance))
    soft = _cheapest(missing, ranked, soft=True)
    if soft is not None and (not soft.in_use or all(one.by_unload is None for one in candidates)):
        return soft
    stop = _cheapest(missing, ranked, soft=False)
    return stop if soft is None or (stop is not None and stop.in_use < soft.in_use) else soft


def _cheapest(missing: Amounts, ranked: Sequence[Candidate], *, soft: bool) -> VictimSet | None:
    useful = [one for one in ranked if any(_frees(one, soft=soft).get(pool, 0) for pool in missing)]
    if len(useful) > ENUMERATED:
        enough = _enough_of(missing, useful, soft=soft)
        useful = useful[:ENUMERATED] if enough <= ENUMERATED else useful[:enough]
    if len(useful) > ENUMERATED:  # even the cheapest dozen frees too little: take in order, then thin out
        return _thinned(missing, useful, soft=soft)
    best: tuple[tuple[float, float, int, float], VictimSet] | None = None
    found: list[frozenset[InstanceId]] = []
    for size in range(1, len(useful) + 1):
        for chosen in combinations(useful, size):
            names = frozenset(one.instance for one in chosen)
            if any(smaller <= names for smaller in found) or not _suffices(missing, chosen, soft=soft):
                continue
            found.append(names)
            victims = _victim_set(chosen, soft=soft)
            key = (victims.at, victims.cost, size, max(one.last_used for one in chosen))
            if best is None or key < best[0]:
                best = (key, victims)
    return best[1] if best else None


def _thinned(missing: Amounts, useful: Sequence[Candidate], *, soft: bool) -> VictimSet | None:
    chosen = list(useful)
    if not _suffices(missing, chosen, soft=soft):
        return None
    for one in reversed(useful):  # dearest first: drop whoever is not needed
        rest = [other for other in chosen if other is not one]
        if rest and _suffices(missing, rest, soft=soft):
            chosen = rest
    return _victim_set(chosen, soft=soft)


def _enough_of(missing: Amounts, ranked: Sequence[Candidate], *, soft: bool) -> int:
    """How many of the ranked are needed, taken in order; all of them if even those do not do."""
    for count in range(1, len(ranked)):
        if _suffices(missing, ranked[:count], soft=soft):
            return count
    return len(ranked)


def _frees(one: Candidate, *, soft: bool) -> Amounts:
    return one.by_unload if soft and one.by_unload is not None else one.by_stop


def _suffices(missing: Amounts, chosen: Sequence[Candidate], *, soft: bool) -> bool:
    total: Amounts = {}
    for one in chosen:
        total = added(total, _frees(one, soft=soft))
    return not shortage(missing, total)


def _victim_set(chosen: Sequence[Candidate], *, soft: bool) -> VictimSet:
    return VictimSet(
        victims=tuple(
            (one.instance, Mode.UNLOAD if soft and one.by_unload is not None else Mode.STOP) for one in chosen
        ),
        at=max(one.at for one in chosen),
        cost=sum(one.cost for one in chosen),
        in_use=sum(one.in_use for one in chosen),
    )
