"""The short way of the ordinary request comes to the same as its events."""

from collections.abc import Callable

import pytest

from juggler.errors import InvalidTransition
from juggler.ids import RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.invariants import check
from tests.scheduler.script import A, B, Script, exclusive


def known(script: Script) -> dict[str, object]:
    """What the scheduler has learned and holds of A, as far as requests change it."""
    one, state = script.at(A), script.scheduler.state
    estimates = one.estimates
    return {
        "running": {request: (waiting.priority, waiting.client) for request, waiting in one.running.items()},
        "light": sorted(one.light),
        "requests": sorted(state.requests),
        "used": (one.last_used, one.idle_since, one.probe),
        "learned": (estimates.exported(), estimates.arrivals, estimates.first_arrival, estimates.last_arrival),
        "think": (estimates.think.overall.weights, estimates.think.last_answer("me")),
        "total": state.total.waiting,
    }


@pytest.mark.parametrize("kind", [e.Kind.WORK, e.Kind.LIGHT, e.Kind.HELD_OPEN])
def test_it_comes_to_the_same(kind: e.Kind) -> None:
    """Three requests of a client that comes back, by events and the short way."""
    by_events, short = Script(exclusive(A)), Script(exclusive(A))
    for script in (by_events, short):
        script.load(A)
    for number in range(10, 13):
        for script in (by_events, short):
            script.now += 2.5
        request = RequestId(number)
        event = e.RequestArrived(
            by_events.now, request, A, kind, priority=3, client="me" if kind is e.Kind.WORK else ""
        )
        assert by_events.post(event) == [c.Forward(request, A)]
        assert short.scheduler.forward_at_once(short.now, request, A, kind, 3, event.client)
        assert known(by_events) == known(short)
        check(short.scheduler.state)
        for script in (by_events, short):
            script.now += 4.0
        by_events.post(e.FirstByte(by_events.now - 1.0, request))
        assert by_events.post(e.RequestEnded(by_events.now, request)) == []
        assert short.scheduler.request_done(short.now, request, short.now - 1.0) == []
        assert known(by_events) == known(short)
        check(short.scheduler.state)


def not_loaded(script: Script) -> None:
    pass


def waited_for(script: Script) -> None:
    script.load(A)
    script.arrive(A)
    script.arrive(A)


def no_slot(script: Script) -> None:
    script.load(A)
    script.arrive(A)


def gives_way(script: Script) -> None:
    script.load(A)
    script.arrive(A)
    script.arrive(B)
    script.tick(200.0)  # B is due: A takes nobody new


def shutting_down(script: Script) -> None:
    script.load(A)
    script.arrive(A)
    script.post(e.ShutdownRequested(script.now, script.now + 30.0))


@pytest.mark.parametrize("prepare", [not_loaded, waited_for, no_slot, gives_way, shutting_down])
def test_what_is_not_ordinary_goes_by_the_events(prepare: Callable[[Script], None]) -> None:
    script = Script(exclusive(A, slots=2 if prepare is gives_way else 1), exclusive(B))
    prepare(script)
    before = known(script)
    assert not script.scheduler.forward_at_once(script.now, RequestId(99), A, e.Kind.WORK, 0, "me")
    assert not script.scheduler.forward_at_once(script.now, RequestId(99), A, e.Kind.LOAD, 0, "")
    assert known(script) == before


def test_its_end_frees_its_slot_for_who_waits() -> None:
    script = Script(exclusive(A, slots=1), exclusive(B))
    script.load(A)
    assert script.scheduler.forward_at_once(script.now, RequestId(50), A, e.Kind.WORK, 0, "me")
    assert script.arrive(A) == []
    out = script.scheduler.request_done(script.now, RequestId(50), None)
    assert c.Forward(RequestId(script.requests), A) in out
    with pytest.raises(InvalidTransition, match="not running"):
        script.scheduler.request_done(script.now, RequestId(50), None)
