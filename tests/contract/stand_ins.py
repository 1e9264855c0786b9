"""Stand-in backends that load only when they are told to, and a juggler before them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.support import PROGRAMS, Ended, Juggler, eventually, running
from tests.ollama_files import write_model
from tests.ports import free_port

COMMENTS_EVERY = "100ms"


class Gate:
    """Holds back every start of a backend until it is opened, once and for all."""

    def __init__(self, folder: Path) -> None:
        self._pipe = folder / "gate"
        os.mkfifo(self._pipe)
        self.python = folder / "python"
        """An interpreter that begins when the gate is open; without packages, which stand-ins do not need."""
        self.python.write_text(
            f'#!/bin/sh\ncase " $* " in *" --version "*|*" --help "*) ;; *) read -r _ < "{self._pipe}" ;; esac\n'
            f'exec "{sys.executable}" -S "$@"\n'
        )
        self.python.chmod(0o755)

    def open(self) -> None:
        """Each that waits or will come takes one line."""
        end = os.open(self._pipe, os.O_RDWR)  # never closed: without it the lines would be lost
        os.write(end, b"\n" * 4000)


def program(folder: Path, gate: Gate, name: str) -> str:
    """A stand-in as one executable."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec "{gate.python}" "{PROGRAMS / name}.py" "$@"\n')
    path.chmod(0o755)
    return str(path)


def backends(folder: Path, gate: Gate) -> dict[str, Any]:
    """One entry of each type, in the form in which people write them."""
    (folder / "tiny.gguf").touch()
    webui = folder / "webui"
    webui.mkdir()
    (webui / "webui.sh").symlink_to(PROGRAMS / "fake_webui.sh")
    (webui / "launch.py").symlink_to(PROGRAMS / "fake_sdwebui.py")
    home = {"HOME": str(folder)}
    for name in ("small", "big", "embed"):  # what the stand-in of ollama says to have
        write_model(folder / ".ollama" / "models", name)
    return {
        "llamacpp": {"binary": program(folder, gate, "fake_llama"), "default_parameters": ["-c", "64", "-ngl", "9"]},
        "ollama": {"binary": program(folder, gate, "fake_ollama"), "env": {**home, "FAKE_LOAD_S": "0.02"}},
        "koboldcpp": {
            "binary": program(folder, gate, "fake_koboldcpp"),
            "cwd": str(folder),
            "default_parameters": ["--model", "tiny.gguf"],
            "env": {"FAKE_LOAD_S": "0.02"},
        },
        "sdwebui": {
            "binary": str(webui / "webui.sh"),
            "default_parameters": ["--nowebui"],
            "env": {"FAKE_PYTHON": str(gate.python)},
        },
        "comfyui": {
            "binary": str(gate.python),
            "default_parameters": ["main.py"],
            "cwd": str(PROGRAMS / "comfyui"),
            "env": {"FAKE_VERSION": "0.35.0"},
        },
        "failing": {
            "type": "command",
            "binary": str(gate.python),
            "default_parameters": [str(PROGRAMS / "web.py"), "--port", "{port}", "--fail", "error: out of luck"],
        },
    }


@contextlib.contextmanager
def juggled(
    folder: Path, endpoints: dict[str, dict[str, Any]], **more: Any
) -> Iterator[tuple[Juggler, dict[str, str]]]:
    """A juggler with an address of its own for each endpoint; also the URLs of these.

    Args:
        folder: For its files.
        endpoints: By name; what stands in the configuration besides the name.
        more: Further top-level keys.
    """
    for attempt in range(3):
        ports = {name: free_port() for name in endpoints}
        servers = [
            {"name": name, "port": ports[name], "endpoints": [{"name": name, "memory": "1GiB", **endpoint}]}
            for name, endpoint in endpoints.items()
        ]
        config = {
            "memory": {"pools": {"gpu0": "100GiB"}},
            "waiting": {"comments_every": COMMENTS_EVERY},
            "servers": servers,
            **more,
        }
        with contextlib.ExitStack() as stack:
            try:
                juggler = stack.enter_context(running(folder, config))
            except Ended as ended:
                if attempt == 2 or "listen" not in str(ended):
                    raise
                (folder / "juggler.log").unlink(missing_ok=True)
                continue
            yield juggler, {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
            return


def instances(juggler: Juggler) -> dict[str, Any]:
    """All of them by the name of their endpoint."""
    return {one["instance"].partition("/")[2]: one for one in juggler.status()["instances"]}


def stopped(juggler: Juggler, name: str) -> None:
    """Have the operator stop a backend, and wait for its end."""
    answer = juggler.ask("POST", f"/api/v1/endpoints/{name}/stop?wait_s=60", port=juggler.control_port)
    assert answer.status == 200, answer.body
    eventually(lambda: instances(juggler)[name]["residency"] in ("stopped", "failed"), f"{name} is stopped")
