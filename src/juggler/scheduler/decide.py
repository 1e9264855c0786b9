"""The decision pass: who is served, who loads, who has to go. Synchronous, one pass, acted upon afterwards.

The pass follows scheduling.md section 3 in this order:

1. carry out operator's orders whose instance has drained;
2. serve: hand queued requests to instances that are up, within their slots and past their gates;
3. for each blocked instance, most urgent first: plan a load into free memory that nobody more urgent has claimed,
   or shut the gates of the cheapest victims as soon as they may be taken, and plan once they have drained;
4. load the targets of plans whose memory is free; drop plans that nobody needs or that cannot come true;
5. open the gates that no longer serve anybody, and serve those;
6. unload whoever has been idle for as long as its endpoint allows.

Every time that could change a decision later is noted with ``wake_at``; the caller turns the earliest into the one
timer there is. Nothing here starts a wait without one.
"""

import math
from collections.abc import Sequence

from juggler.ids import InstanceId, PoolId
from juggler.scheduler.attach import attach_where_asked_for, holders, reject_for
from juggler.scheduler.commands import (
    Command,
    Decision,
    Forward,
    Loaded,
    Mode,
    OrderDone,
    ProbeBusy,
    Record,
    StartInstance,
    StopInstance,
    UnloadInstance,
    WakeInstance,
)
from juggler.scheduler.events import Kind, OrderKind
from juggler.scheduler.eviction import Candidate, cheapest
from juggler.scheduler.ledger import Amounts, added, reduced, shortage
from juggler.scheduler.policy import weight_of
from juggler.scheduler.queue import Gate, Waiting
from juggler.scheduler.state import Instance, Plan, Probe, SchedulerState
from juggler.scheduler.transitions import GONE, LEAVING, LOADABLE, LOADING, UP, Move, Residency

ANY_PRIORITY = -(2**31)
"""For gates shut by order: nobody passes them anyway, their hard stop is now."""


