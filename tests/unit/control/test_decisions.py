"""The decision log as data, and as ``juggler why`` tells it."""

import dataclasses
import json
from types import SimpleNamespace
from typing import cast

import pytest

from juggler.cli.why import story
from juggler.control.decisions import decisions
from juggler.engine import Engine
from juggler.ids import InstanceId, PoolId
from juggler.scheduler.commands import Considered, Decision, Mode
from juggler.scheduler.telling import log_line
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


BY_HAND = dataclasses.replace(LOADING, client="juggler load", waited_s=1.0, took_s=1.3)
TEXT = "S/a: its command ended with exit status 3 before it was ready: RuntimeError: weights not found"


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


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ("ready", "ready after 1.3 s, expected 7.0 s"),
        (TEXT, f"failed after 1.3 s (expected 7.0 s): {TEXT}"),
        ("given up: nobody waits for it any more", "given up after 1.3 s: nobody waits for it any more"),
        ("nobody waits for it any more", "given up after 1.3 s: nobody waits for it any more"),
        ("freed too little: decided anew", "freed too little after 1.3 s: decided anew"),
        ("deferred: the memory was taken", "deferred after 1.3 s: the memory was taken"),
    ],
)
def test_how_it_ended(outcome: str, told: str) -> None:
    """The same words in the log; how long it took never looks like a part of what the program said."""
    ended = dataclasses.replace(BY_HAND, outcome=outcome)
    assert story(decisions(of(ended), 30.0))[-1] == f"    {told}"
    assert log_line(ended) == f"#3 S/a {told}"


def test_asked_by_hand() -> None:
    """The operator and the warm-up are no clients."""
    two = dataclasses.replace(BY_HAND, waiting=2, client="warm-up", took_s=None)
    assert (
        story(decisions(of(BY_HAND), 30.0))[1] == "    asked by juggler load (waited 1.0 s); it fitted into free memory"
    )
    assert story(decisions(of(two), 30.0))[1] == (
        "    asked by warm-up (waited 1.0 s), and 1 more; it fitted into free memory"
    )
    assert log_line(two) == "#3 load S/a: asked by warm-up (waited 1.0 s), and 1 more; it fits into free memory"


def test_attached_servers_are_let_go() -> None:
    """A shutdown does not stop what somebody else runs."""
    gone = Decision(4, 29.0, None, ((C, Mode.STOP),), "let go")
    assert log_line(gone) == "#4 let go of S/c: the juggler shuts down"
    assert story(decisions(of(gone), 30.0)) == ["#4  1.0 s ago: let go of S/c: the juggler shuts down"]
