"""One client connection: heads in, answers out, one request after the other.

A coroutine per connection decides (route, hold, forward, release); protocol callbacks move bytes. The connection is
in one of four states:

- ``HEAD``: between requests; arriving bytes are looked at for a head.
- ``BUSY``: a request is held or forwarded. Its body goes to the exchange, what follows it is kept for later.
- ``TUNNEL``: after 101; bytes are passed on raw.
- ``CLOSING``: everything is said; arriving bytes are thrown away until the client leaves or the time is up.
"""

import asyncio
import contextlib
import enum
import logging
import os
import socket
import struct
from typing import Protocol, cast

from juggler.errors import BackendError, BadRequest, JugglerError, NotReady, UpstreamError
from juggler.proxy.body import RequestBody
from juggler.proxy.contract import ExchangeResult, Gateway, LocalResponse, RequestInfo, Route
from juggler.proxy.exchange import Exchange, Request
from juggler.proxy.framing import FramingError
from juggler.proxy.head import find_request_end, parse_request
from juggler.proxy.limits import Limits
from juggler.proxy.replies import Replies
from juggler.proxy.responses import error_response, local_response
from juggler.proxy.waiting_room import Wait
from juggler.proxy.wishes import NO_WISHES, parse_wishes
from juggler.units import SECONDS

_log = logging.getLogger("juggler.proxy")

_NEVER = float("inf")
_UNABLE = (NotReady, BackendError, UpstreamError)
"""The backend cannot answer now; not among them are refusals of the request and a juggler that goes down."""
_METHOD_START = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\r")


_HOLD_AGAIN_AFTER_S = (0.02 * SECONDS, 0.2 * SECONDS, 0.8 * SECONDS)
"""Pauses before a request is held anew whose backend refused the connection: the end of a process is known within
milliseconds, that of an attached server after a second look."""


class _Unreached(Exception):
    """No connection to the backend, and nothing of the request was sent: it can be held again."""

    def __init__(self, error: JugglerError) -> None:
        super().__init__(error.message)
        self.error = error


class State(enum.Enum):
    """See the module."""

    HEAD = "head"
    BUSY = "busy"
    TUNNEL = "tunnel"
    CLOSING = "closing"


class ListenerSide(Protocol):
    """What a connection needs of its listener."""

    gateway: Gateway
    limits: Limits
    replies: Replies
    draining: bool

    def opened(self, connection: "ClientConnection") -> JugglerError | None: ...
    def closed(self, connection: "ClientConnection") -> None: ...


