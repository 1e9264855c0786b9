"""A new configuration, taken up while everything runs.

What changes only in its rules changes in place, at once. An instance whose process has to be another one retires: it
takes no further requests, those that run end, then its process is stopped. Until that is gone it keeps its memory in
the ledger, and its queue: whoever waits there is served by what follows. One that was removed refuses its queue, and
is forgotten in the end.

Requests that a change brings in, or lets run, above a limit that it lowers are kept: nobody is refused for having
come before.
"""

from typing import TYPE_CHECKING

from juggler.scheduler.admission import removed_error
from juggler.scheduler.commands import Command, InstanceRetired, Mode, Reject
from juggler.scheduler.events import OrderKind, Reconfigured
from juggler.scheduler.ledger import Amounts
from juggler.scheduler.queue import Gate
from juggler.scheduler.state import Instance, InstanceSpec, Order, Retirement, SchedulerState
from juggler.scheduler.transitions import GONE, LEAVING, LOADING, Move, Residency

if TYPE_CHECKING:
    from juggler.scheduler.decide import DecisionPass


def on_reconfigured(state: SchedulerState, event: Reconfigured, out: list[Command]) -> None:
    """Note what is to be; the decision pass that follows begins with it."""
    if state.shutting_down:
        return
    state.policy = event.policy
    for spec in event.added:
        leaving = state.instances.get(spec.id)
        if leaving is None:
            state.add(spec)
        else:
            _retire(leaving, spec)
    for spec in event.updated:
        _update(state, state.instances[spec.id], spec)
    for spec in event.replaced:
        _retire(state.instances[spec.id], spec)
    for name in event.removed:
        _retire(state.instances[name], None)
    if event.capacity is not None:
        _resize(state, event.capacity)
    _move_requests(state, event)
    for name in event.removed:
        _refuse_all(state, state.instances[name], out)


def carry_out(decision_pass: "DecisionPass", instance: Instance, retirement: Retirement) -> None:
    """Get on with the end of an instance, as far as its running requests allow."""
    decision_pass.keep_shut.add(instance.id)
    residency = instance.residency
    if residency in GONE:
        if not instance.running and not instance.light:  # those of a process that has just ended end in a moment
            _succeed(decision_pass, instance, retirement)
    elif residency in LEAVING or (instance.attached and residency is Residency.WAKING):
        return  # what comes next is decided when that is over
    elif residency in LOADING or residency in (Residency.UNLOADED, Residency.ATTACHING):
        decision_pass.send_away([(instance, Mode.STOP)], cause="reload")
    else:
        decision_pass.shut(instance, Gate.nobody(decision_pass.now))
        # What an attached server does by itself goes on when we let go of it.
        idle = not instance.running if instance.attached else decision_pass.drained(instance)
        if idle:
            decision_pass.send_away([(instance, Mode.STOP)], cause="reload")


def _succeed(decision_pass: "DecisionPass", instance: Instance, retirement: Retirement) -> None:
    state, successor = decision_pass.state, retirement.successor
    plan = state.plans.get(instance.id)
    if plan is not None:
        decision_pass.drop(plan, "its configuration was changed")
    decision_pass.finish_order(instance, "done")
    if instance.residency is Residency.FAILED:
        state.move(instance, Move.RETIRE, decision_pass.now)
    if successor is not None:
        state.replace(instance, successor)
    else:
        state.forget(instance)
    decision_pass.out.append(InstanceRetired(instance.id, replaced=successor is not None))


def _retire(instance: Instance, successor: InstanceSpec | None) -> None:
    told = instance.order.ids if instance.order is not None else []
    instance.order = Order(OrderKind.RESTART, told, Retirement(successor))


def _update(state: SchedulerState, instance: Instance, spec: InstanceSpec) -> None:
    if instance.order is not None and instance.order.retirement is not None:
        instance.order.retirement = Retirement(spec)
        return
    instance.spec = spec
    if spec.placements:  # its memory was declared anew
        if instance.residency in GONE:
            state.expect(instance, spec.placements, spec.footprint_unloaded, whole=spec.whole, sure=spec.sure)
        else:
            state.keep(instance, spec.footprint_kept)
    _carry(instance)


def _carry(instance: Instance) -> None:
    running, waiting = instance.carried
    instance.carried = (max(running, len(instance.running)), max(waiting, len(instance.queue)))


def _resize(state: SchedulerState, capacity: Amounts) -> None:
    """Whoever holds more than there is now does so until he goes; nobody new is let in on top."""
    state.ledger.resize(capacity)
    over = {pool for pool, size in capacity.items() if state.ledger.used(pool) > size}
    for instance in state.instances.values():
        if any(pool in over and size for pool, size in state.ledger.held(instance.id).items()):
            instance.grown = True
        state.fit_the_unknown(instance)


def _move_requests(state: SchedulerState, event: Reconfigured) -> None:
    arriving: dict[Instance, bool] = {}
    for request, name in event.moved.items():
        waiting = state.requests.get(request)
        if waiting is None or waiting.forwarded_at is not None or waiting.instance == name:
            continue
        target = state.instances[name]
        if target not in arriving and not len(target.queue):
            target.attach_tried = False
        waiting = state.instances[waiting.instance].queue.remove(request)
        waiting.instance = name
        target.queue.add(waiting)
        arriving[target] = True
    for target in arriving:
        # Queues are in the order of arrival, and those who were moved came before some who were there.
        for waiting in sorted(target.queue.pop_all(), key=lambda one: (one.arrived_at, one.id)):
            target.queue.add(waiting)
        _carry(target)


def _refuse_all(state: SchedulerState, instance: Instance, out: list[Command]) -> None:
    for waiting in instance.queue.pop_all():
        del state.requests[waiting.id]
        out.append(Reject(waiting.id, removed_error(instance.spec.name)))
