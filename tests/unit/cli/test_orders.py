"""Commands that change something."""

import json

import click
import pytest

from juggler.cli.orders import cancel, give_orders, print_queue, queue_lines, set_lock, set_pin, to_front
from juggler.cli.remote import Remote
from juggler.errors import JugglerError
from tests.unit.cli.fake_api import FakeApi, status, waiting

LOAD = "POST /api/v1/endpoints/S%2Fa%20b/load"
WHY = ["b", "has", "to", "go", "first"]
DONE = {"endpoint": "S/a b", "instance": "S/a b", "result": "loaded", "done": True}


def test_an_order_is_waited_for(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """The name is one segment of the path."""
    api.answers[LOAD] = (200, DONE)
    give_orders(Remote(api.url), "load", ["S/a b"], 90.0)
    assert api.asked == [(f"{LOAD}?wait_s=90", None)]
    assert capsys.readouterr().out == "S/a b: loaded\n"


@pytest.mark.parametrize("wait_s", [0.0, 5.0])
def test_an_order_that_takes_longer(api: FakeApi, capsys: pytest.CaptureFixture[str], wait_s: float) -> None:
    """It stands. Only who wanted to wait is told that it failed."""
    api.answers[LOAD] = (202, {**DONE, "result": "under way", "done": False})
    if wait_s:
        with pytest.raises(click.exceptions.Exit) as caught:
            give_orders(Remote(api.url), "load", ["S/a b"], wait_s)
        assert caught.value.exit_code == 1
        assert capsys.readouterr().err == "S/a b: not done after 5.0 s; the order stands\n"
    else:
        give_orders(Remote(api.url), "load", ["S/a b"], wait_s)
        assert capsys.readouterr().out == "S/a b: load was ordered\n"


def test_nothing_is_waited_for_longer_than_the_api_lets(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """And what is told is how long it was."""
    api.answers[LOAD] = (202, {**DONE, "result": "under way", "done": False})
    with pytest.raises(click.exceptions.Exit):
        give_orders(Remote(api.url), "load", ["S/a b"], 7200.0)
    assert api.asked == [(f"{LOAD}?wait_s=3600", None)]
    assert capsys.readouterr().err == "S/a b: not done after 60 min; the order stands\n"


def test_several_of_which_one_fails(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are done all the same, and the status tells that not all is well."""
    api.answers[LOAD] = (200, DONE)
    error = {"code": "start_failed", "message": "it does not start", "hint": "look at its log"}
    api.answers["POST /api/v1/endpoints/bad/load"] = (503, {"error": error})
    with pytest.raises(click.exceptions.Exit) as caught:
        give_orders(Remote(api.url), "load", ["bad", "S/a b"], 9.0)
    assert caught.value.exit_code == 1
    shown = capsys.readouterr()
    assert shown.out == "S/a b: loaded\n"
    assert shown.err == "it does not start\nhint: look at its log\n"
    with pytest.raises(JugglerError, match="it does not start"):
        give_orders(Remote(api.url), "load", ["bad"], 9.0)


def test_pins_and_lock(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """PUT is on, DELETE off."""
    remote = Remote(api.url)
    api.answers["PUT /api/v1/endpoints/a/pin"] = (200, {"endpoint": "S/a", "pinned": True})
    api.answers["DELETE /api/v1/endpoints/a/pin"] = (200, {"endpoint": "S/a", "pinned": False})
    api.answers["PUT /api/v1/lock"] = (200, {"locked": {"since_at": 1.0, "by": "x"}})
    api.answers["DELETE /api/v1/lock"] = (200, {"locked": None})
    set_pin(remote, ["a"], on=True)
    set_pin(remote, ["a"], on=False)
    set_lock(remote, on=True)
    set_lock(remote, on=False)
    assert capsys.readouterr().out.splitlines() == [
        "S/a: pinned",
        "S/a: not pinned",
        "locked: no model gives way to another until `juggler lock --off`",
        "not locked: models are swapped as requests need them",
    ]


def test_the_queue(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """By instance and place in it; a load by hand is told as such."""
    api.answers["GET /api/v1/status"] = (
        200,
        status(
            waiting=[
                waiting(5, position=2, kind="load", client=None, expected_s=None),
                waiting(4, target="/x\x1b[2J"),
            ]
        ),
    )
    print_queue(Remote(api.url), as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["ID", "ENDPOINT", "NO", "CLIENT", "WAITS", "EXPECTED", "REQUEST", "WHY"]
    assert lines[1] == [
        "4",
        "S/a",
        "1",
        "10.0.0.7",
        "9.0",
        "s",
        "14",
        "s",
        "POST",
        "/x?[2J",
        *WHY,
    ]
    assert lines[2] == ["5", "S/a", "2", "-", "9.0", "s", "-", "load", *WHY]
    print_queue(Remote(api.url), as_json=True)
    assert [one["request"] for one in json.loads(capsys.readouterr().out)] == [5, 4]
    assert queue_lines(status(), None) == ["Nobody waits."]


def test_to_the_front_and_out(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several, the first named is first in the end."""
    for request in (4, 5):
        api.answers[f"POST /api/v1/requests/{request}/front"] = (200, {"request": request, "position": 1})
    api.answers["DELETE /api/v1/requests/4"] = (200, {"request": 4, "result": "cancelled"})
    to_front(Remote(api.url), [4, 5])
    assert [asked for asked, _ in api.asked] == ["POST /api/v1/requests/5/front", "POST /api/v1/requests/4/front"]
    cancel(Remote(api.url), [4])
    assert capsys.readouterr().out.splitlines() == ["5: is next", "4: is next", "4: cancelled"]
