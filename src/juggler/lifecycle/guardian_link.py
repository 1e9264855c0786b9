"""The juggler's end of one guardian: its socket, the backend's two pipes, and what the guardian reported."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar, cast

from juggler.errors import StartFailed
from juggler.lifecycle import guardian
from juggler.lifecycle.launcher import ExitReport
from juggler.lifecycle.output import OutputRing, PipeDrain
from juggler.units import KIB, SECONDS

SPAWN_LIMIT_S = 20 * SECONDS
"""For the interpreter to come up: 30 ms usually, seconds on a machine that swaps."""
REPORT_BYTES_MAX = 256 * KIB
ORPHANS_LIMIT_S = 2 * SECONDS

_T = TypeVar("_T")


class GuardianLink(asyncio.Protocol):
    """One guardian. Its futures carry results only, never exceptions, so nobody has to collect them.

    When the guardian is lost (killed from outside), every future that is still open resolves to None or False.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outcome: asyncio.Future[dict[str, object] | None] = loop.create_future()
        """The report ``started`` or ``failed``."""
        self.exited: asyncio.Future[ExitReport | None] = loop.create_future()
        self.gone: asyncio.Future[bool] = loop.create_future()
        """True: nothing of the backend is left, its temporary files are removed."""
        self.lost = False
        """The connection has ended."""
        self.ring = OutputRing()
        self.stuck: tuple[int, ...] = ()
        self._drains: tuple[PipeDrain, ...] = ()
        self._transport: asyncio.Transport | None = None
        self._received = b""

    @classmethod
    async def spawn(cls) -> Self:
        """Start a guardian that waits for its plan; about 30 ms, most of it in a worker thread.

        Raises:
            StartFailed: The interpreter did not come up.
        """
        loop = asyncio.get_running_loop()
        spawning = loop.run_in_executor(None, _spawn)
        try:
            ends = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            spawning.add_done_callback(_close_unused)
            raise
        link = cls(loop)
        try:
            await loop.create_unix_connection(lambda: link, sock=ends.control)
        except BaseException:
            ends.close()
            raise
        link._drains = (
            PipeDrain(loop, ends.out, link.ring, "stdout"),
            PipeDrain(loop, ends.err, link.ring, "stderr"),
        )
        return link

    def order(self, op: str, **fields: object) -> None:
        """Send an order; nothing happens when the guardian is lost, the futures tell that."""
        if self._transport is not None and not self.lost:
            self._transport.write(json.dumps({"op": op, **fields}).encode() + b"\n")

    def drain_now(self) -> bool:
        """Read what the pipes hold at this moment; True when both have ended."""
        for drain in self._drains:
            drain.drain_now()
        return all(drain.ended.done() for drain in self._drains)

    async def drain(self, limit_s: float) -> None:
        """Read both pipes to their end, ``limit_s`` at most: a survivor may keep them open."""
        if not self.drain_now():
            await asyncio.wait([drain.ended for drain in self._drains], timeout=limit_s)

    def close(self) -> None:
        """Let go of the guardian, which then ends what is left; idempotent."""
        if self._transport is not None:
            self._transport.abort()
        for drain in self._drains:
            drain.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._on_report(json.loads(line))
        if len(self._received) > REPORT_BYTES_MAX and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        _resolve(self.outcome, None)
        _resolve(self.exited, None)
        _resolve(self.gone, False)

    def _on_report(self, report: dict[str, object]) -> None:
        event = report["event"]
        if event in ("started", "failed"):
            _resolve(self.outcome, report)
        elif event == "exited":
            # Whatever the process wrote before it ended is in the pipes by now, and belongs before its end.
            self.drain_now()
            runtime_s = cast(float, report["runtime_s"])
            _resolve(self.exited, ExitReport(status=cast(int, report["status"]), runtime_s=runtime_s))
        elif event == "stuck":
            self.stuck = tuple(cast(list[int], report["pids"]))
        elif event == "gone":
            _resolve(self.gone, True)


def _resolve(future: "asyncio.Future[_T]", result: _T) -> None:
    if not future.done():
        future.set_result(result)


@dataclass(frozen=True, slots=True)
class _Ends:
    control: socket.socket
    out: int
    err: int

    def close(self) -> None:
        self.control.close()
        os.close(self.out)
        os.close(self.err)


def _close_unused(spawning: "asyncio.Future[_Ends]") -> None:
    if not spawning.cancelled() and spawning.exception() is None:
        spawning.result().close()


def _spawn() -> _Ends:
    """Start one guardian, in a worker thread; returns when it has left our family."""
    if not sys.executable:
        raise StartFailed("No process can be started: this Python does not know its own executable.")
    ours, theirs = socket.socketpair()
    out, out_write = os.pipe()
    err, err_write = os.pipe()
    ends = _Ends(ours, out, err)
    passed = (theirs.fileno(), out_write, err_write)
    script = str(Path(guardian.__file__).resolve())
    try:
        # The output ends with the intermediate process, because the guardian turns its own to the null device.
        result = subprocess.run(
            [sys.executable, "-I", "-S", "-X", "utf8", script, *map(str, passed)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=passed,
            start_new_session=True,
            timeout=SPAWN_LIMIT_S,
            check=False,
        )
        if result.returncode != 0:
            reason = result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise StartFailed(f"The keeper process could not be started: {reason or result.returncode}.")
    except (OSError, subprocess.SubprocessError) as error:
        ends.close()
        raise StartFailed(f"The keeper process could not be started: {error}.", phase="starting") from error
    except BaseException:
        ends.close()
        raise
    finally:
        theirs.close()
        os.close(out_write)
        os.close(err_write)
    return ends


def portable(text: str) -> str:
    """Text as the guardian must see it, so that its UTF-8 mode restores the very bytes our own locale stands for."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")


def portable_env(env: Mapping[str, str]) -> dict[str, str]:
    """An environment under the rule of ``portable``."""
    return {portable(name): portable(value) for name, value in env.items()}


@dataclass(frozen=True, slots=True)
class Session:
    """The main process of a started backend, as an identity that outlives its pid."""

    pid: int
    start: int | None
    """Its start time; None if it had ended before we could look, or where there is no ``/proc``."""

    @classmethod
    def of(cls, pid: int) -> Self:
        process = guardian.read_process(pid)
        return cls(pid, None if process is None else process.start)

    def end(self) -> None:
        """SIGKILL what is left of the session after its guardian was killed; blocks up to 2 s.

        The number of a session stays taken while it has members. So members without a leader are ours; members
        with a leader are ours if the leader is the process we knew.
        """
        deadline = time.monotonic() + ORPHANS_LIMIT_S
        while time.monotonic() < deadline:
            processes = guardian.read_processes()
            leader = processes.get(self.pid)
            if leader is not None and leader.start != self.start:
                return
            members = [p for p in processes.values() if p.session == self.pid and not p.ended]
            if not members:
                return
            for process in members:
                guardian.signal_verified(process, signal.SIGKILL)
            time.sleep(0.01)
