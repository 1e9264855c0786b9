"""What follows from a start that failed: a pause before the next, or, where memory ran out, another try with more.

A load that ran out of memory needs more than was thought: its footprint is raised, others give way for it, and it is
tried once more. Any other failure evicts nobody; neither does one that had the memory for itself.
"""

from juggler.errors import BackendError, OutOfMemory
from juggler.scheduler.ledger import Amounts
from juggler.scheduler.state import Instance, SchedulerState
from juggler.scheduler.transitions import GONE

RETRIES = 1


def note_failure(state: SchedulerState, instance: Instance, error: BackendError, now: float) -> None:
    """The first restart is immediate, later ones wait 1, 2, 4 ... s."""
    policy = state.policy
    instance.failure = error
    instance.dying = True
    instance.failures += 1
    pause_s = 0.0
    if instance.failures > 1:
        pause_s = min(policy.back_off_first_s * 2.0 ** min(instance.failures - 2, 30), policy.back_off_limit_s)
    instance.retry_at = now + pause_s


def tries_again(state: SchedulerState, instance: Instance, error: BackendError) -> bool:
    """Whether a failed start is tried once more, with a larger footprint; to be asked while it still holds memory."""
    if not isinstance(error, OutOfMemory):
        return False
    instance.out_of_memory += 1
    raised = _raised(state, instance)
    helps = any(size > instance.full.get(pool, 0) for pool, size in raised.items())
    others = any(
        other is not instance and other.residency not in GONE and _shares(other.full, instance.full)
        for other in state.instances.values()
    )
    if helps:
        state.measure(instance, raised, None)
    return helps and others and instance.out_of_memory <= RETRIES


def _raised(state: SchedulerState, instance: Instance) -> Amounts:
    """At least a tenth more than was believed, and than was free for it; never more than the pool has."""
    factor = state.policy.out_of_memory_factor
    free, held = state.ledger.free(), state.ledger.held(instance.id)
    return {
        pool: min(state.ledger.capacity.get(pool, 0), int(factor * max(size, free.get(pool, 0) + held.get(pool, 0))))
        for pool, size in instance.full.items()
        if size
    }


def _shares(left: Amounts, right: Amounts) -> bool:
    return any(size and right.get(pool, 0) for pool, size in left.items())
