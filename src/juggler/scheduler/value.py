"""Whether and when a resident may be taken for somebody else, and what that costs. Pure: it is asked speculatively.

The heart of the policy (scheduling.md section 3, ``may_take``): a busy resident keeps its place for a minimum
residence, an idle one is held for a moment where a client is likely to come straight back; both end when the waiting
work has paid for the swap, or is due.
"""

import math
from dataclasses import dataclass

from juggler.scheduler.commands import Mode
from juggler.scheduler.eviction import Candidate
from juggler.scheduler.policy import weight_of
from juggler.scheduler.state import Instance, SchedulerState
from juggler.scheduler.thinktimes import Stakes, best_hold_s
from juggler.scheduler.transitions import LOADING, UP, Residency

IN_USE_COST = 1e6
"""Beyond anything that idle residents can cost together: they go first. One whose gate is shut counts half: it is
waited for to the end, or two busy ones would take turns as the cheaper one, and neither would ever drain."""

LOOK_AGAIN_S = 1.0
"""One that still loads is not sent away while somebody waits for it, however long it takes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """When one resident may be taken, and why not earlier."""

    at: float
    why: str


class Valuation:
    """Values residents for one decision pass.

    Args:
        waiting: Weight of all blocked requests together: all of them wait while a resident is held.
    """

    def __init__(self, state: SchedulerState, now: float, waiting: float) -> None:
        self.state = state
        self.policy = state.policy
        self.now = now
        self.waiting = waiting

    def candidate(self, other: Instance, wanting: Instance) -> Candidate:
        """A resident that is not excluded, or loads for others, as a victim."""
        soft = other.freed_by(Mode.UNLOAD) if other.soft_unload and other.up else None
        at, cost = self.may_take(other, wanting).at, self.cost(other)
        in_use = cost >= IN_USE_COST
        if in_use and other.gate is not None:
            cost = IN_USE_COST / 2
        return Candidate(other.id, at, cost, other.last_used, soft, other.freed_by(Mode.STOP), in_use)

    def loads_for_others(self, other: Instance) -> bool:
        """Whether requests wait for its load: nobody gets it before it has served them."""
        if other.residency not in LOADING or not len(other.queue):
            return False
        if self.state.locked:
            return False
        return not (other.pinned or other.order is not None or other.attached)

    def excluded(self, other: Instance) -> str | None:
        """Why a resident cannot be had for anybody; None if it can."""
        if other.pinned:
            return "pinned"
        if self.state.locked:
            return "the operator has locked swapping"
        if other.order is not None:
            return "an operator's order is being carried out"
        if other.attached and not other.yields:
            return "attached, and it cannot free its memory"
        if other.attached and other.holds_on_until > self.now:
            return f"attached, and did not free its memory{f': {other.holds_on}' if other.holds_on else ''}"
        if other.residency in UP:
            return None
        if other.attached:
            return f"attached and {other.residency.value}"
        if other.id in self.state.plans:
            return "it is loaded next"
        if other.residency is Residency.UNLOADED:
            return None  # also with a queue of its own, or what needs the whole of a pool would never fit
        if other.residency in LOADING:
            return None if not len(other.queue) else f"{other.residency.value}, and requests wait for it"
        return str(other.residency.value)

    def cost(self, victim: Instance) -> float:
        """What taking it costs, in the weighted seconds of those who will want it back."""
        if not victim.up:
            return IN_USE_COST + victim.estimates.load_s(victim.cached) if len(victim.queue) else 0.0
        reload_s = victim.reload_s()
        if victim.unused and not victim.works_by_its_own_word:
            return reload_s * victim.estimates.rate(self.now)
        drain_s = victim.estimates.service.value
        return IN_USE_COST + reload_s * (1 + len(victim.queue) + len(victim.running)) + drain_s

    def round_trip_s(self, victim: Instance, wanting: Instance) -> float:
        """K of the policy: what swapping ``victim`` for ``wanting`` and back again takes, lost prompts included."""
        there_s = victim.free_s() + wanting.load_s()
        return there_s + wanting.free_s() + victim.reload_s() + victim.estimates.lost_s()

    def may_take(self, victim: Instance, wanting: Instance) -> Verdict:
        """Earliest time at which the victim's gate may be shut for ``wanting``."""
        if victim.residency in LOADING and len(victim.queue):
            ready_at = max(self.now, victim.order_given_at + victim.load_s())
            residence_s = max(self.policy.beta * self.round_trip_s(victim, wanting), LOOK_AGAIN_S)
            return Verdict(ready_at + residence_s, f"{victim.residency.value}, and requests wait for it")
        if victim.residency not in UP:
            return Verdict(self.now, victim.residency.value)
        if victim.unused and victim.works_by_its_own_word:
            return Verdict(self.now, "at work, as the backend itself says")
        if victim.gate is not None:
            return Verdict(self.now, "idle" if victim.unused else "it finishes what it has begun")
        round_trip = self.round_trip_s(victim, wanting)
        due = wanting.queue.earliest_due()
        if victim.unused:
            hold_s = self._hold_s(victim, wanting, round_trip, due)
            return Verdict(self.now + hold_s, "held for a client that is likely to return" if hold_s else "idle")
        floor = victim.ready_at + self.policy.beta * round_trip
        bought = self._bought(victim, wanting, round_trip)
        wanted = min(bought, math.inf if due is None else due)
        if max(floor, wanted) <= self.now:
            return Verdict(self.now, "in use")  # not when it might have been had: whoever is idle now goes first
        if floor >= wanted:
            return Verdict(floor, "in use, within its minimum residence")
        return Verdict(wanted, "in use, until the waiting request is due")

    def _hold_s(self, victim: Instance, wanting: Instance, round_trip: float, due: float | None) -> float:
        """How long an idle victim is kept because a client is likely to come straight back; 0: not at all."""
        queue = wanting.queue
        growth = queue.weight()
        if growth <= 0 or (due is not None and due <= self.now):
            return 0.0
        limit_s = (self.policy.kappa * round_trip - queue.waited(self.now)) / growth
        if due is not None:
            limit_s = min(limit_s, due - self.now)
        if limit_s <= 0:
            return 0.0
        coming = victim.estimates.think.returning(self.now)
        if coming is None:
            return 0.0
        stakes = Stakes(
            away_s=victim.free_s() + wanting.load_s() + work_s(wanting),
            back_s=wanting.free_s() + victim.reload_s() + victim.estimates.lost_s(),
            service_s=victim.estimates.service.value,
            waiting=self.waiting,
            limit_s=limit_s,
        )
        return best_hold_s(coming, stakes)

    def _bought(self, victim: Instance, wanting: Instance, round_trip: float) -> float:
        """When waiting work of a better class than everything at the victim has paid for the swap."""
        best = wanting.queue.best_priority()
        at_victim = [one.priority for one in victim.running.values()]
        queued = victim.queue.best_priority()
        if queued is not None:
            at_victim.append(queued)
        if best is None or any(priority >= best for priority in at_victim):
            return math.inf
        owed = self.policy.kappa_class * round_trip - wanting.queue.waited(self.now)
        return self.now + max(0.0, owed / max(wanting.queue.weight(), weight_of(best, self.policy)))


def work_s(instance: Instance) -> float:
    """Expected seconds to serve everything that waits for it."""
    rounds = math.ceil(len(instance.queue) / max(instance.spec.slots, 1))
    return rounds * instance.estimates.service.value
