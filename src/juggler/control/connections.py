"""Connections of the control listener: uvicorn's, with bounds for those that only stay open.

uvicorn waits for ever for the rest of a request, and refuses requests, not connections: whoever opens many and says
nothing would keep everybody else out, and use up the descriptors that the data plane needs.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from juggler.control.server import CONNECTIONS_MAX
from juggler.units import SECONDS

QUIET_MAX = CONNECTIONS_MAX - 1
"""With more open, the one that has kept silent longest makes room: the next request is not refused."""
OPEN_MAX = CONNECTIONS_MAX + 64
"""More are closed unheard, where all others are being answered."""

REQUEST_LIMIT_S = 30 * SECONDS
"""Until a request is there whole, from the connection's beginning or from the request's own."""
_COMING = (h11.IDLE, h11.SEND_BODY)


class Connection(H11Protocol):
    """See the module."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > QUIET_MAX and not self._make_room() and len(self.connections) > OPEN_MAX:
            transport.abort()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state not in _COMING:
            self._stop_waiting()
        elif self._late is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _make_room(self) -> bool:
        quiet = [one for one in self.connections if isinstance(one, Connection) and one._late is not None]
        if not quiet:
            return False
        oldest = min(quiet, key=_deadline)
        oldest._stop_waiting()  # it is gone in the next turn of the loop, and not to be chosen again
        oldest.transport.abort()
        return True

    def _wait(self) -> None:
        self._late = asyncio.get_running_loop().call_later(REQUEST_LIMIT_S, self._end)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        if self.conn.their_state in _COMING:
            self.transport.abort()


def _deadline(one: Connection) -> float:
    return one._late.when() if one._late is not None else 0.0
