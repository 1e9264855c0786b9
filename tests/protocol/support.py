"""A scriptable backend, a stub gateway and a raw client for tests of the data plane."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from juggler.errors import JugglerError, RoutingError
from juggler.ids import EndpointId
from juggler.proxy.contract import ExchangeResult, Lease, LocalResponse, RequestInfo, Route
from juggler.proxy.limits import Limits
from juggler.proxy.listener import Listener, start_listener
from juggler.proxy.upstream import UpstreamPool
from juggler.routing.traffic import TrafficClass

LIMIT_S = 5.0
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class StubLease:
    """Counts its releases."""

    def __init__(self, gateway: "StubGateway", upstream: UpstreamPool) -> None:
        self.upstream = upstream
        self._gateway = gateway

    def release(self, result: ExchangeResult) -> None:
        self._gateway.released.append(result)


class StubGateway:
    """Sends everything to one backend; can hold, refuse, and answer itself."""

    def __init__(self, pool: UpstreamPool) -> None:
        self.pool = pool
        self.released: list[ExchangeResult] = []
        self.acquired = 0
        self.cancelled = 0
        self.hold: asyncio.Event | None = None
        self.refusal: JugglerError | None = None
        self.prefix = b""

    def route(self, method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        if target == b"/local":
            return LocalResponse(200, b'{"here": true}')
        if target == b"/nowhere":
            raise RoutingError("no endpoint serves /nowhere", phase="routing")
        stripped = target.removeprefix(self.prefix) or b"/"
        return Route(EndpointId("s/e"), "e", stripped, TrafficClass.WORK, self.prefix)

    async def acquire(self, route: Route, request: RequestInfo) -> Lease | LocalResponse:
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.refusal is not None:
            raise self.refusal
        self.acquired += 1
        return StubLease(self, self.pool)


class Backend:
    """A server whose every connection runs one script; keeps what it received."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.port = 0
        self.lost = asyncio.Event()
        """A connection ended from the other side while its script ran."""
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.lost.set()
        finally:
            writer.close()


class Plane:
    """One listener in front of one scripted backend."""

    def __init__(self, listener: Listener, gateway: StubGateway, backend: Backend) -> None:
        self.listener = listener
        self.gateway = gateway
        self.backend = backend

    @property
    def port(self) -> int:
        return self.listener.addresses[0][1]

    async def connect(self) -> "Client":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return Client(reader, writer)

    async def ask(self, raw: bytes) -> bytes:
        """Send bytes, return everything until the connection ends."""
        client = await self.connect()
        client.send(raw)
        try:
            return await client.rest()
        finally:
            client.close()


class Client:
    """A raw client connection with deadlines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.readuntil(end)

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """Until the other side closes."""
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def plane(script: Script, limits: Limits | None = None, *, keepalive: bool = True) -> AsyncIterator[Plane]:
    """A data plane in front of a backend that runs ``script`` on each connection."""
    backend = Backend(script)
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, limit=2**22)
    backend.port = server.sockets[0].getsockname()[1]
    pool = UpstreamPool("127.0.0.1", backend.port, keepalive=keepalive)
    gateway = StubGateway(pool)
    listener = await start_listener(gateway, "127.0.0.1", 0, limits)
    try:
        yield Plane(listener, gateway, backend)
    finally:
        await listener.close(0.0)
        pool.close()
        server.close()


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds; fails after the limit."""
    end = asyncio.get_running_loop().time() + LIMIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"not within {LIMIT_S} s: {what}"
        await asyncio.sleep(0.002)


def answering(*answers: bytes) -> Script:
    """A backend that reads one head (and its Content-Length) per answer."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
        await reader.read(1)  # until the other side closes

    return script


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body (Content-Length only) of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return head + await reader.readexactly(int(value))
    return head