class DecisionPass:
    """One pass over the state at one moment."""

    def __init__(self, state: SchedulerState, now: float, out: list[Command]) -> None:
        self.state = state
        self.policy = state.policy
        self.now = now
        self.out = out
        self.wake_at: float | None = None
        self._keep_shut: set[InstanceId] = set()

    def run(self) -> None:
        """Decide everything that can be decided now."""
        self._carry_out_orders()
        self._serve_all()
        attach_where_asked_for(self.state, self.now, self.out)
        self._plan_swaps()
        self._load_targets()
        self._open_gates()
        self._unload_idle()

    def note(self, at: float | None) -> None:
        """Something may change at this time."""
        if at is not None and at != math.inf and (self.wake_at is None or at < self.wake_at):
            self.wake_at = at

    # -- 1. orders ---------------------------------------------------------------------------------------------

    def _carry_out_orders(self) -> None:
        for instance in self.state.instances.values():
            if instance.order is not None:
                self._carry_out(instance)

    def _carry_out(self, instance: Instance) -> None:
        order = instance.order
        assert order is not None
        self._keep_shut.add(instance.id)
        soft = instance.soft_unload and (order.kind is OrderKind.UNLOAD or instance.attached)
        if instance.up and not instance.yields:
            self._keep_shut.discard(instance.id)
            self.finish_order(instance, "attached: it is never stopped, and it cannot free its memory by itself")
            return
        if instance.residency in LEAVING:
            return  # reported by InstanceGone or InstanceUnloaded
        if instance.residency in (Residency.STOPPED, Residency.FAILED) or (
            soft and instance.residency is Residency.UNLOADED
        ):
            kept = instance.attached and order.kind is OrderKind.STOP
            self.finish_order(instance, "unloaded; an attached server is never stopped" if kept else "done")
        elif instance.attached and instance.residency is Residency.WAKING:
            return  # it cannot be stopped half-way
        elif instance.residency in LOADING or instance.residency in (Residency.UNLOADED, Residency.ATTACHING):
            self.send_away([(instance, Mode.STOP)], cause="operator")
        else:
            self._shut(instance, Gate(self.now, self.now, ANY_PRIORITY))
            if self._drained(instance):
                self.send_away([(instance, Mode.UNLOAD if soft else Mode.STOP)], cause="operator")

    def finish_order(self, instance: Instance, detail: str) -> None:
        """Tell everyone who gave the order."""
        if instance.order is not None:
            self.out.extend(OrderDone(order, detail) for order in instance.order.ids)
            instance.order = None

    # -- 2. serve ----------------------------------------------------------------------------------------------

    def _serve_all(self) -> None:
        for instance in self.state.instances.values():
            if len(instance.queue) and instance.up:
                self._serve(instance)

    def _serve(self, instance: Instance) -> None:
        while True:
            waiting = instance.queue.head(self.now, instance.gate)
            if waiting is None or (waiting.kind is Kind.WORK and len(instance.running) >= instance.spec.slots):
                return
            instance.queue.remove(waiting.id)
            if waiting.kind is Kind.LOAD:
                del self.state.requests[waiting.id]
                self.out.append(Loaded(waiting.id, instance.id))
            else:
                forward(instance, waiting, self.now, self.out)

    # -- 3. swaps ----------------------------------------------------------------------------------------------

    def _plan_swaps(self) -> None:
        state = self.state
        blocked = [one for one in state.instances.values() if self._is_blocked(one)]
        if not blocked:
            return
        blocked.sort(key=self._urgency)
        claims: Amounts = {}
        for claim in state.claimed().values():
            claims = added(claims, claim)
        reserved = {victim for plan in state.plans.values() for victim, _ in plan.victims}
        for wanting in blocked:
            available = reduced(state.ledger.free(), claims)
            missing = shortage(wanting.need(), available)
            if not missing:
                state.plans[wanting.id] = Plan(wanting.id, (), self.now)
                claims = added(claims, wanting.need())
                continue
            leaving, missing = self._leaving_anyway(wanting, missing, reserved)
            reserved.update(gone for gone, _ in leaving)
            if not missing:
                state.plans[wanting.id] = Plan(wanting.id, leaving, self.now)
                claims = added(claims, _part_of(wanting.need(), available))
                continue
            candidates = self._candidates(wanting, reserved)
            choice = cheapest(missing, candidates)
            if choice is None:
                refusing = holders(state, wanting, missing, candidates, self.now)
                if refusing:
                    reject_for(state, wanting, refusing, self.now, self.out)
                elif self._overdue(wanting):
                    claims = added(claims, _part_of(wanting.need(), available))
                else:
                    self.note(wanting.queue.earliest_due())
                continue
            reserved.update(victim for victim, _ in choice.victims)
            if choice.at > self.now:
                self.note(choice.at)
                continue
            claims = added(claims, _part_of(wanting.need(), available))
            self._take(wanting, choice.victims, leaving)

    def _leaving_anyway(
        self, wanting: Instance, missing: dict[PoolId, int], reserved: set[InstanceId]
    ) -> tuple[tuple[tuple[InstanceId, Mode], ...], dict[PoolId, int]]:
        """Who is on the way out for reasons of its own and frees some of what is missing; what is missing beyond it.

        A failed start is still being cleared away when the next one is decided on: nobody shall go in its place.
        """
        leaving: list[tuple[InstanceId, Mode]] = []
        for other in self.state.instances.values():
            if not missing:
                break
            freed = self.state.on_its_way(other)
            if other is not wanting and other.id not in reserved and any(freed.get(pool, 0) for pool in missing):
                leaving.append((other.id, Mode.UNLOAD if other.residency is Residency.UNLOADING else Mode.STOP))
                missing = shortage(missing, freed)
        return tuple(leaving), missing

    def _is_blocked(self, instance: Instance) -> bool:
        if not len(instance.queue) or instance.residency not in LOADABLE or instance.id in self.state.plans:
            return False
        if instance.residency in GONE and not instance.spec.starts:
            return False
        if instance.retry_at > self.now and instance.failure is not None:
            self.note(instance.retry_at)
            return False
        return instance.order is None

    def _urgency(self, instance: Instance) -> tuple[int, float, float, InstanceId]:
        """Sorts the most urgent first: overdue by due time, then by waiting cost per second of work."""
        due = instance.queue.earliest_due()
        if due is not None and due <= self.now:
            return (0, due, 0.0, instance.id)
        queue = instance.queue
        rounds = math.ceil(len(queue) / max(instance.spec.slots, 1))
        work = max(instance.load_s() + rounds * instance.estimates.service.value, 0.001)
        score = queue.waited(self.now) / work + queue.weight()
        return (1, -score, queue.oldest_arrival() or 0.0, instance.id)

    def _overdue(self, instance: Instance) -> bool:
        due = instance.queue.earliest_due()
        return due is not None and due <= self.now

    def _candidates(self, wanting: Instance, reserved: set[InstanceId]) -> list[Candidate]:
        found = []
        for other in self.state.instances.values():
            if other is wanting or other.id in reserved or other.spec.pinned or other.order is not None:
                continue
            if other.attached and (other.residency not in UP or not other.yields or other.holds_on_until > self.now):
                continue
            if other.residency in UP:
                soft = other.freed_by(Mode.UNLOAD) if other.soft_unload else None
                at, cost = self._may_take(other, wanting), self._cost(other)
            elif other.residency is Residency.UNLOADED and not len(other.queue):
                soft, at, cost = None, self.now, 0.0
            elif other.residency in LOADING and not len(other.queue):
                soft, at, cost = None, self.now, 0.0  # nobody waits for this load any more
            else:
                continue
            found.append(Candidate(other.id, at, cost, other.last_used, soft, other.freed_by(Mode.STOP)))
        return found

    def _cost(self, victim: Instance) -> float:
        reload_s = victim.reload_s()
        if victim.unused:
            return reload_s * victim.estimates.rate(self.now)
        drain_s = victim.estimates.service.value
        return 1e6 + reload_s * (1 + len(victim.queue) + len(victim.running)) + drain_s

    def round_trip_s(self, victim: Instance, wanting: Instance) -> float:
        """K of the policy: what swapping ``victim`` for ``wanting`` and back again takes."""
        return victim.free_s() + wanting.load_s() + wanting.free_s() + victim.reload_s()

    def _may_take(self, victim: Instance, wanting: Instance) -> float:
        """Earliest time at which the victim's gate may be shut for ``wanting``. The heart of the policy."""
        if victim.gate is not None:
            return self.now
        if victim.unused:
            return self.now + self._hold_s(victim, wanting)
        round_trip = self.round_trip_s(victim, wanting)
        floor = victim.ready_at + self.policy.beta * round_trip
        due = wanting.queue.earliest_due()
        return max(floor, min(self._bought(victim, wanting, round_trip), math.inf if due is None else due))

    def _hold_s(self, victim: Instance, wanting: Instance) -> float:
        """How long an idle victim is kept because its last client is likely to come straight back.

        Needs learned think times; without them nobody is held.
        """
        return 0.0

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

    def _take(
        self,
        wanting: Instance,
        victims: tuple[tuple[InstanceId, Mode], ...],
        going: tuple[tuple[InstanceId, Mode], ...],
    ) -> None:
        """Shut the victims' gates; once all have drained, send them away. Others are ``going`` anyway."""
        best = wanting.queue.best_priority() or 0
        all_drained = True
        for victim_id, _ in victims:
            victim = self.state.instances[victim_id]
            self._keep_shut.add(victim_id)
            if victim.up:
                hard_stop = self.now + self.policy.hard * self.round_trip_s(victim, wanting)
                self._shut(victim, Gate(self.now, hard_stop, best))
                if not self._drained(victim):
                    all_drained = False
        if not all_drained:
            return
        leaving = [(self.state.instances[victim_id], mode) for victim_id, mode in victims]
        leaving = [(victim, Mode.UNLOAD if victim.attached else mode) for victim, mode in leaving]
        self.state.plans[wanting.id] = Plan(wanting.id, (*going, *victims), self.now)
        self.send_away(leaving, target=wanting, cause="request")

    def _shut(self, victim: Instance, gate: Gate) -> None:
        if victim.gate is None:
            self.state.move(victim, Move.SHUT, self.now)
            victim.gate = gate
        elif gate.priority > victim.gate.priority:  # someone better waits now: worse work passes no longer
            victim.gate = Gate(victim.gate.shut_at, victim.gate.hard_stop, gate.priority)

    def _drained(self, victim: Instance) -> bool:
        """Nothing of ours runs, nobody may still pass, and the backend itself says it is idle.

        Notes the time to look again, and asks the backend where it must be asked.
        """
        if victim.running:
            return False
        if victim.gate is not None and victim.queue.head(self.now, victim.gate) is not None:
            self.note(victim.gate.hard_stop)
            return False
        since = victim.idle_since if victim.idle_since is not None else victim.ready_at
        if any(one.kind is Kind.LIGHT for one in victim.light.values()):
            shut_at = victim.gate.shut_at if victim.gate is not None else since
            grace_until = max(shut_at, since) + self.policy.light_grace_s
            if self.now < grace_until:
                self.note(grace_until)
                return False
        return not victim.spec.probes_busy or self.says_idle(victim, since)

    def says_idle(self, victim: Instance, since: float) -> bool:
        """Whether the backend itself has no work; asks it where that is not known, and notes when to look again."""
        if victim.probe is Probe.IDLE:
            return True
        limit = since + self.policy.busy_limit_s
        if victim.gate is not None:
            limit = max(limit, victim.gate.shut_at + self.policy.busy_limit_s)
        if victim.probe is Probe.BUSY and self.now >= limit:
            return True
        again_at = victim.probed_at + self.policy.busy_probe_every_s
        if victim.probe is Probe.BUSY and self.now < again_at:
            self.note(min(again_at, limit))
        elif victim.probe is not Probe.ASKED:
            victim.probe, victim.probed_at = Probe.ASKED, self.now
            self.out.append(ProbeBusy(victim.id, victim.generation))
        return False

    def send_away(
        self, victims: Sequence[tuple[Instance, Mode]], *, target: Instance | None = None, cause: str
    ) -> None:
        """Order the unloads and stops, and record why.

        A soft unload that has no room for its residue becomes a stop, which frees no less; not that of a server that
        we must not stop.
        """
        modes: list[tuple[InstanceId, Mode]] = []
        for victim, wanted in victims:
            mode = wanted if victim.attached or self.state.residue_fits(victim) else Mode.STOP
            modes.append((victim.id, mode))
            if mode is Mode.UNLOAD:
                self.state.move(victim, Move.UNLOAD, self.now)
                self.out.append(UnloadInstance(victim.id, victim.generation))
            else:
                self.state.move(victim, Move.STOP, self.now)
                self.out.append(StopInstance(victim.id, victim.generation))
        oldest = target.queue.oldest_arrival() if target is not None else None
        decision = Decision(
            at=self.now,
            target=target.id if target is not None else None,
            victims=tuple(modes),
            cause=cause,
            waiting=len(target.queue) if target is not None else 0,
            waited_s=self.now - oldest if oldest is not None else 0.0,
        )
        self.state.decisions.append(decision)
        self.out.append(Record(decision))

    # -- 4. loads ----------------------------------------------------------------------------------------------

    def _load_targets(self) -> None:
        state = self.state
        for plan in list(state.plans.values()):
            target = state.instances[plan.target]
            leaving = any(state.instances[victim].residency in LEAVING for victim, _ in plan.victims)
            if target.residency in LEAVING:
                continue  # it was itself on its way out when the request came; it loads when it is gone
            if target.residency not in LOADABLE or not len(target.queue) or target.order is not None:
                del state.plans[plan.target]
            elif not shortage(target.need(), state.ledger.free()):
                if self._pool_is_free_of_loads(target):
                    del state.plans[plan.target]
                    self._load(target)
            elif not leaving:  # its victims are gone and it still does not fit: plan anew
                del state.plans[plan.target]
                self.note(self.now)

    def _pool_is_free_of_loads(self, target: Instance) -> bool:
        """Loads on one pool follow one another; one that nobody waits for any more gives way."""
        if not self.policy.one_load_per_pool:
            return True
        pools: set[PoolId] = {pool for pool, size in target.spec.footprint.items() if size}
        free = True
        for other in self.state.instances.values():
            if other.residency in LOADING and pools.intersection(other.spec.footprint):
                free = False
                if not len(other.queue) and not other.attached:
                    self.send_away([(other, Mode.STOP)], target=target, cause="request")
        return free

    def _load(self, target: Instance) -> None:
        if target.residency is Residency.UNLOADED:
            self.state.move(target, Move.WAKE, self.now)
            self.out.append(WakeInstance(target.id, target.generation))
        else:
            target.generation += 1
            self.state.move(target, Move.START, self.now)
            self.out.append(StartInstance(target.id, target.generation))

    # -- 5. gates ----------------------------------------------------------------------------------------------

    def _open_gates(self) -> None:
        for instance in self.state.instances.values():
            if instance.gate is not None and instance.id not in self._keep_shut:
                self.state.move(instance, Move.OPEN, self.now)
                self._serve(instance)

    # -- 6. idle unloads ---------------------------------------------------------------------------------------

    def _unload_idle(self) -> None:
        for instance in self.state.instances.values():
            if instance.spec.idle_unload_s is None or instance.idle_since is None or instance.order is not None:
                continue
            idle_since = max(instance.idle_since, instance.busy_seen_at)
            self._unload_when_idle(instance, idle_since + instance.spec.idle_unload_s)

    def _unload_when_idle(self, instance: Instance, at: float) -> None:
        if instance.residency is not Residency.READY or not instance.unused or not instance.yields:
            return
        at = max(at, instance.holds_on_until)
        if at > self.now:
            self.note(at)
        elif self._drained(instance):
            mode = Mode.UNLOAD if instance.soft_unload else Mode.STOP
            self.send_away([(instance, mode)], cause="idle")


def forward(instance: Instance, waiting: Waiting, now: float, out: list[Command]) -> None:
    """Hand one request over. The instance must be up and have a slot."""
    waiting.forwarded_at = now
    instance.running[waiting.id] = waiting
    instance.last_used = now
    instance.idle_since = None
    instance.probe = Probe.UNKNOWN
    out.append(Forward(waiting.id, instance.id))


def _part_of(need: Amounts, available: Amounts) -> dict[PoolId, int]:
    """The free memory a waiting instance keeps from less urgent ones."""
    return {pool: min(size, available.get(pool, 0)) for pool, size in need.items()}
