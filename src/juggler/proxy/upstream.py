"""Connections to one backend instance, and the pool that keeps the idle ones."""

import asyncio
import os
import socket
from typing import TYPE_CHECKING, cast

from juggler.errors import ConnectFailed, UpstreamClosed
from juggler.units import KIB, SECONDS

if TYPE_CHECKING:
    from juggler.proxy.exchange import Exchange

CONNECT_TIMEOUT_S = 5 * SECONDS
"""A local server that is up accepts in microseconds; this is for attached ones on other machines."""

IDLE_TIMEOUT_S = 4 * SECONDS
"""llama.cpp and uvicorn close after 5 s idle (dataplane.md section 4); stay below."""

MAX_IDLE = 256
"""Idle connections kept per instance; the rest are closed after use."""

FLUSH_TIMEOUT_S = 10 * SECONDS
"""For a backend to take the last bytes of a tunnel whose client has finished."""

_WRITE_BUFFER_BYTES = 256 * KIB

_LAST_READS = 32
"""Reads of a dead connection: enough for any receive buffer."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a backend: idle in its pool, or bound to one exchange that gets all its events."""

    __slots__ = ("exchange", "expires_at", "pool", "read_paused", "reused", "spare", "transport")

    def __init__(self, pool: "UpstreamPool") -> None:
        self.pool = pool
        self.exchange: Exchange | None = None
        self.transport: asyncio.Transport | None = None
        self.reused = False
        """It has carried an exchange before: the backend may have closed it in the meantime."""
        self.read_paused = False
        self.expires_at = 0.0
        self.spare: socket.socket | None = None
        """A second descriptor of the socket, while an upload runs; see ``watch_answer``."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES, low=_WRITE_BUFFER_BYTES // 4)

    def data_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.on_upstream_data(data)
        else:
            self.abort()  # nobody asked: whatever this answers, it is not our next request

    def eof_received(self) -> bool:
        return self.exchange is not None and self.exchange.on_upstream_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        if self.exchange is not None and exc is not None:
            self._read_last_words()
        self.drop_spare()
        if self.exchange is not None:
            self.exchange.on_upstream_lost(exc)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.on_upstream_full()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.on_upstream_drained()

    def write(self, data: bytes) -> None:
        """Send, unless the connection is already going down (uvloop raises where asyncio ignores it)."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def write_eof(self) -> None:
        """End our half, after what was written."""
        if self.transport is not None and not self.transport.is_closing():
            try:
                self.transport.write_eof()
            except OSError:
                self.transport.abort()  # reset by the backend, and the loop does not know it yet

    def watch_answer(self) -> None:
        """Make sure that an answer sent in the middle of an upload is read although the upload fails.

        A backend that refuses a body answers and closes; our next write fails, and both event loops then close
        the socket with the answer unread in it. A second descriptor keeps that within reach.
        """
        if os.name == "posix" and self.spare is None and self.transport is not None:
            try:
                self.spare = socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))
                self.spare.setblocking(False)
            except OSError:
                self.drop_spare()  # out of descriptors: the answer may then get lost

    @property
    def unsent(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def pause_reading(self) -> None:
        if not self.read_paused and self.transport is not None and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused and self.transport is not None:
            self.read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection now; its exchange hears nothing more of it."""
        self.exchange = None
        self.pool.forget(self)
        self.drop_spare()  # or the backend would not see the end
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """End the connection after what was written, within a bounded time; its exchange hears nothing more."""
        self.exchange = None
        if self.unsent and self.transport is not None and not self.transport.is_closing():
            self.transport.close()
            asyncio.get_running_loop().call_later(FLUSH_TIMEOUT_S, self.transport.abort)
        else:
            self.abort()

    def _read_last_words(self) -> None:
        """Hand over what came before the reset and was not read; bounded by the socket's receive buffer."""
        for _ in range(_LAST_READS):
            if self.spare is None or self.exchange is None:
                return
            try:
                data = self.spare.recv(_WRITE_BUFFER_BYTES)
            except OSError:
                return
            if not data:
                return
            self.exchange.on_upstream_data(data)

    def drop_spare(self) -> None:
        if self.spare is not None:
            self.spare.close()
            self.spare = None


class UpstreamPool:
    """All connections to one running instance; thrown away with it.

    Args:
        host: Address, not a name where that can be helped.
        port: TCP port.
        keepalive: False opens a connection per request and says so to the backend.
    """

    def __init__(self, host: str, port: int, *, keepalive: bool = True) -> None:
        self.host = host
        self.port = port
        self.keepalive = keepalive
        self.authority = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("latin-1")
        """``host:port`` for the Host field."""
        self.idle: dict[UpstreamConnection, None] = {}
        """In order of return: the last one is the most likely to be alive."""
        self.active: set[UpstreamConnection] = set()
        self._closed = False
        self._prune_timer: asyncio.TimerHandle | None = None

    @property
    def closed(self) -> bool:
        """The instance is gone."""
        return self._closed

    async def acquire(self, *, fresh: bool = False) -> UpstreamConnection:
        """A connection for one exchange: the idle one used last, else a new one.

        Does not suspend when an idle one is there. ``fresh`` takes no idle one.

        Raises:
            ConnectFailed: Refused, unreachable, or not accepted within 5 s.
            UpstreamClosed: The pool is closed: the instance went between the lease and now.
        """
        if self.idle and not fresh:
            connection = self._take_idle()
            if connection is not None:
                return connection
        if self._closed:
            raise self._instance_gone()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(lambda: UpstreamConnection(self), self.host, self.port)
        except TimeoutError as error:
            raise self._connect_failed(f"no connection within {CONNECT_TIMEOUT_S:.0f} s") from error
        except OSError as error:
            if self._closed:
                raise self._instance_gone() from error
            raise self._connect_failed(error.strerror or str(error)) from error
        if self._closed:
            connection.abort()
            raise self._instance_gone()
        self.active.add(connection)
        return connection

    def release(self, connection: UpstreamConnection, idle_limit_s: float | None = None) -> None:
        """Take back a connection whose exchange ended cleanly on both sides.

        Args:
            connection: From ``acquire``; must not be used afterwards.
            idle_limit_s: How long the backend said it keeps idle connections (``Keep-Alive: timeout``), or None.
        """
        self.active.discard(connection)
        connection.exchange = None
        connection.drop_spare()
        connection.resume_reading()
        limit = IDLE_TIMEOUT_S if idle_limit_s is None else min(IDLE_TIMEOUT_S, idle_limit_s - 1)
        transport = connection.transport
        if self._closed or not self.keepalive or limit <= 0 or transport is None or transport.is_closing():
            connection.abort()
            return
        if len(self.idle) >= MAX_IDLE:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.reused = True
        connection.expires_at = loop.time() + limit
        self.idle[connection] = None
        if self._prune_timer is None:
            self._prune_timer = loop.call_later(IDLE_TIMEOUT_S, self._prune)

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is gone or about to go."""
        self.active.discard(connection)
        self.idle.pop(connection, None)

    def close(self) -> None:
        """Cut every connection, idle or in use; running exchanges fail with ``UpstreamClosed``. Idempotent."""
        self._closed = True
        if self._prune_timer is not None:
            self._prune_timer.cancel()
            self._prune_timer = None
        for connection in list(self.idle):
            connection.abort()
        for connection in list(self.active):
            exchange = connection.exchange
            connection.abort()
            if exchange is not None:
                exchange.on_upstream_lost(ConnectionAbortedError())

    def _take_idle(self) -> UpstreamConnection | None:
        now = asyncio.get_running_loop().time()
        while self.idle:
            connection, _ = self.idle.popitem()
            transport = connection.transport
            if connection.expires_at > now and transport is not None and not transport.is_closing():
                self.active.add(connection)
                return connection
            connection.abort()
        return None

    def _prune(self) -> None:
        """One timer per pool, armed only while something is idle."""
        self._prune_timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [connection for connection in self.idle if connection.expires_at <= now]:
            connection.abort()
        if self.idle:
            soonest = min(connection.expires_at for connection in self.idle)
            self._prune_timer = loop.call_later(max(0.1, soonest - now), self._prune)

    def _instance_gone(self) -> UpstreamClosed:
        return UpstreamClosed(
            f"The backend at {self.authority.decode('latin-1')} was stopped before it could answer.", phase="forward"
        )

    def _connect_failed(self, reason: str) -> ConnectFailed:
        return ConnectFailed(
            f"The backend at {self.authority.decode('latin-1')} cannot be reached: {reason}.", phase="forward"
        )
