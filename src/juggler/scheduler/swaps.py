"""Who gets memory next, and who has to go for it: the third step of the decision pass (scheduling.md section 3).

For each instance that is blocked, the most urgent first: a plan to load it into free memory that nobody more urgent
has claimed; else the cheapest victims, whose gates are shut as soon as they may be taken, and a plan once they have
drained. Whatever a blocked instance waits for, less urgent ones do not get in the meantime.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from juggler.errors import JugglerError
from juggler.ids import InstanceId, PoolId
from juggler.scheduler.admission import does_not_fit
from juggler.scheduler.attach import holders, reject_for
from juggler.scheduler.commands import Considered, MeasurePools, Mode, ReadAhead, Reject
from juggler.scheduler.eviction import Candidate, VictimSet, cheapest
from juggler.scheduler.foreign import blamed_on_others, reject_for_foreign_users
from juggler.scheduler.ledger import NOTHING, Amounts, claimed_from, fits, reduced, shortage
from juggler.scheduler.queue import Gate
from juggler.scheduler.state import Instance, Plan, Probe
from juggler.scheduler.transitions import GONE, LEAVING, LOADABLE, LOADING, Residency
from juggler.scheduler.value import Valuation, work_s

if TYPE_CHECKING:
    from juggler.scheduler.decide import DecisionPass

Going = tuple[tuple[InstanceId, Mode], ...]

WELL_CACHED = 0.9
"""Reading ahead what is in the page cache to this share is not worth a disk's while."""


class _Way(NamedTuple):
    """One placement of a blocked instance, and what it would take."""

    placed: Amounts
    need: Amounts
    """What it takes beyond what is held already."""
    leaving: Going
    """Who goes anyway and frees some of it."""
    missing: dict[PoolId, int]
    choice: VictimSet | None


