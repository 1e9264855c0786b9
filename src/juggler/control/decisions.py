"""The decision log as plain JSON data."""

import time

from juggler.engine import Engine
from juggler.scheduler.commands import Decision
from juggler.scheduler.value import IN_USE_COST


def decisions(engine: Engine, now: float, instance: str | None = None) -> list[dict[str, object]]:
    """The decisions that are kept, the oldest first; those that concern ``instance`` only, where one is named.

    Times are seconds, ``ago_s`` before now; sizes bytes.
    """
    kept = engine.scheduler.state.decisions
    wall = time.time()
    return [plain_decision(one, now, wall) for one in kept if instance is None or _concerns(one, instance)]


def _concerns(decision: Decision, instance: str) -> bool:
    return decision.target == instance or any(victim == instance for victim, _ in decision.victims)


def plain_decision(decision: Decision, now: float, wall: float) -> dict[str, object]:
    """One decision.

    Args:
        now: Monotonic seconds, as in ``decision.at``.
        wall: The same instant in seconds since 1970.
    """
    return {
        "number": decision.number,
        "at": round(wall - (now - decision.at), 3),
        "ago_s": round(now - decision.at, 3),
        "target": decision.target,
        "cause": decision.cause,
        "victims": [{"instance": victim, "mode": mode.value} for victim, mode in decision.victims],
        "waiting": decision.waiting,
        "waited_s": round(decision.waited_s, 3),
        "client": decision.client,
        "missing_bytes": {str(pool): size for pool, size in decision.missing.items()},
        "considered": [
            {
                "instance": one.instance,
                "free_in_s": None if one.free_in_s is None else round(one.free_in_s, 3),
                "cost_s": round(one.cost % IN_USE_COST, 3),
                "in_use": one.cost >= IN_USE_COST,
                "why": one.why,
            }
            for one in decision.considered
        ],
        "expected_s": round(decision.expected_s, 3),
        "took_s": None if decision.took_s is None else round(decision.took_s, 3),
        "outcome": decision.outcome,
    }
