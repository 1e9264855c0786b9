"""Type ``ollama`` through the whole program: shared, unloaded, woken, killed, hung, and asked while it is unloaded."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import LIMIT_S, PROGRAMS, Answer, Juggler, eventually, exclusive, processes_marked, running, web
from tests.ollama_files import write_model
from tests.ports import free_port

pytestmark = pytest.mark.slow

DONE = "done"


def ollama(tmp_path: Path, *, env: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A backend entry: the stand-in as one executable, ``serve`` left out as most people will leave it out."""
    program = tmp_path / "ollama"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAMS / "fake_ollama.py"}" "$@"\n')
    program.chmod(0o755)
    return {"type": "ollama", "binary": str(program), "env": {"HOME": str(tmp_path), **(env or {})}, **more}


def ask(juggler: Juggler, method: str, path: str, headers: dict[str, str] | None = None, body: object = None) -> Answer:
    """One exchange with headers of our choice."""
    connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def chat(juggler: Juggler, model: str = "small", **more: object) -> list[Any]:
    """One streamed answer as its lines."""
    document = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
    answer = juggler.ask("POST", "/llm/api/chat", document)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.splitlines()]


def state(juggler: Juggler) -> Any:
    """What the stand-in says of itself; a light request, which loads nothing."""
    answer = juggler.ask("GET", "/llm/fake/state")
    assert answer.status == 200, answer.body
    return answer.json()


def residency(juggler: Juggler) -> str:
    return str(juggler.instance("S/llm")["residency"])


def servers(juggler: Juggler) -> list[str]:
    """Processes of the stand-in and its runners."""
    alive = [line for line in processes_marked(juggler.marker) if "guardian" not in line]
    return [line for line in alive if "fake_ollama" in line or "FAKE_DEAF" in line]


def test_it_takes_turns_with_another_backend(tmp_path: Path) -> None:
    """1. It answers. 2. The other is wanted: its models go, the process stays. 3. The next request loads lazily."""
    with running(tmp_path, exclusive(llm=ollama(tmp_path), img=web("--name", "img"))) as juggler:
        lines = chat(juggler, keep_alive=-1)  # as SillyTavern sends it: pinned for ever, or so it thinks
        assert lines[-1][DONE] is True
        assert "".join(line["message"]["content"] for line in lines) == "word1 word2 word3 "
        chat(juggler, "embed", keep_alive="24h")
        first = state(juggler)
        assert sorted(first["runners"]) == ["embed:latest", "small:latest"]
        assert juggler.ask("POST", "/img/x", {}).json()["name"] == "img"
        unloaded = state(juggler)
        assert (unloaded["pid"], unloaded["runners"], unloaded["vram_used_mb"]) == (first["pid"], {}, 0)
        assert residency(juggler) == "unloaded"
        chat(juggler)
        woken = state(juggler)
        assert woken["pid"] == first["pid"]
        assert woken["loads"] == ["small:latest", "embed:latest", "small:latest"]
        assert juggler.instance("S/llm")["starts"] == 1
        assert juggler.instance("S/img")["residency"] == "stopped"


def test_lists_and_downloads_disturb_nobody(tmp_path: Path) -> None:
    """While it is unloaded and another works: lists are answered, a pull runs to its end, nobody is evicted."""
    config = exclusive(llm=ollama(tmp_path, env={"FAKE_PULL_S": "0.03"}), img=web("--name", "img"))
    with running(tmp_path, config) as juggler:
        polled = juggler.ask("GET", "/llm/api/tags")
        assert polled.status == 503
        assert juggler.instance("S/llm")["starts"] == 0
        chat(juggler)
        juggler.ask("POST", "/img/x", {})
        assert residency(juggler) == "unloaded"
        answers: list[int] = []
        slow = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/img/slow?4", {}).status))
        slow.start()
        eventually(lambda: juggler.instance("S/img")["running"] == 1, "the other works")
        names = [model["name"] for model in juggler.ask("GET", "/llm/api/tags").json()["models"]]
        assert names == ["small:latest", "big:latest", "embed:latest"]
        assert juggler.ask("GET", "/llm/api/ps").json() == {"models": []}
        assert juggler.ask("POST", "/llm/api/show", {"model": "small"}).status == 200
        pulled = juggler.ask("POST", "/llm/api/pull", {"model": "new"})
        assert json.loads(pulled.body.splitlines()[-1]) == {"status": "success"}
        slow.join(LIMIT_S)
        assert answers == [200]
        assert residency(juggler) == "unloaded"
        assert juggler.instance("S/img")["residency"] == "ready"


