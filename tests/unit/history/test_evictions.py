"""Why somebody had to go."""

import pytest

from juggler.history.evictions import eviction_text
from juggler.ids import InstanceId
from juggler.scheduler.commands import Considered, Decision, Mode
from juggler.scheduler.value import IN_USE_COST

A, B, C = InstanceId("main/a"), InstanceId("main/b"), InstanceId("main/c")


def told(victims: tuple[InstanceId, ...], *considered: tuple[InstanceId, float | None, float]) -> str:
    looked_at = tuple(Considered(one, free_in_s, cost, "idle") for one, free_in_s, cost in considered)
    decision = Decision(1, 0.0, InstanceId("main/sdxl"), tuple((one, Mode.STOP) for one in victims), "request")
    decision.considered = looked_at
    return eviction_text(decision, victims[0], lambda one: one.rpartition("/")[2])


def test_by_whom_and_why() -> None:
    """The reason is the one that the decision was made for."""
    assert told((A,), (A, 0.0, 1.0), (B, 0.0, 1.0)) == "evicted by sdxl, least recently used"
    assert told((A,), (A, 0.0, 1.0), (B, 0.0, 5.0)) == "evicted by sdxl, cheapest to bring back"
    assert told((A,), (A, 0.0, 1.0)) == "evicted by sdxl, nothing else could make room"
    assert told((A,), (A, 0.0, 1.0), (B, None, 0.0)) == "evicted by sdxl, nothing else could make room"
    assert told((A, B), (A, 0.0, 1.0), (B, 0.0, 1.0)) == "evicted by sdxl, together with b"
    busy = IN_USE_COST + 1.0
    assert told((A,), (A, 0.0, 1.0), (B, 0.0, busy)) == "evicted by sdxl, idle, and the others were in use"
    assert told((A,), (A, 0.0, IN_USE_COST / 2), (B, 0.0, busy)) == "evicted by sdxl, once it had served what waited"
    assert told((A,), (A, 0.0, busy), (B, 0.0, 1.0)) == "evicted by sdxl, in its turn"
    assert told((A,), (B, 0.0, 1.0)) == "evicted by sdxl"


@pytest.mark.parametrize(
    ("cause", "text"),
    [("idle", "idle for as long as idle_unload allows"), ("operator", "by order of the operator"), ("new", "new")],
)
def test_those_that_nobody_wanted_the_memory_of(cause: str, text: str) -> None:
    """Then the cause is the reason."""
    assert eviction_text(Decision(1, 0.0, None, ((A, Mode.STOP),), cause), A, str) == text