class ClientConnection(asyncio.Protocol):
    """See the module. Owns its transport and its one task."""

    __slots__ = (
        "_body",
        "_buffer",
        "_cut_code",
        "_deadline",
        "_drained",
        "_exchange",
        "_gateway",
        "_head_started",
        "_limits",
        "_listener",
        "_loop",
        "_read_paused",
        "_request",
        "_state",
        "_task",
        "_transport",
        "_wait",
        "_waiter",
        "address",
        "closes",
        "write_paused",
    )

    def __init__(self, listener: ListenerSide) -> None:
        self._listener = listener
        self._gateway = listener.gateway
        self._limits = listener.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._state = State.HEAD
        self._buffer = b""
        self._request: Request | BadRequest | None = None  # found, not yet taken by the coroutine
        self._body: RequestBody | None = None  # of the request in work, until it has arrived whole
        self._exchange: Exchange | None = None
        self._wait: Wait | None = None  # of the request in work, from its routing to its end
        self._waiter: asyncio.Future[None] | None = None  # the coroutine waits for a head
        self._drained: asyncio.Future[None] | None = None  # the coroutine waits for the client to read
        self._deadline = _NEVER
        self._head_started = False  # the deadline is the head's, not the idle one
        self._read_paused = False
        self._cut_code: str | None = None  # why we, not the client, ended a request early
        self.address = b""
        """Of the client, without port."""
        self.closes = False
        """The connection ends after the request in work."""
        self.write_paused = False

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]).encode("latin-1", "replace") if peer else b"unknown"
        self._deadline = self._loop.time() + self._limits.idle_timeout_s
        refusal = self._listener.opened(self)
        if refusal is not None:
            self._answer_and_close(error_response(refusal, close=True))
            return
        self._task = self._loop.create_task(self._serve(), name="client connection")

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is State.TUNNEL:
            self._touch_tunnel()
            if self._exchange is not None:
                self._exchange.send_raw(data)
            return
        if state is State.CLOSING:
            return
        if self._body is not None:
            try:
                data = self._feed_body(self._body, data)
            except FramingError as error:
                self._refuse(_bad_body(error))
                return
            if not data:
                return
        self._buffer = self._buffer + data if self._buffer else data
        if self._waiter is not None and self._request is None and self._find_head():
            self._wake(self._waiter)
        elif self._state is State.BUSY:
            self.update_reading()

    def eof_received(self) -> bool:
        if self._state is State.TUNNEL and self._exchange is not None:
            self._deadline = self._loop.time() + self._limits.half_close_timeout_s
            self._exchange.on_client_eof()
            return True
        if self._state is State.BUSY:
            # Whoever waits for an answer keeps the connection open; this is how a client cancels.
            self._leave()
            self._transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._listener.closed(self)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._exchange is not None:
            self._exchange.on_client_full()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._exchange is not None:
            self._exchange.on_client_drained()
        if self._drained is not None:
            self._wake(self._drained)

    # For the listener

    @property
    def idle(self) -> bool:
        """Between requests, with nothing of the next one here."""
        return self._state is State.HEAD and not self._buffer and self._request is None

    @property
    def draining(self) -> bool:
        return self._listener.draining

    @property
    def task(self) -> asyncio.Task[None] | None:
        return self._task

    def check(self, now: float) -> None:
        """Called by the sweep: act on a deadline that has passed."""
        if self._state is State.BUSY:
            exchange, body = self._exchange, self._body
            if exchange is not None:
                exchange.check(now)
            if self._wait is not None:
                self._wait.check(now)
            if body is not None:
                wanted = exchange is not None and exchange.bound and not exchange.head_sent and not self._read_paused
                if body.stalled(now, self._limits.body_timeout_s, wanted=wanted):
                    self._refuse(BadRequest("The request body took too long.", status=408, code="request_timeout"))
        if now < self._deadline:
            return
        self._deadline = _NEVER
        if self._state is State.HEAD and self._buffer:
            self._refuse(BadRequest("The request head took too long.", status=408, code="request_timeout"))
        elif self._state is State.TUNNEL:
            self.cut(None)
        else:
            self._transport.abort()

    @property
    def held_bytes(self) -> int:
        """Bytes of a request body that have arrived; they are all kept while the request is held."""
        return self._body.size if self._body is not None else 0

    @property
    def unsent_bytes(self) -> int:
        """Bytes of answers that the client has not taken."""
        return self._transport.get_write_buffer_size()

    def paused_descriptor(self) -> int | None:
        """File descriptor of a connection that is not being read, so that nobody would notice its end."""
        if not self._read_paused or self._transport.is_closing():
            return None
        return cast(int, self._transport.get_extra_info("socket").fileno())

    def cut(self, code: str | None) -> None:
        """End the connection at once; ``code`` goes into the result of a request in work (None: the client left)."""
        self._cut_code = code
        self._leave()
        self._transport.abort()

    def finish(self) -> None:
        """Close after what was written, if it is idle."""
        if self.idle:
            self._close(discard=False)
            self._leave()

    # For the exchange

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing() and self._state is not State.CLOSING:
            self._transport.write(data)

    def write_eof(self) -> None:
        """The backend's half of a tunnel has ended."""
        self._deadline = self._loop.time() + self._limits.half_close_timeout_s
        self._end_output()

    def abort(self) -> None:
        self._transport.abort()

    def reset(self) -> None:
        """Cut the connection so that the client sees an error, where a mere end would look like the answer's."""
        if not self._transport.is_closing():
            with contextlib.suppress(OSError):
                option = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        self._transport.abort()

    def start_tunnel(self) -> bytes:
        """From now on bytes are raw; returns those that came behind the request already."""
        self._state = State.TUNNEL
        self._body = None
        early, self._buffer = self._buffer, b""
        self.update_reading()
        return early

    def tunnel_activity(self) -> None:
        self._touch_tunnel()

    def update_reading(self) -> None:
        """Read on or pause: the one place that decides."""
        exchange, body = self._exchange, self._body
        if self._state is State.HEAD or self._state is State.CLOSING:
            pause = False
        elif exchange is not None and exchange.upstream_full and (body is not None or self._state is State.TUNNEL):
            pause = True
        elif body is not None:
            held = exchange is None or not exchange.bound
            pause = held and body.size >= self._limits.held_body_bytes
        else:
            pause = len(self._buffer) >= self._limits.pipelined_bytes
        if pause != self._read_paused and not self._transport.is_closing():
            self._read_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # Heads and bodies

    def _find_head(self) -> bool:
        """Take a request out of the buffer if its head is there whole; also True if it can never be one."""
        buffer, limits = self._buffer, self._limits
        if buffer.startswith(b"\r\n"):
            buffer = self._buffer = buffer[2:]  # old clients send one after a body (RFC 9112 2.2)
        if not buffer:
            return False
        try:
            end = find_request_end(buffer, limits.head_bytes, limits.request_line_bytes)
            if end < 0:
                if buffer[0] not in _METHOD_START:
                    raise BadRequest("This is not HTTP.", hint="The address wants http://, not https://.")
                if not self._head_started:
                    self._head_started = True
                    self._deadline = self._loop.time() + limits.head_timeout_s
                return False
            head = parse_request(buffer[:end])
            body = RequestBody(head)
            self._body = None if body.complete else body
            self._state = State.BUSY
            self._deadline = _NEVER
            rest, self._buffer = buffer[end:], b""
            if rest:
                self._buffer = self._feed_body(body, rest) if self._body is not None else rest
        except BadRequest as error:
            self._request = error
        except FramingError as error:
            self._request = _bad_body(error)
        else:
            self._request = Request(head, body)
            self.update_reading()
        return True

    def _feed_body(self, body: RequestBody, data: bytes) -> bytes:
        """Pass a piece on or keep it; returns what lies behind the body.

        Raises:
            FramingError: See ``RequestBody.feed``.
        """
        end = body.feed(data)
        piece, rest = (data, b"") if end == len(data) else (data[:end], data[end:])
        if body.complete:
            self._body = None
        if self._exchange is not None:
            self._exchange.send_body(piece)
        else:
            body.keep(piece)
        self.update_reading()
        return rest

    async def _next_request(self) -> Request | BadRequest:
        """Wait for the next head; not before the client has taken the answers it already got."""
        while self.write_paused:
            self._deadline = self._loop.time() + self._limits.flush_timeout_s
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        self._state = State.HEAD
        self._head_started = False
        self.closes = False
        self._deadline = self._loop.time() + self._limits.idle_timeout_s
        if not (self._buffer and self._find_head()):
            self.update_reading()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        request, self._request = self._request, None
        assert request is not None
        return request

    # The coroutine

    async def _serve(self) -> None:
        try:
            while not self.closes and not self._transport.is_closing():
                request = await self._next_request()
                if isinstance(request, BadRequest):
                    self._answer_and_close(error_response(request, close=True))
                    return
                await self._answer(request)
                if self._listener.draining:
                    break
            self._close(discard=self._body is not None or bool(self._buffer))
        finally:
            if self._state is not State.CLOSING:
                # Cancelled, or a bug: nobody else would close it.
                self._state = State.CLOSING
                self._transport.abort()

    async def _answer(self, request: Request) -> None:
        head = request.head
        path = head.target
        target: Route | LocalResponse | None = None
        try:
            target = self._gateway.route(head.method, head.target, head.host)
            if isinstance(target, Route):
                path = target.target
                local = await self._forward(target, request)
                if local is None:
                    return
                target = local
            if self._wait is not None and self._wait.stream is not None:
                self._end_stream(self._wait.answered_here(target))
                return
            close = self._closes_after_own_answer(request)
            self.write(local_response(target, head_only=head.method == b"HEAD", close=close, added=self._timing()))
        except JugglerError as error:
            if isinstance(target, Route) and isinstance(error, _UNABLE) and self._answer_from_earlier(request, target):
                return
            self._answer_error(request, error, path)
        except Exception:
            _log.exception("request %s %s failed", head.method.decode("latin-1"), head.target.decode("latin-1"))
            self._answer_error(request, JugglerError("The juggler made a mistake; its log says more."), path)
        finally:
            self._wait = None

    async def _forward(self, route: Route, request: Request) -> LocalResponse | None:
        """Hold and relay; hold again where the backend died before it could be reached.

        A process that was killed counts as ready until its end is noticed, some milliseconds later.

        Returns:
            None: the answer was sent, or the connection cut.
        """
        head = request.head
        fields = tuple([(name, value) for _, name, value in head.fields])
        wishes = parse_wishes(fields) if head.wishes else NO_WISHES
        info = RequestInfo(head.method, head.target, self.address.decode("latin-1"), fields, wishes)
        wait = self._wait = Wait(self, request, route, wishes, self._limits, self._loop.time())
        for pause_s in _HOLD_AGAIN_AFTER_S:
            try:
                return await self._forward_once(route, request, info, wait)
            except _Unreached:
                wait.lost_lease()
                await asyncio.sleep(pause_s)
                info = wait.rest_of(info, self._loop.time())
        try:
            return await self._forward_once(route, request, info, wait)
        except _Unreached as unreached:
            raise unreached.error from unreached

    async def _forward_once(
        self, route: Route, request: Request, info: RequestInfo, wait: Wait
    ) -> LocalResponse | None:
        """Hold, relay, release.

        Raises:
            _Unreached: No connection could be made, and the request is still whole.
        """
        lease = await self._gateway.acquire(route, info)
        if isinstance(lease, LocalResponse):
            return lease
        wait.leased(lease, self._loop.time())
        result = ExchangeResult()
        exchange: Exchange | None = None
        recorder = None
        if route.cacheable and wait.stream is None:
            recorder = self._listener.replies.recorder(route, request.head)
        try:
            exchange = self._exchange = Exchange(self, request, route, lease, result, self._limits, wait, recorder)
            await exchange.run()
        except asyncio.CancelledError:
            if exchange is None or not exchange.complete:
                result.error = result.error or self._cut_code
                result.client_gone = result.error is None
            raise
        except JugglerError as error:
            result.error = error.code
            if exchange is not None and exchange.unreached and request.body.kept is not None:
                raise _Unreached(error) from error
            raise
        except Exception:
            result.error = JugglerError.code
            if exchange is not None and exchange.head_sent:
                self._transport.abort()
            raise
        finally:
            self._exchange = None
            lease.release(result)
        return None

    def _answer_from_earlier(self, request: Request, route: Route) -> bool:
        """Answer with an earlier reply to the same question, if there is one; its backend cannot answer."""
        if self._wait is not None and self._wait.stream is not None:
            return False
        replies = self._listener.replies
        reply = replies.find(route, request.head) if route.cacheable else None
        if reply is None:
            return False
        close = self._closes_after_own_answer(request)
        head_only = request.head.method == b"HEAD"
        self.write(reply.message(replies.clock(), head_only=head_only, close=close, added=self._timing()))
        return True

    def _closes_after_own_answer(self, request: Request) -> bool:
        """Decide, for an answer made here, whether the connection can go on."""
        head = request.head
        # HTTP/1.0: our own answers do not say keep-alive, so the client waits for the end.
        self.closes = not (head.keep_alive and head.minor and request.body.complete) or self._listener.draining
        return self.closes

    def _answer_error(self, request: Request, error: JugglerError, path: bytes) -> None:
        wait = self._wait
        if wait is not None and wait.stream is not None:
            self._end_stream(wait.failed(error))
            return
        close = self._closes_after_own_answer(request)
        head_only = request.head.method == b"HEAD"
        self.write(error_response(error, path=path, head_only=head_only, close=close, added=self._timing()))

    def _timing(self) -> list[tuple[str, str]]:
        return self._wait.timing(self._loop.time()) if self._wait is not None else []

    def _end_stream(self, last: bytes) -> None:
        """End the answer that was begun while the request waited."""
        assert self._wait is not None
        assert self._wait.stream is not None
        self.closes = self._wait.stream.closes or self._listener.draining
        self.write(last)

    # Endings

    def _refuse(self, error: BadRequest) -> None:
        """From a callback: the bytes of the client make going on impossible."""
        exchange = self._exchange
        self._cut_code = error.code
        if (exchange is not None and exchange.head_sent) or (self._wait is not None and self._wait.stream is not None):
            self._transport.abort()
        else:
            self._answer_and_close(error_response(error, close=True))
        self._leave()

    def _answer_and_close(self, answer: bytes) -> None:
        self.write(answer)
        self._close(discard=True)

    def _close(self, *, discard: bool) -> None:
        """Close after what was written. ``discard`` reads on for a while, or the client might lose the answer.

        Closing a socket with unread input resets it, and a reset overtakes data in flight (RFC 9112 9.6).
        """
        self._state = State.CLOSING
        if self._transport.is_closing():
            return
        unsent = self._transport.get_write_buffer_size() > 0
        limits = self._limits
        wait_s = limits.flush_timeout_s if unsent or not discard else limits.discard_timeout_s
        self._deadline = self._loop.time() + wait_s
        self._buffer = b""
        self._body = None
        if discard and self._transport.can_write_eof():
            self.update_reading()
            self._end_output()
        else:
            self._transport.close()

    def _end_output(self) -> None:
        """End our half, after what was written."""
        if self._transport.is_closing():
            return
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # the client has reset the connection, and the loop does not know it yet

    def _leave(self) -> None:
        """The request in work, if any, is over: cut its upstream now, not when the coroutine next runs."""
        if self._exchange is not None:
            self._exchange.stop()
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def _touch_tunnel(self) -> None:
        if self._deadline != _NEVER:
            self._deadline = self._loop.time() + self._limits.half_close_timeout_s

    @staticmethod
    def _wake(waiter: "asyncio.Future[None]") -> None:
        if not waiter.done():
            waiter.set_result(None)


def _bad_body(error: FramingError) -> BadRequest:
    return BadRequest(f"The request body is malformed: {error}.")