def test_clients_find_their_models_before_the_first_start(tmp_path: Path) -> None:
    """1. Everything that makes a client show a model is answered; nothing starts. 2. So the first chat can begin."""
    for name in ("small", "big", "embed"):
        write_model(tmp_path / ".ollama" / "models", name)
    with running(tmp_path, exclusive(llm=ollama(tmp_path))) as juggler:
        early = juggler.ask("GET", "/llm/api/tags")
        assert (early.status, early.headers["x-juggler"]) == (200, "files")
        details = juggler.ask("POST", "/llm/api/show", {"model": "small"})
        assert (details.status, details.headers["x-juggler"]) == (200, "files")
        assert details.json()["model_info"]["llama.context_length"] == 131072
        assert juggler.ask("GET", "/llm/api/ps").json() == {"models": []}
        assert len(juggler.ask("GET", "/llm/v1/models").json()["data"]) == 3
        unknown = juggler.ask("POST", "/llm/api/show", {"model": "none"})
        assert (unknown.status, unknown.json()) == (404, {"error": "model 'none' not found"})
        assert juggler.instance("S/llm")["starts"] == 0
        chat(juggler)
        later = juggler.ask("GET", "/llm/api/tags")
        assert "x-juggler" not in later.headers
        told = [{model["name"]: model["details"] for model in one.json()["models"]} for one in (early, later)]
        assert set(told[0]) == set(told[1])
        assert juggler.ask("GET", "/llm/api/ps").json()["models"] != []


def test_an_order_to_unload_loads_nothing(tmp_path: Path) -> None:
    """Open WebUI's button, while another works: no start, no wake, nobody is evicted for it."""
    write_model(tmp_path / ".ollama" / "models")
    order = {"model": "small", "keep_alive": 0}
    with running(tmp_path, exclusive(llm=ollama(tmp_path), img=web("--name", "img"))) as juggler:
        juggler.ask("POST", "/img/x", {})
        for path in ("generate", "chat"):
            obeyed = juggler.ask("POST", f"/llm/api/{path}", order)
            assert (obeyed.status, obeyed.json()["done_reason"]) == (200, "unload")
            assert obeyed.headers["x-juggler"] == "placeholder"
        assert juggler.instance("S/llm")["starts"] == 0
        chat(juggler)
        assert "x-juggler" not in juggler.ask("POST", "/llm/api/generate", order).headers
        eventually(lambda: state(juggler)["runners"] == {}, "it was forwarded, and obeyed")
        assert residency(juggler) == "ready"
        juggler.ask("POST", "/img/x", {})
        assert residency(juggler) == "unloaded"
        assert "x-juggler" not in juggler.ask("POST", "/llm/api/chat", order).headers
        assert residency(juggler) == "unloaded"
        assert juggler.instance("S/img")["residency"] == "ready"


def test_details_are_remembered(tmp_path: Path) -> None:
    """Once it has answered, its own words count, to the same question: also those of the program alone."""
    write_model(tmp_path / ".ollama" / "models")
    with running(tmp_path, exclusive(llm=ollama(tmp_path))) as juggler:
        chat(juggler)
        real = juggler.ask("POST", "/llm/api/show", {"model": "small"})
        assert real.json()["capabilities"]
        assert juggler.ask("POST", "/api/v1/endpoints/llm/stop?wait_s=60", port=juggler.control_port).status == 200
        eventually(lambda: residency(juggler) == "stopped", "it is stopped")
        kept = juggler.ask("POST", "/llm/api/show", {"model": "small"})
        assert (kept.body, kept.headers["x-juggler"]) == (real.body, "cached")
        other = juggler.ask("POST", "/llm/api/show", {"name": "small"})
        assert (other.status, other.headers["x-juggler"]) == (200, "files")
        assert juggler.instance("S/llm")["starts"] == 1


