"""May a request wait at all? Pure; every refusal is an error that says whose limit it was."""

from typing import TypedDict

from juggler.errors import BackendError, DoesNotFit, JugglerError, NotReady, QueueFull, ShuttingDown
from juggler.scheduler.events import Kind
from juggler.scheduler.explain import outlook
from juggler.scheduler.ledger import EXCLUSIVE_POOL, shortage
from juggler.scheduler.state import Instance, SchedulerState
from juggler.scheduler.transitions import GONE, LOADING, Residency
from juggler.units import format_duration, format_size

RETRY_AFTER_MOST_S = 120.0
"""A queue may be gone long before its estimate says so: nobody shall be kept away for longer."""


class QueueView(TypedDict):
    """Arguments of an error."""

    retry_after_s: float
    details: dict[str, object]


def refusal(state: SchedulerState, instance: Instance, kind: Kind, now: float) -> JugglerError | None:
    """Why a request that just arrived is not even queued, or None."""
    if state.shutting_down:
        return ShuttingDown("the juggler is shutting down", endpoint=instance.spec.name, phase="queued")
    if kind in (Kind.LIGHT, Kind.HELD_OPEN):
        return None if answers_light(instance) else _not_ready(instance, now)
    if instance.residency not in GONE and instance.failure is None:
        return _queue_full(state, instance, now)
    if instance.failure is not None and now < instance.retry_at and not instance.spec.attaches:
        return failed_recently(instance, now)
    return does_not_fit(state, instance) or _queue_full(state, instance, now)


def answers_light(instance: Instance) -> bool:
    """Whether a poll, a list or an asset can be forwarded now, without waking anything."""
    if instance.up:
        return True
    awake_enough = (Residency.UNLOADING, Residency.UNLOADED, Residency.WAKING)
    return instance.spec.answers_when_unloaded and instance.residency in awake_enough


def failed_recently(instance: Instance, now: float) -> JugglerError:
    """The last failure again, with the time of the next try."""
    failure = instance.failure
    assert failure is not None
    error: BackendError = type(failure)(
        failure.message,
        hint=failure.hint,
        endpoint=failure.endpoint,
        phase=failure.phase,
        retry_after_s=max(instance.retry_at - now, failure.retry_after_s or 0.0),
        exit_status=failure.exit_status,
        log_tail=failure.log_tail,
        details=failure.details,
    )
    return error


def _queue_full(state: SchedulerState, instance: Instance, now: float) -> JugglerError | None:
    waiting = len(instance.queue)
    if waiting < instance.spec.queue_limit:
        return None
    return QueueFull(
        f"{waiting} requests already wait for {instance.spec.name!r}, the most its queue_limit allows",
        endpoint=instance.spec.name,
        phase="queued",
        **queue_view(state, instance, now),
    )


def queue_view(state: SchedulerState, instance: Instance, now: float) -> QueueView:
    """For the error of one who does not wait, or no longer: how the queue stands, and when to come back."""
    ahead = outlook(state, instance, now)
    view = {"waiting": len(instance.queue), "expected_wait_s": round(ahead.expected_s, 1), "why": ahead.why}
    return {"retry_after_s": max(1.0, min(ahead.expected_s, RETRY_AFTER_MOST_S)), "details": {"queue": view}}


def _not_ready(instance: Instance, now: float) -> JugglerError:
    loading = instance.residency in LOADING
    if loading:
        remaining = instance.load_s() - (now - instance.order_given_at)
        text, retry_after_s = f"{instance.spec.name!r} is loading", max(1.0, remaining)
    else:
        text, retry_after_s = f"{instance.spec.name!r} is not loaded", max(1.0, instance.load_s())
    return NotReady(
        f"{text}, and a request of this kind does not load it",
        endpoint=instance.spec.name,
        phase="queued",
        retry_after_s=retry_after_s,
        hint=None if loading else "send it work (a generation request), or load it with `juggler load`",
        details={"residency": instance.residency.value},
    )


def does_not_fit(state: SchedulerState, instance: Instance) -> JugglerError | None:
    """Refuse what no amount of waiting can help: too large for its pools, or for what pinned ones leave of them."""
    capacity = state.ledger.capacity
    left = state.lasting(besides=instance)
    ways = instance.ways_to_load()
    if any(not shortage(way, left) for way in ways):
        return None
    possible = [way for way in ways if not shortage(way, capacity)]
    need = min(possible or ways, key=lambda way: sum(shortage(way, capacity).values()))
    missing = shortage(need, capacity)
    pools = ", ".join(
        f"{pool} has {format_size(capacity.get(pool, 0))}, it needs {format_size(size)}"
        for pool, size in need.items()
        if pool in missing or (not missing and pool != EXCLUSIVE_POOL)
    )
    beside = ""
    if not missing:
        staying = [other for other in state.instances.values() if other is not instance and any(other.stays().values())]
        names = ", ".join(f"{'pinned' if other.spec.pinned else 'attached'} {other.spec.name!r}" for other in staying)
        beside = f" beside the {names}"
    return DoesNotFit(
        f"{instance.spec.name!r} can never be loaded{beside}{': ' + pools if pools else ''}",
        endpoint=instance.spec.name,
        phase="queued",
        hint="raise memory.pools, lower the endpoint's memory, or free what it must share with",
    )


def queue_timeout_text(name: str, waited_s: float) -> str:
    """For the error of a request that waited too long."""
    waited = format_duration(waited_s)
    return f"the request waited {waited} for {name!r}, as long as queue_timeout or its own X-Juggler-Max-Wait allows"
