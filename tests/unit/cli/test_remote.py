"""Commands that talk to a running juggler: whatever answers there, a sentence and no traceback."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from juggler.cli.remote import NotReachable, call, give_order, print_overview, print_status
from juggler.cli.why import print_decisions
from juggler.errors import JugglerError

Answering = Callable[..., str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Start a server that gives one answer to everything, as another program or as a juggler; returns its URL."""
    servers: list[http.server.HTTPServer] = []

    def start(status: int, body: bytes, *, juggler: bool = False) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if juggler:
                    self.send_header("X-Juggler", "error")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815  # the base class's name

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:abc", "http://127.0.0.1:99999", "http://[::1", "https://127.0.0.1:1", "127.0.0.1:1", ""]
)
def test_address_that_is_none(url: str) -> None:
    """Wrong use, exit status 2."""
    with pytest.raises(click.UsageError, match="is not an http:// address"):
        call(url, "GET", "/api/status", 1.0, "instances")


def test_nobody_there() -> None:
    with pytest.raises(NotReachable, match="no juggler answers"):
        call("http://127.0.0.1:1", "GET", "/api/status", 1.0, "instances")


STRANGERS = [
    (200, b"{}"),
    (200, b"[]"),
    (200, b"null"),
    (200, b"<html>"),
    (404, b'["no"]'),
    (404, b'{"error": {"message": "not here"}}'),
    (500, b"7"),
]


@pytest.mark.parametrize(("status", "body"), STRANGERS)
def test_a_stranger_at_the_address(answering: Answering, status: int, body: bytes) -> None:
    """Another program has the port: every command says so."""
    url = answering(status, body)
    commands: list[Callable[[], None]] = [
        lambda: print_status(url, as_json=False),
        lambda: print_status(url, as_json=True),
        lambda: print_decisions(url, None, count=1, as_json=False),
        lambda: give_order(url, "load", "x"),
    ]
    for command in commands:
        with pytest.raises(NotReachable, match="no juggler answers"):
            command()


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ({"error": {"message": "no such endpoint"}, "juggler": {"hint": "try a"}}, "no such endpoint", "try a"),
        ({"error": "no such endpoint", "juggler": {"hint": None}}, "no such endpoint", None),
        ({"error": "no such endpoint"}, "no such endpoint", None),
    ],
)
def test_refusal_of_the_juggler(answering: Answering, body: dict[str, object], message: str, hint: str | None) -> None:
    """Its message and hint, in either of the shapes it uses."""
    with pytest.raises(JugglerError, match=message) as caught:
        call(answering(404, json.dumps(body).encode(), juggler=True), "GET", "/api/status", 5.0, "instances")
    assert caught.value.hint == hint


@pytest.mark.parametrize(("status", "body"), STRANGERS)
def test_overview_is_never_an_error(
    answering: Answering, status: int, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bare ``juggler`` goes on to the next steps."""
    url = answering(status, body)
    print_overview(url, Path("/nowhere/config.json"))
    shown = capsys.readouterr().out
    assert f"No juggler runs at {url}" in shown
    assert "juggler demo" in shown


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        (1, "S/a: 1 waits: it is loading, 9.2 s more are expected; it is served in 14 s or so"),
        (3, "S/a: 3 wait: it is loading, 9.2 s more are expected; the last is served in 14 s or so"),
    ],
)
def test_what_a_queue_waits_for(
    answering: Answering, capsys: pytest.CaptureFixture[str], waiting: int, told: str
) -> None:
    """Two times that do not contradict each other: one is about the load, the other about the last in the queue."""
    one = {
        "instance": "S/a",
        "endpoints": ["S/a"],
        "state": "starting",
        "attached": False,
        "running": 0,
        "waiting": waiting,
        "held_bytes": {},
        "needs_bytes": {},
        "memory_origin": None,
        "idle_s": None,
        "load_s": None,
        "error": None,
        "waits_for": "it is loading, 9.2 s more are expected",
        "expected_wait_s": 14.0,
        "holds_on": None,
    }
    document = {"instances": [one], "pools": [], "warmup": []}
    print_status(answering(200, json.dumps(document).encode()), as_json=False)
    assert told in capsys.readouterr().out.splitlines()
