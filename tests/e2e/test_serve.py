"""The whole program with real processes, sockets and signals."""

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import LIMIT_S, PROGRAMS, eventually, exclusive, processes_marked, running, web

pytestmark = pytest.mark.slow


def test_two_exclusive_endpoints_take_turns(tmp_path: Path) -> None:
    """Requests start, stop and reach the right backend; one process at a time is alive."""
    with running(tmp_path, exclusive(a=web("--name", "a"), b=web("--name", "b"))) as juggler:
        for name in ("a", "b", "a", "b"):
            answer = juggler.ask("POST", f"/{name}/x?y=1", {"text": "hello"})
            assert answer.status == 200
            assert answer.json()["name"] == name
            assert answer.json()["path"] == "/x?y=1"
            alive = [line for line in processes_marked(juggler.marker) if "web.py" in line and "guardian" not in line]
            assert len(alive) == 1, alive
        assert juggler.instance("S/a")["starts"] == 2


def test_polls_wake_nothing_and_unknown_paths_are_told(tmp_path: Path) -> None:
    """A GET on a stopped backend is 503 with Retry-After; a path without endpoint is 404 with the list."""
    with running(tmp_path, exclusive(a=web())) as juggler:
        answer = juggler.ask("GET", "/a/v1/models")
        assert answer.status == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert int(answer.headers["retry-after"]) >= 1
        assert juggler.instance("S/a")["starts"] == 0
        unknown = juggler.ask("GET", "/nowhere")
        assert unknown.status == 404
        assert unknown.json()["juggler"]["endpoints"] == [{"name": "a", "path_prefix": "/a"}]


def test_a_start_failure_reaches_the_client_within_a_second(tmp_path: Path) -> None:
    """503 in JSON with exit status and the backend's last lines; the other endpoint works on.

    One of five such backends is enough for the second: on a busy machine a program may take longer to begin.
    """
    names = [f"bad{number}" for number in range(5)]
    config = exclusive(good=web(), **{name: web("--fail", "cannot find the weights") for name in names})
    with running(tmp_path, config) as juggler:
        took_s = []
        for name in names:
            began = time.monotonic()
            answer = juggler.ask("POST", f"/{name}/x", {})
            took_s.append(time.monotonic() - began)
            assert answer.status == 503
            problem = answer.json()
            assert problem["error"]["code"] == "backend_start_failed"
            assert problem["juggler"]["exit_status"] == 3
            assert "cannot find the weights" in problem["juggler"]["log_tail"]
            assert juggler.instance(f"S/{name}")["error"]["exit_status"] == 3
        assert min(took_s) < 1, took_s
        assert juggler.ask("POST", "/good/x", {}).status == 200


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ({"type": "command", "binary": "/no/such/program"}, "does not exist"),
        ({"type": "command", "binary": "/tmp"}, "is a directory"),
        ({"type": "command", "binary": str(PROGRAMS / "web.py")}, "is not executable"),
        (web("--never-ready", start_timeout="500ms", ready_path="/"), "was not ready after"),
    ],
)
def test_bad_binaries_and_hanging_starts_are_clear_errors(tmp_path: Path, backend: dict[str, Any], said: str) -> None:
    """Whatever keeps a backend from starting is one sentence for the client."""
    with running(tmp_path, exclusive(a=backend)) as juggler:
        answer = juggler.ask("POST", "/a/x", {})
        assert answer.status == 503
        assert said in answer.json()["error"]["message"], answer.json()


def test_a_running_request_is_never_cut_for_another_endpoint(tmp_path: Path) -> None:
    """B waits until A's slow request has its answer."""
    with running(tmp_path, exclusive(a=web("--name", "a"), b=web("--name", "b"))) as juggler:
        answers: list[int] = []
        slow = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/a/slow?4", {}).status))
        slow.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "A runs")
        assert juggler.ask("POST", "/b/x", {}).json()["name"] == "b"
        slow.join(LIMIT_S)
        assert answers == [200]


def test_a_backend_that_ignores_sigterm_is_killed_for_the_swap(tmp_path: Path) -> None:
    """The stop ladder ends with SIGKILL, the swap goes on."""
    config = exclusive(a=web("--ignore-sigterm", stop_timeout="300ms"), b=web("--name", "b"))
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/a/x", {}).status == 200
        assert juggler.ask("POST", "/b/x", {}).json()["name"] == "b"


def test_a_backend_that_floods_its_output_works(tmp_path: Path) -> None:
    """Its pipes are drained; nobody blocks."""
    with running(tmp_path, exclusive(a=web("--flood"))) as juggler:
        for _ in range(5):
            assert juggler.ask("POST", "/a/x", {}).status == 200


def test_a_crash_is_told_and_the_next_request_starts_it_again(tmp_path: Path) -> None:
    """The cut request gets 502, the next one a fresh process."""
    with running(tmp_path, exclusive(a=web())) as juggler:
        first = juggler.ask("POST", "/a/x", {}).json()["pid"]
        assert juggler.ask("POST", "/a/die", {}).status == 502
        eventually(lambda: juggler.instance("S/a")["error"] is not None, "the exit is noticed")
        assert juggler.ask("POST", "/a/x", {}).json()["pid"] != first


