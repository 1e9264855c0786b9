"""Instances whose server somebody else runs: found rather than started, asked rather than stopped.

* A request for one that is down first looks for the server (``AttachInstance``), which needs no memory and takes
  nobody else's. Only if nothing is there, a process is started, where the configuration has one to start.
* A server that is found while the memory is taken comes on top: it is soft-unloaded before anything else happens to
  it, and its requests then wake it in their turn.
* One that does not free its memory keeps it. It is asked again after a pause; until then requests that need the
  memory are refused, with its name: waiting would not help them.
"""

from collections.abc import Sequence

from juggler.errors import MemoryHeld
from juggler.scheduler.admission import failed_recently
from juggler.scheduler.commands import AttachInstance, Command, Mode, OrderDone, Record, Reject
from juggler.scheduler.events import AttachMissed, OrderKind, UnloadFailed
from juggler.scheduler.eviction import Candidate
from juggler.scheduler.ledger import Amounts, added, reduced, shortage
from juggler.scheduler.state import Instance, Order, SchedulerState
from juggler.scheduler.transitions import GONE, Move


def attach(state: SchedulerState, instance: Instance, now: float, out: list[Command]) -> None:
    """Look for the server. The instance must be gone."""
    instance.generation += 1
    state.move(instance, Move.ATTACH, now)
    out.append(AttachInstance(instance.id, instance.generation))


def attach_where_asked_for(state: SchedulerState, now: float, out: list[Command]) -> None:
    """Look for the servers of all instances that are down and have requests waiting, once per wait."""
    for instance in state.instances.values():
        if not instance.spec.attaches or instance.residency not in GONE or instance.order is not None:
            continue
        if len(instance.queue) and not instance.attach_tried:
            attach(state, instance, now, out)


def on_attached(state: SchedulerState, instance: Instance) -> None:
    """The server is there and counts as loaded; where it came on top of others it is unloaded first."""
    if state.overcommitted(instance) and instance.soft_unload and instance.order is None:
        instance.order = Order(OrderKind.UNLOAD, [])


def on_missed(state: SchedulerState, instance: Instance, event: AttachMissed, out: list[Command]) -> None:
    """Nothing is there: a process is started instead, or the requests are refused."""
    state.move(instance, Move.NOT_ATTACHED, event.now)
    instance.attach_tried = True
    if instance.spec.starts and (instance.failure is None or event.now >= instance.retry_at):
        return
    if not instance.spec.starts:
        instance.failure, instance.retry_at = event.error, event.now
    for waiting in instance.queue.pop_all():
        del state.requests[waiting.id]
        out.append(Reject(waiting.id, failed_recently(instance, event.now)))


def on_unload_refused(state: SchedulerState, instance: Instance, event: UnloadFailed, out: list[Command]) -> None:
    """It keeps its memory and its place; whoever waited for the memory looks elsewhere."""
    state.move(instance, Move.UNLOAD_REFUSED, event.now)
    instance.idle_since = event.now
    instance.holds_on = event.detail
    instance.holds_on_until = event.now + state.policy.ask_again_s
    for target, plan in list(state.plans.items()):
        if any(victim == instance.id for victim, _ in plan.victims):
            del state.plans[target]
    if instance.order is not None and instance.order.retirement is None:
        detail = f"it did not free its memory{f': {event.detail}' if event.detail else ''}"
        out.extend(OrderDone(order, detail) for order in instance.order.ids)
        instance.order = None
    out.append(Record(state.decided(event.now, None, ((instance.id, Mode.UNLOAD),), "unload refused")))


def holders(
    state: SchedulerState, wanting: Instance, missing: Amounts, candidates: Sequence[Candidate], now: float
) -> list[Instance]:
    """The attached servers that refuse to free what ``wanting`` needs; none if others stand in its way as well.

    None either if it would fit beside them once others have had their turn.

    Args:
        missing: What is missing now, more than all ``candidates`` together could free.
    """
    refusing = [
        one
        for one in state.instances.values()
        if one is not wanting and one.attached and one.up and one.holds_on_until > now
    ]
    if not refusing:
        return []
    left = state.lasting(besides=wanting)
    for one in refusing:
        left = reduced(left, one.freed_by(Mode.UNLOAD))
    if any(not shortage(way, left) for way in wanting.ways_to_load()):
        return []
    freed: Amounts = {}
    for amounts in (*(one.by_stop for one in candidates), *(one.freed_by(Mode.UNLOAD) for one in refusing)):
        freed = added(freed, amounts)
    return [] if shortage(missing, freed) else refusing


def reject_for(
    state: SchedulerState, wanting: Instance, refusing: list[Instance], now: float, out: list[Command]
) -> None:
    """Refuse all who wait for ``wanting``: their memory is held by servers that we must not stop."""
    names = ", ".join(repr(one.spec.name) for one in refusing)
    why = "; ".join(dict.fromkeys(one.holds_on for one in refusing if one.holds_on))
    again_s = max(one.holds_on_until for one in refusing) - now
    for waiting in wanting.queue.pop_all():
        del state.requests[waiting.id]
        error = MemoryHeld(
            f"{wanting.spec.name!r} cannot be loaded: its memory is held by the attached {names}, "
            f"which did not free it{f' ({why})' if why else ''}",
            endpoint=wanting.spec.name,
            phase="queued",
            retry_after_s=max(1.0, again_s),
            hint="end or unload that server by hand, or let the juggler start it (`binary` instead of `attach_to`)",
            details={"held_by": [str(one.id) for one in refusing]},
        )
        out.append(Reject(waiting.id, error))
