"""What a request waits for, in words, and how long that may take. Pure; for people and ``Retry-After``."""

from dataclasses import dataclass

from juggler.scheduler.state import Instance, SchedulerState
from juggler.scheduler.transitions import GONE, LEAVING, LOADING, Residency
from juggler.scheduler.value import Valuation, work_s
from juggler.units import format_duration


@dataclass(frozen=True, slots=True)
class Outlook:
    """The queue of one instance."""

    why: str
    """What stands in the way now; empty if nothing does."""
    expected_s: float
    """Rough seconds until the last of those who wait now would be served."""


def outlook(state: SchedulerState, instance: Instance, now: float) -> Outlook:
    """Why the requests of an instance wait."""
    serve_s = work_s(instance)
    if instance.residency is Residency.READY:
        busy = len(instance.running) >= instance.spec.slots
        slots = instance.spec.slots
        all_used = "its only slot is in use" if slots == 1 else f"all its {slots} slots are in use"
        why = all_used if busy else ""
        return Outlook(why if len(instance.queue) else "", serve_s)
    load_s = instance.load_s()
    if instance.residency in LOADING:
        left_s = max(0.0, load_s - (now - instance.order_given_at))
        return Outlook(f"it is loading, {format_duration(left_s)} more are expected", left_s + serve_s)
    if instance.residency is Residency.DRAINING:
        return Outlook("it gives way to another once what runs has ended", load_s + serve_s)
    if instance.residency in LEAVING:
        return Outlook("it has just been sent away, and is loaded again when it is gone", load_s + serve_s)
    if not len(instance.queue):
        return Outlook("", load_s)
    if instance.retry_at > now and instance.failure is not None:
        pause_s = instance.retry_at - now
        return Outlook(f"its last start failed; the next is in {format_duration(pause_s)}", pause_s + load_s + serve_s)
    plan = state.plans.get(instance.id)
    if plan is not None:
        return _in_plan(state, [state.instances[victim] for victim, _ in plan.victims], load_s + serve_s)
    return _blocked(state, instance, now, load_s + serve_s)


def _in_plan(state: SchedulerState, victims: list[Instance], then_s: float) -> Outlook:
    leaving = [one for one in victims if one.residency in LEAVING]
    if leaving:
        free_s = max(one.free_s() for one in leaving)
        return Outlook(f"{_names(leaving)} is on the way out", free_s + then_s)
    loading = [one for one in state.instances.values() if one.residency in LOADING]
    if loading:
        return Outlook(f"{_names(loading)} loads first", max(one.load_s() for one in loading) + then_s)
    return Outlook("", then_s)


def _blocked(state: SchedulerState, instance: Instance, now: float, then_s: float) -> Outlook:
    """Nobody was sent away yet: who keeps its place, and until when."""
    valuation = Valuation(state, now, instance.queue.weight())
    reasons, wait_s = [], 0.0
    for other in state.instances.values():
        if other is instance or other.residency in GONE:
            continue
        excluded = valuation.excluded(other)
        if excluded is not None:
            reasons.append(f"{other.spec.name}: {excluded}")
            continue
        verdict = valuation.may_take(other, instance)
        reasons.append(f"{other.spec.name}: {verdict.why}")
        until_s = max(0.0, min(verdict.at - now, 3600.0))
        drain_s = other.estimates.service.value if other.running else 0.0
        wait_s = max(wait_s, until_s + drain_s + other.free_s())
    if state.ledger.foreign and state.users:
        reasons += [f"{pool}: {users}" for pool, users in state.users.items()]
    return Outlook("; ".join(reasons), wait_s + then_s)


def _names(instances: list[Instance]) -> str:
    return ", ".join(one.spec.name for one in instances)
