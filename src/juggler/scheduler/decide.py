"""The decision pass: who is served, who loads, who has to go. Synchronous, one pass, acted upon afterwards.

The pass follows scheduling.md section 3 in this order:

1. carry out operator's orders whose instance has drained;
2. serve: hand queued requests to instances that are up, within their slots and past their gates;
3. plan swaps for those who are blocked (``swaps``);
4. load the targets of plans whose memory is free; drop plans that nobody needs or that cannot come true; give up
   starts that nobody waits for;
5. open the gates that no longer serve anybody, and serve those;
6. unload whoever has been idle for as long as its endpoint allows.

Every time that could change a decision later is noted with ``wake_at``; the caller turns the earliest into the one
timer there is. Nothing here starts a wait without one.
"""

import math
from collections.abc import Sequence

from juggler.ids import InstanceId, PoolId
from juggler.scheduler.attach import attach_where_asked_for
from juggler.scheduler.commands import (
    Command,
    Considered,
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
from juggler.scheduler.ledger import NOTHING, Amounts, shortage
from juggler.scheduler.queue import Gate, Waiting
from juggler.scheduler.reconfigure import carry_out as carry_out_retirement
from juggler.scheduler.state import Instance, Plan, Probe, SchedulerState
from juggler.scheduler.swaps import SwapPlanner
from juggler.scheduler.transitions import LEAVING, LOADABLE, LOADING, Move, Residency

GIVEN_UP = {
    "request": "nobody waited for it any more, and somebody else needs the memory",
    "operator": "by order of the operator",
    "reload": "its configuration was changed",
    "shutdown": "the juggler shuts down",
    "let go": "the juggler shuts down",
    "abandoned": "nobody waits for it any more",
}
"""Why a start was ended before it was through, by the cause of that decision."""


class DecisionPass:
    """One pass over the state at one moment."""

    def __init__(self, state: SchedulerState, now: float, out: list[Command]) -> None:
        self.state = state
        self.policy = state.policy
        self.now = now
        self.out = out
        self.wake_at: float | None = None
        self.keep_shut: set[InstanceId] = set()
        """Whose gates stay shut after this pass."""

    def run(self) -> None:
        """Decide everything that can be decided now."""
        self._carry_out_orders()
        self._serve_all()
        attach_where_asked_for(self.state, self.now, self.out)
        SwapPlanner(self).run()
        self._load_targets()
        if not self.state.locked:
            self._abandon_loads()
        self._open_gates()
        if not self.state.locked:
            self._unload_idle()

    def note(self, at: float | None) -> None:
        """Something may change at this time."""
        if at is not None and at != math.inf and (self.wake_at is None or at < self.wake_at):
            self.wake_at = at

    # -- 1. orders ---------------------------------------------------------------------------------------------

    def _carry_out_orders(self) -> None:
        ordered = [instance for instance in self.state.instances.values() if instance.order is not None]
        for instance in ordered:
            self._carry_out(instance)

    def _carry_out(self, instance: Instance) -> None:
        order = instance.order
        assert order is not None
        if order.retirement is not None:
            carry_out_retirement(self, instance, order.retirement)
            return
        self.keep_shut.add(instance.id)
        soft = instance.soft_unload and (order.kind is OrderKind.UNLOAD or instance.attached)
        if instance.up and not instance.yields:
            self.keep_shut.discard(instance.id)
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
            self.shut(instance, Gate.nobody(self.now))
            if self.drained(instance):
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

    # -- 3. gates of those who must go (swaps.py decides who) --------------------------------------------------

    def shut(self, victim: Instance, gate: Gate) -> None:
        """Let nobody new pass; a gate that is shut already takes the better class, or is shut for good as this one."""
        if victim.gate is None:
            self.state.move(victim, Move.SHUT, self.now)
            victim.gate = gate
        elif gate.hard_stop <= self.now < victim.gate.hard_stop:
            victim.gate = gate
        elif gate.priority > victim.gate.priority:  # someone better waits now: worse work passes no longer
            victim.gate = Gate(victim.gate.shut_at, victim.gate.hard_stop, gate.priority)

    def drained(self, victim: Instance) -> bool:
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
        if victim.probe is Probe.IDLE and self.now < victim.probed_at + self.policy.idle_believed_s:
            return True
        limit = math.inf  # while nobody wants its memory a job may take as long as it likes
        if victim.gate is not None:
            limit = max(since, victim.gate.shut_at) + self.policy.busy_limit_s
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
        self,
        victims: Sequence[tuple[Instance, Mode]],
        *,
        target: Instance | None = None,
        cause: str,
        missing: Amounts = NOTHING,
        considered: tuple[Considered, ...] = (),
        expected_s: float = 0.0,
    ) -> Decision:
        """Order the unloads and stops, and record why.

        A soft unload that has no room for its residue becomes a stop, which frees no less; not that of a server that
        we must not stop.
        """
        modes: list[tuple[InstanceId, Mode]] = []
        for victim, wanted in victims:
            settle(victim, f"given up: {GIVEN_UP.get(cause, cause)}", self.now, self.out)
            mode = wanted if victim.attached or self.state.residue_fits(victim) else Mode.STOP
            modes.append((victim.id, mode))
            if mode is Mode.UNLOAD:
                self.state.move(victim, Move.UNLOAD, self.now)
                self.out.append(UnloadInstance(victim.id, victim.generation))
            else:
                self.state.move(victim, Move.STOP, self.now)
                self.out.append(StopInstance(victim.id, victim.generation))
        oldest = target.queue.oldest() if target is not None else None
        decision = self.state.decided(
            self.now,
            target.id if target is not None else None,
            tuple(modes),
            cause,
            waiting=len(target.queue) if target is not None else 0,
            waited_s=self.now - oldest.arrived_at if oldest is not None else 0.0,
            client=oldest.client if oldest is not None else "",
            request=oldest.id if oldest is not None else None,
            missing=missing,
            considered=considered,
            expected_s=expected_s,
        )
        self.out.append(Record(decision))
        return decision

    # -- 4. loads ----------------------------------------------------------------------------------------------

    def _load_targets(self) -> None:
        state = self.state
        awaited: set[PoolId] = set()  # by those who have their memory and wait until others have loaded
        for plan in list(state.plans.values()):
            target = state.instances[plan.target]
            leaving = any(state.instances[victim].residency in LEAVING for victim, _ in plan.victims)
            if target.residency in LEAVING:
                continue  # it was itself on its way out when the request came; it loads when it is gone
            if target.residency not in LOADABLE or not len(target.queue) or target.order is not None:
                self.drop(plan, "nobody waits for it any more")
            elif not shortage(target.need(), state.ledger.free()):
                pools = {pool for pool, size in target.full.items() if size}
                if not self._pool_is_free_of_loads(target, pools) or pools & awaited:
                    awaited |= pools
                else:
                    del state.plans[plan.target]
                    self._load(target, plan.decision)
            elif not leaving:  # its victims are gone and it still does not fit: plan anew
                self.drop(plan, "freed too little: decided anew")
                self.note(self.now)

    def drop(self, plan: Plan, why: str) -> None:
        del self.state.plans[plan.target]
        if plan.decision is not None:
            conclude(plan.decision, why, self.now, self.out)

    def _pool_is_free_of_loads(self, target: Instance, pools: set[PoolId]) -> bool:
        """Loads that need the pool for themselves follow one another; one that nobody waits for any more gives way."""
        free = True
        for other in self.state.instances.values():
            if other.residency not in LOADING or not pools.intersection(other.full):
                continue
            if self.policy.one_load_per_pool or target.loads_alone or other.loads_alone:
                free = False
                if not len(other.queue) and not other.attached and not self.state.locked:
                    self.send_away([(other, Mode.STOP)], target=target, cause="request")
        return free

    def _load(self, target: Instance, decision: Decision | None) -> None:
        target.swap = decision
        target.unwanted_since = None
        needed = target.need()
        if target.residency is Residency.UNLOADED:
            self.state.move(target, Move.WAKE, self.now)
            self.out.append(WakeInstance(target.id, target.generation, needed))
        else:
            target.generation += 1
            target.cached_at_start = target.cached
            self.state.move(target, Move.START, self.now)
            self.out.append(StartInstance(target.id, target.generation, needed))

    def _abandon_loads(self) -> None:
        """Give up starts that nobody has waited for since a while."""
        grace_s = self.policy.abandon_after_s
        if grace_s is None:
            return
        for instance in self.state.instances.values():
            if instance.residency is not Residency.STARTING or len(instance.queue):
                instance.unwanted_since = None
                continue
            if instance.unwanted_since is None:
                instance.unwanted_since = self.now
            if self.now >= instance.unwanted_since + grace_s:
                self.send_away([(instance, Mode.STOP)], cause="abandoned")
            else:
                self.note(instance.unwanted_since + grace_s)

    # -- 5. gates ----------------------------------------------------------------------------------------------

    def _open_gates(self) -> None:
        for instance in self.state.instances.values():
            if instance.gate is not None and instance.id not in self.keep_shut:
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
        elif self.drained(instance):
            mode = Mode.UNLOAD if instance.soft_unload else Mode.STOP
            self.send_away([(instance, mode)], cause="idle")


def settle(instance: Instance, outcome: str, now: float, out: list[Command]) -> None:
    """Note what came of the decision that the instance's start under way came from, if it is under way."""
    decision, instance.swap = instance.swap, None
    if decision is not None:
        conclude(decision, outcome, now, out)


def conclude(decision: Decision, outcome: str, now: float, out: list[Command]) -> None:
    """Note what came of a decision, and have it logged."""
    decision.took_s, decision.outcome = now - decision.at, outcome
    out.append(Record(decision))


def forward(instance: Instance, waiting: Waiting, now: float, out: list[Command]) -> None:
    """Hand one request over. The instance must be up and have a slot."""
    take(instance, waiting, now)
    out.append(Forward(waiting.id, instance.id))


def take(instance: Instance, waiting: Waiting, now: float) -> None:
    """The instance works on one more request."""
    waiting.forwarded_at = now
    instance.running[waiting.id] = waiting
    instance.queue.claim = math.inf
    instance.last_used = now
    instance.idle_since = None
    instance.probe = Probe.UNKNOWN
