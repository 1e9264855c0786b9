"""Running a program that says something and ends: ``--version``, ``--help``, ``nvidia-smi``.

The process lives under a guardian (``lifecycle.guardian``), as backends do: whatever it spawns ends with it, also
when we are killed meanwhile. Unlike a backend's, its output is kept from the beginning, because that is where a
help text is.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.backends.base import LaunchPlan
from juggler.errors import StartFailed
from juggler.lifecycle import guardian
from juggler.lifecycle.guardian_link import SPAWN_LIMIT_S, portable, portable_env
from juggler.lifecycle.output import strip_escapes
from juggler.lifecycle.start_errors import check_plan, start_failed
from juggler.units import KIB, MIB, SECONDS

OUTPUT_BYTES_MAX = 1 * MIB
"""Kept of the output; the rest is read and dropped. The longest help text known (vLLM's) is below 300 KiB."""

END_LIMIT_S = 6 * SECONDS
REAP_LIMIT_S = 1 * SECONDS
"""From the order to kill until nothing is left; the guardian reports what survives after 4 s."""

LAST_WORDS_S = 0.5 * SECONDS
"""After the main process ended, for output that is still in the pipe."""

_SCRIPT = str(Path(guardian.__file__).resolve())
_READ_BYTES = 64 * KIB
_REPORT_BYTES_MAX = 256 * KIB


@dataclass(frozen=True, slots=True)
class BriefRun:
    """What a program said and how it ended."""

    status: int | None
    """Exit status, or minus the signal number; None: it had not ended in time and was killed."""
    output: str
    """stdout and stderr as they came, without terminal escapes."""

    @property
    def lines(self) -> list[str]:
        """The lines that hold something."""
        return [line.strip() for line in self.output.splitlines() if line.strip()]


async def run_briefly(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str | None = None, limit_s: float = 20 * SECONDS
) -> BriefRun:
    """Run a program to its end, or for ``limit_s`` seconds; returns when nothing of it is left.

    Raises:
        StartFailed: It cannot be executed; the message names the file and says why.
        OSError: No guardian could be started, or it was killed.
    """
    plan = _plan(argv, env, cwd)
    if sys.platform == "win32":
        raise StartFailed("Programs are not run on Windows.", phase="starting")
    async with _guardian() as (control, output):
        status = await _keep(control, plan, limit_s)
        # What still held the pipe has been killed by now: its end is near.
        await asyncio.wait([output.ended], timeout=LAST_WORDS_S)
    return BriefRun(status, strip_escapes(bytes(output.data).decode("utf-8", "replace")))


def _plan(argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> LaunchPlan:
    """As a guardian takes it: with an absolute working directory."""
    plan = LaunchPlan(tuple(argv), env, str(Path(cwd or ".").absolute()), ())
    check_plan(plan)
    return plan


async def _keep(control: "_Control", plan: LaunchPlan, limit_s: float) -> int | None:
    cwd = plan.cwd or "/"
    control.order(
        "start",
        argv=[portable(argument) for argument in plan.argv],
        env=portable_env(plan.env),
        cwd=portable(cwd),
        temp_files=[],
    )
    status: int | None = None
    try:
        async with asyncio.timeout(limit_s):
            while (report := await control.report())["event"] != "exited":
                if report["event"] == "failed":
                    code = report["errno"]
                    assert isinstance(code, int)
                    raise start_failed(plan, cwd, str(report["stage"]), code, str(report["text"]))
            found = report["status"]
            assert isinstance(found, int)
            status = found
    except TimeoutError:
        pass
    finally:
        control.order("kill")  # it, and whatever it left behind
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(END_LIMIT_S):
            while (await control.report())["event"] != "gone":
                pass
    return status


class _Control:
    """Our end of the guardian's socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def order(self, op: str, **fields: object) -> None:
        self._writer.write(json.dumps({"op": op, **fields}).encode() + b"\n")

    async def report(self) -> dict[str, object]:
        """The next report.

        Raises:
            ConnectionError: The guardian was killed.
        """
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the keeper process was killed")
        document: dict[str, object] = json.loads(line)
        return document


class _Output:
    """The beginning of what comes out of a pipe; all of it is read. Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self.data = bytearray()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the last writer has closed the pipe."""
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Stop reading; idempotent."""
        if not self.ended.done():
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self.ended.set_result(None)

    def _read(self) -> None:
        try:
            piece = os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        self.data += piece[: OUTPUT_BYTES_MAX - len(self.data)]
        if not piece:
            self.close()


@contextlib.asynccontextmanager
async def _guardian() -> AsyncIterator[tuple[_Control, _Output]]:
    """A guardian that waits for its plan; letting go of it ends what it keeps."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    second = os.dup(write)  # one pipe for both streams keeps their order; the guardian closes each of its ends
    output = _Output(read)
    try:
        try:
            await _spawn(theirs.fileno(), write, second)
        finally:
            theirs.close()
            os.close(write)
            os.close(second)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_REPORT_BYTES_MAX)
        try:
            yield _Control(reader, writer), output
        finally:
            if not writer.transport.is_closing():
                writer.close()  # after what was ordered last: on a cancelled run that is "kill"
    finally:
        ours.close()
        output.close()


async def _spawn(*passed: int) -> None:
    """Start the guardian script; it has left our family when this returns.

    Raises:
        OSError: The interpreter did not come up.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-X", "utf8", _SCRIPT, *map(str, passed)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=passed,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SPAWN_LIMIT_S):
            status = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAP_LIMIT_S):  # it is dead; a loop that closes before it knows complains
                await process.wait()
        raise
    if status != 0:
        raise OSError(f"the keeper process could not be started (exit status {status})")
