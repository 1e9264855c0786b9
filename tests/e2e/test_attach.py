"""Servers that somebody else runs, through the whole program: found, shared, unloaded, woken, lost, replaced."""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.support import PROGRAMS, Juggler, eventually, exclusive, running, web
from tests.ports import free_port


class Theirs:
    """A server of our own that stands for somebody else's."""

    def __init__(self, *flags: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://localhost:{self.port}"
        command = [sys.executable, str(PROGRAMS / "attached.py"), "--port", str(self.port), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def diary(self) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/diary")
        document = json.loads(connection.getresponse().read())
        connection.close()
        return document

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def theirs(*flags: str, port: int | None = None) -> Iterator[Theirs]:
    server = Theirs(*flags, port=port)
    try:
        yield server
        assert server.process.poll() is None, "an attached server is never ended by us"
    finally:
        server.kill()


@contextlib.contextmanager
def mortal() -> Iterator[Theirs]:
    """One that the test kills; at the end it is gone in any case."""
    server = Theirs()
    with contextlib.closing(server):
        yield server


def attached(url: str, **more: Any) -> dict[str, Any]:
    """A backend that attaches, with all hooks."""
    hooks = {"unload": "POST /unload", "wake": "POST /wake", "busy": {"path": "/jobs", "busy_when": "running > 0"}}
    return {"type": "command", "attach_to": url, **hooks, **more}


def residency(juggler: Juggler, name: str) -> str:
    return str(juggler.instance(f"S/{name}")["residency"])


def test_found_unloaded_for_others_and_woken(tmp_path: Path) -> None:
    """It is there before us, counts as loaded, gives way to another, is woken for the next request, and survives us."""
    with theirs() as server:
        with running(tmp_path, exclusive(a=attached(server.url), b=web("--name", "b"))) as juggler:
            eventually(lambda: residency(juggler, "a") == "ready", "found without a request")
            assert juggler.instance("S/a")["attached"]
            assert juggler.ask("POST", "/a/x").status == 200
            assert juggler.ask("POST", "/b/x").json()["name"] == "b"
            assert residency(juggler, "a") == "unloaded"
            # A poll is answered by the unloaded server; it wakes nothing.
            assert juggler.ask("GET", "/a/list").json()["path"] == "/list"
            assert residency(juggler, "a") == "unloaded"
            assert juggler.ask("POST", "/a/x").status == 200
        assert server.diary() == {
            "diary": ["work", "unload", "wake", "work"],
            "loaded": True,
            "pid": server.process.pid,
        }


def test_busy_while_wanted(tmp_path: Path) -> None:
    """A job that outlives its request is waited for."""
    with theirs() as server, running(tmp_path, exclusive(a=attached(server.url), b=web("--name", "b"))) as juggler:
        assert juggler.ask("POST", "/a/job?0.7").status == 200
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        assert server.diary()["diary"] == ["job done", "unload"]


def test_nothing_there(tmp_path: Path) -> None:
    """503 that says whose fault it is, and the resident stays; when it comes, it is used."""
    port = free_port()
    with running(tmp_path, exclusive(a=attached(f"http://127.0.0.1:{port}"), b=web("--name", "b"))) as juggler:
        assert juggler.ask("POST", "/b/x").status == 200
        answer = juggler.ask("POST", "/a/x")
        assert (answer.status, answer.json()["error"]["code"]) == (503, "backend_unreachable")
        assert f"http://127.0.0.1:{port}" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert juggler.instance("S/a")["state"] == "down"
        assert (residency(juggler, "b"), juggler.instance("S/b")["starts"]) == ("ready", 1)
        with theirs(port=port):
            assert juggler.ask("POST", "/a/x").status == 200


def test_its_death_is_noticed_and_its_return(tmp_path: Path) -> None:
    """Without a request, by the watch; the next request gets a clear 503, and after the return an answer."""
    with mortal() as server, running(tmp_path, exclusive(a=attached(server.url))) as juggler:
        eventually(lambda: residency(juggler, "a") == "ready", "found")
        server.kill()
        eventually(lambda: juggler.instance("S/a")["state"] == "down", "its death is noticed")
        answer = juggler.ask("POST", "/a/x")
        assert (answer.status, answer.json()["error"]["code"]) == (503, "backend_unreachable")
        with theirs(port=server.port):
            eventually(lambda: residency(juggler, "a") == "ready", "its return is noticed")
            assert juggler.ask("POST", "/a/x").status == 200


def test_killed_in_the_middle_of_a_request(tmp_path: Path) -> None:
    """That request fails at once, the next ones are told clearly."""
    with mortal() as server, running(tmp_path, exclusive(a=attached(server.url))) as juggler:
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/a/x?10").status))
        thread.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "the request runs")
        began = time.monotonic()
        server.kill()
        thread.join()
        assert answers[0] in (502, 503)
        assert time.monotonic() - began < 8
        eventually(lambda: juggler.instance("S/a")["state"] == "down", "looked after at once")
        assert juggler.ask("POST", "/a/x").json()["error"]["code"] == "backend_unreachable"


def test_attach_first_start_else_and_back(tmp_path: Path) -> None:
    """A server of our own stands in while theirs is away; traffic returns with the next start."""
    own = [str(PROGRAMS / "attached.py"), "--port", "{port}", "--name", "ours"]
    with mortal() as server, contextlib.ExitStack() as stack:
        both = attached(server.url, binary=sys.executable, default_parameters=own, model_unloading=False)
        juggler = stack.enter_context(running(tmp_path, exclusive(a=both, b=web("--name", "b"))))
        assert juggler.ask("POST", "/a/x").json()["name"] == "attached"
        server.kill()
        eventually(lambda: residency(juggler, "a") != "ready", "its death is noticed")
        assert juggler.ask("POST", "/a/x").json()["name"] == "ours"
        with theirs(port=server.port):
            assert juggler.ask("POST", "/a/x").json()["name"] == "ours", "what runs is not thrown away"
            assert juggler.ask("POST", "/b/x").json()["name"] == "b"
            assert juggler.ask("POST", "/a/x").json()["name"] == "attached"


def test_one_that_keeps_its_memory_is_reported_by_name(tmp_path: Path) -> None:
    """Nobody is started into memory that is taken; the server that holds it is neither stopped nor cut off."""
    with theirs("--refuses") as server:
        config = exclusive(a=attached(server.url), b=web("--name", "b"))
        with running(tmp_path, config) as juggler:
            eventually(lambda: residency(juggler, "a") == "ready", "found")
            answer = juggler.ask("POST", "/b/x")
            assert (answer.status, answer.json()["error"]["code"]) == (503, "memory_held")
            assert "attached 'a'" in answer.json()["error"]["message"]
            assert int(answer.headers["retry-after"]) >= 1
            assert juggler.instance("S/a")["holds_on"]
            assert juggler.ask("POST", "/a/x").status == 200
            assert juggler.instance("S/b")["starts"] == 0


def test_endpoints_on_one_server_are_one_instance(tmp_path: Path) -> None:
    """Two names and two spellings of the address: no swap between them."""
    with theirs() as server:
        other = {**attached(server.url.replace("localhost", "127.0.0.1"))}
        config = exclusive(a=attached(server.url), same=other)
        with running(tmp_path, config) as juggler:
            for path in ("/a/x", "/same/x", "/a/x"):
                assert juggler.ask("POST", path).status == 200
            (instance,) = juggler.status()["instances"]
            assert instance["endpoints"] == ["S/a", "S/same"]
        assert server.diary()["diary"] == ["work"] * 3


def test_two_that_run_already_on_a_pool_for_one(tmp_path: Path) -> None:
    """The one that was found second gives up its memory before anybody uses it."""
    with theirs() as first, theirs("--name", "second") as second:
        with running(tmp_path, exclusive(a=attached(first.url), b=attached(second.url))) as juggler:
            eventually(
                lambda: sorted((residency(juggler, "a"), residency(juggler, "b"))) == ["ready", "unloaded"], "settled"
            )
            for _ in range(3):
                assert juggler.ask("POST", "/a/x").json()["name"] == "attached"
                assert juggler.ask("POST", "/b/x").json()["name"] == "second"
        for server in (first, second):
            assert "work without the model" not in server.diary()["diary"]


def test_orders_of_the_operator(tmp_path: Path) -> None:
    """``unload`` unloads, ``stop`` does no more than that, and says so."""
    with theirs() as server, running(tmp_path, exclusive(a=attached(server.url))) as juggler:
        eventually(lambda: residency(juggler, "a") == "ready", "found")
        stopped = juggler.ask("POST", "/api/v1/endpoints/a/stop?wait_s=60", port=juggler.control_port)
        assert stopped.json()["result"] == "unloaded; an attached server is never stopped"
        assert server.diary()["diary"] == ["unload"]
        assert (
            juggler.ask("POST", "/api/v1/endpoints/a/load?wait_s=60", port=juggler.control_port).json()["result"]
            == "loaded"
        )
        assert server.diary()["diary"] == ["unload", "wake"]
