"""Type ``vllm`` through the whole program, with a stand-in: asleep instead of stopped, started and attached."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import PROGRAMS, Answer, Juggler, eventually, exclusive, running, web
from tests.ports import free_port

pytestmark = pytest.mark.slow


def program(tmp_path: Path) -> str:
    path = tmp_path / "vllm"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAMS / "fake_vllm.py"}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def vllm(tmp_path: Path, env: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A backend as an operator writes it, with an address of a life before the juggler."""
    words = ["org/model", "--port=8000", "--host", "0.0.0.0"]
    return {"type": "vllm", "binary": program(tmp_path), "default_parameters": words, "env": env or {}, **more}


def ask(juggler: Juggler, seconds: float = 0.0, name: str = "a") -> Answer:
    return juggler.ask("POST", f"/{name}/v1/completions", {"model": "m", "seconds": seconds})


def state(juggler: Juggler) -> Any:
    return juggler.ask("GET", "/a/fake/state").json()


def residency(juggler: Juggler) -> str:
    return str(juggler.instance("S/a")["residency"])


@pytest.mark.parametrize("level", [1, 2])
def test_it_sleeps_for_others_and_wakes_for_itself(tmp_path: Path, level: int) -> None:
    """The process stays; after level 2 its weights are the model's again before the request comes."""
    deep: dict[str, Any] = {"unload": "POST /sleep?level=2"} if level == 2 else {}
    with running(tmp_path, exclusive(a=vllm(tmp_path, **deep), b=web("--name", "b"))) as juggler:
        assert ask(juggler).status == 200
        pids = state(juggler)["pids"]
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        assert residency(juggler) == "unloaded"
        assert state(juggler)["awake"] == []
        assert ask(juggler).status == 200
        now = state(juggler)
        assert (now["pids"], now["awake"]) == (pids, ["kv_cache", "weights"])
        wake = ["wake weights", "rpc reload_weights", "wake kv_cache"] if level == 2 else ["wake all"]
        assert [event.rpartition(" ")[0] or event for event in now["events"][:2]] == ["work", f"sleep {level}"]
        assert now["events"][2:] == [*wake, "work"]


def test_clients_cannot_put_it_to_sleep(tmp_path: Path) -> None:
    """403, by any spelling; what it is doing can be asked."""
    with running(tmp_path, exclusive(a=vllm(tmp_path))) as juggler:
        assert ask(juggler).status == 200
        for path in ("/a/sleep?level=2", "/a/wake_up", "/a/collective_rpc", "/a//sl%65ep"):
            assert juggler.ask("POST", path, {}).status == 403
        assert juggler.ask("GET", "/a/is_sleeping").json() == {"is_sleeping": False}
        assert state(juggler)["events"] == ["work"]


def test_what_runs_is_waited_for(tmp_path: Path) -> None:
    """A sleep would kill it."""
    with running(tmp_path, exclusive(a=vllm(tmp_path), b=web("--name", "b"))) as juggler:
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(ask(juggler, 4)))
        thread.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        assert juggler.ask("POST", "/b/x").status == 200
        thread.join()
        assert answers[0].status == 200


def test_one_that_does_not_sleep_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 is not believed: the engine says it is awake, so its process goes."""
    with running(tmp_path, exclusive(a=vllm(tmp_path, {"FAKE_VLLM_INSOMNIA": "1"}), b=web("--name", "b"))) as juggler:
        assert ask(juggler).status == 200
        pids = state(juggler)["pids"]
        assert juggler.ask("POST", "/b/x", timeout_s=40).json()["name"] == "b"
        assert residency(juggler) == "stopped"
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_killed_in_the_middle_of_a_request(tmp_path: Path) -> None:
    """A clear error, the engine process goes with it, and the next request is served by a new one."""
    with running(tmp_path, exclusive(a=vllm(tmp_path))) as juggler:
        assert ask(juggler).status == 200
        server, engine = state(juggler)["pids"]
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(ask(juggler, 10)))
        thread.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        os.kill(server, signal.SIGKILL)
        thread.join()
        assert answers[0].status in (502, 503)
        # The broken connection and the end of the process are told apart: in between a request may still be lost.
        eventually(lambda: juggler.instance("S/a")["error"] is not None, "the end is noticed")
        assert ask(juggler).status == 200
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


def test_deaf_at_the_stop(tmp_path: Path) -> None:
    """Neither the server nor its engine listens to SIGTERM; both are gone before the other one starts."""
    deaf = vllm(tmp_path, {"FAKE_VLLM_DEAF": "1"}, model_unloading=False, stop_timeout=0.3)
    with running(tmp_path, exclusive(a=deaf, b=web("--name", "b"))) as juggler:
        assert ask(juggler).status == 200
        pids = state(juggler)["pids"]
        assert juggler.ask("POST", "/b/x").status == 200
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_a_machine_that_cannot_sleep(tmp_path: Path) -> None:
    """The start fails with the way out; with ``model_unloading: false`` it works."""
    env = {"FAKE_VLLM_NO_SLEEP": "1"}
    config = exclusive(a=vllm(tmp_path, env), plain=vllm(tmp_path, env, model_unloading=False))
    with running(tmp_path, config) as juggler:
        answer = ask(juggler)
        assert answer.status == 503
        assert "model_unloading" in answer.json()["juggler"]["hint"]
        assert ask(juggler, name="plain").status == 200


@contextlib.contextmanager
def somebody_elses(tmp_path: Path, *flags: str, dev_mode: bool = True) -> Iterator[int]:
    """A server that runs already; its port."""
    port = free_port()
    env = {**os.environ, **({"VLLM_SERVER_DEV_MODE": "1"} if dev_mode else {})}
    command = [program(tmp_path), "serve", "m", "--host", "127.0.0.1", "--port", str(port), *flags]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: listens(port), "it is up")
        yield port
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_attached(tmp_path: Path) -> None:
    """Put to sleep and woken as one of ours, and left alone at the end."""
    with somebody_elses(tmp_path, "--enable-sleep-mode") as port:
        theirs = {"type": "vllm", "attach_to": f"http://127.0.0.1:{port}"}
        with running(tmp_path, exclusive(a=theirs, b=web("--name", "b"))) as juggler:
            assert ask(juggler).status == 200
            assert juggler.ask("POST", "/b/x").status == 200
            assert residency(juggler) == "unloaded"
            assert ask(juggler).status == 200


def test_attached_without_dev_mode_is_named(tmp_path: Path) -> None:
    """It can never be put to sleep: whoever needs the memory it is declared with is told so at once."""
    with somebody_elses(tmp_path, dev_mode=False) as port:
        theirs = {"type": "vllm", "attach_to": f"http://127.0.0.1:{port}"}
        config = exclusive(a=theirs, b=web("--name", "b"))
        config["memory"] = {"pools": {"gpu0": "24 GiB"}}
        for endpoint in config["servers"][0]["endpoints"]:
            endpoint["memory"] = {"gpu0": "20 GiB"}
        with running(tmp_path, config) as juggler:
            assert ask(juggler).status == 200
            assert "--enable-sleep-mode" in juggler.text()
            answer = juggler.ask("POST", "/b/x")
            assert answer.status == 503
            assert "attached 'a'" in answer.json()["error"]["message"]
            assert ask(juggler).status == 200
