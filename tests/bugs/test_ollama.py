"""Bugs 30 and 31 of the prototype (backends.md section 11): ollama. Each test would fail with its bug."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from juggler.backends import ollama_models
from juggler.backends.ollama import OllamaBackend
from tests.e2e.support import PROGRAMS, Juggler, eventually, exclusive, running, web
from tests.ports import free_port
from tests.unit.backends.fake_caller import FakeCaller, answer, settings


def chat(juggler: Juggler) -> int:
    body = {"model": "small", "prompt": "hello", "stream": False}
    return juggler.ask("POST", "/a/api/generate", body).status


def test_bug_30_an_attached_ollama_is_known_to_be_attached(tmp_path: Path) -> None:
    """It is used, unloaded for others, and not started a second time."""
    port = free_port()
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "HOME": str(tmp_path)}
    command = [sys.executable, str(PROGRAMS / "fake_ollama.py"), "serve"]
    theirs = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        config = exclusive(a={"type": "ollama", "attach_to": f"http://127.0.0.1:{port}"}, b=web("--name", "b"))
        with running(tmp_path, config) as juggler:
            eventually(lambda: juggler.instance("S/a")["attached"], "it is attached to")
            assert chat(juggler) == 200
            assert juggler.ask("POST", "/b/x").status == 200
            assert juggler.instance("S/a")["residency"] == "unloaded"
            assert chat(juggler) == 200
        assert theirs.poll() is None
    finally:
        theirs.terminate()
        theirs.wait()


async def test_bug_31_a_model_that_is_gone_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """404 for one: the other is ordered out all the same, and the 200 of an order is not taken for free memory."""
    monkeypatch.setattr(ollama_models, "SETTLE_S", 0.0)
    listed = [{"name": name, "model": name, "size": 1, "size_vram": 0, "digest": name} for name in ("gone", "there")]
    orders: list[bytes] = []
    lists = iter([listed, listed, listed[1:]])

    def generate(body: bytes | None) -> object:
        orders.append(body or b"")
        return answer(404, {"error": "model 'gone' not found"}) if b"gone" in (body or b"") else answer(200, {})

    caller = FakeCaller(
        {
            "GET /api/ps": lambda _body: answer(200, {"models": next(lists, [])}),
            "POST /api/generate": generate,  # type: ignore[dict-item]
        }
    )
    assert await OllamaBackend(settings("ollama")).unload(caller)
    assert any(b"there" in order for order in orders)
    assert caller.calls.count("GET /api/ps") >= 3, "the list decides, not the answers"
