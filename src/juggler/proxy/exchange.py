"""One request forwarded to one upstream: heads rewritten, bodies relayed as received, with backpressure both ways.

``run`` is awaited by the client connection's coroutine; everything between the two heads and the last byte happens
in protocol callbacks. Whatever goes wrong before the answer's head was sent becomes a ``JugglerError`` out of
``run``; afterwards the client's connection is cut, because a clean end would make half an answer look whole.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Protocol

from juggler.errors import JugglerError, UpstreamClosed
from juggler.proxy.body import RequestBody
from juggler.proxy.contract import ExchangeResult, Lease, Route
from juggler.proxy.framing import ChunkDecoder, Chunked, FramingError, Length, NoBody, Tracker, UntilClose
from juggler.proxy.head import BadResponse, RequestHead, ResponseHead, find_response_end, parse_response
from juggler.proxy.headers import Hop, ReturnHop, request_head, response_head
from juggler.proxy.limits import Limits
from juggler.proxy.replies import Recorder
from juggler.proxy.upstream import UpstreamConnection
from juggler.proxy.waiting_room import StreamedAnswer, Wait, tell_first_byte

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_BODY = NoBody()
_UNTIL_CLOSE = UntilClose()


class ClientSide(Protocol):
    """What an exchange needs of the client's connection."""

    address: bytes
    write_paused: bool
    """The client does not take what was written; the upstream must not be read."""
    closes: bool
    """Whether the connection ends after this exchange."""

    @property
    def draining(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def abort(self) -> None: ...
    def reset(self) -> None: ...
    def update_reading(self) -> None: ...
    def start_tunnel(self) -> bytes: ...
    def tunnel_activity(self) -> None: ...


@dataclass(slots=True)
class Request:
    """A request as it came in: its head, and its body as far as it has arrived."""

    head: RequestHead
    body: RequestBody


class Exchange:
    """See the module. One per forwarded request; a retry stays in the same exchange."""

    __slots__ = (
        "_answer",
        "_answered",
        "_buffer",
        "_client",
        "_client_ended",
        "_decoder",
        "_error",
        "_expect_deadline",
        "_finished",
        "_inset",
        "_lease",
        "_limits",
        "_loop",
        "_pool",
        "_recorder",
        "_request",
        "_result",
        "_retry",
        "_route",
        "_started_at",
        "_tracker",
        "_unframed",
        "_upstream",
        "_upstream_ended",
        "_wait",
        "complete",
        "done",
        "head_sent",
        "tunnel",
        "unreached",
        "upstream_full",
    )

    def __init__(
        self,
        client: ClientSide,
        request: Request,
        route: Route,
        lease: Lease,
        result: ExchangeResult,
        limits: Limits,
        wait: Wait,
        recorder: Recorder | None = None,
    ) -> None:
        self._client = client
        self._request = request
        self._route = route
        self._lease = lease
        self._pool = lease.upstream
        self._recorder = recorder  # keeps a copy of the answer, as long as that may be kept
        self._result = result
        self._limits = limits
        self._wait = wait
        self._inset: StreamedAnswer | None = None  # the answer goes into the stream that was begun while it waited
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._upstream: UpstreamConnection | None = None
        self._finished: asyncio.Future[None] | None = None
        self._error: JugglerError | None = None
        self._retry = False
        self._answered = False  # any byte of an answer has arrived
        self._answer: ResponseHead | None = None
        self._tracker: Tracker | None = None
        self._decoder: ChunkDecoder | None = None  # the payload of a chunked answer is wanted
        self._unframed = False  # and the client gets it without its chunks
        self._buffer = b""  # an unfinished answer head
        self._expect_deadline = float("inf")
        self._client_ended = False  # halves of a tunnel
        self._upstream_ended = False
        self.done = False
        """Nothing more will come of this exchange."""
        self.complete = False
        """The answer was passed on whole, or both sides of a tunnel have ended."""
        self.head_sent = False
        """The client has got an answer head: from here on no answer of our own fits in."""
        self.tunnel = False
        self.upstream_full = False
        self.unreached = True
        """No connection was there yet: the backend has seen nothing that it could have acted upon."""

    @property
    def bound(self) -> bool:
        """Whether a connection takes the body; if not, it is kept."""
        return self._upstream is not None

    async def run(self) -> None:
        """Forward, and return when the answer was passed on whole or the client's connection was cut.

        Raises:
            JugglerError: No answer head could be sent.
        """
        body = self._request.body
        # A body that cannot be repeated goes to a connection that cannot be stale.
        long = (self._request.head.content_length or 0) > self._limits.retry_body_bytes
        long = long or body.size > self._limits.retry_body_bytes
        try:
            connection = await self._connected(fresh=long)
            while True:
                finished = self._finished = self._loop.create_future()
                self._start(connection)
                await finished
                if not self._retry:
                    break
                self._retry = False
                connection = await self._connected(fresh=True)
            if self._error is not None:
                raise self._error
        finally:
            self.stop()

    async def _connected(self, *, fresh: bool) -> UpstreamConnection:
        connection = await self._pool.acquire(fresh=fresh)
        self.unreached = False  # from here on it may have acted upon the request
        return connection

    def stop(self) -> None:
        """Cut the upstream connection if there still is one. Idempotent."""
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
        self._expect_deadline = float("inf")  # the client did not wait for a 100
        self._result.bytes_up += len(data)
        self._upstream.write(data)

    def send_raw(self, data: bytes) -> None:
        """Pass on bytes of a tunnel."""
        if self._upstream is not None:
            self._result.bytes_up += len(data)
            self._upstream.write(data)

    def on_client_eof(self) -> None:
        """The client's half of a tunnel has ended."""
        self._client_ended = True
        if self._upstream_ended:
            self._end_tunnel()
        elif self._upstream is not None:
            self._upstream.write_eof()

    def on_client_full(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def on_client_drained(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def check(self, now: float) -> None:
        """Called by the sweep: a backend that ignores ``Expect`` would wait for a body that waits for it."""
        if now >= self._expect_deadline and not self.head_sent:
            self._expect_deadline = float("inf")
            self._client.write(_CONTINUE)
        if self._inset is not None and now >= self._inset.deadline and not self.done:
            self._complete(reusable=False)

    def on_upstream_data(self, data: bytes) -> None:
        if self._tracker is not None:
            self._relay(data)
        elif self.tunnel:
            self._result.bytes_down += len(data)
            self._client.tunnel_activity()
            self._client.write(data)
        else:
            self._on_head_bytes(data)

    def on_upstream_eof(self) -> bool:
        """Returns whether our half of the connection stays open."""
        if self.tunnel:
            self._upstream_ended = True
            if self._client_ended:
                self._end_tunnel()
                return False
            self._client.write_eof()
            return True
        if self._tracker is _UNTIL_CLOSE:
            self._complete(reusable=False)
        else:
            self._broken("closed the connection")
        return False

    def on_upstream_lost(self, exc: Exception | None) -> None:
        reason = "reset the connection" if exc is not None else "was stopped"
        self._broken("was stopped" if self._pool.closed else reason)

    def on_upstream_full(self) -> None:
        self.upstream_full = True
        self._client.update_reading()

    def on_upstream_drained(self) -> None:
        self.upstream_full = False
        self._client.update_reading()

    def _start(self, connection: UpstreamConnection) -> None:
        """Send what there is of the request on ``connection``; the rest follows through ``send_body``."""
        self._upstream = connection
        self._buffer = b""
        self.upstream_full = False
        connection.exchange = self
        if self._client.write_paused:
            connection.pause_reading()
        head, body, pool = self._request.head, self._request.body, self._pool
        if self._wait.stream is not None:
            head = replace(head, fields=self._wait.backend_fields(head.fields))
        hop = Hop(self._route.target, pool.authority, self._client.address, self._route.prefix, pool.keepalive)
        data = request_head(head, hop)
        if body.size:
            data = b"".join((data, *(body.kept or ())))
        if not connection.reused:
            body.let_go()
        if head.expects_continue and not body.size and not body.complete:
            self._expect_deadline = self._loop.time() + self._limits.expect_timeout_s
        self._result.bytes_up = body.size
        if not body.complete:
            connection.watch_answer()
        connection.write(data)
        self._client.update_reading()  # a body held back by its bound may flow now

    def _on_head_bytes(self, data: bytes) -> None:
        if not self._answered:
            self._answered = True
            self._result.first_byte_s = self._loop.time() - self._started_at
            self._request.body.let_go()
            tell_first_byte(self._lease)
        self._buffer = data = self._buffer + data if self._buffer else data
        while not self.done and self._tracker is None and not self.tunnel:
            end = find_response_end(data)
            if max(end, len(data) if end < 0 else 0) > self._limits.response_head_bytes:
                self._fail("sent an answer head that is too long")
                return
            if end < 0:
                return
            try:
                answer = parse_response(data[:end])
            except BadResponse as error:
                self._fail(f"sent something that is not HTTP ({error})")
                return
            data = self._buffer = data[end:]
            self._on_head(answer, data)

    def _on_head(self, answer: ResponseHead, rest: bytes) -> None:
        client, request = self._client, self._request.head
        if answer.status >= 200:
            self._buffer = b""
            self._answer = answer
            self._on_final_head(answer, rest)
        elif answer.status != 101:
            if answer.status == 100:
                # Ours may have gone out already, and clients that did not ask stumble over it.
                waited, self._expect_deadline = self._expect_deadline, float("inf")
                if waited == float("inf"):
                    return
            if request.minor and self._wait.stream is None:
                client.write(response_head(answer, self._return_hop()))
        elif request.upgrade is None:
            self._fail("switched protocols without being asked")
        else:
            self._buffer = b""
            self._result.status = 101
            self.head_sent = self.tunnel = client.closes = True
            client.write(response_head(answer, self._return_hop(), self._timing_lines()))
            self._start_tunnel(rest)

    def _start_tunnel(self, rest: bytes) -> None:
        """Pass on the first bytes of both sides, if the lease's owner does not stop the instance on the spot."""
        client = self._client
        self._lease.switched()
        early = client.start_tunnel()
        if not self.done:
            if rest:
                self._result.bytes_down += len(rest)
                client.write(rest)
            self.send_raw(early)

    def _on_final_head(self, answer: ResponseHead, rest: bytes) -> None:
        client, request = self._client, self._request
        if self._recorder is not None and not self._recorder.begin(answer):
            self._recorder = None
        stream = self._wait.stream
        if stream is not None:
            self._inset = self._wait.take_over(stream, answer, self._loop.time())
        if request.head.method == b"HEAD" or answer.status in (204, 304):
            self._tracker = _NO_BODY
        elif answer.chunked:
            self._unframed = stream is not None or not request.head.minor
            if self._unframed or self._recorder is not None:
                self._tracker = self._decoder = ChunkDecoder()
            else:
                self._tracker = Chunked()
        elif answer.content_length is not None:
            self._tracker = Length(answer.content_length) if answer.content_length else _NO_BODY
        else:
            self._tracker = _UNTIL_CLOSE
        self._result.status = answer.status
        self._expect_deadline = float("inf")
        if stream is not None:
            self.head_sent = True
            client.closes = stream.closes or client.draining
            self._relay(rest)
            return
        client.closes = (
            not request.head.keep_alive
            or client.draining
            or self._unframed
            or self._tracker is _UNTIL_CLOSE
            or not request.body.complete  # nobody can tell where the next request would begin
        )
        connection = b"close" if client.closes else b"" if request.head.minor else b"keep-alive"
        self._relay(rest, response_head(answer, self._return_hop(connection), self._timing_lines()))

    def _timing_lines(self) -> bytes:
        return self._wait.timing_lines(self._loop.time()) if self._wait.wishes.timing else b""

    def _return_hop(self, connection: bytes = b"") -> ReturnHop:
        route = self._route
        return ReturnHop(
            self._pool.authority, route.prefix, connection, self._unframed, route.bare, self._request.head.fields
        )

    def _relay(self, data: bytes, head: bytes = b"") -> None:
        """Pass on a piece of the answer's body, behind the answer's head if that has not been sent."""
        assert self._tracker is not None
        try:
            end = self._tracker.feed(data)
        except FramingError as error:
            self._fail(f"sent a malformed body ({error})")
            return
        excess = 0 <= end < len(data)
        if excess:
            data = data[:end]
        if self._decoder is not None or self._recorder is not None:
            data = self._take_payload(data)
        if self._inset is not None:
            data = self._inset.take(data)
        self._result.bytes_down += len(data)
        if head:
            self.head_sent = True
            data = head + data
        if data:
            self._client.write(data)
        if end >= 0:
            self._complete(reusable=not excess)
        elif self._inset is not None and self._inset.full:
            self._complete(reusable=False)

    def _take_payload(self, data: bytes) -> bytes:
        """Keep what is to be kept of a piece of the body; returns what the client gets of it."""
        payload = data if self._decoder is None else self._decoder.take_payload()
        if self._recorder is not None and not self._recorder.take(payload):
            self._recorder = None
            if self._decoder is not None and not self._unframed:
                self._decoder.stop_collecting()
                self._decoder = None
        return payload if self._unframed else data

    def _complete(self, *, reusable: bool) -> None:
        """The answer was passed on whole."""
        connection, self._upstream = self._upstream, None
        answer = self._answer
        assert connection is not None
        assert answer is not None
        if reusable and answer.keep_alive and self._request.body.complete and not connection.unsent:
            self._pool.release(connection, answer.keep_alive_timeout_s)
        else:
            connection.abort()
        if self._recorder is not None:
            self._recorder.finish(self._return_hop())
        if self._inset is not None:
            self._client.write(self._inset.finish())
        self.complete = True
        self._finish()

    def _broken(self, what: str) -> None:
        """The upstream connection ended before its answer did."""
        connection = self._upstream
        if connection is None:
            return
        body = self._request.body
        if connection.reused and not self._answered and body.kept is not None and not self._pool.closed:
            # It was closed while idle, which nobody can rule out: the backend has not seen this request. One that has
            # ended is another matter: this request may be what ended it, and must not end the next one as well.
            self._upstream = None
            connection.abort()
            self._retry = True
            self._wake()
            return
        self._fail(f"{what} {'in the middle of' if self.head_sent else 'before'} its answer")

    def _fail(self, what: str) -> None:
        if self._inset is not None and not self._inset.passes:
            self._complete(reusable=False)  # what has come of a refusal tells enough
            return
        self._error = UpstreamClosed(
            f"The backend of {self._route.endpoint_name} {what}.", endpoint=self._route.endpoint_name, phase="forward"
        )
        if self.head_sent:
            self._result.error = self._error.code
            self._error = None
            self._finish()
            ends_by_closing = self._tracker is _UNTIL_CLOSE or self._unframed
            if self._inset is not None:
                ends_by_closing = not self._request.head.minor
            if ends_by_closing:
                self._client.reset()  # to this client a plain end of file is the end of a whole answer
            else:
                self._client.abort()
        else:
            self._result.status = None
            self._finish()

    def _end_tunnel(self) -> None:
        connection, self._upstream = self._upstream, None
        if connection is not None:
            connection.close()
        self.complete = True
        self._finish()

    def _finish(self) -> None:
        self.stop()
        self.upstream_full = False
        self._wake()

    def _wake(self) -> None:
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)
