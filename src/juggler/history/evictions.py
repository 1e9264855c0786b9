"""Why an instance had to go, in half a sentence. Pure."""

from collections.abc import Callable

from juggler.ids import InstanceId
from juggler.scheduler.commands import Decision
from juggler.scheduler.telling import CAUSES
from juggler.scheduler.value import IN_USE_COST

_EQUAL_COST_S = 0.001


def eviction_text(decision: Decision, victim: InstanceId, name_of: Callable[[InstanceId], str]) -> str:
    """``evicted by sdxl, least recently used``; empty where the decision says nothing of the victim.

    Args:
        name_of: The operator's name of an instance.
    """
    if decision.target is None:
        return CAUSES.get(decision.cause, decision.cause)
    text = f"evicted by {name_of(decision.target)}"
    reason = _reason(decision, victim, name_of)
    return f"{text}, {reason}" if reason else text


def _reason(decision: Decision, victim: InstanceId, name_of: Callable[[InstanceId], str]) -> str:
    chosen = {instance for instance, _ in decision.victims}
    own = next((one for one in decision.considered if one.instance == victim), None)
    if own is None:
        return ""
    spared = [one for one in decision.considered if one.instance not in chosen and one.free_in_s is not None]
    if not spared:
        others = [name_of(one) for one, _ in decision.victims if one != victim]
        return f"together with {', '.join(others)}" if others else "nothing else could make room"
    if own.cost >= IN_USE_COST / 2:
        return "once it had served what waited" if all(one.cost >= IN_USE_COST / 2 for one in spared) else "in its turn"
    if all(abs(one.cost - own.cost) < _EQUAL_COST_S for one in spared):
        return "least recently used"
    if all(one.cost >= IN_USE_COST / 2 for one in spared):
        return "idle, and the others were in use"
    return "cheapest to bring back"