def test_host_and_origin_of_clients_do_not_reach_it(tmp_path: Path) -> None:
    """It would refuse a foreign Host and any page that is not on its own address; ours are on the listener's."""
    with running(tmp_path, exclusive(llm=ollama(tmp_path))) as juggler:
        chat(juggler)
        address = juggler.instance("S/llm")["address"]
        direct = http.client.HTTPConnection(address, timeout=LIMIT_S)
        direct.request("GET", "/api/version", headers={"Host": "ai.example.org"})
        assert direct.getresponse().status == 403, "the stand-in is as strict as ollama"
        direct.close()
        for headers in (
            {"Host": "ai.example.org"},
            {"Host": "ai.example.org", "Origin": "https://ai.example.org"},
            {"Host": f"127.0.0.1:{juggler.port}", "Origin": f"http://127.0.0.1:{juggler.port}"},
        ):
            answer = ask(juggler, "POST", "/llm/api/generate", headers, {"model": "small", "prompt": "x"})
            assert answer.status == 200, (headers, answer.body)
        seen = [one for one in state(juggler)["seen"] if one["path"] == "/api/generate"]
        assert [(one["host"], one["origin"]) for one in seen] == [(address, None)] * 3


def test_profiles_are_refused(tmp_path: Path) -> None:
    """Go's debugging pages share ollama's port; clients of ours never see them."""
    with running(tmp_path, exclusive(llm=ollama(tmp_path))) as juggler:
        chat(juggler)
        assert juggler.ask("GET", "/llm/debug/pprof/heap").status == 403
        assert "/debug/pprof/heap" not in [one["path"] for one in state(juggler)["seen"]]


def test_errors_of_its_own_pass(tmp_path: Path) -> None:
    """An unknown model is ollama's 404 in ollama's words, and starts no second load."""
    with running(tmp_path, exclusive(llm=ollama(tmp_path))) as juggler:
        answer = juggler.ask("POST", "/llm/api/chat", {"model": "none", "messages": []})
        assert (answer.status, answer.json()) == (404, {"error": "model 'none' not found"})
        assert state(juggler)["loads"] == []


def test_killed_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    """1. ``ollama serve`` dies under a stream. 2. The client sees it. 3. No runner is left. 4. The next is served."""
    env = {"FAKE_TOKEN_S": "0.05", "FAKE_DEAF_RUNNERS": "1"}
    with running(tmp_path, exclusive(llm=ollama(tmp_path, env=env))) as juggler:
        chat(juggler)
        first = state(juggler)
        connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
        body = json.dumps({"model": "small", "prompt": "x", "options": {"num_predict": 1000}})
        connection.request("POST", "/llm/api/generate", body)
        answer = connection.getresponse()
        answer.readline()
        os.kill(first["pid"], signal.SIGKILL)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
        connection.close()
        eventually(lambda: not servers(juggler), "its runner is ended, though it is deaf to SIGTERM")
        assert chat(juggler)[-1][DONE] is True
        assert state(juggler)["pid"] != first["pid"]


def test_hung_at_its_stop(tmp_path: Path) -> None:
    """Without unloading a swap is a stop; one that does not come is SIGKILL, for the runners too."""
    env = {"FAKE_IGNORE_SIGTERM": "1", "FAKE_DEAF_RUNNERS": "1"}
    config = exclusive(
        llm=ollama(tmp_path, env=env, model_unloading=False, stop_timeout="300ms"), img=web("--name", "img")
    )
    with running(tmp_path, config) as juggler:
        chat(juggler)
        assert len(servers(juggler)) == 2
        assert juggler.ask("POST", "/img/x", {}).json()["name"] == "img"
        assert servers(juggler) == []


def test_an_unload_that_does_not_work_becomes_a_stop(tmp_path: Path) -> None:
    """A model whose files are gone cannot be ordered out (prototype bugs 8, 31); its memory is freed all the same."""
    config = exclusive(llm=ollama(tmp_path, env={"FAKE_UNLOAD": "small:latest=404"}), img=web("--name", "img"))
    with running(tmp_path, config) as juggler:
        chat(juggler)
        assert juggler.ask("POST", "/img/x", {}).json()["name"] == "img"
        assert servers(juggler) == []
        assert residency(juggler) == "stopped"


