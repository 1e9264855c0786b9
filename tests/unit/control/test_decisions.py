"""The decision log as data, and as ``juggler why`` tells it."""

import json
from types import SimpleNamespace
from typing import cast

from juggler.cli.why import story
from juggler.control.decisions import decisions
from juggler.engine import Engine
from juggler.ids import InstanceId, PoolId
from juggler.scheduler.commands import Considered, Decision, Mode
from juggler.scheduler.value import IN_USE_COST

A, B, C = InstanceId("S/a"), InstanceId("S/b"), InstanceId("S/c")
GPU = PoolId("gpu0")

SWAP = Decision(
    number=1,
    at=10.0,
    target=B,
    victims=((A, Mode.UNLOAD),),
    cause="request",
    waiting=2,
    waited_s=1.5,
    client="10.0.0.7",
    missing={GPU: 2**30},
    considered=(Considered(A, 0.0, IN_USE_COST + 12.0, "in use"), Considered(C, None, 0.0, "pinned")),
    expected_s=5.0,
    took_s=6.0,
    outcome="ready",
)
IDLE = Decision(2, 20.0, None, ((C, Mode.STOP),), "idle")
LOADING = Decision(3, 29.0, A, (), "request", waiting=1, expected_s=7.0)


def of(*kept: Decision) -> Engine:
    state = SimpleNamespace(decisions=list(kept))
    return cast(Engine, SimpleNamespace(scheduler=SimpleNamespace(state=state)))


def test_as_data() -> None:
    """Plain JSON; what it costs to take one that is in use is told without the surcharge that keeps it in place."""
    (one,) = decisions(of(SWAP), 30.0)
    assert json.loads(json.dumps(one, allow_nan=False)) == one
    assert (one["ago_s"], one["target"], one["missing_bytes"]) == (20.0, "S/b", {"gpu0": 2**30})
    assert one["victims"] == [{"instance": "S/a", "mode": "unload"}]
    assert one["considered"] == [
        {"instance": "S/a", "free_in_s": 0.0, "cost_s": 12.0, "in_use": True, "why": "in use"},
        {"instance": "S/c", "free_in_s": None, "cost_s": 0.0, "in_use": False, "why": "pinned"},
    ]


def test_of_one_endpoint() -> None:
    """Those that loaded it and those in which it had to go; not those in which it was only looked at."""
    kept = of(SWAP, IDLE, LOADING)
    numbers = {one: [found["number"] for found in decisions(kept, 30.0, one)] for one in (A, B, C, None)}
    assert numbers == {A: [1, 3], B: [1], C: [2], None: [1, 2, 3]}


def test_as_a_story() -> None:
    """Who asked, what was considered, who had to go and why, and what it cost against the estimate."""
    assert story(decisions(of(SWAP, IDLE, LOADING), 30.0)) == [
        "#1  20 s ago: unloaded S/a, loaded S/b",
        "    asked by: 2 waited, the first (client 10.0.0.7) for 1.5 s; 1.0 GiB of gpu0 was missing",
        "    S/a: in use; to be had now, to bring it back would cost 12 s; had to go",
        "    S/c: pinned; to be had never; stayed",
        "    ready after 6.0 s, expected 5.0 s",
        "#2  10 s ago: stopped S/c: idle for as long as idle_unload allows",
        "#3  1.0 s ago: to load S/a",
        "    asked by: 1 waited, the first for 0.0 s; it fitted into free memory",
        "    under way, expected 7.0 s",
    ]
