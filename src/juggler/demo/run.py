"""The demo's world: two random-weight models on real llama.cpp servers, a simulated image backend, a pretend GPU."""

import contextlib
import json
import os
import shlex
import shutil
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from juggler.config.load import load_text
from juggler.config.resolve import ResolvedConfig, resolve
from juggler.demo.models import write_model

if TYPE_CHECKING:
    from juggler.app import App

MODEL_BYTES = 8_000_000


def engine_command() -> str:
    """Our drop-in llama-server: the script that was installed beside this package's interpreter."""
    script = Path(sysconfig.get_path("scripts")) / "juggler-llama-server"
    return str(script) if script.exists() else "juggler-llama-server"


def juggler_command() -> str:
    """The ``juggler`` command as it works when pasted into a shell in this directory."""
    name = "juggler.exe" if os.name == "nt" else "juggler"
    script = Path(sysconfig.get_path("scripts")) / name
    if shutil.which("juggler") is not None or not script.exists():
        return "juggler"
    with contextlib.suppress(ValueError):
        script = script.relative_to(Path.cwd())
    shown = str(script)
    return shlex.quote(shown if os.sep in shown else f"{os.curdir}{os.sep}{shown}")


class DemoFiles:
    """Models and saved state in one temporary directory, gone when the block is left."""

    def __enter__(self) -> "DemoFiles":
        self.directory = Path(tempfile.mkdtemp(prefix="juggler-demo-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def configuration(self, port: int, control_port: int) -> ResolvedConfig:
        """Write the models and a configuration that a user could have written."""
        for name, seed in (("tiny-a", 1), ("tiny-b", 2)):
            write_model(self.directory / f"{name}.gguf", seed=seed, size_bytes=MODEL_BYTES)
        text = json.dumps(demo_config(self.directory, port, control_port), indent=4)
        return resolve(load_text(text, str(self.directory / "demo.json")))


def demo_config(directory: Path, port: int, control_port: int) -> dict[str, object]:
    """Chat models of 14 GiB and an image model of 11 GiB on a pretend card of 24 GiB: no two of them fit."""

    def chat(name: str, model: str, memory: str) -> dict[str, object]:
        return {
            "name": name,
            "path_prefix": f"/{model}",
            "strip_prefix": True,
            "backend": "llamacpp",
            "parameters": ["-m", str(directory / f"{model}.gguf"), "--ctx-size", "8192"],
            "memory": memory,
        }

    image = {
        "name": "Image",
        "path_prefix": "/image",
        "strip_prefix": True,
        "backend": "demo",
        "memory": "11GiB",
        "memory_unloaded": "512MiB",
    }
    return {
        "temp_dir": str(directory / "tmp"),
        "state_dir": str(directory / "state"),
        "scheduler": {"max_wait": "10s"},  # a demo is watched: whoever keeps one model busy must not hide the swaps
        "memory": {"pools": {"pretend": "24GiB"}},  # no name of a real GPU: that would be measured
        "control": {"host": "127.0.0.1", "port": control_port},
        "backends": {
            "llamacpp": {"binary": engine_command()},
            "demo": {"default_parameters": ["--load-seconds", "2", "--generate-seconds", "1"]},
        },
        "servers": [
            {
                "name": "Demo",
                "host": "127.0.0.1",
                "port": port,
                "endpoints": [chat("Chat A", "tiny-a", "14GiB"), chat("Chat B", "tiny-b", "14GiB"), image],
            }
        ],
    }


def explain(app: "App") -> str:
    """What to try, as lines that work when pasted."""
    host, port = app.listeners["Demo"].addresses[0]
    base = f"http://{host}:{port}"
    body = '{"messages":[{"role":"user","content":"Tell me a story."}],"max_tokens":24}'
    prompt = '{"prompt":"a red fox"}'
    lines = [
        "",
        "Two real llama.cpp servers (random weights: they write gibberish by nature) and a simulated image",
        "server share a pretend 24 GiB GPU that holds one of them at a time. Try, in another terminal:",
        "",
        f"  curl {base}/tiny-a/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        f"  curl {base}/tiny-b/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        f"  curl {base}/image/sdapi/v1/txt2img -H 'Content-Type: application/json' -d '{prompt}' | head -c 300",
    ]
    if app.control is not None:
        control_host, control_port = app.control.addresses[0]
        control = f"http://{control_host}:{control_port}"
        lines += [f"  {juggler_command()} top --url {control}", "", f"and watch it in a browser: {control}"]
    return "\n".join([*lines, "", "Ctrl-C ends it; nothing is left behind.", ""])
