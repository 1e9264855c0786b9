"""The seed's example configuration, its paths and ports pointed at stand-ins, runs as it is written there.

llama.cpp is real, behind a script that takes the options of a build of the seed's time (``--no-mmap``, a bare ``-fa``)
and the picture encoder, which a random model does not have.
"""

import http.client
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from juggler.demo.models import write_model
from juggler.demo.run import engine_command
from tests.e2e.support import LIMIT_S, PROGRAMS, START_LIMIT_S, Answer, eventually, processes_marked
from tests.ports import free_port

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no llama.cpp wheel is installed"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

SEED = Path(__file__).parents[1] / "unit" / "config" / "data" / "seed.json"
SD, VISION = "Image generation/Stable Diffusion", "LLM/Vision LLM"

OLD_LLAMA = """#!/bin/bash
words=()
while [ $# -gt 0 ]; do
    case "$1" in
        --no-mmap|-fa) ;;
        --mmproj) shift ;;
        *) words+=("$1") ;;
    esac
    shift
done
exec {engine} "${{words[@]}}"
"""


def executable(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


class Seed:
    """The machine that the example speaks of, and the juggler on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.marker = f"seed-{root.name}-{os.getpid()}"
        self.ports = {written: free_port() for written in ("8021", "8022", "7860", "8188", "11434")}
        self.control = free_port()
        self._programs()
        text = SEED.read_text()
        for written, port in self.ports.items():
            text = re.sub(rf"\b{written}\b", str(port), text)
        text = text.replace("/path/to/", f"{root}/").replace("/tmp/ai-model-juggler/", f"{root}/temp/")
        own = f'"state_dir": "{root}/state", "control": {{"port": {self.control}}},'
        self.config = root / "config.json"
        self.config.write_text(text.replace("{", "{" + own, 1))
        self.log = root / "log"

    def _programs(self) -> None:
        root, python = self.root, sys.executable
        executable(root / "llama.cpp/build/bin/llama-server", OLD_LLAMA.format(engine=engine_command()))
        webui = root / "stable-diffusion-webui-forge"
        webui.mkdir()
        (webui / "webui.sh").symlink_to(PROGRAMS / "fake_webui.sh")
        (webui / "launch.py").symlink_to(PROGRAMS / "fake_sdwebui.py")
        executable(root / "koboldcpp-linux-x64", f'#!/bin/sh\nexec "{python}" "{PROGRAMS}/fake_koboldcpp.py" "$@"\n')
        executable(root / "ollama", f'#!/bin/sh\nexec "{python}" "{PROGRAMS}/fake_ollama.py" "$@"\n')
        for number, name in enumerate(("Mistral-Small-3.2-24B-Instruct-2506-Q5_K_M", "google_gemma-3-27b-it-Q5_K_M")):
            write_model(root / f"{name}.gguf", seed=number, size_bytes=1_000_000)
        (root / "qwen.gguf").write_bytes(b"GGUF")
        settings = {"model_param": str(root / "qwen.gguf"), "port": 5001, "port_param": 5001}
        (root / "Qwen3-30B-A3B-Q4_K_M.kcpps").write_text(json.dumps(settings))

    @property
    def environment(self) -> dict[str, str]:
        more = {"JUGGLER_TEST_MARKER": self.marker, "FAKE_PYTHON": sys.executable, "FAKE_VARIANT": "forge"}
        return {**os.environ, "HOME": str(self.root), **more}

    def ask(self, port: str, method: str, path: str, body: object = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.get(port, 0) or int(port), timeout=2 * LIMIT_S)
        try:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def status(self) -> Any:
        return self.ask(str(self.control), "GET", "/api/v1/status").json()

    def residencies(self) -> dict[str, str]:
        return {one["instance"]: one["residency"] for one in self.status()["instances"]}


@contextmanager
def seed_machine(root: Path) -> Iterator[Seed]:
    """ComfyUI runs already, as the seed demands; the rest is started. At the end nothing of ours is left."""
    seed = Seed(root)
    command = [sys.executable, str(PROGRAMS / "comfyui" / "main.py"), "--port", str(seed.ports["8188"])]
    theirs = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with seed.log.open("wb") as log:
        juggler = subprocess.Popen(
            [sys.executable, "-m", "juggler.cli.main", "serve", "--config", str(seed.config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=seed.environment,
        )
        try:
            eventually(lambda: _listens(seed.control), "it listens", START_LIMIT_S)
            yield seed
        finally:
            juggler.terminate()
            try:
                juggler.wait(LIMIT_S)
                assert theirs.poll() is None, "ComfyUI is not ours to end"
            finally:
                juggler.kill()
                theirs.kill()
                theirs.wait()
    eventually(lambda: not processes_marked(seed.marker), "nothing is left", 10)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.timeout(240)
def test_the_seed_example_runs_as_written(tmp_path: Path) -> None:
    """Both servers, all six endpoints, the warm-up in its order, and the residency that the text promises."""
    with seed_machine(tmp_path) as seed:
        # Warm-up: Stable Diffusion (started, for nothing answers where it would attach), then Vision LLM. "Model
        # unloading allows an inactive backend to remain running while still releasing the VRAM."
        eventually(lambda: [one["state"] for one in seed.status()["warmup"]] == ["done", "done"], "warm-up", 120)
        assert [one["endpoint"] for one in seed.status()["warmup"]] == [SD, VISION]
        residencies = seed.residencies()
        assert (residencies[SD], residencies[VISION]) == ("unloaded", "ready")
        eventually(lambda: seed.residencies()["Image generation/ComfyUI"] == "unloaded", "what ran already gave way")
        assert {residencies["LLM/Qwen 3 MoE"], residencies["LLM/Default LLM"]} == {"stopped"}

        vision = seed.ask("8021", "POST", "/vision/completion", {"prompt": "Hello", "n_predict": 2})
        assert vision.status == 200, vision.body
        qwen = seed.ask("8021", "POST", "/qwen3/api/v1/generate", {"prompt": "Hello"})
        assert qwen.json()["results"][0]["text"]
        assert seed.residencies()[VISION] == "stopped"
        ollama = seed.ask("8021", "POST", "/ollama/api/generate", {"model": "small", "prompt": "x", "stream": False})
        assert ollama.json()["response"]
        default = seed.ask("8021", "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
        assert default.json()["choices"]
        assert seed.residencies()["LLM/Ollama"] == "unloaded"

        picture = seed.ask("8022", "POST", "/sdapi/v1/txt2img", {"prompt": "a cat", "steps": 1})
        assert picture.json()["images"]
        prompt = {"prompt": {"1": {"class_type": "KSampler", "inputs": {}}}}
        job = seed.ask("8022", "POST", "/prompt", prompt).json()["prompt_id"]
        eventually(lambda: seed.ask("8022", "GET", f"/history/{job}").json().get(job), "the job's result")
        assert seed.residencies()[SD] == "unloaded"
        attached = {one["instance"]: one["attached"] for one in seed.status()["instances"]}
        assert [name for name, is_attached in attached.items() if is_attached] == ["Image generation/ComfyUI"]
        # Nothing of it in the file was ignored or judged.
        assert "not in effect" not in seed.log.read_text()
