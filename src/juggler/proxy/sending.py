"""The request's half of an exchange: a connection, the head for the backend, the body, and backpressure both ways."""

import asyncio
from typing import TYPE_CHECKING, cast

from juggler.proxy.body import Request
from juggler.proxy.connection import ClientSide
from juggler.proxy.contract import ExchangeResult, Lease, Route
from juggler.proxy.head import RequestHead
from juggler.proxy.headers import Hop, request_head
from juggler.proxy.limits import Limits
from juggler.proxy.upstream import UpstreamConnection
from juggler.proxy.waiting_room import EventStream, Wait

if TYPE_CHECKING:
    from juggler.proxy.exchange import Exchange

NEVER = float("inf")


class RequestHalf:
    """See the module; ``proxy.exchange`` has the other half."""

    __slots__ = (
        "_client",
        "_expect_deadline",
        "_lease",
        "_limits",
        "_loop",
        "_pool",
        "_request",
        "_started_at",
        "_upstream",
        "_wait",
        "done",
        "result",
        "route",
        "unreached",
        "upstream_full",
    )

    def __init__(
        self,
        client: ClientSide,
        request: Request,
        route: Route,
        lease: Lease,
        limits: Limits,
        wait: Wait | None,
        loop: asyncio.AbstractEventLoop,
        now: float,
    ) -> None:
        self._client = client
        self._request = request
        self._lease: Lease | None = lease  # None once it was given back
        self._pool = lease.upstream
        self._limits = limits
        self._wait = wait
        self._loop = loop
        self._started_at = now
        self._upstream: UpstreamConnection | None = None
        self._expect_deadline = NEVER
        self.route = route
        self.result = ExchangeResult()
        self.done = False
        """Nothing more will come of this exchange."""
        self.upstream_full = False
        self.unreached = True
        """No connection was there yet: the backend has seen nothing that it could have acted upon."""

    def waited(self, wait: Wait) -> None:
        """It was begun without a wait, and somebody will have to wait for it after all."""
        self._wait = wait
        if self._lease is not None:
            wait.leased(self._lease, self._started_at)

    @property
    def _stream(self) -> EventStream | None:
        """The answer that was begun while the request waited."""
        return self._wait.stream if self._wait is not None else None

    @property
    def bound(self) -> bool:
        """Whether a connection takes the body; if not, it is kept."""
        return self._upstream is not None

    @property
    def _is_long(self) -> bool:
        """A body that cannot be repeated goes to a connection that cannot be stale."""
        most, request = self._limits.retry_body_bytes, self._request
        return request.body.size > most or (request.head.content_length or 0) > most

    async def _connected(self, *, fresh: bool) -> UpstreamConnection:
        connection = await self._pool.acquire(fresh=fresh)
        self.unreached = False  # from here on it may have acted upon the request
        return connection

    def _cut_upstream(self) -> None:
        self.done = True
        connection, self._upstream = self._upstream, None
        if connection is not None:
            connection.abort()

    def send_body(self, data: bytes) -> None:
        """Pass on a piece of the request's body, or keep it while no connection is there."""
        body = self._request.body
        if self._upstream is None:
            if not self.done:
                body.keep(data)
            return
        if body.kept is not None:
            if body.size > self._limits.retry_body_bytes:
                body.let_go()
            else:
                body.keep(data)
        self._expect_deadline = NEVER  # the client did not wait for a 100
        self.result.bytes_up += len(data)
        self._upstream.write(data)

    def send_raw(self, data: bytes) -> None:
        """Pass on bytes of a tunnel."""
        if self._upstream is not None:
            self.result.bytes_up += len(data)
            self._upstream.write(data)

    def on_client_full(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def on_client_drained(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def on_upstream_full(self) -> None:
        self.upstream_full = True
        self._client.update_reading()

    def on_upstream_drained(self) -> None:
        self.upstream_full = False
        self._client.update_reading()

    def _start(self, connection: UpstreamConnection) -> None:
        """Send what there is of the request on ``connection``; the rest follows through ``send_body``."""
        self._upstream = connection
        connection.exchange = cast("Exchange", self)  # the other half hears of it
        if self._client.write_paused:
            connection.pause_reading()
        head, body = self._request.head, self._request.body
        if self._stream is not None:
            assert self._wait is not None
            head = head.with_fields(self._wait.backend_fields(head.fields))
        data = self._head_for_backend(head)
        if body.size:
            data = b"".join((data, *(body.kept or ())))
        if not connection.reused:
            body.let_go()
        if head.expects_continue and not body.size and not body.complete:
            self._expect_deadline = self._loop.time() + self._limits.expect_timeout_s
        self.result.bytes_up = body.size
        if not body.complete:
            connection.watch_answer()
        connection.write(data)
        if not body.complete:
            self._client.update_reading()  # what was held back by its bound may flow now

    def _head_for_backend(self, head: RequestHead) -> bytes:
        """The request's head as the backend gets it; for one that was sent before, what was sent then."""
        route, pool = self.route, self._pool
        sent = head.sent
        if sent is not None and sent[0] is route and sent[1] is pool:
            return sent[2]
        scheme = b"https" if self._client.secure else b"http"
        hop = Hop(route.target, pool.authority, self._client.address, route.prefix, pool.keepalive, scheme)
        data = request_head(head, hop)
        head.sent = (route, pool, data)
        return data
