"""Blocking looks (directories, files, names) with a deadline."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

LOOK = "look:"
"""With what the names of these threads begin."""

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


async def in_thread(limit_s: float, function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
    """Run ``function(*args)`` in a thread of its own, for ``limit_s`` seconds at most.

    The thread is a daemon, not one of the loop's executor: a look at a dead network mount may never return, and the
    loop would wait for its executor at the end.

    Raises:
        TimeoutError: It took longer; its result, if it ever comes, is dropped.
        Exception: Whatever ``function`` raised.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def deliver(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only where ``_T`` allows it

    def work() -> None:
        result: _T | None = None
        error: BaseException | None = None
        try:
            result = function(*args)
        except BaseException as caught:  # carried over to whoever waits
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(deliver, result, error)

    name = f"{LOOK} {getattr(function, '__name__', '')}"
    threading.Thread(target=work, name=name, daemon=True).start()
    async with asyncio.timeout(limit_s):
        return await future


class OneLook:
    """Looks at the same thing time and again: while one hangs, no other is begun. Belongs to one loop.

    Args:
        limit_s: Seconds for each.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._under_way = False

    async def in_thread(self, function: Callable[[], _T]) -> _T:
        """Run ``function()`` as ``in_thread`` does.

        Raises:
            TimeoutError: It took longer, or an earlier look still has not come back.
            Exception: Whatever ``function`` raised.
        """
        if self._under_way:
            raise TimeoutError("an earlier look still hangs")

        @functools.wraps(function)
        def look() -> _T:
            try:
                return function()
            finally:
                self._under_way = False

        self._under_way = True
        try:
            return await in_thread(self._limit_s, look)
        except RuntimeError:
            self._under_way = False  # no thread could be had
            raise
