"""What must always hold, and what must never. Run after every event in tests; too slow for the hot path."""

from juggler.scheduler.ledger import NOTHING, greater
from juggler.scheduler.state import Instance, SchedulerState
from juggler.scheduler.transitions import GONE, LEAVING, LOADABLE, LOADING, UP, Residency


def check(state: SchedulerState) -> None:
    """Look at everything.

    Raises:
        AssertionError: Names the first thing that is wrong.
    """
    _check_ledger(state)
    _check_requests(state)
    for instance in state.instances.values():
        _check_instance(instance)
    for target, plan in state.plans.items():
        assert plan.target == target
        residency = state.instances[target].residency
        assert residency in LOADABLE or residency in LEAVING, f"plan for {target}, which is {residency}"
        assert all(victim in state.instances for victim, _ in plan.victims), f"plan for {target}: {plan.victims}"


def _check_ledger(state: SchedulerState) -> None:
    for pool, capacity in state.ledger.capacity.items():
        held = sum(state.ledger.held(one).get(pool, 0) for one in state.instances)
        assert held == state.ledger.used(pool), f"{pool}: sum {held} is not the running total"
        attached = sum(state.ledger.held(one.id).get(pool, 0) for one in state.instances.values() if one.attached)
        if any(instance.grown for instance in state.instances.values()):
            continue  # seen to hold more than was known when it was let in
        assert 0 <= held <= capacity + attached, f"{pool}: {held} of {capacity} bytes held"
    for instance in state.instances.values():
        held_now = state.ledger.held(instance.id)
        if instance.residency in GONE or instance.residency is Residency.ATTACHING:
            assert held_now == NOTHING, f"{instance.id} is gone and holds {held_now}"
        elif instance.residency is Residency.UNLOADED:
            assert held_now == instance.residue
        elif instance.residency in (Residency.UNLOADING, Residency.WAKING):
            assert held_now == greater(instance.full, instance.residue)
        elif instance.residency is not Residency.STOPPING:  # that keeps what it held until it is gone
            assert held_now == instance.footprint, f"{instance.id} is {instance.residency}, holds {held_now}"


def _check_requests(state: SchedulerState) -> None:
    seen = set()
    assert state.total.waiting == sum(len(instance.queue) for instance in state.instances.values())
    for instance in state.instances.values():
        for waiting in instance.queue:
            assert waiting.forwarded_at is None
            seen.add(waiting.id)
        for running in (*instance.running.values(), *instance.light.values()):
            assert running.forwarded_at is not None
            assert running.id not in seen, f"request {running.id} both waits and runs"
            seen.add(running.id)
        assert len(instance.running) <= max(instance.spec.slots, instance.carried[0])
        assert len(instance.queue) <= max(instance.spec.queue_limit, instance.carried[1])
    assert seen == set(state.requests), "a request is lost, or kept after its answer"


def _check_instance(instance: Instance) -> None:
    draining = instance.residency is Residency.DRAINING
    assert (instance.gate is not None) == draining, f"{instance.id}: gate {instance.gate} in {instance.residency}"
    if instance.residency in UP:
        assert (instance.idle_since is None) == bool(instance.running), f"{instance.id}: idle_since"
    else:
        assert instance.idle_since is None
    if instance.residency in LOADING:
        assert not instance.running or instance.failures, f"{instance.id} loads while work runs on it"
    if instance.dying:
        assert instance.residency is Residency.STOPPING
    if instance.residency is Residency.STARTING:
        assert not instance.attached, f"{instance.id} is started and attached"
        assert instance.spec.starts, f"{instance.id} has nothing to start"
    if instance.failure is None:
        assert instance.residency is not Residency.FAILED
    assert instance.queue.weight() >= 0
