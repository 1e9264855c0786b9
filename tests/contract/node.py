"""Node in a process of its own, and the npm package ``openai`` in a folder that is kept from run to run."""

import atexit
import base64
import functools
import getpass
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.contract.libraries import LIMIT_S, Began, Outcome
from tests.contract.lists import NODE, Call

OPENAI_NPM = "6.49.0"
"""The last version that runs on Node 20; 7 wants 22."""
NODE_LEAST = 20
INSTALL_LIMIT_S = 45.0


class Missing(Exception):
    """Something of Node is not on this machine; the text says what."""


@functools.cache
def node_program() -> str:
    """Path of ``node``.

    Raises:
        Missing: There is none, or it is too old.
    """
    program = shutil.which("node")
    if program is None:
        raise Missing("node is not installed")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    major = said.strip().removeprefix("v").partition(".")[0]
    if not major.isdecimal() or int(major) < NODE_LEAST:
        raise Missing(f"node {said.strip()} is too old: {NODE_LEAST} is needed")
    return program


def _cache() -> Path:
    """A folder of the virtual environment; without one, of the user's temporary files."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "juggler-npm"
    return Path(tempfile.gettempdir()) / f"juggler-npm-{getpass.getuser()}"


@functools.cache
def openai_module() -> Path:
    """The package's main module, installed if need be.

    Raises:
        Missing: There is no npm, or it does not get the package.
    """
    node_program()
    folder = _cache() / f"openai-{OPENAI_NPM}"
    module = folder / "node_modules" / "openai" / "index.mjs"
    if module.exists():
        return module
    npm = shutil.which("npm")
    if npm is None:
        raise Missing("npm is not installed")
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--fetch-retries=0")
        command = [npm, "install", "--prefix", fresh, *quiet, f"openai@{OPENAI_NPM}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            raise Missing(f"npm did not install openai {OPENAI_NPM} within {INSTALL_LIMIT_S:.0f} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no output"]
            raise Missing(f"npm cannot install openai {OPENAI_NPM}: {lines[0]}")
        try:
            Path(fresh).rename(folder)
            Path(fresh).mkdir()  # for the end of the context
        except OSError:
            if not module.exists():  # another test run was faster
                raise
    return module


@dataclass(slots=True)
class _Order:
    began: Began
    done: threading.Event = field(default_factory=threading.Event)
    outcome: dict[str, Any] | None = None


class Node:
    """A process that makes calls, any number at a time."""

    def __init__(self, module: Path | None) -> None:
        script = Path(__file__).with_name("replay.mjs")
        words = [node_program(), str(script), *([module.as_uri()] if module else [])]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._lock = threading.Lock()
        self._orders: dict[int, _Order] = {}
        self._reader = threading.Thread(target=self._read, daemon=True, name="node")
        self._reader.start()

    def perform(self, base: str, call: Call, path: str, began: Began, outcome: Outcome) -> None:
        """As ``libraries.perform``."""
        order = _Order(began)
        with self._lock:
            number = len(self._orders)
            self._orders[number] = order
            assert self._process.stdin is not None
            message = {
                "id": number,
                "library": call.library,
                "base": base,
                "method": call.method,
                "path": path,
                "body": call.body,
                "stream": call.stream,
                "retries": call.wakes,
                "limit_ms": int(LIMIT_S * 1000),
            }
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        assert order.done.wait(4 * LIMIT_S), f"node does not answer: {call.name}"
        assert order.outcome is not None, "node has ended"
        for name, value in order.outcome.items():
            setattr(outcome, name, base64.b64decode(value) if name == "body" else value)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "id" not in message:
                continue
            order = self._orders[message["id"]]
            if message.get("began"):
                order.began()
            else:
                order.outcome = message["outcome"]
                order.done.set()
        for order in list(self._orders.values()):
            order.done.set()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


_starting = threading.Lock()


def node() -> Node:
    """The one process of this test run, with the package where it can be had; it ends with the run."""
    with _starting:
        return _node()


@functools.cache
def _node() -> Node:
    process = Node(None if missing(frozenset(("openai-npm",))) else openai_module())
    atexit.register(process.close)
    return process


@functools.cache  # npm is asked once, also where it fails
def missing(libraries: frozenset[str]) -> str:
    """Why some of these libraries cannot be used here; empty if all can."""
    try:
        if libraries & NODE:
            node_program()
        if "openai-npm" in libraries:
            openai_module()
    except Missing as error:
        return str(error)
    return ""
