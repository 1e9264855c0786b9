"""Who gives up leaves his claim to those who wait on, and for a while to who comes next."""

import pytest

from juggler.ids import RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.policy import Policy
from juggler.scheduler.queue import CLAIM_KEPT_S
from juggler.scheduler.transitions import Residency
from tests.scheduler.script import A, B, Script, exclusive

QUICK = Policy(beta=0, first_load_s=1, first_unload_s=1)
MAX_WAIT_S = 60.0


def busy() -> Script:
    """A works on request 2, and goes on to."""
    script = Script(exclusive(A), exclusive(B), policy=QUICK)
    script.load(A)
    script.arrive(A)
    return script


def test_who_waits_on_is_due_when_the_first_would_have_been() -> None:
    script = busy()
    script.arrive(B, max_wait_s=MAX_WAIT_S)  # 3
    script.tick(30)
    script.arrive(B, max_wait_s=MAX_WAIT_S)  # 4
    script.tick(20)
    script.leave(3)
    script.tick(9)
    assert script.at(A).residency is Residency.READY
    script.tick(2)
    assert script.at(A).residency is Residency.DRAINING


@pytest.mark.parametrize(("pause_s", "kept"), [(CLAIM_KEPT_S - 1, True), (CLAIM_KEPT_S + 1, False)])
def test_who_comes_back_soon_is_due_as_if_he_had_stayed(pause_s: float, kept: bool) -> None:
    script = busy()
    script.arrive(B, max_wait_s=MAX_WAIT_S)
    script.tick(MAX_WAIT_S - 1)
    script.leave(3)
    script.tick(pause_s)
    assert script.at(A).residency is Residency.READY, "nobody waits"
    script.arrive(B, max_wait_s=MAX_WAIT_S)
    assert (script.at(A).residency is Residency.DRAINING) is kept
    script.tick(MAX_WAIT_S + 1)
    assert script.at(A).residency is Residency.DRAINING


def test_a_request_that_has_waited_its_time_leaves_its_claim_too() -> None:
    script = busy()
    script.arrive(B, max_wait_s=MAX_WAIT_S, timeout_s=50.0)
    script.tick(51)
    script.arrive(B, max_wait_s=MAX_WAIT_S)
    script.tick(8)
    assert script.at(A).residency is Residency.READY
    script.tick(2)
    assert script.at(A).residency is Residency.DRAINING


@pytest.mark.parametrize("at_once", [True, False])
def test_a_claim_ends_with_the_next_who_is_let_in(at_once: bool) -> None:
    script = Script(exclusive(A, slots=1), exclusive(B), policy=QUICK)
    script.load(A)
    script.arrive(A)  # 2
    script.arrive(A, max_wait_s=1.0)  # 3
    script.leave(3)
    if not at_once:
        script.arrive(A)  # waits for the slot
    script.end(2)
    if at_once:
        script.requests += 1
        number = RequestId(script.requests)
        assert script.scheduler.forward_at_once(script.now, number, A, e.Kind.WORK, 0, "")
        script.scheduler.request_done(script.now, number, None)
    else:
        script.end(4)
    script.arrive(B)
    script.gone(A)
    script.ready(B)  # works
    script.tick(2)
    script.arrive(A, max_wait_s=MAX_WAIT_S)
    assert script.at(B).residency is Residency.READY


@pytest.mark.parametrize("what", ["promoted", "cancelled", "load"])
def test_what_the_operator_did_leaves_no_claim(what: str) -> None:
    script = busy()
    script.arrive(B, e.Kind.LOAD if what == "load" else e.Kind.WORK, max_wait_s=1.0 if what == "load" else MAX_WAIT_S)
    request = RequestId(script.requests)
    if what == "promoted":
        script.post(e.RequestPromoted(script.now, request))
    script.tick(0.5)
    if what == "cancelled":
        script.tick(MAX_WAIT_S - 1)
        script.post(e.RequestCancelled(script.now, request))
    else:
        script.leave(script.requests)
    script.tick(2)
    script.arrive(B, max_wait_s=MAX_WAIT_S)
    assert script.at(A).residency is Residency.READY


def test_clients_that_all_give_up_early_are_served_in_the_end() -> None:
    """A always has work; the client of B hangs up after 50 s, each time, and asks again a second later."""
    script = busy()
    working = [script.requests]
    started_at = None
    while script.now < 200 and started_at is None:
        script.arrive(B, max_wait_s=MAX_WAIT_S)
        asked = script.requests
        for _ in range(10):
            script.arrive(A)
            working.append(script.requests)
            script.tick(5)
            out = script.end(working.pop(0)) if script.at(A).running else []
            if any(isinstance(one, c.StopInstance) for one in out):
                started_at = script.now
                break
        else:
            script.leave(asked)
            script.tick(1)
    assert started_at is not None
    assert started_at < MAX_WAIT_S + 15
