"""Type ``koboldcpp`` through the whole program: settings files, swaps, soft unload, crashes, hangs, and its web UI."""

import http.client
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import (
    LIMIT_S,
    PROGRAMS,
    Answer,
    Juggler,
    eventually,
    exclusive,
    processes_marked,
    running,
    web,
)

pytestmark = pytest.mark.slow

GENERATE = "/llm/api/v1/generate"
PASSWORD = "between us"


def koboldcpp(tmp_path: Path, *parameters: str, env: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A backend entry: the stand-in as one executable, with a model in its working directory."""
    program = tmp_path / "koboldcpp-linux-x64"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAMS / "fake_koboldcpp.py"}" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "tiny.gguf").touch()
    return {
        "type": "koboldcpp",
        "binary": str(program),
        "cwd": str(tmp_path),
        "default_parameters": list(parameters or ("--model", "tiny.gguf")),
        "env": {"FAKE_LOAD_S": "0.05", "FAKE_EVENTS": str(tmp_path / "events"), **(env or {})},
        **more,
    }


def generate(juggler: Juggler, **fields: object) -> str:
    answer = juggler.ask("POST", GENERATE, {"prompt": "hello", **fields})
    assert answer.status == 200, answer.body
    return str(answer.json()["results"][0]["text"])


def state(juggler: Juggler) -> Any:
    """What the stand-in says of itself; a light request, which loads nothing."""
    answer = juggler.ask("GET", "/llm/fake/state")
    assert answer.status == 200, answer.body
    return answer.json()


def events(tmp_path: Path) -> list[str]:
    """What its workers have noted, without their numbers."""
    lines = (tmp_path / "events").read_text().splitlines()
    return [line.partition(" in ")[0] for line in lines]


def servers(juggler: Juggler) -> list[str]:
    alive = [line for line in processes_marked(juggler.marker) if "guardian" not in line]
    return [line for line in alive if "fake_koboldcpp" in line]


def private_files(juggler: Juggler) -> list[Path]:
    return [path for path in juggler.temp_dir.rglob("*.kcpps") if path.is_file()]


def test_it_takes_turns_with_another_backend(tmp_path: Path) -> None:
    """A settings file in place of the model, with another port in it; stopped for another, and started again."""
    theirs = {"model_param": "tiny.gguf", "port": 7000, "port_param": 7000, "host": "", "launch": True}
    (tmp_path / "mine.kcpps").write_text(json.dumps(theirs))
    config = exclusive(llm=koboldcpp(tmp_path, "mine.kcpps", "6000"), img=web("--name", "img"))
    with running(tmp_path, config) as juggler:
        for turn in (1, 2):
            assert generate(juggler) == "word0 word1 word2 "
            args = state(juggler)["args"]
            assert juggler.instance("S/llm")["address"] == f"127.0.0.1:{args['port']}"
            assert (args["host"], args["model_param"]) == ("127.0.0.1", "tiny.gguf")
            assert len(private_files(juggler)) == 1
            assert juggler.ask("POST", "/img/x", {}).json()["name"] == "img"
            assert juggler.instance("S/llm")["residency"] == "stopped"
            assert servers(juggler) == []
            assert private_files(juggler) == []
            assert juggler.instance("S/llm")["starts"] == turn
    assert json.loads((tmp_path / "mine.kcpps").read_text()) == theirs


def test_soft_unload_and_wake(tmp_path: Path) -> None:
    """1. The other is wanted: its worker is replaced by one without a model. 2. Work brings the model back."""
    parameters = ("--model", "tiny.gguf", "--admin", "--adminpassword", PASSWORD)
    with running(tmp_path, exclusive(llm=koboldcpp(tmp_path, *parameters), img=web("--name", "img"))) as juggler:
        generate(juggler)
        manager = state(juggler)["parent"]
        juggler.ask("POST", "/img/x", {})
        assert juggler.instance("S/llm")["residency"] == "unloaded"
        assert events(tmp_path)[-2:] == ["reload unload_model accepted", "serving nothing"]
        generate(juggler)
        assert juggler.instance("S/img")["residency"] == "stopped"
        assert state(juggler)["parent"] == manager
        assert juggler.instance("S/llm")["starts"] == 1
        assert events(tmp_path)[-4:-2] == ["reload initial_model accepted", "serving llm"]


def test_clients_never_see_it_without_a_model(tmp_path: Path) -> None:
    """While it is unloaded its own answer would be "inactive", and clients would give up.

    It forbids to keep any answer (``no-store``), so a 503 is as good as the earlier one.
    """
    parameters = ("--model", "tiny.gguf", "--admin")
    with running(tmp_path, exclusive(llm=koboldcpp(tmp_path, *parameters), img=web("--name", "img"))) as juggler:
        generate(juggler)
        for path in ("/llm/api/v1/model", "/llm/api/extra/perf"):
            assert juggler.ask("GET", path).status == 200
        juggler.ask("POST", "/img/x", {})
        assert juggler.instance("S/llm")["residency"] == "unloaded"
        model = juggler.ask("GET", "/llm/api/v1/model")
        assert model.status == 503 or model.json() == {"result": "koboldcpp/tiny"}
        assert juggler.ask("GET", "/llm/api/extra/perf").status == 503
        assert juggler.ask("POST", "/llm/api/extra/generate/check", {}).status == 503
        assert juggler.instance("S/llm")["residency"] == "unloaded"
        assert juggler.instance("S/img")["residency"] == "ready"


def test_an_unload_that_does_not_free_becomes_a_stop(tmp_path: Path) -> None:
    """The worker without a model dies, its manager loads the first configuration again: then the process must go."""
    backend = koboldcpp(tmp_path, "--model", "tiny.gguf", "--admin", env={"FAKE_LOADS": "ok,die,ok"})
    with running(tmp_path, exclusive(llm=backend, img=web("--name", "img"))) as juggler:
        generate(juggler)
        assert juggler.ask("POST", "/img/x", {}).status == 200
        assert juggler.instance("S/llm")["residency"] == "stopped"
        assert servers(juggler) == []
        generate(juggler)


def test_web_ui_under_a_prefix(tmp_path: Path) -> None:
    """Opening the page loads the model; polls do not; redirects to absolute paths stay below the prefix."""
    with running(tmp_path, exclusive(llm=koboldcpp(tmp_path), img=web())) as juggler:
        assert juggler.ask("GET", "/llm/api/extra/version").status == 503
        assert juggler.ask("HEAD", "/llm/").status == 503
        assert juggler.instance("S/llm")["starts"] == 0
        assert b"KoboldAI Lite" in juggler.ask("GET", "/llm/").body
        assert juggler.instance("S/llm")["starts"] == 1
        redirect = juggler.ask("GET", "/llm/lcpp")
        assert (redirect.status, redirect.headers["location"]) == (302, "/llm/lcpp/")
        assert juggler.ask("GET", "/llm/x/api").headers["location"] == "/llm/api"


def test_control_routes_are_closed(tmp_path: Path) -> None:
    """Clients may look at the list, and may neither swap models nor end the server."""
    with running(tmp_path, exclusive(llm=koboldcpp(tmp_path, "--model", "tiny.gguf", "--admin"))) as juggler:
        generate(juggler)
        for path in ("/llm/api/admin/reload_config", "/llm/api/%61dmin/reload_config", "/llm/api/extra/shutdown"):
            assert juggler.ask("POST", path, {"filename": "unload_model"}).status == 403, path
        assert juggler.ask("GET", "/llm/api/admin/list_options").json() == ["initial_model", "unload_model"]
        assert "reload" not in " ".join(events(tmp_path))


@pytest.mark.parametrize("path", ["/llm/api/extra/generate/stream", "/llm/v1/chat/completions"])
def test_streams(tmp_path: Path, path: str) -> None:
    """Server-sent events of an HTTP/1.0 server, which end with its connection, arrive one by one and complete."""
    with running(tmp_path, exclusive(llm=koboldcpp(tmp_path, env={"FAKE_TOKEN_S": "0.2"}))) as juggler:
        generate(juggler)
        connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
        try:
            body = json.dumps({"prompt": "x", "max_length": 20, "max_tokens": 20, "stream": True})
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.headers["content-type"] == "text/event-stream"
            pieces = [answer.read1(100)]
            assert not juggler_idle(juggler), "the first word is here before the last is written"
            while piece := answer.read1(65536):
                pieces.append(piece)
        finally:
            connection.close()
        words = b"".join(pieces).count(b"data: ")
        assert words == (20 if "generate" in path else 21)
        assert len(pieces) > 2


def juggler_idle(juggler: Juggler) -> bool:
    return int(juggler.instance("S/llm")["running"]) == 0


def test_a_stream_ends_with_its_client(tmp_path: Path) -> None:
    """The connection to the server is closed as well, which is how it learns to stop."""
    with running(tmp_path, exclusive(llm=koboldcpp(tmp_path, env={"FAKE_TOKEN_S": "0.02"}))) as juggler:
        generate(juggler)
        connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
        connection.request("POST", "/llm/api/extra/generate/stream", json.dumps({"max_length": 100_000}))
        assert connection.getresponse().read1(10)
        connection.close()
        eventually(lambda: juggler.ask("GET", "/llm/api/extra/perf").json()["idle"] == 1, "it stops generating")
        eventually(lambda: juggler_idle(juggler), "nor does anybody wait for it")


def test_work_that_outlives_its_client_is_waited_for(tmp_path: Path) -> None:
    """1. A client leaves in the middle of a plain generation, which goes on. 2. The other is wanted: it waits."""
    config = exclusive(llm=koboldcpp(tmp_path, env={"FAKE_TOKEN_S": "0.02"}), img=web("--name", "img"))
    with running(tmp_path, config) as juggler:
        generate(juggler)
        connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
        connection.request("POST", GENERATE, json.dumps({"max_length": 250}))
        eventually(lambda: juggler.ask("GET", "/llm/api/extra/perf").json()["idle"] == 0, "it generates")
        connection.close()
        eventually(lambda: juggler_idle(juggler), "nobody waits for it")
        assert juggler.ask("GET", "/llm/api/extra/perf").json()["idle"] == 0
        assert juggler.ask("POST", "/img/x", {}).status == 200
        assert events(tmp_path)[-1] == "generated 250 words"


@pytest.mark.parametrize("admin", [(), ("--admin",)])
def test_killed_in_the_middle_of_a_request(tmp_path: Path, admin: tuple[str, ...]) -> None:
    """The client is told, and the next request is served by a new process."""
    backend = koboldcpp(tmp_path, "--model", "tiny.gguf", *admin, env={"FAKE_TOKEN_S": "0.05"})
    with running(tmp_path, exclusive(llm=backend)) as juggler:
        generate(juggler)
        pid = int(state(juggler)["parent" if admin else "pid"])
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.append(juggler.ask("POST", GENERATE, {"max_length": 1000})))
        asking.start()
        eventually(lambda: juggler.ask("GET", "/llm/api/extra/perf").json()["idle"] == 0, "it generates")
        os.kill(pid, signal.SIGKILL)
        asking.join(LIMIT_S)
        (answer,) = answers
        assert answer.status in (502, 503), answer.body
        assert answer.json()["juggler"]["endpoint"] == "llm"
        if admin:  # the worker lives a moment longer than its manager, and takes what is lost with it
            eventually(lambda: juggler.instance("S/llm")["error"] is not None, "the end is noticed")
        generate(juggler)
        assert juggler.instance("S/llm")["starts"] == 2
        assert len(servers(juggler)) == (3 if admin else 1)


@pytest.mark.parametrize("admin", [(), ("--admin",)])
def test_hung_at_its_stop(tmp_path: Path, admin: tuple[str, ...]) -> None:
    """Deaf to every polite signal, it and its worker are killed, and the other gets the memory."""
    backend = koboldcpp(
        tmp_path,
        *("--model", "tiny.gguf", *admin),
        env={"FAKE_DEAF": "1", "FAKE_DEAF_ADMIN": "1"},
        stop_timeout="600ms",
        model_unloading=False,
    )
    with running(tmp_path, exclusive(llm=backend, img=web("--name", "img"))) as juggler:
        generate(juggler)
        assert len(servers(juggler)) == (3 if admin else 1)
        assert juggler.ask("POST", "/img/x", {}).json()["name"] == "img"
        assert servers(juggler) == []
        assert juggler.instance("S/llm")["residency"] == "stopped"


def test_a_failed_start_says_what_to_do_and_no_password(tmp_path: Path) -> None:
    """The program prints its arguments before it fails; whoever asks gets its last lines without the passwords."""
    parameters = ("--model", "missing.gguf", "--admin", "--adminpassword", PASSWORD, "--hordekey=0123456789")
    backend = koboldcpp(tmp_path, *parameters, env={"KCPP_PASSWORD": "environment's"})
    with running(tmp_path, exclusive(llm=backend)) as juggler:
        answer = juggler.ask("POST", GENERATE, {})
        assert answer.status == 503
        problem = answer.json()
        assert "missing.gguf does not exist" in problem["juggler"]["hint"]
        told = json.dumps(problem)
        assert "Namespace(" in told
        assert PASSWORD not in told
        assert "0123456789" not in told
        assert "environment" not in told
        assert PASSWORD not in juggler.text()
        assert servers(juggler) == []


def test_unusable_settings_are_told_before_anything_starts(tmp_path: Path) -> None:
    """Which file, and why; nothing was started, and nothing evicted for it."""
    (tmp_path / "broken.kcpps").write_text("{")
    for parameters, said in (
        (("--config", "broken.kcpps"), "broken.kcpps is not valid JSON"),
        (("--config", "https://example.org/x.kcpps"), "downloaded"),
        (("--model", "tiny.gguf", "--routermode"), "router mode"),
    ):
        with running(tmp_path, exclusive(llm=koboldcpp(tmp_path, *parameters))) as juggler:
            answer = juggler.ask("POST", GENERATE, {})
            assert answer.status == 503
            assert said in answer.json()["detail"]["msg"]
            assert answer.json()["juggler"]["hint"]
            assert servers(juggler) == []
        (tmp_path / "juggler.log").unlink()
