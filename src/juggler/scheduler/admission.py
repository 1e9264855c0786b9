"""May a request wait at all? Pure; every refusal is an error that says whose limit it was."""

from collections.abc import Iterable, Sequence
from typing import TypedDict

from juggler.errors import (
    BackendError,
    DoesNotFit,
    EndpointRemoved,
    JugglerError,
    NotLoaded,
    NotReady,
    QueueFull,
    ShuttingDown,
)
from juggler.ids import PoolId
from juggler.scheduler.events import Kind
from juggler.scheduler.explain import outlook
from juggler.scheduler.ledger import EXCLUSIVE_POOL, Amounts, shortage
from juggler.scheduler.state import Instance, SchedulerState
from juggler.scheduler.transitions import GONE, LOADING, Residency
from juggler.units import format_duration, format_size

RETRY_AFTER_MOST_S = 120.0
"""A queue may be gone long before its estimate says so: nobody shall be kept away for longer."""

TOO_LARGE_HINT = "raise memory.pools, lower the endpoint's memory, or free what it must share with"
ATTACHED_HINT = (
    "the attached server cannot free its memory: end it by hand, or tell the juggler how it can (`unload`, for type "
    "command)"
)


class QueueView(TypedDict):
    """Arguments of an error."""

    retry_after_s: float
    details: dict[str, object]


def refusal(state: SchedulerState, instance: Instance, kind: Kind, now: float) -> JugglerError | None:
    """Why a request that just arrived is not even queued, or None."""
    if state.shutting_down:
        return ShuttingDown("the juggler is shutting down", endpoint=instance.spec.name, phase="queued")
    if instance.retirement is not None and instance.retirement.successor is None:
        return removed_error(instance.spec.name)
    if kind in (Kind.LIGHT, Kind.HELD_OPEN):
        return None if answers_light(instance) else _not_ready(instance, now)
    if instance.residency not in GONE and instance.failure is None:
        return _queue_full(state, instance, now)
    if instance.retirement is not None:
        return _queue_full(state, instance, now)  # it waits for the one that follows, whatever became of this one
    if instance.failure is not None and now < instance.retry_at and not instance.spec.attaches:
        return _held_off(instance, now)
    return does_not_fit(state, instance) or _queue_full(state, instance, now)


def removed_error(name: str) -> EndpointRemoved:
    """For a request that a new configuration has left without an endpoint."""
    return EndpointRemoved(
        f"{name!r} is no longer served: the configuration was changed, and it is not in the new one",
        endpoint=name,
        phase="queued",
    )


def answers_light(instance: Instance) -> bool:
    """Whether a poll, a list or an asset can be forwarded now, without waking anything."""
    if instance.up:
        return True
    awake_enough = (Residency.UNLOADING, Residency.UNLOADED, Residency.WAKING)
    return instance.spec.answers_when_unloaded and instance.residency in awake_enough


def failed_recently(instance: Instance, now: float) -> JugglerError:
    """The last failure again, with the time of the next try."""
    assert instance.failure is not None
    return _once_more(instance.failure, instance.failure.message, instance.failure.hint, instance.retry_at - now)


def _held_off(instance: Instance, now: float) -> JugglerError:
    """The same for one that came during the pause after it, with the end of that pause."""
    failure, pause_s = instance.failure, instance.retry_at - now
    assert failure is not None
    text = f"{instance.spec.name!r} failed, and is started again in {format_duration(pause_s)}: {failure.message}"
    return _once_more(failure, text, failure.hint or "`juggler load` starts it at once", pause_s)


def _once_more(failure: BackendError, message: str, hint: str | None, pause_s: float) -> JugglerError:
    error: BackendError = type(failure)(
        message,
        hint=hint,
        endpoint=failure.endpoint,
        phase=failure.phase,
        retry_after_s=max(pause_s, failure.retry_after_s or 0.0),
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


_TO_LOAD = (
    "send it work (for most APIs a POST), load it with `juggler load`, or let requests like this one load it: "
    "a rule of the endpoint's `traffic`"
)


def _not_ready(instance: Instance, now: float) -> JugglerError:
    loading = instance.residency in LOADING
    if loading:
        remaining = instance.load_s() - (now - instance.order_given_at)
        text, retry_after_s = f"{instance.spec.name!r} is loading", max(1.0, remaining)
    else:
        text, retry_after_s = f"{instance.spec.name!r} is not loaded", max(1.0, instance.load_s())
    kind = NotReady if loading else NotLoaded
    return kind(
        f"{text}, and a request of this kind does not load it",
        endpoint=instance.spec.name,
        phase="queued",
        retry_after_s=retry_after_s,
        hint=None if loading else _TO_LOAD,
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
    unknown = [pool for pool, size in need.items() if size and pool not in capacity]
    if unknown:
        why = f": there is no pool {' or '.join(unknown)} (there is {' and '.join(capacity)})"
        hint = "give the endpoint's memory on a pool that there is, or declare the pool in memory.pools"
    elif shortage(need, capacity):
        why = f": {_too_little(need, capacity, shortage(need, capacity))}"
        hint = TOO_LARGE_HINT
    else:
        staying = [other for other in state.instances.values() if other is not instance and any(other.stays().values())]
        short = [pool for pool in shortage(need, left) if pool != EXCLUSIVE_POOL]
        why = f": {_too_little(need, capacity, short, staying)}"
        if not short:
            why = f" beside the {', '.join(_kept_name(other) for other in staying)}"
        attached = any(other.attached and not other.yields for other in staying)
        hint = ATTACHED_HINT if attached else TOO_LARGE_HINT
    return DoesNotFit(
        f"{instance.spec.name!r} can never be loaded{why}",
        endpoint=instance.spec.name,
        phase="queued",
        hint=hint,
    )


def _too_little(need: Amounts, capacity: Amounts, pools: Iterable[PoolId], staying: Sequence[Instance] = ()) -> str:
    """What it needs of these pools, what there is, and who keeps how much of it."""
    parts = []
    for pool in pools:
        kept = [(format_size(other.stays().get(pool, 0)), other) for other in staying if other.stays().get(pool, 0)]
        held = "".join(f", {size} of it held by the {_kept_name(other)}" for size, other in kept)
        parts.append(f"{pool} has {format_size(capacity.get(pool, 0))}{held}, it needs {format_size(need[pool])}")
    return "; ".join(parts)


def _kept_name(instance: Instance) -> str:
    return f"{'pinned' if instance.pinned else 'attached'} {instance.spec.name!r}"


def queue_timeout_text(name: str, waited_s: float, own_limit: bool | None) -> str:
    """For the error of a request that waited too long.

    Args:
        own_limit: It was its own header that set the limit; None: not known.
    """
    whose = "queue_timeout or its own X-Juggler-Max-Wait"
    if own_limit is not None:
        whose = "its own X-Juggler-Max-Wait" if own_limit else "queue_timeout"
    return f"the request waited {format_duration(waited_s)} for {name!r}, as long as {whose} allows"
