"""NVIDIA's GPUs through a helper process, so that a driver that hangs hangs nobody here."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from juggler.survey.versions import shortened
from juggler.units import MIB, SECONDS

FIRST_LIMIT_S = 8 * SECONDS
"""For the first answer: a sleeping GPU without persistence mode takes 1 to 3 s."""
LIMIT_S = 2 * SECONDS
IDLE_LIMIT_S = 30 * SECONDS
"""Without a question the helper ends, so that the GPU may sleep."""
BACK_OFF_FIRST_S = 5 * SECONDS
BACK_OFF_LIMIT_S = 300 * SECONDS
END_LIMIT_S = 2 * SECONDS
"""For a killed helper to be gone; one that the kernel holds in the driver stays for longer, whatever one does."""
LINE_BYTES_MAX = 4 * MIB

LIBRARY_NOT_FOUND = 12
"""NVML's error code for a machine without the driver's library."""

SIGNS = ("/proc/driver/nvidia", "/dev/nvidiactl")
"""Where a driver shows itself, on Linux and in containers."""

VAGUE_SIGN = "/dev/dxg"
"""There under WSL 2, whosever GPU it is."""

_SCRIPT = str(Path(__file__).with_name("nvml_helper.py"))
HELPER = (sys.executable, "-P", _SCRIPT)
"""As a file and without the working directory, where a stray ``queue.py`` or ``json.py`` would be imported."""


def driver_is_there(signs: Sequence[str] = SIGNS) -> bool:
    """Whether something of the driver is to be seen."""
    return any(Path(sign).exists() for sign in signs)


def driver_may_be_there(signs: Sequence[str] = (*SIGNS, VAGUE_SIGN)) -> bool:
    """Whether asking is worth a process: NVML can be imported, and there may be a driver."""
    try:
        if find_spec("pynvml") is None:
            return False
    except (ImportError, ValueError):  # a broken module of that name
        return False
    return sys.platform == "win32" or driver_is_there(signs)


class NvmlHelper:
    """Asks the helper, one question at a time; starts it when it is needed, and again after a pause when it fails.

    Args:
        argv: The helper's command.
        env: Its environment; None: ours.
        first_limit_s: For the answer of a helper that has to be started.
        limit_s: For later answers.
        idle_limit_s: Without a question for so long it is ended.
        back_off_s: Pause after a failure; doubled by each further one, up to ``BACK_OFF_LIMIT_S``.
    """

    def __init__(
        self,
        argv: Sequence[str] = HELPER,
        env: Mapping[str, str] | None = None,
        *,
        first_limit_s: float = FIRST_LIMIT_S,
        limit_s: float = LIMIT_S,
        idle_limit_s: float = IDLE_LIMIT_S,
        back_off_s: float = BACK_OFF_FIRST_S,
    ) -> None:
        self._argv = tuple(argv)
        self._env = dict(env) if env is not None else None
        self._first_limit_s = first_limit_s
        self._limit_s = limit_s
        self._idle_limit_s = idle_limit_s
        self._back_off_first_s = self._back_off_s = back_off_s
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._not_before = 0.0
        self._closed = False
        self.trouble = ""
        """A few words, if the last question was not answered."""
        self.code: object = None
        """NVML's error code with it, if there was one."""

    @property
    def pid(self) -> int | None:
        """Of the helper that runs now."""
        return self._process.pid if self._process is not None else None

    async def ask(self) -> Mapping[str, Any] | None:
        """The helper's answer, which may be any JSON object; None if there is none. Bounded, never raises."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if self._closed or loop.time() < self._not_before:
                return None
            try:
                async with asyncio.timeout(self._first_limit_s if self._process is None else self._limit_s):
                    answer = await self._exchange()
            except TimeoutError:
                self._fail("the NVIDIA driver does not answer")
            except (OSError, ValueError, RecursionError) as error:
                self._fail(f"NVML cannot be asked ({shortened(str(error)) or type(error).__name__})")
            except BaseException:
                self._end()  # cancelled in the middle: the next answer would be the last question's
                raise
            else:
                if "error" not in answer:
                    self.trouble, self.code, self._back_off_s = "", None, self._back_off_first_s
                    self._idle = loop.call_later(self._idle_limit_s, self._end)
                    return answer
                self._fail(f"NVML does not answer ({shortened(str(answer['error']))})", answer.get("code"))
            return None

    async def _exchange(self) -> Mapping[str, Any]:
        self._stop_idling()
        process = self._process
        if process is None:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=self._env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=LINE_BYTES_MAX,
                start_new_session=os.name == "posix",  # a signal to our group is not meant for it
            )
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it may have ended with a last word
            process.stdin.write(b"\n")
            await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            raise OSError("its helper ended")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("its helper talks nonsense")
        return answer

    def _fail(self, trouble: str, code: object = None) -> None:
        self.trouble, self.code = trouble, code
        self._end()
        self._not_before = asyncio.get_running_loop().time() + self._back_off_s
        self._back_off_s = min(self._back_off_s * 2, BACK_OFF_LIMIT_S)

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _end(self) -> None:
        self._stop_idling()
        process, self._process = self._process, None
        if process is not None:
            task = asyncio.get_running_loop().create_task(_end_process(process), name="end the NVML helper")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End the helper; takes ``END_LIMIT_S`` at most, and as long as a question that is under way."""
        self._closed = True
        async with self._lock:
            self._end()
        if self._ending:
            await asyncio.wait(self._ending, timeout=END_LIMIT_S)


async def _end_process(process: asyncio.subprocess.Process) -> None:
    """It is killed, not asked: it may hang in the driver."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(END_LIMIT_S):
            while await process.stdout.read(LINE_BYTES_MAX):  # else what it wrote last keeps the pipe open
                pass
            await process.wait()
