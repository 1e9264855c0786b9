"""Work that a later order can make pointless: it is then cut short, wherever it waits."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Interrupted(Exception):
    """A newer order made the running work pointless. Never leaves ``lifecycle``."""


class Interruption:
    """Runs one piece of work at a time and ends it as soon as ``check`` finds it pointless."""

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None
        self._pointless: Callable[[], bool] = lambda: False

    async def unless(
        self, pointless: Callable[[], bool], work: Coroutine[Any, Any, _T], limit_s: float | None = None
    ) -> _T:
        """The result of ``work``; cancelled as soon as it is ``pointless``. Does not nest.

        Raises:
            Interrupted: It became pointless, even if it was done in the same moment.
            TimeoutError: Not done within ``limit_s``, or raised by ``work``.
        """
        try:
            async with asyncio.timeout(limit_s) as scope:
                self._scope, self._pointless = scope, pointless
                result = await work
        except Exception:
            if pointless():
                raise Interrupted from None
            raise
        finally:
            self._scope = None
        if pointless():
            raise Interrupted
        return result

    def check(self) -> None:
        """To be called whenever something may have become pointless."""
        # An expired scope is already on its way out; moving its deadline is an error then.
        if self._scope is not None and not self._scope.expired() and self._pointless():
            self._scope.reschedule(asyncio.get_running_loop().time())
