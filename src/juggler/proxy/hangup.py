"""Notice the end of clients that are not being read: a held upload, a slow backend, a half that has ended already.

An event loop tells of a connection's end when it reads up to it. Linux tells without reading, so those connections
are asked about now and then; elsewhere their end is noticed when they are read again.
"""

import asyncio
import logging
import select
from typing import Protocol

from juggler.units import SECONDS

_log = logging.getLogger("juggler.proxy")

EVERY_S = 0.05 * SECONDS
"""A client that has left keeps its place in the queue, or its backend busy, so much longer."""

_EACH_S = 20e-6 * SECONDS
"""More time between two looks per connection: asking about one costs some microseconds."""

_HANG_UP = getattr(select, "POLLRDHUP", 0)


class Unread(Protocol):
    """A connection that is not being read."""

    def unread_descriptor(self) -> tuple[int, bool] | None:
        """Its file descriptor, and whether an end of file is news; None if it is being read again, or gone."""
        ...

    def cut(self, code: str | None) -> None: ...


def cut_in_any_case(connection: Unread, code: str | None) -> None:
    """Cut one of many connections: a mistake that shows in the request behind it must not save all the others."""
    try:
        connection.cut(code)
    except Exception:
        _log.exception("the request of a client connection that is cut could not be ended properly")


class HangUps:
    """The unread connections of one listener."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._unread: set[Unread] = set()
        self._timer: asyncio.Handle | None = None

    def watch(self, connection: Unread) -> None:
        """From now on until it is read again."""
        if _HANG_UP:
            self._unread.add(connection)
            if self._timer is None:
                self._timer = self._loop.call_later(EVERY_S, self._look)

    def stop(self) -> None:
        """Nobody is there any more."""
        self._unread.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        poller = select.poll()
        asked: dict[int, Unread] = {}
        for connection in list(self._unread):
            found = connection.unread_descriptor()
            if found is None:
                self._unread.discard(connection)
                continue
            descriptor, end_is_news = found
            asked[descriptor] = connection
            poller.register(descriptor, _HANG_UP if end_is_news else 0)  # errors are told in any case
        if asked:
            for descriptor, _ in poller.poll(0):
                self._unread.discard(asked[descriptor])
                cut_in_any_case(asked[descriptor], None)
        if self._unread:
            self._timer = self._loop.call_later(max(EVERY_S, _EACH_S * len(self._unread)), self._look)
