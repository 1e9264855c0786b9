"""Memory that is taken by programs which are none of ours: believed as measured, named in errors, never evicted."""

from juggler.errors import MemoryHeld
from juggler.scheduler.commands import Command, Mode, Reject
from juggler.scheduler.events import PoolsMeasured, StartDeferred
from juggler.scheduler.ledger import Amounts, reduced, shortage
from juggler.scheduler.state import Instance, SchedulerState
from juggler.scheduler.transitions import GONE
from juggler.units import format_size

RETRY_AFTER_S = 10.0
"""Other programs end when their users close them; a client may look again after this."""


def believe(state: SchedulerState, event: PoolsMeasured | StartDeferred) -> None:
    """Take over what was measured; a deferred start speaks for the pools it names only."""
    measured = {pool: size for pool, size in event.foreign.items() if pool in state.ledger.capacity}
    if isinstance(event, StartDeferred):
        measured = {**state.ledger.foreign, **measured}
        state.users.update(event.users)
    else:
        state.users = dict(event.users)
        state.measuring = False
    state.ledger.foreign = {pool: size for pool, size in measured.items() if size > 0}
    state.measured_at = event.now
    for instance in state.instances.values():
        state.fit_the_unknown(instance)


def blamed_on_others(state: SchedulerState, wanting: Instance, way: Amounts) -> bool:
    """Whether the foreign users alone keep the instance out: with all that can go gone, it would fit without them."""
    if not any(state.ledger.foreign.get(pool, 0) for pool in way):
        return False
    left = dict(state.ledger.capacity)
    for other in state.instances.values():
        if other is wanting or other.residency in GONE:
            continue
        stays = other.pinned or not other.yields or (other.attached and len(other.queue) > 0)
        held = state.ledger.held(other.id)
        left = reduced(left, held if stays else reduced(held, other.freed_by(Mode.STOP)))
    return not shortage(way, left) and bool(shortage(way, reduced(left, state.ledger.foreign)))


def reject_for_foreign_users(state: SchedulerState, wanting: Instance, way: Amounts, out: list[Command]) -> None:
    """Refuse all who wait for the instance: waiting for a stranger's program to end has no bound."""
    for waiting in wanting.queue.pop_all():
        del state.requests[waiting.id]
        out.append(Reject(waiting.id, _held_by_others(state, wanting, way)))


def _held_by_others(state: SchedulerState, wanting: Instance, way: Amounts) -> MemoryHeld:
    parts = []
    for pool, size in way.items():
        taken = state.ledger.foreign.get(pool, 0)
        if taken:
            users = state.users.get(pool) or f"{format_size(taken)} by programs that cannot be seen from here"
            of = format_size(state.ledger.capacity[pool])
            parts.append(f"it needs {format_size(size)} of the {of} of {pool}, and others use {users}")
    return MemoryHeld(
        f"{wanting.spec.name!r} cannot be loaded: {'; '.join(parts)}",
        endpoint=wanting.spec.name,
        phase="queued",
        retry_after_s=RETRY_AFTER_S,
        hint="close those programs, or lower the endpoint's memory",
        details={"foreign_bytes": {str(pool): size for pool, size in state.ledger.foreign.items()}},
    )
