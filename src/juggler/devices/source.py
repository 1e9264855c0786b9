"""A place that measurements come from, which may be slow, hang or fail."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from juggler.survey.threads import in_thread
from juggler.units import DAYS, SECONDS

_log = logging.getLogger("juggler.devices")

_T = TypeVar("_T")

THREAD_LIMIT_S = 1 * DAYS
"""A thread that hangs in the kernel cannot be ended. This long nobody starts another one beside it."""


class Source(Generic[_T]):
    """Asked one question at a time: all who ask meanwhile share it, and none waits for one that is overdue.

    Args:
        name: For the log.
        ask: Finds the answer.
    """

    def __init__(self, name: str, ask: Callable[[], Awaitable[_T]]) -> None:
        self._name = name
        self._ask = ask
        self._task: asyncio.Task[_T | None] | None = None
        self._late_at = 0.0
        """When the question under way is given up on; it goes on alone."""

    @classmethod
    def of_files(cls, name: str, look: Callable[[], _T]) -> "Source[_T]":
        """One that is asked by a blocking look at files, in a thread."""
        return cls(name, lambda: in_thread(THREAD_LIMIT_S, look))

    async def answer(self, limit_s: float) -> _T | None:
        """The answer; None if there is none within the limit, or not even to the question of someone before."""
        now = asyncio.get_running_loop().time()
        if self._task is None or self._task.done():
            self._late_at = now + limit_s
            self._task = asyncio.get_running_loop().create_task(self._answer(), name=f"ask {self._name}")
        left_s = min(limit_s, self._late_at - now)
        if left_s > 0:
            task = self._task
            await asyncio.wait([task], timeout=left_s)
            if task.done() and not task.cancelled():
                return task.result()
        return None

    async def _answer(self) -> _T | None:
        try:
            return await self._ask()
        except Exception as error:
            _log.debug("%s cannot be read: %s", self._name, error or type(error).__name__)
            return None

    async def close(self) -> None:
        """Give up the question under way; takes a second at most."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1 * SECONDS)
