"""The control plane of the real program: what it shows while models swap, and what it takes."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import Answer, Juggler, eventually, exclusive, running, web

pytestmark = pytest.mark.slow

KEY = "correct-horse-battery"


def api(juggler: Juggler, method: str, path: str, **more: Any) -> Answer:
    return juggler.ask(method, f"/api/v1{path}", port=juggler.control_port, **more)


class Stream:
    """The stream of events, as a browser reads it."""

    def __init__(self, juggler: Juggler, last_id: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", juggler.control_port, timeout=20)
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        self._connection.request("GET", "/api/v1/events", headers=headers)
        self._answer = self._connection.getresponse()
        assert self._answer.getheader("content-type", "").startswith("text/event-stream")
        self.last_id = ""

    def events(self) -> Iterator[tuple[str, Any]]:
        """Names and data, until the stream ends."""
        name = ""
        for raw in self._answer:
            field, _, value = raw.decode().rstrip("\n").partition(": ")
            if field == "id":
                self.last_id = value
            elif field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def asking(juggler: Juggler, *paths: str) -> Iterator[list[Answer]]:
    """Requests in threads of their own; their answers, once they are there."""
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda path=path: answers.append(juggler.ask("POST", path, {}))) for path in paths
    ]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        for thread in threads:
            thread.join(20)


def test_the_stream_tells_a_swap_as_it_happens(tmp_path: Path) -> None:
    """Snapshot, states, the finished requests, the decision with its victim, the timeline; and on from the last id."""
    with running(tmp_path, exclusive(a=web(), b=web())) as juggler:
        stream = Stream(juggler)
        events = stream.events()
        name, snapshot = next(events)
        assert name == "snapshot"
        assert [one["state"] for one in snapshot["instances"]] == ["stopped", "stopped"]
        assert snapshot["endpoints"][0]["urls"] == [f"http://127.0.0.1:{juggler.port}/a"]
        assert juggler.ask("POST", "/a/x", {}).status == 200
        assert juggler.ask("POST", "/b/x?secret=1", {}).status == 200
        finished: list[Any] = []
        spans: list[Any] = []
        victims: list[Any] = []
        states: dict[str, list[str]] = {"S/a": [], "S/b": []}
        for name, data in events:
            finished += data["requests"] if name == "finished" else []
            spans += data["spans"] if name == "spans" else []
            if name == "decisions":
                victims += [victim["instance"] for one in data["decisions"] for victim in one["victims"]]
            for one in data.get("instances", []) if name == "change" else []:
                states[one["instance"]].append(one["state"])
            gone = any(span["instance"] == "S/a" and "evicted by b" in span["why"] for span in spans)
            if len(finished) == 2 and gone and victims and states["S/b"][-1:] == ["ready"]:
                break
        assert [(one["endpoint"], one["status"], one["outcome"]) for one in finished] == [
            ("S/a", 200, "ok"),
            ("S/b", 200, "ok"),
        ]
        assert finished[1]["load_s"] > 0
        assert victims == ["S/a"] * len(victims)
        assert states["S/a"][-1] == "stopped"
        stream.close()
        again = Stream(juggler, stream.last_id)
        juggler.ask("POST", "/b/x", {})
        assert next(again.events())[0] != "snapshot"
        again.close()


def test_who_waits_is_shown_with_the_reason_and_can_be_steered(tmp_path: Path) -> None:
    """A lock keeps the model; one of those who wait is cancelled, one moved to the front, and the lock undone."""
    config = exclusive(a=web(), b=web())
    config["servers"][0]["endpoints"][1]["concurrency"] = 1
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/a/x", {}).status == 200
        assert api(juggler, "PUT", "/lock").json()["locked"]["by"].startswith("API at 127.0.0.1")
        assert api(juggler, "PUT", "/lock").status == 200
        with asking(juggler, "/b/slow?0.1", "/b/slow?0.2", "/b/slow?0.3") as answers:
            waiting = eventually(
                lambda: (found := api(juggler, "GET", "/waiting").json()["waiting"]) and len(found) == 3 and found,
                "three wait",
            )
            assert [one["position"] for one in waiting] == [1, 2, 3]
            assert "locked" in waiting[0]["why"]
            assert {one["target"] for one in waiting} == {"/b/slow?0.1", "/b/slow?0.2", "/b/slow?0.3"}
            first, _, last = (one["request"] for one in waiting)
            assert api(juggler, "DELETE", f"/requests/{first}").json()["result"] == "cancelled"
            assert api(juggler, "DELETE", f"/requests/{first}").status == 404
            eventually(lambda: answers, "the cancelled one is answered")
            assert answers[0].status == 503
            assert answers[0].json()["error"]["code"] == "cancelled_by_operator"
            assert answers[0].headers["x-should-retry"] == "false"
            assert api(juggler, "POST", f"/requests/{last}/front").json()["position"] == 1
            assert api(juggler, "GET", "/waiting").json()["waiting"][0]["request"] == last
            assert juggler.instance("S/a")["state"] == "ready"
            assert api(juggler, "DELETE", "/lock").json() == {"locked": None}
        assert [one.status for one in answers] == [503, 200, 200]
        records = eventually(
            lambda: (found := api(juggler, "GET", "/requests").json()["requests"]) and len(found) == 4 and found,
            "all are recorded",
        )
        assert sorted(one["outcome"] for one in records) == ["cancelled", "ok", "ok", "ok"]
        assert api(juggler, "GET", "/requests?outcome=cancelled").json()["requests"][0]["error"]


def test_restart_pin_and_the_orders_idempotent(tmp_path: Path) -> None:
    with running(tmp_path, exclusive(a=web(), b=web())) as juggler:
        first = api(juggler, "POST", "/endpoints/a/restart?wait_s=20")
        assert (first.status, first.json()["result"]) == (200, "was not running; loaded")
        pid = juggler.ask("POST", "/a/x", {}).json()["pid"]
        restarted = api(juggler, "POST", "/endpoints/S%2Fa/restart?wait_s=20")
        assert (restarted.status, restarted.json()["result"]) == (200, "loaded")
        assert juggler.ask("POST", "/a/x", {}).json()["pid"] != pid
        for _ in range(2):
            assert api(juggler, "PUT", "/endpoints/a/pin").json() == {"endpoint": "S/a", "pinned": True}
        assert juggler.instance("S/a")["pinned_by"] == "operator"
        assert juggler.ask("POST", "/b/x", {}).json()["error"]["code"] == "does_not_fit"
        assert api(juggler, "DELETE", "/endpoints/a/pin").json()["pinned"] is False
        assert juggler.ask("POST", "/b/x", {}).status == 200
        unknown = api(juggler, "POST", "/endpoints/nobody/load")
        assert unknown.status == 404
        assert "there are: S/a, S/b" in unknown.json()["error"]["message"]
        assert api(juggler, "POST", "/endpoints/a/load?wait_s=x").status == 400
        assert api(juggler, "GET", "/endpoints/a/load").status == 405
        assert api(juggler, "GET", "/nothing").json()["error"]["code"] == "no_such_route"


def test_an_order_that_takes_long_is_told_to_go_on(tmp_path: Path) -> None:
    """Without ``wait_s`` the answer comes at once; the same order again joins the first."""
    with running(tmp_path, exclusive(a=web("--load", "1"))) as juggler:
        first = api(juggler, "POST", "/endpoints/a/load")
        assert (first.status, first.json()["done"]) == (202, False)
        second = api(juggler, "POST", "/endpoints/a/load?wait_s=20")
        assert (second.status, second.json()["result"]) == (200, "loaded")
        assert juggler.instance("S/a")["starts"] == 1


def test_a_failed_load_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with running(tmp_path, exclusive(bad=web("--fail", "no weights here"))) as juggler:
        answer = api(juggler, "POST", "/endpoints/bad/load?wait_s=20")
        assert answer.status == 503
        assert answer.headers["x-juggler"] == "error"
        assert answer.json()["error"]["code"] == "backend_start_failed"
        log = api(juggler, "GET", "/logs/S%2Fbad").json()
        assert any("no weights here" in line["text"] for line in log["lines"])
        assert log["boot"] == api(juggler, "GET", "/status").json()["boot"]
        assert any(one["log"] == "juggler" for one in api(juggler, "GET", "/logs").json()["logs"])


def test_a_key_guards_everything_but_the_page_and_the_probes(tmp_path: Path) -> None:
    config = exclusive(a=web())
    config["control"] = {"key": KEY}
    with running(tmp_path, config) as juggler:
        port = juggler.control_port
        assert api(juggler, "GET", "/status").status == 401
        assert juggler.ask("GET", "/metrics", port=port).status == 401
        assert juggler.ask("GET", "/livez", port=port).status == 200
        assert juggler.ask("GET", "/", port=port).status == 200
        assert api(juggler, "GET", "/status", headers={"Authorization": f"Bearer {KEY}"}).status == 200
        assert api(juggler, "POST", "/login", body={"key": "wrong"}).status == 401
        assert api(juggler, "POST", "/login", body=["no"]).status == 400
        login = api(juggler, "POST", "/login", body={"key": KEY})
        cookie = login.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Path=/api/v1" in cookie
        session = {"Cookie": cookie.partition(";")[0]}
        assert api(juggler, "GET", "/status", headers=session).status == 200
        assert api(juggler, "PUT", "/lock", headers={**session, "Origin": "http://evil.example"}).status == 403
        assert KEY not in juggler.text()
        assert KEY not in api(juggler, "GET", "/config", headers=session).body.decode()


def test_it_ends_at_once_with_streams_open(tmp_path: Path) -> None:
    """Dashboards that stay open hold nothing up."""
    with running(tmp_path, exclusive(a=web())) as juggler:
        streams = [Stream(juggler) for _ in range(3)]
        readers = [stream.events() for stream in streams]
        assert [next(one)[0] for one in readers] == ["snapshot"] * 3
        began = time.monotonic()
        assert juggler.stop() == 0, juggler.text()
        assert time.monotonic() - began < 10
        assert "Traceback" not in juggler.text()
        for stream in streams:
            stream.close()


def test_metrics_and_probes(tmp_path: Path) -> None:
    with running(tmp_path, exclusive(a=web())) as juggler:
        juggler.ask("POST", "/a/x", {})
        told = 'juggler_requests_total{endpoint="S/a",outcome="ok"} 1.0'
        eventually(
            lambda: told in juggler.ask("GET", "/metrics", port=juggler.control_port).body.decode(), "it is counted"
        )
        ready = juggler.ask("GET", "/readyz", port=juggler.control_port)
        assert ready.json() == {"ready": True, "reasons": []}
        assert juggler.ask("HEAD", "/livez", port=juggler.control_port).status == 200


def test_the_page_is_served_packed_and_can_be_kept(tmp_path: Path) -> None:
    with running(tmp_path, exclusive(a=web())) as juggler:

        def get(path: str, **headers: str) -> Answer:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            return juggler.ask("GET", path, port=juggler.control_port, headers=fields)

        plain, packed = get("/"), get("/", Accept_Encoding="gzip, br")
        assert plain.headers["content-type"] == "text/html; charset=utf-8"
        assert packed.headers["content-encoding"] == "gzip"
        assert len(packed.body) < len(plain.body)
        assert get("/", If_None_Match=plain.headers["etag"]).status == 304
        assert get("/../app.py").status == 404
        assert get("/%2e%2e/__init__.py").status == 404
