"""Each backend takes turns with a real llama.cpp server, twenty times: every request answered, nothing left behind."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from juggler.demo.models import write_model
from juggler.demo.run import engine_command
from tests.e2e.support import PROGRAMS, Juggler, eventually, exclusive, running

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no llama.cpp wheel is installed"),
]

SWAPS = 20


@dataclass(frozen=True)
class Case:
    """One type: how it is started, and one piece of work with what a good answer holds."""

    backend: Callable[[Path], dict[str, Any]]
    path: str
    body: dict[str, Any] = field(default_factory=dict)
    good: Callable[[Any], Any] = bool
    finish: Callable[[Juggler, Any], None] = lambda juggler, answer: None
    """For work that outlives its request: wait for the result."""


def script(tmp_path: Path, name: str, program: str) -> str:
    """An executable that runs one of the stand-ins."""
    path = tmp_path / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAMS / program}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def ollama(tmp_path: Path) -> dict[str, Any]:
    return {"type": "ollama", "binary": script(tmp_path, "ollama", "fake_ollama.py"), "env": {"HOME": str(tmp_path)}}


def comfyui(_tmp_path: Path) -> dict[str, Any]:
    return {
        "type": "comfyui",
        "binary": sys.executable,
        "default_parameters": ["main.py"],
        "cwd": str(PROGRAMS / "comfyui"),
    }


def comfyui_result(juggler: Juggler, answer: Any) -> None:
    prompt = answer["prompt_id"]
    eventually(lambda: juggler.ask("GET", f"/x/history/{prompt}").json().get(prompt), "the job's result")


def command(_tmp_path: Path) -> dict[str, Any]:
    parameters = [str(PROGRAMS / "attached.py"), "--port", "{port}"]
    return {
        "type": "command",
        "binary": sys.executable,
        "default_parameters": parameters,
        "unload": "POST /unload",
        "wake": "POST /wake",
        "busy": {"path": "/jobs", "busy_when": "running > 0"},
    }


def sdwebui(variant: str) -> Callable[[Path], dict[str, Any]]:
    def backend(tmp_path: Path) -> dict[str, Any]:
        folder = tmp_path / "webui"
        folder.mkdir()
        (folder / "webui.sh").symlink_to(PROGRAMS / "fake_webui.sh")
        (folder / "launch.py").symlink_to(PROGRAMS / "fake_sdwebui.py")
        env = {"FAKE_PYTHON": sys.executable, "FAKE_VARIANT": variant}
        return {"type": "sdwebui", "binary": str(folder / "webui.sh"), "env": env}

    return backend


def koboldcpp(*flags: str) -> Callable[[Path], dict[str, Any]]:
    def backend(tmp_path: Path) -> dict[str, Any]:
        model = tmp_path / "kobold.gguf"
        model.write_bytes(b"GGUF")
        admin_dir = tmp_path / "admin"
        admin_dir.mkdir()
        words = ["--model", str(model), "--admindir", str(admin_dir), *flags]
        binary = script(tmp_path, "koboldcpp", "fake_koboldcpp.py")
        return {"type": "koboldcpp", "binary": binary, "default_parameters": words}

    return backend


def vllm(tmp_path: Path) -> dict[str, Any]:
    return {"type": "vllm", "binary": script(tmp_path, "vllm", "fake_vllm.py"), "default_parameters": ["org/model"]}


CASES = {
    "ollama": Case(
        ollama,
        "/api/generate",
        {"model": "small", "prompt": "hello", "stream": False},
        lambda answer: bool(answer["response"]),
    ),
    "comfyui": Case(
        comfyui,
        "/prompt",
        {"prompt": {"1": {"class_type": "KSampler", "inputs": {}}}},
        lambda answer: bool(answer["prompt_id"]),
        comfyui_result,
    ),
    "a1111": Case(
        sdwebui("a1111"), "/sdapi/v1/txt2img", {"prompt": "a cat", "steps": 1}, lambda answer: answer["images"]
    ),
    "forge": Case(
        sdwebui("forge"), "/sdapi/v1/txt2img", {"prompt": "a cat", "steps": 1}, lambda answer: answer["images"]
    ),
    "koboldcpp": Case(
        koboldcpp(), "/api/v1/generate", {"prompt": "hello"}, lambda answer: answer["results"][0]["text"]
    ),
    "koboldcpp-admin": Case(
        koboldcpp("--admin"), "/api/v1/generate", {"prompt": "hello"}, lambda answer: answer["results"][0]["text"]
    ),
    "vllm": Case(vllm, "/v1/completions", {"prompt": "hello"}, lambda answer: answer["choices"]),
    "command": Case(command, "/work", {}, lambda answer: answer["name"] == "attached"),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", sorted(CASES))
def test_twenty_swaps(tmp_path: Path, name: str) -> None:
    """Both are asked in turn on the exclusive pool; each turn makes the other one go."""
    case = CASES[name]
    model = tmp_path / "model.gguf"
    write_model(model, seed=1, size_bytes=1_000_000)
    llama = {
        "type": "llamacpp",
        "binary": engine_command(),
        "default_parameters": ["-m", str(model), "-c", "512", "-np", "1"],
    }
    config = exclusive(x=case.backend(tmp_path), llama=llama)
    with running(tmp_path, config) as juggler:
        for _ in range(SWAPS // 2):
            answer = juggler.ask("POST", f"/x{case.path}", case.body, timeout_s=60)
            assert answer.status == 200, answer.body
            assert bool(case.good(answer.json())), answer.body
            case.finish(juggler, answer.json())
            assert juggler.instance("S/llama")["residency"] == "stopped"
            answer = juggler.ask("POST", "/llama/completion", {"prompt": "Hello", "n_predict": 4}, timeout_s=60)
            assert answer.status == 200, answer.body
            assert juggler.instance("S/x")["residency"] in ("stopped", "unloaded")
        assert juggler.instance("S/llama")["starts"] == SWAPS // 2
