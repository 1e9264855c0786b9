"""Try it: a request that the control plane sends for the dashboard is one like any other."""

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.certificates import make_pair
from tests.e2e.support import Answer, Juggler, eventually, exclusive, running, web

from juggler.control.trial import ANSWER_BYTES_MAX, BODY_BYTES_MAX, TRIALS_AT_ONCE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def juggler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Juggler]:
    with running(tmp_path_factory.mktemp("trial"), exclusive(a=web(), b=web("--load", "60"))) as one:
        yield one


def path_of(endpoint: str, path: str, **more: str) -> str:
    return f"/api/v1/try/S%2F{endpoint}?{urlencode({'path': path, **more})}"


def attempt(juggler: Juggler, endpoint: str, path: str, body: object = None, **more: Any) -> Answer:
    return juggler.ask("POST", path_of(endpoint, path), body, port=juggler.control_port, **more)


def begin(juggler: Juggler, endpoint: str, path: str) -> http.client.HTTPConnection:
    """Sent, but not waited for."""
    connection = http.client.HTTPConnection("127.0.0.1", juggler.control_port, timeout=20)
    connection.request("POST", path_of(endpoint, path), b"{}")
    return connection


def count(juggler: Juggler, what: str) -> int:
    return len(juggler.status()[what])


def ended(juggler: Juggler, target: str) -> Any:
    """What was recorded of a request."""

    def found() -> Any:
        records = juggler.ask("GET", "/api/v1/requests", port=juggler.control_port).json()["requests"]
        return next((one for one in records if one["target"] == target), None)

    return eventually(found, f"{target} is recorded")


def test_it_is_queued_loaded_and_recorded_as_any_other(juggler: Juggler) -> None:
    answer = attempt(juggler, "a", "/x?y=1", {"hello": 1})
    assert answer.status == 200
    assert answer.json()["path"] == "/x?y=1"
    assert answer.json()["received"] == len('{"hello": 1}')
    assert answer.headers["x-try-status"] == "200"
    assert answer.headers["x-try-type"] == "application/json"
    assert float(answer.headers["x-try-load"]) > 0
    assert answer.headers["content-type"] == "application/octet-stream"  # never a page of ours
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ended(juggler, "/a/x?y=1")["outcome"] == "ok"


def test_the_answer_of_a_wrong_path_is_told_as_it_is(juggler: Juggler) -> None:
    attempt(juggler, "a", "/x", {})
    answer = juggler.ask("POST", path_of("a", "/slow?0.01", method="GET"), port=juggler.control_port)
    assert answer.json()["received"] == 0
    died = attempt(juggler, "a", "/die", {})
    assert (died.status, died.headers["x-try-status"], died.headers["x-try-source"]) == (200, "502", "error")


@pytest.mark.parametrize("where", ["running", "waiting"])
def test_hanging_up_gives_it_up(juggler: Juggler, where: str) -> None:
    """1. It is answered, or waits for a load. 2. The browser goes. 3. The backend's work, or the place, is given up."""
    endpoint, path = ("a", "/slow?50") if where == "running" else ("b", "/waits")
    with contextlib.closing(begin(juggler, endpoint, path)):
        eventually(lambda: count(juggler, where), f"it is {where}")
    eventually(lambda: not count(juggler, where), "it is given up")
    assert ended(juggler, f"/{endpoint}{path}")["outcome"] == "client_left"
    juggler.ask("POST", "/api/v1/endpoints/b/stop?wait_s=20", port=juggler.control_port)


def test_only_some_at_once(juggler: Juggler) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(TRIALS_AT_ONCE):
            stack.enter_context(contextlib.closing(begin(juggler, "a", "/slow?50")))
        eventually(lambda: count(juggler, "running") + count(juggler, "waiting") == TRIALS_AT_ONCE, "all are there")
        refused = attempt(juggler, "a", "/x", {})
        assert (refused.status, refused.json()["error"]["code"]) == (429, "too_many_trials")
    eventually(lambda: attempt(juggler, "a", "/x", {}).status == 200, "the places are free again")


def test_too_long_an_answer_is_cut_and_seen_to_be(juggler: Juggler) -> None:
    connection = begin(juggler, "a", f"/large?{ANSWER_BYTES_MAX}")
    answer = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as cut:
        answer.read()
    assert len(cut.value.partial) <= ANSWER_BYTES_MAX
    connection.close()


@pytest.mark.parametrize(
    ("path", "code", "status"),
    [
        (path_of("a", "x"), "bad_parameter", 400),
        (path_of("a", "/a b"), "bad_parameter", 400),
        (path_of("a", "/a\r\nX: y"), "bad_parameter", 400),
        (path_of("a", "/", method="CONNECT"), "bad_parameter", 400),
        (path_of("nobody", "/"), "no_such_endpoint", 404),
    ],
)
def test_what_makes_no_sense_is_refused(juggler: Juggler, path: str, code: str, status: int) -> None:
    answer = juggler.ask("POST", path, {}, port=juggler.control_port)
    assert answer.status == status
    assert answer.headers["x-juggler"] == "error"
    assert status == 404 or answer.json()["error"]["code"] == code


def test_too_large_a_body_is_refused(juggler: Juggler) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", juggler.control_port, timeout=20)
    connection.request("POST", path_of("a", "/x"), b"x" * (BODY_BYTES_MAX + 1))
    assert connection.getresponse().status == 413
    connection.close()
    connection.request("POST", path_of("a", "/x"), b"x" * BODY_BYTES_MAX)
    assert connection.getresponse().getheader("x-try-status") == "200"
    connection.close()


def test_it_is_guarded_as_every_change(juggler: Juggler, tmp_path: Path) -> None:
    foreign = attempt(juggler, "a", "/x", {}, headers={"Origin": "http://evil.example"})
    assert foreign.status == 403
    pair = make_pair(tmp_path)
    config = exclusive(a=web())
    config["control"] = {"key": "correct-horse"}
    config["servers"][0]["tls"] = {"cert": str(pair.cert), "key": str(pair.key)}
    with running(tmp_path, config) as secret:
        assert attempt(secret, "a", "/x", {}).status == 401
        answer = attempt(secret, "a", "/x", {}, headers={"Authorization": "Bearer correct-horse"})
        assert answer.headers["x-try-status"] == "200"  # over TLS, through its own listener
