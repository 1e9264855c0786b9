"""A fake upstream, a stub gateway and a raw client, all over loopback sockets."""

import asyncio
import contextlib
import select
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from juggler.errors import JugglerError
from juggler.ids import EndpointId
from juggler.proxy.contract import ExchangeResult, LocalResponse, RequestInfo, Route
from juggler.proxy.limits import Limits
from juggler.proxy.listener import Listener, start_listener
from juggler.proxy.tls import Certificate
from juggler.proxy.upstream import UpstreamPool
from juggler.routing.traffic import TrafficClass
from juggler.tls import ServerTls

WAIT_S = 20.0
FAST = Limits(sweep_interval_s=0.02)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """One end of a connection, with a deadline on every read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def exactly(self, expected: bytes) -> None:
        """Read as many bytes as ``expected`` has and compare."""
        got = bytearray()  # in place: long answers come in hundreds of pieces
        with contextlib.suppress(asyncio.IncompleteReadError):
            async with asyncio.timeout(WAIT_S):
                while len(got) < len(expected) and (piece := await self.reader.read(len(expected) - len(got))):
                    got += piece
        assert bytes(got) == expected

    async def head(self) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def body(self, size: int) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readexactly(size)

    async def to_end(self) -> bytes:
        """Everything until end of file; raises ConnectionResetError if the connection was cut."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()

    async def gone(self) -> None:
        """Wait until the other end has closed or reset."""
        with contextlib.suppress(ConnectionError):
            await self.to_end()

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and Content-Length body of one answer."""
        head = await self.head()
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        return int(head[9:12]), head, await self.body(length)

    def reset(self) -> None:
        self.writer.transport.abort()


Handler = Callable[[Peer], Awaitable[None]]


class FakeUpstream:
    """Runs ``handler`` for each accepted connection; failures inside it are raised at the end of the test."""

    def __init__(self) -> None:
        self.handler: Handler = answer_ok
        self.accepted = 0
        self.requests: list[bytes] = []
        self.port = 0
        self.context: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FakeUpstream"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for failure in self._failures:
            raise failure

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.handler(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            self._failures.append(error)
        finally:
            self._tasks.discard(task)
            writer.close()


async def answer_ok(peer: Peer) -> None:
    while True:
        await peer.head()
        peer.send(OK)


def replies(*answers: bytes, requests: list[bytes] | None = None) -> Handler:
    """Answer the n-th head of a connection with the n-th of ``answers``, then close."""

    async def handler(peer: Peer) -> None:
        for answer in answers:
            head = await peer.head()
            if requests is not None:
                requests.append(head)
            peer.send(answer)

    return handler


@dataclass
class StubLease:
    upstream: UpstreamPool
    results: list[ExchangeResult]
    released: int = 0
    tunnels: int = 0
    on_switched: Callable[[], None] | None = None

    def switched(self) -> None:
        assert not self.released
        self.tunnels += 1
        if self.on_switched is not None:
            self.on_switched()

    def release(self, result: ExchangeResult) -> None:
        self.released += 1
        self.results.append(result)


@dataclass
class StubGateway:
    """Routes everything to one pool; ``hold`` delays the lease, ``refusal`` and ``local`` replace it.

    With ``light`` everything is light; GET and HEAD may be answered from an earlier reply. Without ``at_once`` every
    lease has to be waited for, if only for no time.
    """

    pool: UpstreamPool
    prefix: bytes = b""
    light: bool = False
    at_once: bool = True
    endpoint: str = "s/e"
    changed: Callable[[Route], Route] | None = None
    """What every route becomes."""
    on_switched: Callable[[], None] | None = None
    hold: asyncio.Event | None = None
    refusal: Exception | None = None
    routing_error: JugglerError | None = None
    local: LocalResponse | None = None
    leases: list[StubLease] = field(default_factory=list)
    results: list[ExchangeResult] = field(default_factory=list)
    asked: list[RequestInfo] = field(default_factory=list)
    cancelled: int = 0

    def route(self, method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        if self.routing_error is not None:
            raise self.routing_error
        bare = bool(self.prefix) and target.partition(b"?")[0] == self.prefix
        target = target.removeprefix(self.prefix)
        if bare:
            target = b"/" + target
        traffic = TrafficClass.LIGHT if self.light else TrafficClass.WORK
        cacheable = self.light and method in (b"GET", b"HEAD")
        route = Route(EndpointId(self.endpoint), "e", target, traffic, self.prefix, bare, cacheable)
        return route if self.changed is None else self.changed(route)

    def try_acquire(self, route: Route, request: RequestInfo) -> StubLease | None:
        if not self.at_once or self.hold is not None or self.refusal is not None or self.local is not None:
            return None
        self.asked.append(request)
        return self._lease()

    async def acquire(self, route: Route, request: RequestInfo) -> StubLease | LocalResponse:
        self.asked.append(request)
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.refusal is not None:
            raise self.refusal
        if self.local is not None:
            return self.local
        return self._lease()

    def _lease(self) -> StubLease:
        lease = StubLease(self.pool, self.results, on_switched=self.on_switched)
        self.leases.append(lease)
        return lease


@dataclass
class Rig:
    """Client side, proxy and upstream of one test."""

    listener: Listener
    gateway: StubGateway
    upstream: FakeUpstream
    pool: UpstreamPool
    context: ssl.SSLContext | None = None
    """Of its clients, where they speak TLS."""
    _clients: list[Peer] = field(default_factory=list)

    async def connect(self, *, limit: int = 2**16) -> Peer:
        host, port = self.listener.addresses[0]
        name = "localhost" if self.context is not None else None
        peer = Peer(*await asyncio.open_connection(host, port, limit=limit, ssl=self.context, server_hostname=name))
        self._clients.append(peer)
        return peer

    async def ask(self, request: bytes) -> Peer:
        peer = await self.connect()
        peer.send(request)
        return peer

    async def result(self, index: int = 0) -> ExchangeResult:
        """The result of the n-th exchange; each lease released exactly once."""
        await until(lambda: len(self.gateway.results) > index)
        assert all(lease.released == 1 for lease in self.gateway.leases)
        return self.gateway.results[index]

    def close_clients(self) -> None:
        for peer in self._clients:
            peer.writer.transport.abort()


@dataclass
class Secure:
    """Which sides of a rig speak TLS, and how."""

    certificate: Certificate | None = None
    client_context: ssl.SSLContext | None = None
    upstream: ServerTls | None = None
    upstream_context: ssl.SSLContext | None = None


@contextlib.asynccontextmanager
async def rig(
    handler: Handler | None = None,
    *,
    limits: Limits = FAST,
    keepalive: bool = True,
    prefix: bytes = b"",
    secure: Secure | None = None,
    port: int = 0,
) -> AsyncIterator[Rig]:
    """All three; ``port`` is the proxy's, for those who leave it and take it again."""
    secure = secure or Secure()
    upstream = FakeUpstream()
    upstream.context = secure.upstream_context
    if handler is not None:
        upstream.handler = handler
    async with upstream.running():
        pool = UpstreamPool("127.0.0.1", upstream.port, keepalive=keepalive, tls=secure.upstream)
        gateway = StubGateway(pool, prefix)
        listener = await start_listener(gateway, "127.0.0.1", port, limits, certificate=secure.certificate)
        setup = Rig(listener, gateway, upstream, pool, secure.client_context)
        try:
            yield setup
        finally:
            setup.close_clients()
            await listener.close(0)
            pool.close()
            assert not listener.connections
            assert not pool.active
            assert all(lease.released == 1 for lease in gateway.leases)


async def leave_unread(peer: Peer) -> None:
    """Wait until bytes have come that nobody takes; who then closes has not seen them."""
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    descriptor = peer.writer.get_extra_info("socket").fileno()
    await until(lambda: select.select([descriptor], [], [], 0)[0] != [])


async def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Poll; fails after ``timeout_s`` seconds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def quickest(delay: Callable[[], Awaitable[float]], enough_s: float) -> float:
    """The shortest of several delays; a busy machine makes some of them longer, and none shorter."""
    shortest = float("inf")
    for _ in range(20):
        shortest = min(shortest, await delay())
        if shortest < enough_s:
            break
    return shortest


def header(head: bytes, name: bytes) -> bytes | None:
    """The value of a field of a head, or None."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name.lower():
            return value.strip()
    return None