def test_operator_orders_over_the_api(tmp_path: Path) -> None:
    """Load, unload and stop work by name, are idempotent, and refuse foreign hosts and origins."""
    with running(tmp_path, exclusive(a=web())) as juggler:

        def order(name: str) -> int:
            path = f"/api/v1/endpoints/a/{name}?wait_s=60"
            return juggler.ask("POST", path, port=juggler.control_port).status

        assert order("load") == 200
        assert juggler.instance("S/a")["state"] == "ready"
        assert [order("stop"), order("stop"), order("unload")] == [200, 200, 200]
        assert juggler.instance("S/a")["state"] == "stopped"
        assert juggler.ask("GET", "/api/v1/endpoints/a/stop", port=juggler.control_port).status == 405
        for extra in (b"Host: evil.example\r\n", b"Host: 127.0.0.1\r\nOrigin: http://evil.example\r\n"):
            with socket.create_connection(("127.0.0.1", juggler.control_port), 5) as sock:
                sock.sendall(b"POST /api/v1/endpoints/a/load HTTP/1.1\r\n" + extra + b"Connection: close\r\n\r\n")
                assert b" 403 " in sock.makefile("rb").readline()


def test_warm_up_loads_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Both entries are loaded one after the other; a failure is visible and stops nothing."""
    config = exclusive(a=web(), bad=web("--fail", "boom"), b=web())
    config["warmup"] = [{"server": "S", "endpoint": name} for name in ("a", "bad", "b")]
    with running(tmp_path, config) as juggler:
        eventually(lambda: juggler.status()["warmup"][2]["state"] == "done", "warm-up ends")
        assert [entry["state"] for entry in juggler.status()["warmup"]] == ["done", "failed", "done"]
        assert juggler.instance("S/b")["state"] == "ready"
        assert juggler.instance("S/a")["state"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_drain_and_leave_nothing(tmp_path: Path, number: int) -> None:
    """A running request gets its answer, the exit status is 0, no process, port or temporary file is left."""
    with running(tmp_path, exclusive(a=web())) as juggler:
        answers: list[int] = []
        slow = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/a/slow?4", {}).status))
        slow.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        assert juggler.stop(number) == 0, juggler.text()
        slow.join(LIMIT_S)
        assert answers == [200]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", juggler.port), 1)
        assert not list(juggler.temp_dir.rglob("*"))


def test_a_second_signal_hurries(tmp_path: Path) -> None:
    """An endless request does not hold up the second Ctrl-C."""
    with running(tmp_path, exclusive(a=web("--ignore-sigterm"))) as juggler:

        def ask() -> None:
            with contextlib.suppress(OSError):
                juggler.ask("POST", "/a/slow?60", {}, timeout_s=70)

        slow = threading.Thread(target=ask)
        slow.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        juggler.process.send_signal(signal.SIGINT)
        eventually(lambda: "shutting down" in juggler.text(), "the first signal is heard")
        began = time.monotonic()
        assert juggler.stop(signal.SIGINT) == 0, juggler.text()
        assert time.monotonic() - began < 5
        slow.join(LIMIT_S)


def test_sigkill_of_the_juggler_leaves_nothing_running(tmp_path: Path) -> None:
    """The guardians notice and end their backends."""
    with running(tmp_path, exclusive(a=web("--ignore-sigterm"))) as juggler:
        assert juggler.ask("POST", "/a/x", {}).status == 200
        assert juggler.left_behind()
        os.kill(juggler.process.pid, signal.SIGKILL)
        juggler.process.wait(LIMIT_S)
        eventually(lambda: not juggler.left_behind(), "everything ends")


def test_many_requests_at_once_all_get_an_answer(tmp_path: Path) -> None:
    """Fifty clients at once on two exclusive endpoints: fifty answers, two loads."""
    with running(tmp_path, exclusive(a=web("--name", "a"), b=web("--name", "b"))) as juggler:
        results: list[str] = []

        def ask(name: str) -> None:
            results.append(juggler.ask("POST", f"/{name}/x", {}).json()["name"])

        threads = [threading.Thread(target=ask, args=("ab"[number % 2],)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(results) == ["a"] * 25 + ["b"] * 25
        assert juggler.instance("S/a")["starts"] + juggler.instance("S/b")["starts"] <= 4


def test_a_client_that_leaves_while_loading_disturbs_nobody(tmp_path: Path) -> None:
    """Its load goes on or is given up; the next client is served either way."""
    with running(tmp_path, exclusive(a=web("--load", "4"), b=web("--name", "b"))) as juggler:
        with socket.create_connection(("127.0.0.1", juggler.port), 5) as sock:
            sock.sendall(b"POST /a/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            eventually(lambda: juggler.instance("S/a")["state"] == "starting", "it loads")
        assert juggler.ask("POST", "/b/x", {}).json()["name"] == "b"
        eventually(lambda: juggler.instance("S/a")["waiting"] == 0, "nobody waits")


def test_a_shutdown_waits_for_a_slow_reader(tmp_path: Path) -> None:
    """The backend is done and gone; what it answered is still on its way to the client, and arrives whole."""
    size = 6_000_000
    with running(tmp_path, exclusive(a=web())) as juggler:
        assert juggler.ask("POST", "/a/x").status == 200
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(20)
            client.connect(("127.0.0.1", juggler.port))
            client.sendall(b"POST /a/large?%d HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % size)
            received = len(client.recv(4096))
            juggler.process.send_signal(signal.SIGTERM)
            while piece := client.recv(65536):
                received += len(piece)
                time.sleep(0.001)
        assert received > size
        assert juggler.stop() == 0
