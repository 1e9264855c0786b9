"""One client connection: heads in, answers out, one request after the other.

A coroutine per connection decides (route, hold, forward, release); protocol callbacks move bytes, and see alone to
requests for which nothing has to be waited. The connection is in one of four states:

- ``HEAD``: between requests; arriving bytes are looked at for a head.
- ``BUSY``: a request is held or forwarded. Its body goes to the exchange, what follows it is kept for later.
- ``TUNNEL``: after 101; bytes are passed on raw.
- ``CLOSING``: everything is said; arriving bytes are thrown away until the client leaves or the time is up.
"""

import asyncio
import logging
import re
from typing import cast

from juggler.errors import BadRequest, JugglerError
from juggler.proxy.body import Request, RequestBody, bad_body, read_request
from juggler.proxy.closing import NEVER, ClosingConnection
from juggler.proxy.connection import HOLD_AGAIN_AFTER_S, ListenerSide, State, Unreached, wake
from juggler.proxy.contract import ExchangeResult, Lease, LocalResponse, RequestInfo, Route
from juggler.proxy.exchange import Exchange
from juggler.proxy.framing import FramingError
from juggler.proxy.head import RequestHead
from juggler.proxy.limits import Limits
from juggler.proxy.own import own_answer
from juggler.proxy.questions import answered_in_place, by_its_body
from juggler.proxy.repeats import worth_keeping
from juggler.proxy.responses import error_response
from juggler.proxy.tls import GOODBYE_S
from juggler.proxy.turns import LARGE_PIECE_BYTES
from juggler.proxy.waiting_room import Wait
from juggler.proxy.wishes import parse_wishes

_log = logging.getLogger("juggler.proxy")

_EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")


