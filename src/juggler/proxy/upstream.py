"""Connections to one backend instance, and the pool that keeps the idle ones."""

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, cast

from juggler.errors import ConnectFailed, UpstreamClosed
from juggler.proxy.answers import AnswerHeads
from juggler.proxy.connection import reset_when_closed
from juggler.proxy.turns import Turns
from juggler.tls import ServerTls, client_context, explain
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

_RESET = frozenset((errno.ECONNRESET, errno.EPIPE))

_LAST_READS = 32
"""Reads of a dead connection: enough for any receive buffer."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a backend: idle in its pool, or bound to one exchange that gets all its events."""

    __slots__ = ("ended", "exchange", "expires_at", "loop", "pool", "read_paused", "reused", "spare", "transport")

    def __init__(self, pool: "UpstreamPool") -> None:
        self.pool = pool
        self.loop = asyncio.get_running_loop()
        self.exchange: Exchange | None = None
        self.transport: asyncio.Transport | None = None
        self.reused = False
        """It has carried an exchange before: the backend may have closed it in the meantime."""
        self.ended = False
        """The backend sends nothing more."""
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
        self.ended = True  # behind TLS the transport goes on for a moment, and must not be used again
        if self.exchange is None:
            self.abort()
            return False
        return self.exchange.on_upstream_eof()

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
        if self.pool.tls is not None:
            return  # what lies in the socket is for the TLS layer, which dies with the connection
        if os.name == "posix" and self.spare is None and self.transport is not None:
            try:
                self.spare = socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))
                self.spare.setblocking(False)
            except OSError:
                self.drop_spare()  # out of descriptors: the answer may then get lost

    def refused(self, exc: Exception | None) -> bool:
        """Whether the backend threw away bytes that were sent to it: it closed without having read them all.

        Its system then answers with a reset, in place of the end of file or behind it (RFC 9293 3.6.1, RFC 1122
        4.2.2.13). An end of file alone comes from one that took the whole request, and may have acted upon it.

        Args:
            exc: What the event loop said when the connection ended.
        """
        if exc is not None or self.transport is None:
            return isinstance(exc, (ConnectionResetError, BrokenPipeError))
        try:
            code: int = self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError:
            return False
        return code in _RESET

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
            if self.transport.get_write_buffer_size() and not self.transport.is_closing():
                reset_when_closed(self.transport)  # an end of file would wait until the backend has read all before it
            self.transport.abort()

    def close(self) -> None:
        """End the connection after what was written, within a bounded time; its exchange hears nothing more."""
        self.exchange = None
        waits = self.unsent or self.pool.tls is not None  # a TLS transport does not tell all that is unsent
        if waits and self.transport is not None and not self.transport.is_closing():
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
        tls: For a server behind ``https://``.
    """

    def __init__(self, host: str, port: int, *, keepalive: bool = True, tls: ServerTls | None = None) -> None:
        self.host = host
        self.port = port
        self.keepalive = keepalive
        self.tls = tls
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.authority = (tls.authority if tls is not None else authority).encode("latin-1")
        """``host:port`` for the Host field."""
        self.turns = Turns()
        """Large pieces of its answers wait here for their turn."""
        self.answers = AnswerHeads()
        """Heads of its answers, to be recognised."""
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
        if not fresh:
            connection = self.take_idle()
            if connection is not None:
                return connection
        if self._closed:
            raise self._instance_gone()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if self.tls is not None:
                    connection = await self._connect_tls(self.tls)
                else:
                    _, connection = await loop.create_connection(lambda: UpstreamConnection(self), self.host, self.port)
        except TimeoutError as error:
            raise self._connect_failed(f"no connection within {CONNECT_TIMEOUT_S:.0f} s") from error
        except OSError as error:
            if self._closed:
                raise self._instance_gone() from error
            why, hint = explain(error, self.tls) if self.tls is not None else (error.strerror or str(error), None)
            raise self._connect_failed(why, hint) from error
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
        if connection.spare is not None:
            connection.drop_spare()
        if connection.read_paused:
            connection.resume_reading()
        limit_s = IDLE_TIMEOUT_S if idle_limit_s is None else min(IDLE_TIMEOUT_S, idle_limit_s - 1)
        transport = connection.transport
        refused = self._closed or connection.ended or not self.keepalive or limit_s <= 0 or len(self.idle) >= MAX_IDLE
        if refused or transport is None or transport.is_closing():
            connection.abort()
            return
        connection.reused = True
        connection.expires_at = connection.loop.time() + limit_s
        self.idle[connection] = None
        if self._prune_timer is None:
            self._prune_timer = connection.loop.call_later(IDLE_TIMEOUT_S, self._prune)

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

    async def _connect_tls(self, tls: ServerTls) -> UpstreamConnection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: UpstreamConnection(self),
            self.host,
            self.port,
            ssl=await client_context(tls),
            server_hostname=tls.name,
            ssl_shutdown_timeout=FLUSH_TIMEOUT_S,
        )
        return connection

    def take_idle(self) -> UpstreamConnection | None:
        """The idle connection used last, for one exchange; None if there is none."""
        while self.idle:
            connection, _ = self.idle.popitem()
            transport = connection.transport
            if connection.expires_at > connection.loop.time() and transport is not None and not transport.is_closing():
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

    def _connect_failed(self, reason: str, hint: str | None = None) -> ConnectFailed:
        message = f"The backend at {self.authority.decode('latin-1')} cannot be reached: {reason}."
        return ConnectFailed(message, hint=hint, phase="forward")