def test_a_start_that_fails_is_explained(tmp_path: Path) -> None:
    """503 with ollama's own line and what to do about it."""
    failing = ollama(tmp_path, default_parameters=["--port", "1"])
    with running(tmp_path, exclusive(llm=failing)) as juggler:
        answer = juggler.ask("POST", "/llm/api/chat", {"model": "small"})
        assert answer.status == 503
        assert "unknown flag: --port" in json.dumps(answer.json())
        assert "takes no options" in juggler.instance("S/llm")["error"]["hint"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_juggler_is_its_end(tmp_path: Path, number: signal.Signals) -> None:
    """Killed in the middle of a load, or ended while a model is loaded: neither server nor runner is left."""
    env = {"FAKE_LOAD_S": "30" if number == signal.SIGKILL else "0", "FAKE_DEAF_RUNNERS": "1"}
    with running(tmp_path, exclusive(llm=ollama(tmp_path, env=env))) as juggler:

        def load() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                chat(juggler)

        client = threading.Thread(target=load)
        client.start()
        eventually(lambda: len(servers(juggler)) == 2, "the runner is there")
        if number == signal.SIGTERM:
            client.join(LIMIT_S)
        juggler.stop(number)
        eventually(lambda: not servers(juggler), "nothing is left")
        client.join(LIMIT_S)


def test_attached_it_is_unloaded_and_never_ended(tmp_path: Path) -> None:
    """The usual case: ollama runs as a service. Models that others have loaded go too; the service outlives us."""
    port = free_port()
    env = {**os.environ, "HOME": str(tmp_path), "OLLAMA_HOST": f"127.0.0.1:{port}"}
    command = [sys.executable, str(PROGRAMS / "fake_ollama.py"), "serve"]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as service:
        try:
            config = exclusive(
                llm={"type": "ollama", "attach_to": f"http://127.0.0.1:{port}"}, img=web("--name", "img")
            )
            with running(tmp_path, config) as juggler:
                eventually(lambda: listens(port), "the service is up")
                theirs = {"model": "embed", "input": "x", "keep_alive": -1}
                assert juggler.ask("POST", "/api/embed", theirs, port=port).status == 200
                chat(juggler)
                assert juggler.ask("POST", "/img/x", {}).json()["name"] == "img"
                unloaded = juggler.ask("GET", "/fake/state", port=port).json()
                assert (unloaded["runners"], unloaded["vram_used_mb"]) == ({}, 0)
                assert sorted(unloaded["orders"]) == ["embed:latest", "small:latest"]
                assert chat(juggler)[-1][DONE] is True
                juggler.stop()
            assert service.poll() is None
        finally:
            service.terminate()
            assert service.wait(LIMIT_S) == 0


def test_of_an_attached_one_that_is_down_only_earlier_answers_are_known(tmp_path: Path) -> None:
    """Where its models are is its user's business, and what it holds may be out of reach rather than gone."""
    write_model(tmp_path / ".ollama" / "models")
    port = free_port()
    env = {**os.environ, "HOME": str(tmp_path), "OLLAMA_HOST": f"127.0.0.1:{port}"}
    command = [sys.executable, str(PROGRAMS / "fake_ollama.py"), "serve"]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as service:
        try:
            llm = {"type": "ollama", "attach_to": f"http://127.0.0.1:{port}", "env": {"HOME": str(tmp_path)}}
            with running(tmp_path, exclusive(llm=llm)) as juggler:
                eventually(lambda: listens(port), "the service is up")
                chat(juggler)
                assert juggler.ask("POST", "/llm/api/show", {"model": "small"}).status == 200
                service.terminate()
                service.wait(LIMIT_S)
                kept = juggler.ask("POST", "/llm/api/show", {"model": "small"})
                assert (kept.status, kept.headers["x-juggler"]) == (200, "cached")
                for method, path, body in (
                    ("GET", "ps", None),
                    ("GET", "tags", None),
                    ("POST", "show", {"model": "big"}),
                    ("POST", "generate", {"model": "small", "keep_alive": 0}),
                ):
                    assert juggler.ask(method, f"/llm/api/{path}", body).status in (502, 503)
        finally:
            service.terminate()
            service.wait(LIMIT_S)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