class ClientConnection(ClosingConnection):
    """See the module. Owns its transport and its one task."""

    __slots__ = (
        "_client",
        "_drained",
        "_exchange",
        "_gateway",
        "_head_started",
        "_last",
        "_last_info",
        "_late",
        "_read_paused",
        "_request",
        "_task",
        "_wait",
        "_waiter",
        "address",
        "closes",
        "cut_code",
        "half_closed",
        "write_paused",
    )

    def __init__(self, listener: ListenerSide) -> None:
        super().__init__(listener)
        self._gateway = listener.gateway
        self._task: asyncio.Task[None] | None = None
        self._request: Request | BadRequest | None = None  # found, not yet taken by the coroutine
        self._last: RequestHead | None = None  # the last head, if the next one may be the same (``proxy.repeats``)
        self._last_info: RequestInfo | None = None  # what the gateway was told of it
        self._exchange: Exchange | None = None
        self._wait: Wait | None = None  # of the request in work, from its routing to its end
        self._waiter: asyncio.Future[None] | None = None  # the coroutine waits for a head
        self._drained: asyncio.Future[None] | None = None  # the coroutine waits for the client to read
        self._head_started = False  # the deadline is the head's, not the idle one
        self._late = b""  # a large piece of a chunked body, not looked at yet
        self._read_paused = False
        self._client = ""  # address as text
        self.address = b""
        """Of the client, without port."""
        self.closes = False
        """The connection ends after the request in work."""
        self.cut_code: str | None = None
        """Why we, not the client, ended a request early."""
        self.half_closed = False
        """The client sends nothing more, and may still wait for answers."""
        self.write_paused = False

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]).encode("latin-1", "replace") if peer else b"unknown"
        self._client = self.address.decode("latin-1")
        self._deadline = self._loop.time() + self._limits.idle_timeout_s
        refusal = self._listener.opened(self)
        if refusal is not None:
            self._answer_and_close(error_response(refusal, close=True))
            return
        self._task = self._loop.create_task(self._serve(), name="client connection")

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is State.TUNNEL:
            self.tunnel_activity()
            if self._exchange is not None:
                self._exchange.send_raw(data)
            return
        if state is State.CLOSING:
            if self.secure:
                self._deadline = min(self._loop.time() + GOODBYE_S, self._linger_until)
            return
        if self._body is not None:
            if self._late or (len(data) > LARGE_PIECE_BYTES and self._body.chunked):
                self._put_off(data)
                return
            try:
                data = self._feed_body(self._body, data)
            except FramingError as error:
                self._refuse(bad_body(error))
                return
            if not data:
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Bytes that belong to no body under way."""
        self._buffer = self._buffer + data if self._buffer else data
        if self._waiter is not None and self._request is None and self._find_head():
            self._go_on()
        elif self._state is State.BUSY:
            self.update_reading()

    def eof_received(self) -> bool:
        self._take_late()
        if self._state is State.TUNNEL and self._exchange is not None:
            self._deadline = self._loop.time() + self._limits.half_close_timeout_s
            self._exchange.on_client_eof()
            return not self.secure
        if self._state is State.BUSY:
            if self._limits.answer_half_closed and self._body is None and not self.secure:
                self.half_closed = True
                self._listener.unread(self)
                return True
            # Whoever waits for an answer keeps the connection open; this is how a client cancels.
            self._leave()
            self.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self._leave()
        finally:
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
            wake(self._drained)

    # For the listener

    @property
    def idle(self) -> bool:
        """Between requests, with nothing of the next one here."""
        return self._state is State.HEAD and not self._buffer and self._request is None

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
        self._deadline = NEVER
        if self._state is State.HEAD and self._buffer:
            self._refuse(BadRequest("The request head took too long.", status=408, code="request_timeout"))
        elif self._state is State.TUNNEL:
            self.cut(None)
        elif self.secure and self._state is State.CLOSING:
            self._end_tls(now)
        elif not self._has_taken_some():
            self._cut_off()

    @property
    def held_bytes(self) -> int:
        """Bytes of a request body that have arrived; they are all kept while the request is held."""
        return self._body.size if self._body is not None else 0

    def unread_descriptor(self) -> tuple[int, bool] | None:
        """See ``hangup.Unread``. Behind a body that is still to be read an end of file may be a mere half's."""
        if not (self._read_paused or self.half_closed) or self._transport.is_closing():
            return None
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor, not (self.half_closed or self._limits.answer_half_closed)

    def quiet_s(self, now: float) -> float:
        """For how long no request has come, not even a whole head; 0 while one is in work."""
        if self._state is not State.HEAD or self._request is not None or self.unsent_bytes:
            return 0.0
        return now - self._deadline + self._silence_s(self._limits)

    def _silence_s(self, limits: Limits) -> float:
        return limits.head_timeout_s if self._head_started else limits.idle_timeout_s

    def bound_by(self, limits: Limits) -> None:
        """Other bounds for the requests to come."""
        if self._state is State.HEAD and self._request is None:  # else ``quiet_s`` would take a deadline for another
            self._deadline += self._silence_s(limits) - self._silence_s(self._limits)
        self._limits = limits
        self.forget_head()  # it was measured by the old ones

    def cut(self, code: str | None) -> None:
        """End the connection at once; ``code`` goes into the result of a request in work (None: the client left)."""
        self.cut_code = code
        self._cut_off()
        self._leave()

    def _cut_off(self) -> None:
        """End the connection at once; a client whose answer is not through must not take that for its end."""
        if self._state is State.BUSY and self._drained is None:
            exchange, stream = self._exchange, self._wait.stream if self._wait is not None else None
            half = exchange is not None and exchange.head_sent and exchange.ends_by_closing
            half = half or (stream is not None and not stream.chunked)
        else:
            half = self.unsent_bytes > 0
        if half:
            self.reset()
        else:
            self.abort()

    def finish(self) -> None:
        """Close after what was written, if it is idle."""
        if self.idle:
            self._close(discard=False)
            self._leave()

    # For the exchange

    def start_tunnel(self) -> bytes:
        """From now on bytes are raw; returns those that came behind the request already."""
        self._state = State.TUNNEL
        self._body = None
        early, self._buffer = self._buffer, b""
        self.update_reading()
        if self.half_closed:
            self._loop.call_soon(self.eof_received)  # for the tunnel
        return early

    def tunnel_activity(self) -> None:
        if self._deadline != NEVER:
            self._deadline = self._loop.time() + self._limits.half_close_timeout_s

    def update_reading(self) -> None:
        """Read on or pause: the one place that decides."""
        exchange, body = self._exchange, self._body
        if self._state is State.HEAD or self._state is State.CLOSING:
            pause = False
        elif exchange is not None and exchange.upstream_full and (body is not None or self._state is State.TUNNEL):
            pause = True
        elif body is not None:
            held = exchange is None or not exchange.bound
            pause = bool(self._late) or (held and body.size >= self._limits.held_body_bytes)
        else:
            pause = len(self._buffer) >= self._limits.pipelined_bytes
        if pause != self._read_paused and not self._transport.is_closing():
            self._read_paused = pause
            if pause:
                self._transport.pause_reading()
                self._listener.unread(self)
            else:
                self._transport.resume_reading()

    # Heads and bodies

    def _find_head(self) -> bool:
        """Take a request out of the buffer if its head is there whole; also True if it can never be one."""
        buffer, limits = self._buffer, self._limits
        if buffer.startswith(b"\r\n"):
            # Old clients send one after a body (RFC 9112 2.2); all, or the verdict would depend on how they are cut.
            buffer = self._buffer = _EMPTY_LINES.sub(b"", buffer, count=1)
        if not buffer:
            return False
        try:
            found = read_request(buffer, limits, self._last)
            if found is None:
                if not self._head_started:
                    self._head_started = True
                    self._deadline = self._loop.time() + limits.head_timeout_s
                return False
            request, rest = found
            if request.head is not self._last:
                self._last = request.head if worth_keeping(request.head, limits.head_bytes) else None
            body = request.body
            self._state = State.BUSY
            self._deadline = NEVER
            self._body = None if body.complete else body
            self._buffer = b""
            if rest:
                self._buffer = self._feed_body(body, rest) if self._body is not None else rest
        except BadRequest as error:
            self._request = error
        except FramingError as error:
            self._request = bad_body(error)
        else:
            self._request = request
            if self._body is not None or self._buffer or self._read_paused:
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

    def _put_off(self, data: bytes) -> None:
        """Look at a large piece of a chunked body when it is its turn, and read nothing more until then.

        As for answers (``Exchange``): uvloop reads a lot at once, and small chunks take long to be looked through.
        """
        if not self._late:
            self._listener.turns.add(self._loop, self._take_late)
        self._late += data
        self.update_reading()

    def _take_late(self) -> None:
        data, self._late = self._late, b""
        if not data or self._body is None or self._state is not State.BUSY:
            return  # it was taken at the end of the connection, or all is over
        try:
            rest = self._feed_body(self._body, data)
        except FramingError as error:
            self._refuse(bad_body(error))
        except Exception:
            self.abort()  # or what comes next would be passed on behind a gap
            raise
        else:
            if rest:
                self._take(rest)

    async def _next_request(self) -> Request | BadRequest | None:
        """Wait for the next head; not before the client has taken the answers it already got.

        None: no further request is taken.
        """
        while self.write_paused:
            self._wait_for_reader()
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None
            if self._listener.draining and not self._buffer:
                return None
        if not self._look_for_head():
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        request, self._request = self._request, None
        assert request is not None
        return request

    def _look_for_head(self) -> bool:
        """The request before is over: whether the next one is here already."""
        self._state = State.HEAD
        self._head_started = False
        self._untaken = 0
        self.closes = False
        self._deadline = self._loop.time() + self._limits.idle_timeout_s
        if self._buffer and self._find_head():
            return True
        if self._read_paused:
            self.update_reading()
        return False

    # Requests for which nothing has to be waited: the coroutine sleeps on

    def _go_on(self) -> None:
        """A request is there: forward it on the spot, or wake the coroutine for it."""
        request = self._request
        if not (isinstance(request, Request) and self._begin_at_once(request)) and self._waiter is not None:
            wake(self._waiter)

    def _begin_at_once(self, request: Request) -> bool:
        """False: the coroutine has to see to it, with whatever of it has been begun."""
        head = request.head
        if head.wishes:
            return False
        try:
            route = self._gateway.route(head.method, head.target, head.host)
            if not isinstance(route, Route):
                return False
            lease = self._gateway.try_acquire(route, self._info(head))
            if lease is None:
                return False
            exchange = self._open(route, request, lease, None)
        except Exception:
            return False  # the coroutine will meet the same, and tell
        return exchange.begin()

    def forget_head(self) -> None:
        """The next head is not to be compared with the one before."""
        self._last = self._last_info = None

    def exchange_over(self, exchange: Exchange) -> None:
        """An exchange is over that the coroutine does not await; most often the next request comes then."""
        ends = self.closes or self._listener.draining or self.half_closed or self._transport.is_closing()
        if exchange.complete and not ends and not self.write_paused:
            self._exchange = self._wait = self._request = None
            exchange.release()
            if self._look_for_head():
                self._go_on()
        elif self._waiter is not None:
            wake(self._waiter)

    def _info(self, head: RequestHead) -> RequestInfo:
        if head is not self._last:
            return RequestInfo(head.method, head.target, self._client, head=head)
        info = self._last_info
        if info is None or info.head is not head:
            info = self._last_info = RequestInfo(head.method, head.target, self._client, head=head)
        return info

    def _open(self, route: Route, request: Request, lease: Lease, wait: Wait | None) -> Exchange:
        """The hold is over, if there was one."""
        now = self._loop.time()
        if wait is not None:
            wait.leased(lease, now)
        try:
            recorder = None
            if (route.cacheable or route.changes) and (wait is None or wait.stream is None):
                recorder = self._listener.replies.recorder(route, request.head, request.body)
            self._exchange = Exchange(self, request, route, lease, self._limits, wait, self._loop, now, recorder)
        except Exception:
            lease.release(ExchangeResult(error=JugglerError.code))
            raise
        return self._exchange

    # The coroutine

    async def _serve(self) -> None:
        try:
            while not self.closes and not self._transport.is_closing():
                request = await self._next_request()
                if request is None:
                    break
                if isinstance(request, BadRequest):
                    self._answer_and_close(error_response(request, close=True))
                    return
                await self._answer(request)
                if self._listener.draining or (self.half_closed and not self._buffer):
                    break
                if self._buffer:
                    await asyncio.sleep(0)  # thousands of requests may be here, and be answered without a wait
            self._close(discard=self._body is not None or bool(self._buffer))
        finally:
            if self._state is not State.CLOSING:
                # Cancelled, or a bug: nobody else would close it.
                self._state = State.CLOSING
                self.abort()

    async def _answer(self, request: Request) -> None:
        head = request.head
        route: Route | None = None
        said: LocalResponse | JugglerError | None
        try:
            try:
                exchange = self._exchange  # a request that was begun was routed
                if exchange is not None:
                    target: Route | LocalResponse = exchange.route
                else:
                    target = self._gateway.route(head.method, head.target, head.host)
                if isinstance(target, Route):
                    route = target if exchange is not None else await by_its_body(target, request)
                    said = await self._forward(route, request)
                else:
                    said = target
            except JugglerError as error:
                said = error
            except Exception:
                _log.exception("request %s %s failed", head.method.decode("latin-1"), head.target.decode("latin-1"))
                said = JugglerError("The juggler made a mistake; its log says more.")
            if said is not None:
                said = await answered_in_place(said, request, route, self._listener.replies)
                listener, now = self._listener, self._loop.time()
                data, self.closes = own_answer(
                    said, request, route, self._wait, listener.replies, draining=listener.draining, now=now
                )
                self.write(data)
        finally:
            self._wait = None

    async def _forward(self, route: Route, request: Request) -> LocalResponse | None:
        """Hold and relay; hold again where the backend died before it could be reached.

        A process that was killed counts as ready until its end is noticed, some milliseconds later.

        Returns:
            None: the answer was sent, or the connection cut.
        """
        info = self._info(request.head)
        if request.head.wishes:
            info.wishes = parse_wishes(info.headers)
        wait = self._wait
        if wait is None:
            wait = self._wait = Wait(self, request, route, info.wishes, self._limits, self._loop.time())
            if self._exchange is not None:
                self._exchange.waited(wait)
        for pause_s in HOLD_AGAIN_AFTER_S:
            try:
                return await self._forward_once(route, request, info, wait)
            except Unreached:
                wait.lost_lease()
                await asyncio.sleep(pause_s)
                info = wait.rest_of(info, self._loop.time())
        try:
            return await self._forward_once(route, request, info, wait)
        except Unreached as unreached:
            raise unreached.error from unreached

    async def _forward_once(
        self, route: Route, request: Request, info: RequestInfo, wait: Wait
    ) -> LocalResponse | None:
        """Hold, relay, release.

        Raises:
            Unreached: No connection could be made, and the request is still whole.
        """
        exchange = self._exchange  # it may have been begun without us
        if exchange is None:
            lease = await self._gateway.acquire(route, info)
            if isinstance(lease, LocalResponse):
                return lease
            exchange = self._open(route, request, lease, wait)
        try:
            await exchange.run()
        except JugglerError as error:
            if exchange.unreached and request.body.kept is not None:
                raise Unreached(error) from error
            raise
        finally:
            self._exchange = None
        return None

    # Endings

    def _refuse(self, error: BadRequest) -> None:
        """From a callback: the bytes of the client make going on impossible."""
        exchange = self._exchange
        self.cut_code = error.code
        if (exchange is not None and exchange.head_sent) or (self._wait is not None and self._wait.stream is not None):
            self._cut_off()
        else:
            self._answer_and_close(error_response(error, close=True))
        self._leave()

    def _leave(self) -> None:
        """The request in work, if any, is over: cut its upstream now, not when the coroutine next runs."""
        try:
            if self._exchange is not None:
                self._exchange.stop()
        finally:
            if self._task is not None and not self._task.done():
                self._task.cancel()
