"""Commands that talk to a running juggler: whatever answers there, a sentence and no traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from juggler import __version__
from juggler.cli.endpoints import print_endpoints
from juggler.cli.logs import print_logs
from juggler.cli.orders import give_orders, print_queue, set_lock
from juggler.cli.ps import print_overview, print_status
from juggler.cli.remote import DEFAULT_CONTROL_URL, NotReachable, Remote, segment
from juggler.cli.why import print_decisions
from juggler.errors import JugglerError
from tests.unit.cli.fake_api import FakeApi


def ask(url: str) -> dict[str, object]:
    return Remote(url).call("GET", "/api/v1/status", "instances", 5.0)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:abc",
        "http://127.0.0.1:99999",
        "http://[::1",
        "ftp://127.0.0.1:1",
        "127.0.0.1:1",
        "",
        "http://a b",
    ],
)
def test_address_that_is_none(url: str) -> None:
    """Wrong use, exit status 2."""
    with pytest.raises(click.UsageError, match="is not an http:// or https:// address"):
        ask(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1", "http://127.0.0.1:0"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(NotReachable, match="no juggler answers"):
        ask(url)


STRANGERS = [
    (200, b"{}"),
    (200, b"[]"),
    (200, b"null"),
    (200, b"<html>"),
    (404, b'["no"]'),
    (404, b'{"error": {"message": "not here"}}'),
    (500, b"7"),
    (200, b"[" * 200_000),
]


@pytest.mark.parametrize(("code", "body"), STRANGERS)
def test_a_stranger_at_the_address(api: FakeApi, code: int, body: bytes) -> None:
    """Another program has the port: every command says so."""
    api.is_juggler = False
    api.answers["*"] = (code, body)
    remote = Remote(api.url)
    commands: list[Callable[[], None]] = [
        lambda: print_status(remote, as_json=False),
        lambda: print_status(remote, as_json=True),
        lambda: print_decisions(remote, None, count=1, as_json=False),
        lambda: print_endpoints(remote, as_json=False),
        lambda: print_queue(remote, as_json=False),
        lambda: print_logs(remote, "a", follow=True, since_s=None, lines=1, times=False, as_json=False),
        lambda: give_orders(remote, "load", ["x"], 1.0),
        lambda: set_lock(remote, on=True),
    ]
    for command in commands:
        with pytest.raises(NotReachable, match="no juggler answers"):
            command()


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ({"error": {"message": "no such endpoint", "hint": "try a"}}, "no such endpoint", "try a"),
        ({"error": {"message": "no such endpoint", "hint": None}}, "no such endpoint", None),
        ({"error": "no such endpoint"}, "no such endpoint", None),
        ({"error": None}, "answered 404", None),
    ],
)
def test_refusal_of_the_juggler(api: FakeApi, body: dict[str, object], message: str, hint: str | None) -> None:
    """Its message and hint."""
    api.answers["*"] = (404, body)
    with pytest.raises(JugglerError, match=message) as caught:
        ask(api.url)
    assert caught.value.hint == hint


def test_the_key_goes_along(api: FakeApi) -> None:
    """As a Bearer token, where there is one; an answer that wants one is told as it is."""
    api.answers["*"] = (401, {"error": {"code": "key_needed", "message": "this needs the admin key", "hint": "log in"}})
    for remote in (Remote(api.url), Remote(api.url, "s3cret")):
        with pytest.raises(JugglerError, match="this needs the admin key"):
            remote.call("GET", "/api/v1/status", "instances")
    assert [key for _, key in api.asked] == [None, "Bearer s3cret"]


def test_who_calls_is_told(api: FakeApi) -> None:
    """The log of decisions and the lock say that it was the command line."""
    api.answers["*"] = (200, {"instances": []})
    ask(api.url)
    assert api.agents == [f"juggler/{__version__}"]


CONTROL = {"host": "0.0.0.0", "port": 9999, "key": "from-the-file"}


@pytest.mark.parametrize(
    ("url", "key", "found"),
    [
        (None, None, Remote("http://127.0.0.1:9999", "from-the-file")),
        (None, "mine", Remote("http://127.0.0.1:9999", "mine")),
        ("http://127.0.0.1:7", None, Remote("http://127.0.0.1:7", "from-the-file")),
        ("http://localhost:7", None, Remote("http://localhost:7", "from-the-file")),
        ("http://127.0.0.1:9999", None, Remote("http://127.0.0.1:9999", "from-the-file")),
        ("http://10.0.0.5:9999", None, Remote("http://10.0.0.5:9999", None)),
        ("http://[::1", None, Remote("http://[::1", None)),
        ("http://10.0.0.5:9999", "mine", Remote("http://10.0.0.5:9999", "mine")),
    ],
)
def test_where_and_with_which_key(tmp_path: Path, url: str | None, key: str | None, found: Remote) -> None:
    """What is named comes first; the file's key does not go to a machine that the file does not name."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"control": CONTROL}))
    assert Remote.find(url, key, path) == found


def test_without_a_configuration(tmp_path: Path) -> None:
    """Where a juggler listens by default."""
    assert Remote.find(None, None, tmp_path / "none.json") == Remote(DEFAULT_CONTROL_URL, None)


def test_a_key_that_cannot_be_one(tmp_path: Path) -> None:
    """It would break the request's head; and the message does not show it."""
    with pytest.raises(click.UsageError) as caught:
        Remote.find(None, "s3cret\r\nX: y", tmp_path / "none.json")
    assert "s3cret" not in caught.value.message


def test_names_as_segments() -> None:
    """Slashes, blanks and bytes that are no text in any encoding."""
    assert segment("Server 0/Default LLM?") == "Server%200%2FDefault%20LLM%3F"
    assert segment("\udcff") == "%FF"


@pytest.mark.parametrize(("code", "body"), STRANGERS)
def test_overview_is_never_an_error(api: FakeApi, code: int, body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """Bare ``juggler`` goes on to the next steps."""
    api.is_juggler = False
    api.answers["*"] = (code, body)
    print_overview(Remote(api.url), Path("/nowhere/config.json"))
    shown = capsys.readouterr().out
    assert f"No juggler runs at {api.url}" in shown
    assert "juggler demo" in shown
