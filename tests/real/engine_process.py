"""Starting and asking real llama.cpp servers from tests."""

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from juggler.backends.base import Address, ProbeResult
from juggler.backends.llamacpp import LlamaCppBackend
from juggler.lifecycle.caller import HttpCaller
from tests.ports import free_port

HAS_ENGINE = importlib.util.find_spec("xllamacpp") is not None
needs_engine = pytest.mark.skipif(not HAS_ENGINE, reason="xllamacpp is not installed")

PROGRAM = str(Path(sys.executable).parent / "juggler-llama-server")
WAIT_S = 40.0
LISTENING = "juggler-llama-server: listening on "


class Engine:
    """One running server with what it has written to stderr so far."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def url(self) -> str:
        """Where it listens, once it does and handles signals."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for line in self.output.splitlines():
                if line.startswith(LISTENING):
                    return line.removeprefix(LISTENING)
            assert self.process.poll() is None, self.output
            time.sleep(0.01)
        raise AssertionError(f"never listened:\n{self.output}")

    def address(self) -> Address:
        host, _, port = self.url().removeprefix("http://").rpartition(":")
        return Address(host, int(port))


@contextlib.contextmanager
def running(arguments: Sequence[str], directory: Path, env: dict[str, str] | None = None) -> Iterator[Engine]:
    """A server that is killed at the end if it still runs."""
    log = directory / f"engine-{time.monotonic_ns()}.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, text=True, env=env or dict(os.environ)
        )
    try:
        yield Engine(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def started(backend: LlamaCppBackend, directory: Path) -> AsyncIterator[tuple[HttpCaller, Engine]]:
    """A server started by its backend's plan and ready, ``after_start`` done."""
    address = Address("127.0.0.1", free_port())
    plan = backend.plan(address, os.environ)
    with running(plan.argv, directory, dict(plan.env)) as engine:
        caller = HttpCaller(address)
        deadline = time.monotonic() + WAIT_S
        while await backend.probe(caller) is not ProbeResult.READY:
            assert engine.process.poll() is None, engine.output
            assert time.monotonic() < deadline, engine.output
            await asyncio.sleep(0.01)
        await backend.after_start(caller)
        yield caller, engine