class SwapPlanner:
    """Plans the swaps of one decision pass."""

    def __init__(self, decision_pass: "DecisionPass") -> None:
        self._pass = decision_pass
        self.state = decision_pass.state
        self.policy = decision_pass.policy
        self.now = decision_pass.now
        self._available: Amounts = {}
        """Free memory that nobody more urgent has claimed."""
        self._lasting: Amounts = {}
        """What can be had of the pools at all: beside those that are pinned or cannot free anything."""
        self._residents: list[Instance] = []
        self._obtainable: list[Instance] = []
        """Residents that somebody may get: the same for all who are blocked, found out once."""
        self._loading: list[Instance] = []
        """Residents that load for others, and may be got by who is overdue."""
        self._leaving: list[Instance] = []
        """Residents on their way out."""
        self._exhausted = False
        """Nothing is left for anybody: once so, it stays so for this pass."""
        self._may_be_blamed = False
        """Somebody's memory stands in the way and cannot be had, by a stranger or an attached server that refused."""
        self._reserved: set[InstanceId] = set()
        """Whom nobody else can have: victims of plans and of the more urgent, and the more urgent themselves."""
        self._reading = False

    def run(self) -> None:
        """Make every plan that can be made now."""
        state = self.state
        blocked = [one for one in state.instances.values() if self._is_blocked(one)]
        self._residents = [one for one in state.instances.values() if one.residency not in GONE]
        self._reading = state.reading is not None or any(one.residency in LOADING for one in self._residents)
        if not blocked:
            self._read_ahead_at_leisure()
            return
        if len(blocked) > 1:
            blocked.sort(key=self._urgency)
        self._value = Valuation(state, self.now, sum(one.queue.weight() for one in blocked))
        self._reserved = {victim for plan in state.plans.values() for victim, _ in plan.victims}
        self._available = state.ledger.free()
        for claim in state.claimed().values():
            self._claim(claim)
        self._lasting = state.lasting()
        self._obtainable = [one for one in self._residents if self._value.excluded(one) is None]
        self._loading = [one for one in self._residents if self._value.loads_for_others(one)]
        self._leaving = [one for one in self._residents if one.residency in LEAVING]
        refused = any(one.attached and one.holds_on_until > self.now for one in self._residents)
        self._may_be_blamed = refused or bool(state.ledger.foreign)
        self._ask_the_busy()
        for wanting in blocked:
            self._plan_for(wanting)

    def _claim(self, amounts: Amounts) -> None:
        """Keep free memory from whoever is less urgent."""
        self._available = claimed_from(self._available, amounts)

    def _ask_the_busy(self) -> None:
        """Keep asking those that work by their own word: they may be the better victims once they do not."""
        for one in self._residents:
            if one.probe is Probe.BUSY and one.unused and self._value.excluded(one) is None:
                self._pass.says_idle(one, one.idle_since if one.idle_since is not None else one.ready_at)

    def _plan_for(self, wanting: Instance) -> None:
        self._reserved.add(wanting.id)
        if self._nothing_left_for(wanting):
            self._read_ahead(wanting)
            self._stand_in_line(wanting, NOTHING)
            return
        ways = [(way, self._need(wanting, way)) for way in wanting.ways_to_load()]
        fitting = [way for way, need in ways if fits(need, self._available)]
        if fitting:
            available = self._available
            wanting.full = min(fitting, key=lambda way: sum(available.get(pool, 0) for pool in way))  # the best fit
            self._make_plan(wanting, (), (), {})
            self._claim(self._need(wanting, wanting.full))
            return
        self._read_ahead(wanting)
        leaving = [one for one in self._leaving if one.id not in self._reserved]
        candidates = self._candidates(wanting)
        if not candidates and not leaving and not self._may_be_blamed:
            self._stand_in_line(wanting, ways[0][1])
            return
        way = min((self._assess(way, need, leaving, candidates) for way, need in ways), key=_rank)
        if self._foreign_memory_is_in_question(way.missing):
            self._claim(way.need)
            going = [victim for victim, _ in way.choice.victims] if way.choice is not None else []
            self._reserved.update(going)
            self._pass.keep_shut.update(going)
            return
        self._reserved.update(gone for gone, _ in way.leaving)
        if not way.missing:
            wanting.full = way.placed
            self._make_plan(wanting, way.leaving, (), {})
            self._claim(way.need)
        elif way.choice is None:
            self._cannot_load(wanting, way, candidates)
        else:
            self._reserved.update(victim for victim, _ in way.choice.victims)
            if way.choice.at > self.now:
                self._pass.note(way.choice.at)
                return
            wanting.full = way.placed
            self._claim(way.need)
            self._take(wanting, way, way.choice.victims)

    def _nothing_left_for(self, wanting: Instance) -> bool:
        """Whether those who are more urgent got everything, so that it need not be looked at closely."""
        if not self._exhausted:
            if self._may_be_blamed or any(size > 0 for size in self._available.values()):
                return False
            if any(one.id not in self._reserved for one in (*self._obtainable, *self._leaving, *self._loading)):
                return False
            self._exhausted = True
        # One that is asleep, or takes nothing, may need nothing that it does not have.
        return wanting.residency in GONE and all(any(way.values()) for way in wanting.placements)

    def _candidates(self, wanting: Instance) -> list[Candidate]:
        """Whom it could be given the memory of.

        One that loads for others is waited for by who is overdue, until it has had its turn: lest they be passed by
        for ever.
        """
        others = [one for one in self._obtainable if one.id not in self._reserved]
        if self._loading:
            due = wanting.queue.earliest_due()
            if due is not None and due <= self.now:
                others += [one for one in self._loading if one.id not in self._reserved]
        return [self._value.candidate(other, wanting) for other in others]

    def _need(self, wanting: Instance, way: Amounts) -> Amounts:
        need = reduced(way, wanting.residue) if wanting.residency is Residency.UNLOADED else way
        return {pool: size for pool, size in need.items() if size}

    def _assess(
        self, way: Amounts, need: Amounts, leaving: Sequence[Instance], candidates: Sequence[Candidate]
    ) -> _Way:
        going, missing = self._leaving_anyway(leaving, shortage(need, self._available))
        return _Way(way, need, going, missing, cheapest(missing, candidates) if missing else None)

    def _cannot_load(self, wanting: Instance, way: _Way, candidates: Sequence[Candidate]) -> None:
        """Even everybody who could go would not be enough: somebody must be waited for, or nothing can be done."""
        out = self._pass.out
        refusing = holders(self.state, wanting, way.missing, candidates, self.now)
        if refusing:
            reject_for(self.state, wanting, refusing, self.now, out)
        elif blamed_on_others(self.state, wanting, way.placed):
            reject_for_foreign_users(self.state, wanting, way.placed, out)
        else:
            self._stand_in_line(wanting, way.need)

    def _stand_in_line(self, wanting: Instance, need: Amounts) -> None:
        """Wait for those who are more urgent; an overdue one keeps what is free from those who are less."""
        lasting = self._lasting
        if not any(fits(way, lasting) for way in wanting.ways_to_load()):
            error = does_not_fit(self.state, wanting)
            if error is not None:  # it was let in before its footprint grew, or before somebody was pinned beside it
                self._give_up(wanting, error)
                return
        due = wanting.queue.earliest_due()
        if due is not None and due <= self.now:
            self._claim(need)
        else:
            self._pass.note(due)

    def _give_up(self, wanting: Instance, error: JugglerError) -> None:
        """It can never be loaded where it is. What sleeps is stopped, to be started elsewhere; else all are refused."""
        left = self.state.lasting(besides=wanting)
        if not wanting.attached and any(not shortage(way, left) for way in wanting.placements):
            self._pass.send_away([(wanting, Mode.STOP)], target=wanting, cause="request")
            return
        for waiting in wanting.queue.pop_all():
            del self.state.requests[waiting.id]
            self._pass.out.append(Reject(waiting.id, error))

    def _foreign_memory_is_in_question(self, missing: Amounts) -> bool:
        """Whether the shortage is others' doing as far as was known a while ago: then it is measured first."""
        state = self.state
        if not any(state.ledger.foreign.get(pool, 0) for pool in missing):
            return False
        if state.measured_at + self.policy.measured_for_s >= self.now:
            return False
        if not state.measuring:
            state.measuring = True
            self._pass.out.append(MeasurePools())
        return True

    def _leaving_anyway(
        self, leaving: Sequence[Instance], missing: dict[PoolId, int]
    ) -> tuple[Going, dict[PoolId, int]]:
        """Of those on their way out anyway, who frees some of what is missing; what is missing beyond it.

        A failed start is still being cleared away when the next one is decided on: nobody shall go in its place.
        """
        going: list[tuple[InstanceId, Mode]] = []
        for other in leaving:
            if not missing:
                break
            freed = self.state.on_its_way(other)
            if any(freed.get(pool, 0) for pool in missing):
                going.append((other.id, Mode.UNLOAD if other.residency is Residency.UNLOADING else Mode.STOP))
                missing = shortage(missing, freed)
        return tuple(going), missing

    # -- order -------------------------------------------------------------------------------------------------

    def _is_blocked(self, instance: Instance) -> bool:
        if not len(instance.queue) or instance.residency not in LOADABLE or instance.id in self.state.plans:
            return False
        if instance.residency in GONE and not instance.spec.starts:
            return False
        if instance.retry_at > self.now and instance.failure is not None:
            self._pass.note(instance.retry_at)
            return False
        return instance.order is None

    def _urgency(self, instance: Instance) -> tuple[int, float, float, InstanceId]:
        """Sorts the most urgent first: overdue by due time, then by waiting cost per second of work."""
        due = instance.queue.earliest_due()
        if due is not None and due <= self.now:
            return (0, due, 0.0, instance.id)
        queue = instance.queue
        work = max(instance.load_s() + work_s(instance), 0.001)
        score = queue.waited(self.now) / work + queue.weight()
        return (1, -score, queue.oldest_arrival() or 0.0, instance.id)

    # -- taking ------------------------------------------------------------------------------------------------

    def _take(self, wanting: Instance, way: _Way, victims: Going) -> None:
        """Shut the victims' gates; once all have drained, send them away."""
        best = wanting.queue.best_priority() or 0
        all_drained = True
        for victim_id, _ in victims:
            victim = self.state.instances[victim_id]
            self._pass.keep_shut.add(victim_id)
            if victim.up:
                hard_stop = self.now + self.policy.hard * self._value.round_trip_s(victim, wanting)
                self._pass.shut(victim, Gate(self.now, hard_stop, best))
                if not self._pass.drained(victim):
                    all_drained = False
        if all_drained:
            self._make_plan(wanting, way.leaving, victims, way.missing)

    def _make_plan(self, wanting: Instance, going: Going, victims: Going, missing: Amounts) -> None:
        """Record the plan and its reasons, and send the victims away. Others are ``going`` anyway."""
        considered = self._considered(wanting) if victims else ()
        leaving = [(self.state.instances[victim_id], mode) for victim_id, mode in victims]
        leaving = [(victim, Mode.UNLOAD if victim.attached else mode) for victim, mode in leaving]
        free_s = max((victim.free_s() for victim, _ in leaving), default=0.0)
        decision = self._pass.send_away(
            leaving,
            target=wanting,
            cause="request",
            missing=missing,
            considered=considered,
            expected_s=free_s + wanting.load_s(),
        )
        self.state.plans[wanting.id] = Plan(wanting.id, (*going, *victims), self.now, decision)

    def _considered(self, wanting: Instance) -> tuple[Considered, ...]:
        """Every resident as it looked at this moment, for the record."""
        looked_at = []
        for other in self._residents:
            if other is wanting:
                continue
            excluded = self._value.excluded(other)
            if excluded is not None:
                looked_at.append(Considered(other.id, None, 0.0, excluded))
            else:
                verdict, cost = self._value.may_take(other, wanting), self._value.cost(other)
                looked_at.append(Considered(other.id, max(0.0, verdict.at - self.now), cost, verdict.why))
        return tuple(looked_at)

    # -- reading ahead -----------------------------------------------------------------------------------------

    def _read_ahead(self, wanting: Instance) -> None:
        """Have the files of one that must wait in the page cache by the time the memory is free."""
        if self._may_read(wanting):
            wanting.read_ahead = self._reading = True
            self.state.reading = wanting.id
            self._pass.out.append(ReadAhead(wanting.id))

    def _read_ahead_at_leisure(self) -> None:
        """Nobody is blocked: the likeliest to be asked for next, by its rate and what is to be read.

        Each once after it was loaded: where the page cache is too small for all, they would push out one another.
        """
        best: Instance | None = None
        best_value = 0.0
        for one in self.state.instances.values():
            if one.cached is not None and one.estimates.arrivals and not one.read_whole and self._may_read(one):
                value = one.estimates.rate(self.now) * sum(one.full.values()) * (1.0 - one.cached)
                if value > best_value:
                    best, best_value = one, value
        if best is not None:
            self._read_ahead(best)

    def _may_read(self, instance: Instance) -> bool:
        if self._reading or instance.read_ahead or not self.policy.read_ahead:
            return False
        return instance.residency in GONE and instance.spec.starts and (instance.cached or 0.0) < WELL_CACHED


def _rank(way: _Way) -> tuple[int, float, float, int]:
    """The best way first: what comes free anyway, then the cheapest victims, then the least that is missing."""
    if not way.missing:
        return (0, 0.0, 0.0, 0)
    if way.choice is None:
        return (2, 0.0, 0.0, sum(way.missing.values()))
    return (1, way.choice.at, way.choice.cost, sum(way.missing.values()))
