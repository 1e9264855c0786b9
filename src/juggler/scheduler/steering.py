"""What an operator may wish of the scheduler while it runs: each is noted here, and decided on afterwards.

All of them may be wished twice, or when there is nothing left to do.
"""

from collections.abc import Callable
from typing import Any

from juggler.errors import BackendStopped, Cancelled
from juggler.scheduler.commands import Command, OrderDone, Reject
from juggler.scheduler.events import (
    InstancePinned,
    OrderGiven,
    OrderKind,
    RequestCancelled,
    RequestPromoted,
    SwapsLocked,
)
from juggler.scheduler.state import Instance, Order, SchedulerState

Steering = Callable[[SchedulerState, Any, list[Command]], None]
"""Notes one kind of event of an operator."""

_STRENGTH = {OrderKind.UNLOAD: 0, OrderKind.RESTART: 1, OrderKind.STOP: 2}
"""Of several orders for one instance the strongest is carried out."""


def on_order_given(state: SchedulerState, event: OrderGiven, out: list[Command]) -> None:
    instance = state.instances.get(event.instance)
    if state.shutting_down or instance is None:
        out.append(OrderDone(event.order, "shutting down" if state.shutting_down else "it is configured no longer"))
        return
    if instance.order is None:
        instance.order = Order(event.kind, [event.order])
    else:
        instance.order.ids.append(event.order)
        instance.order.kind = max(instance.order.kind, event.kind, key=_STRENGTH.__getitem__)
    if event.kind is OrderKind.STOP:
        _refuse_waiters(state, instance, out)


def _refuse_waiters(state: SchedulerState, instance: Instance, out: list[Command]) -> None:
    for waiting in instance.queue.pop_all():
        del state.requests[waiting.id]
        text = f"{instance.spec.name!r} was stopped by the operator while the request waited for it"
        error = BackendStopped(text, endpoint=instance.spec.name, phase="queued", retry_after_s=1.0)
        out.append(Reject(waiting.id, error))


def on_instance_pinned(state: SchedulerState, event: InstancePinned, out: list[Command]) -> None:
    instance = state.instances.get(event.instance)
    if instance is not None:  # else a new configuration has just removed it
        instance.pin = event.pinned


def on_swaps_locked(state: SchedulerState, event: SwapsLocked, out: list[Command]) -> None:
    state.locked = event.locked


def on_request_cancelled(state: SchedulerState, event: RequestCancelled, out: list[Command]) -> None:
    waiting = state.requests.get(event.request)
    if waiting is None or waiting.forwarded_at is not None:
        return
    instance = state.instances[waiting.instance]
    del state.requests[waiting.id]
    instance.queue.remove(waiting.id)
    text = f"the operator cancelled the request while it waited for {instance.spec.name!r}"
    out.append(Reject(waiting.id, Cancelled(text, endpoint=instance.spec.name, phase="queued")))


def on_request_promoted(state: SchedulerState, event: RequestPromoted, out: list[Command]) -> None:
    waiting = state.requests.get(event.request)
    if waiting is not None and waiting.forwarded_at is None:
        state.instances[waiting.instance].queue.promote(waiting.id, event.now)
