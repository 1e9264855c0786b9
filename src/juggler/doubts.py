"""Backends that have just broken a connection, and may be dead.

The broken connection and the end of the process are told by different sockets, and the last lines of the process are
waited for on top (``lifecycle.readiness.settled_output``). A request that arrives in between would be sent to a dead
backend, and lost: the client of the broken one often asks again at once. So the next requests wait a moment for the
news. A backend that lives on costs them that moment, and nothing more.
"""

import asyncio
from collections.abc import Callable

from juggler.ids import InstanceId
from juggler.units import SECONDS

DOUBT_S = 0.15 * SECONDS
"""The last lines take 0.1 s at most; the rest is for the guardian's report."""

NEWS_LIMIT_S = 2 * SECONDS
"""An end that is known, but not told after this long, is not waited for any longer."""


class Doubts:
    """Which instances are in doubt, and who waits for the news.

    Args:
        ends: Whether an instance's process is known to have ended, though nobody has been told yet.
    """

    def __init__(self, ends: Callable[[InstanceId], bool]) -> None:
        self._ends = ends
        self._open: dict[InstanceId, asyncio.Event] = {}

    def begin(self, instance: InstanceId) -> None:
        """It broke a connection."""
        if instance not in self._open:
            self._open[instance] = news = asyncio.Event()
            asyncio.get_running_loop().call_later(DOUBT_S, self._on_time, instance, news)

    def about(self, instance: InstanceId) -> bool:
        """Whether there is news to wait for."""
        return instance in self._open

    def end(self, instance: InstanceId) -> None:
        """What became of it is known."""
        news = self._open.pop(instance, None)
        if news is not None:
            news.set()

    def _on_time(self, instance: InstanceId, news: asyncio.Event) -> None:
        if self._open.get(instance) is not news:
            return
        if self._ends(instance):
            asyncio.get_running_loop().call_later(NEWS_LIMIT_S, self._on_late, instance, news)
        else:
            self.end(instance)

    def _on_late(self, instance: InstanceId, news: asyncio.Event) -> None:
        if self._open.get(instance) is news:
            self.end(instance)

    async def cleared(self, instance: InstanceId) -> None:
        """Return when nothing is in doubt about it; at once, or after ``DOUBT_S``, rarely ``NEWS_LIMIT_S`` more."""
        news = self._open.get(instance)
        if news is not None:
            await news.wait()
