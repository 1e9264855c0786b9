"""A real llama.cpp server that works on without a client, dies while it answers, or hangs when it is to end."""

import contextlib
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import Answer, Juggler, eventually, running
from tests.real.engine_process import needs_engine
from tests.real.test_two_llamas import servers_alive, two_llamas

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240), needs_engine]

LONG = {"n_predict": 3500, "max_tokens": 3500, "ignore_eos": True, "stream": True}
"""Seconds of work for the tiny model, within its context."""


@contextmanager
def reading(juggler: Juggler, path: str, body: dict[str, Any], **headers: str) -> Iterator[http.client.HTTPResponse]:
    """A stream that has begun; leaving hangs up."""
    connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.read(20)
        yield answer
    finally:
        connection.close()


def in_background(juggler: Juggler, path: str) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []
    thread = threading.Thread(
        target=lambda: answers.append(juggler.ask("POST", path, {"prompt": "x", "n_predict": 2}, timeout_s=180))
    )
    thread.start()
    return thread, answers


def pid_of(juggler: Juggler) -> int:
    """The one llama.cpp server that runs."""
    pids = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(directory.name)
            line = (directory / "cmdline").read_bytes()
            if juggler.marker.encode() in (directory / "environ").read_bytes() and b"llama-server" in line:
                pids += [pid] if b"guardian" not in line else []
    assert len(pids) == 1, pids
    return pids[0]


def works(juggler: Juggler) -> bool:
    answer = juggler.ask("GET", "/a/slots", timeout_s=60)
    return answer.status == 200 and any(slot.get("is_processing") for slot in answer.json())


def test_a_generation_that_outlives_its_request_is_not_cut(tmp_path: Path) -> None:
    """With ``X-Conversation-Id`` the server goes on when the client has left (backends.md 2.5): a swap waits for it."""
    config = two_llamas(tmp_path)
    for endpoint in config["servers"][0]["endpoints"]:
        endpoint["parameters"] += ["-t", "1"]  # two threads wait for each other for ever on a busy machine
    with running(tmp_path, config) as juggler:
        chat = {"messages": [{"role": "user", "content": "Hello"}], **LONG}
        with reading(juggler, "/a/v1/chat/completions", chat, **{"X-Conversation-Id": "c"}):
            thread, answers = in_background(juggler, "/b/completion")
            eventually(lambda: juggler.instance("S/b")["waiting"], "the other one is asked for")
        while thread.is_alive():
            answered = bool(answers)
            if not works(juggler):
                break
            assert not answered, "answered while the other was at work"
            thread.join(0.2)
        thread.join(180)
        assert answers[0].status == 200
        saved = list((tmp_path / "state" / "kv").rglob("*.json"))
        tokens = [slot["tokens"] for file in saved for slot in json.loads(file.read_text())["slots"]]
        assert max(tokens, default=0) > 3000, "the generation was cut"


def test_killed_while_it_answers(tmp_path: Path) -> None:
    """The stream ends as a broken one, and the next request is answered by a new server."""
    config = two_llamas(tmp_path)
    for endpoint in config["servers"][0]["endpoints"]:
        endpoint["parameters"] += ["-c", "16384"]
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/a/completion", {"prompt": "x", "n_predict": 2}).status == 200
        pid = pid_of(juggler)
        # Far more work than is done until the kill, wherever this process is held up.
        with reading(juggler, "/a/completion", {"prompt": "x", **LONG, "n_predict": 15_000}) as stream:
            os.kill(pid, signal.SIGKILL)
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                stream.read()
        # The broken stream and the end of the process are told by two sockets: in between a request may still be lost.
        eventually(lambda: juggler.instance("S/a")["error"] is not None, "the end is noticed")
        assert juggler.ask("POST", "/a/completion", {"prompt": "x", "n_predict": 2}).status == 200
        assert juggler.instance("S/a")["starts"] == 2
        assert servers_alive(juggler) == 1


def test_hung_when_it_is_to_end(tmp_path: Path) -> None:
    """A server that does not listen to signals any more is killed after its time, and the other one starts."""
    config = two_llamas(tmp_path)
    config["backends"]["llamacpp"]["stop_timeout"] = "1s"
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/a/completion", {"prompt": "x", "n_predict": 2}).status == 200
        os.kill(pid_of(juggler), signal.SIGSTOP)
        thread, answers = in_background(juggler, "/b/completion")
        thread.join(60)
        assert answers[0].status == 200
        eventually(lambda: servers_alive(juggler) == 1, "one server")
