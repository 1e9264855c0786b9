"""A client connection of ours on transports in memory: no sockets, no waiting, thousands of connections a second.

When nothing more is ready in the event loop, everything that the bytes can cause has happened.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any, cast

import h11

from juggler.proxy.client import ClientConnection
from juggler.proxy.limits import Limits
from juggler.proxy.listener import Listener
from juggler.proxy.upstream import UpstreamConnection, UpstreamPool
from tests.protocol.support import StubGateway

_TURNS = 200
"""Of the loop, after each piece; an exchange needs fewer than ten, so this many are a fault."""
_EIGHT_BITS = re.compile(rb"[\x80-\xff]")
_ENDLESS = Limits(sweep_interval_s=3600)


class MemoryTransport(asyncio.Transport):
    """Hands what is written to ``on_data``; takes everything at once."""

    def __init__(self, on_data: Callable[[bytes], None], on_close: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.protocol: asyncio.Protocol | None = None
        self.aborted = False
        self.ended = False
        """Our half has ended."""
        self.closing = False
        self.reading = True
        self._on_data = on_data
        self._on_close = on_close
        self._held: list[bytes] = []

    def attach(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        protocol.connection_made(self)

    def receive(self, data: bytes) -> None:
        """Bytes from the other side, kept while reading is paused."""
        if self.closing or self.protocol is None:
            return
        if self.reading:
            self.protocol.data_received(data)
        else:
            self._held.append(data)

    def receive_eof(self) -> None:
        if not self.closing and self.protocol is not None and not self.protocol.eof_received():
            self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing, "uvloop raises here"
        self._on_data(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True
        if self._on_close is not None:
            self._on_close()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self._lost)

    def abort(self) -> None:
        self.aborted = self.aborted or not self.closing
        self.close()

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        held, self._held = self._held, []
        for data in held:
            self.receive(data)

    def is_reading(self) -> bool:
        return self.reading

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return ("127.0.0.1", 1)
        return _NoSocket() if name == "socket" else default

    def _lost(self) -> None:
        if self._on_close is not None:
            self._on_close()
        if self.protocol is not None:
            self.protocol.connection_lost(None)


class _NoSocket:
    """Whoever wants to do without the transport finds that it cannot."""

    def fileno(self) -> int:
        raise OSError("in memory")

    def setsockopt(self, *_: object) -> None:
        raise OSError("in memory")

    def getsockopt(self, *_: object) -> int:
        raise OSError("in memory")


class Heard:
    """One request as the backend heard it."""

    def __init__(self, event: h11.Request, target: bytes) -> None:
        self.method = bytes(event.method)
        self.target = target
        self.fields = [(bytes(name), bytes(value)) for name, value in event.headers]
        self.body = b""
        self.whole = False

    @property
    def said(self) -> tuple[bytes, bytes, bytes]:
        return self.method, self.target, self.body


class Backend:
    """Hears with h11, answers each whole request.

    Args:
        answer: What is sent for the n-th request that was heard whole, in pieces; None closes the connection.
    """

    def __init__(self, answer: Callable[[int, Heard], list[bytes | None]]) -> None:
        self._answer = answer
        self.heard: list[Heard] = []
        self.bytes_heard = b""
        self.garbage: list[str] = []
        """What h11 could not read: must stay empty."""
        self.connections = 0

    def connect(self, protocol: UpstreamConnection) -> None:
        """Accept a connection."""
        self.connections += 1
        ear = _Ear(self)
        transport = ear.transport = MemoryTransport(ear.hear, ear.hung_up)
        transport.attach(protocol)

    def answer(self, heard: Heard) -> list[bytes | None]:
        whole = sum(one.whole for one in self.heard) - 1
        return self._answer(whole, heard)


class _Ear:
    """One connection of a backend."""

    def __init__(self, backend: Backend) -> None:
        self.transport: MemoryTransport
        self._backend = backend
        self._reader = h11.Connection(h11.SERVER)
        self._current: Heard | None = None
        self._target = b""
        self._over = False

    def hear(self, data: bytes) -> None:
        self._backend.bytes_heard += data
        self._read(data)

    def hung_up(self) -> None:
        self._over = True

    def _receive(self, data: bytes) -> None:
        """Give bytes to h11, which refuses those from 0x80 in a target: they are changed for it, and noted here."""
        if self._current is None or self._current.whole:
            line, end, rest = data.partition(b"\r\n")
            self._target = line.partition(b" ")[2].partition(b" ")[0]
            data = _EIGHT_BITS.sub(b"x", line) + end + rest
        self._reader.receive_data(data)

    def _read(self, data: bytes) -> None:
        backend = self._backend
        self._receive(data)
        while not self._over:
            try:
                event = self._reader.next_event()
            except h11.RemoteProtocolError as error:
                backend.garbage.append(f"{error}: {backend.bytes_heard[-300:]!r}")
                self._over = True
                return
            if isinstance(event, h11.Request):
                self._current = Heard(event, self._target)
                backend.heard.append(self._current)
            elif isinstance(event, h11.Data):
                assert self._current is not None
                self._current.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert self._current is not None
                self._current.whole = True
                loop = asyncio.get_running_loop()
                for piece in backend.answer(self._current):
                    if piece is None:
                        loop.call_soon(self.transport.receive_eof)
                    else:
                        loop.call_soon(self.transport.receive, piece)
                # A new reader for what follows: h11's own cycle knows no HTTP/1.0 and no upgrade that is declined.
                rest, self._reader = self._reader.trailing_data[0], h11.Connection(h11.SERVER)
                if not rest:
                    return
                self._receive(rest)
            else:
                return


class MemoryPool(UpstreamPool):
    """Connects to a ``Backend``."""

    def __init__(self, backend: Backend, *, keepalive: bool = True) -> None:
        super().__init__("127.0.0.1", 1, keepalive=keepalive)
        self._backend = backend

    async def acquire(self, *, fresh: bool = False) -> UpstreamConnection:
        connection = None if fresh else self.take_idle()
        if connection is not None:
            return connection
        connection = UpstreamConnection(self)
        self._backend.connect(connection)
        self.active.add(connection)
        return connection


class Spoken:
    """What became of one client connection."""

    def __init__(self, backend: Backend, gateway: StubGateway) -> None:
        self.backend = backend
        self.gateway = gateway
        self.received = b""
        """By the client."""
        self.ended = False
        """The proxy ended the connection cleanly."""
        self.aborted = False


async def speak(pieces: list[bytes], backend: Backend, *, keepalive: bool = True, at_once: bool = True) -> Spoken:
    """Send pieces over one client connection, one after the other, and see what comes of it.

    ``at_once`` is the short way of requests for which nothing has to be waited.
    """
    pool = MemoryPool(backend, keepalive=keepalive)
    gateway = StubGateway(pool, at_once=at_once)
    listener = Listener(gateway, _ENDLESS)
    spoken = Spoken(backend, gateway)
    got: list[bytes] = []
    connection = ClientConnection(listener)
    transport = MemoryTransport(got.append)
    transport.attach(cast(asyncio.Protocol, connection))
    await _settle()
    for piece in pieces:
        transport.receive(piece)
        await _settle()
    spoken.received = b"".join(got)
    spoken.aborted = transport.aborted
    spoken.ended = (transport.closing or transport.ended) and not transport.aborted
    transport.abort()
    await _settle()
    pool.close()
    listener.abort()
    await _settle()
    assert not listener.connections
    assert not pool.active
    assert all(lease.released == 1 for lease in gateway.leases)
    task = connection.task
    assert task is None or task.done()
    return spoken


async def _settle() -> None:
    """Until nothing is ready any more."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    for _ in range(_TURNS):
        await asyncio.sleep(0)
        if not ready:
            return
    raise AssertionError("the connection never comes to rest")
