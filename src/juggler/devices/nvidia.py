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

from juggler.units import MIB, SECONDS

FIRST_LIMIT_S = 8 * SECONDS
"""For the first answer: a sleeping GPU without persistence mode takes 1 to 3 s."""
LIMIT_S = 2 * SECONDS
IDLE_LIMIT_S = 30 * SECONDS
"""Without a question the helper ends, so that the GPU may sleep."""
BACK_OFF_FIRST_S = 5 * SECONDS
BACK_OFF_LIMIT_S = 300 * SECONDS
LINE_BYTES_MAX = 4 * MIB

_SIGNS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")
"""Where a driver shows itself: on Linux, in containers, and under WSL 2."""


def driver_may_be_there(signs: Sequence[str] = _SIGNS) -> bool:
    """Whether asking is worth a process: NVML can be imported, and something of the driver is to be seen."""
    if find_spec("pynvml") is None:
        return False
    return sys.platform == "win32" or any(Path(sign).exists() for sign in signs)


class NvmlHelper:
    """Asks the helper, one question at a time; starts it when it is needed, and again after a pause when it fails.

    Args:
        argv: The helper's command.
        env: Its environment; None: ours.
    """

    def __init__(
        self,
        argv: Sequence[str] = (sys.executable, "-m", "juggler.devices.nvml_helper"),
        env: Mapping[str, str] | None = None,
        *,
        first_limit_s: float = FIRST_LIMIT_S,
        limit_s: float = LIMIT_S,
        idle_limit_s: float = IDLE_LIMIT_S,
    ) -> None:
        self._argv = tuple(argv)
        self._env = dict(env) if env is not None else None
        self._first_limit_s = first_limit_s
        self._limit_s = limit_s
        self._idle_limit_s = idle_limit_s
        self._process: asyncio.subprocess.Process | None = None
        self._fresh = True
        self._lock = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._not_before = 0.0
        self._back_off_s = BACK_OFF_FIRST_S
        self._closed = False
        self.trouble = ""
        """One sentence, if the last question was not answered."""

    async def ask(self) -> Mapping[str, Any] | None:
        """What ``nvml_helper`` tells, checked for its form; None if there is no answer. Bounded, never raises."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if self._closed or loop.time() < self._not_before:
                return None
            try:
                async with asyncio.timeout(self._first_limit_s if self._process is None else self._limit_s):
                    answer = await self._exchange()
            except TimeoutError:
                self._fail("the NVIDIA driver does not answer")
            except (OSError, ValueError) as error:
                self._fail(f"NVML cannot be asked: {error or 'its helper ended'}")
            except BaseException:
                self._end()  # cancelled in the middle: the next answer would be the last question's
                raise
            else:
                if "error" in answer:
                    self._fail(str(answer["error"])[:300])
                else:
                    self.trouble, self._back_off_s = "", BACK_OFF_FIRST_S
                    self._idle = loop.call_later(self._idle_limit_s, self._end)
                    return answer
            return None

    async def _exchange(self) -> Mapping[str, Any]:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        process = self._process
        if process is None:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=self._env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=LINE_BYTES_MAX,
                start_new_session=os.name == "posix",  # Ctrl-C in our terminal is not meant for it
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

    def _fail(self, trouble: str) -> None:
        self.trouble = trouble
        self._end()
        self._not_before = asyncio.get_running_loop().time() + self._back_off_s
        self._back_off_s = min(self._back_off_s * 2, BACK_OFF_LIMIT_S)

    def _end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        process, self._process = self._process, None
        if process is not None:
            task = asyncio.get_running_loop().create_task(_end_process(process), name="end the NVML helper")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End the helper; takes two seconds at most."""
        self._closed = True
        self._end()
        if self._ending:
            await asyncio.wait(self._ending, timeout=2 * SECONDS)


async def _end_process(process: asyncio.subprocess.Process) -> None:
    """It is killed, not asked: it may hang in the driver."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * SECONDS):
            await process.wait()
