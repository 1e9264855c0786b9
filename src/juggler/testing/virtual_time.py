"""An event loop whose clock jumps: waits of minutes take no time, and always the same order.

Time stands still while anything can run, and jumps to the next timer when nothing can. While a worker thread is
busy the loop waits for it for real, so that ``asyncio.to_thread`` behaves as if it took no time at all. Sockets
work, but their peers must live in the same loop.
"""

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

from juggler.survey.threads import LOOK

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that begins at time 0."""

    def __init__(self) -> None:
        self._now = 0.0
        self._busy_threads = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Move the clock; called by the selector when nothing can run before."""
        self._now += seconds

    @property
    def may_jump(self) -> bool:
        """Whether no thread is at work that may have something to tell first."""
        return self._busy_threads == 0 and not any(one.name.startswith(LOOK) for one in threading.enumerate())

    def run_in_executor(self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """As in any loop; time stands still until the future is done."""
        future = super().run_in_executor(executor, func, *args)
        self._busy_threads += 1
        future.add_done_callback(self._on_thread_done)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """As in any loop; it too waits for a thread, with a time limit since Python 3.12."""
        self._busy_threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._busy_threads -= 1

    def _on_thread_done(self, _: "asyncio.Future[Any]") -> None:
        self._busy_threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """Where a loop would sleep, it moves its clock instead."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0 or not self._loop.may_jump:
            # Nothing is timed, nothing to wait for, or a thread must be waited for: at most for real milliseconds,
            # since the loop asks again.
            return super().select(timeout if timeout is None or timeout <= 0 else 0.01)
        ready = super().select(0)
        if not ready:
            self._loop.jump(timeout)
        return ready


class VirtualClock:
    """The ``Clock`` of the running virtual loop; the wall clock begins at ``WALL_START_S``."""

    WALL_START_S = 1_800_000_000.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return self.WALL_START_S + asyncio.get_running_loop().time()


def run_virtual(main: Coroutine[Any, Any, _T]) -> _T:
    """``asyncio.run`` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
