"""The state as plain JSON data. A snapshot may be stale the moment it is made and never gates an action."""

from juggler import __version__
from juggler.engine import Engine
from juggler.ids import InstanceId
from juggler.scheduler.explain import outlook
from juggler.scheduler.ledger import Amounts
from juggler.scheduler.state import Instance
from juggler.scheduler.transitions import GONE
from juggler.warmup import Warmup


def status(engine: Engine, warmup: Warmup, now: float) -> dict[str, object]:
    """Everything ``juggler ps --json`` prints. Times are seconds, sizes bytes."""
    state = engine.scheduler.state
    endpoints_of: dict[InstanceId, list[str]] = {}
    for endpoint, policy in engine.endpoints.items():
        endpoints_of.setdefault(policy.instance, []).append(endpoint)
    return {
        "version": __version__,
        "shutting_down": state.shutting_down,
        "pools": [
            {
                "pool": pool,
                "capacity_bytes": size,
                "used_bytes": state.ledger.used(pool),
                "foreign_bytes": state.ledger.foreign.get(pool, 0),
                "foreign_users": state.users.get(pool, ""),
            }
            for pool, size in state.ledger.capacity.items()
        ],
        "instances": [_instance(engine, one, endpoints_of.get(one.id, []), now) for one in state.instances.values()],
        "warmup": [
            {"endpoint": entry.endpoint, "state": entry.state, "error": entry.error, "seconds": entry.seconds}
            for entry in warmup.entries
        ],
    }


def _instance(engine: Engine, instance: Instance, endpoints: list[str], now: float) -> dict[str, object]:
    state = engine.scheduler.state
    supervisor = engine.supervisors.get(instance.id)
    address = supervisor.address if supervisor is not None else None
    ahead = outlook(state, instance, now)
    oldest = instance.queue.oldest_arrival()
    failure = instance.failure
    return {
        "instance": instance.id,
        "endpoints": endpoints,
        "state": _state(instance),
        "attached": instance.attached,
        "holds_on": instance.holds_on if instance.attached and instance.holds_on_until > now else None,
        "residency": instance.residency.value,
        "running": len(instance.running),
        "waiting": len(instance.queue),
        "light": len(instance.light),
        "waits_for": ahead.why or None,
        "waited_s": None if oldest is None else round(now - oldest, 1),
        "expected_wait_s": round(ahead.expected_s, 1) if len(instance.queue) else None,
        "held_bytes": _plain(state.ledger.held(instance.id)),
        "needs_bytes": _plain(instance.full),
        "memory_origin": engine.keeper.origin(instance.id).value if engine.keeper is not None else None,
        "idle_s": None if instance.idle_since is None else round(now - instance.idle_since, 1),
        "starts": instance.generation,
        "load_s": round(instance.load_s(), 3) if instance.estimates.load_samples else None,
        "address": str(address)
        if address is not None and instance.residency.value not in ("stopped", "failed")
        else None,
        "error": None
        if failure is None
        else {
            "message": failure.message,
            "hint": failure.hint,
            "exit_status": failure.exit_status,
            "log_tail": list(failure.log_tail),
            "retry_in_s": round(max(instance.retry_at - now, 0.0), 1),
        },
    }


def _plain(amounts: Amounts) -> dict[str, int]:
    return {str(pool): size for pool, size in amounts.items()}


def _state(instance: Instance) -> str:
    """The word shown: the residency, ``busy`` while it works, ``down`` for an attached server that is not there."""
    if instance.up and instance.running:
        return "busy"
    if instance.residency in GONE and not instance.spec.starts:
        return "down"
    return instance.residency.value
