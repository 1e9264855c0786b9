"""One client connection: bytes in, request heads out, one request after the other.

A coroutine per connection does what needs waiting: read a head, route it, hold it until the scheduler lets it go,
forward it, next. The protocol's callbacks move bytes. Whatever arrives while nobody wants it stays in one buffer
with a bound, above which reading pauses: the rest of a head, the body of a request that is held, pipelined requests.

A client that closes its sending side counts as gone: with TCP a half-close cannot be told from a close, and the
backend must stop working for a client that left.
"""

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from juggler.errors import BadRequest, JugglerError
from juggler.proxy.contract import ExchangeResult, LocalResponse, RequestInfo
from juggler.proxy.exchange import Exchange
from juggler.proxy.framing import Chunked, FramingError, Length, NoBody, Tracker
from juggler.proxy.head import RequestHead, find_request_end, parse_request
from juggler.proxy.responses import error_response, local_response

if TYPE_CHECKING:
    from juggler.proxy.listener import Listener

_log = logging.getLogger("juggler.proxy")

NEVER = float("inf")


class ClientConnection(asyncio.Protocol):
    """See the module's docstring."""

    def __init__(self, listener: "Listener") -> None:
        self.listener = listener
        self.limits = listener.limits
        self.peer = b""
        """The client's address, for forwarding headers and logs."""
        self.transport: asyncio.Transport | None = None
        self.closing = False
        """Serve no further request."""
        self.idle = True
        """Between two requests."""
        self.deadline = NEVER
        """Loop time at which the sweep ends this connection."""
        self.body_done = True
        """The whole body of the present request has been read (and sent on, or dropped)."""
        self.task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._buffer_limit = self.limits.head_bytes
        self._wake: asyncio.Future[None] | None = None
        self._tracker: Tracker = NoBody()
        self._exchange: Exchange | None = None
        self._streaming = False
        """Body bytes go straight to the exchange."""
        self._paused_by_buffer = False
        self._paused_by_upstream = False
        self._writing_paused = False
        self._lost = False

    # -- protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]).encode("latin-1", "replace") if isinstance(name, tuple) else b"unknown"
        size = self.limits.write_buffer_bytes
        transport.set_write_buffer_limits(high=size, low=size // 4)
        self.deadline = self._loop.time() + self.limits.idle_timeout_s
        self.task = self.listener.adopt(self)

    def data_received(self, data: bytes) -> None:
        if self._streaming:
            self._take_body(data)
            return
        exchange = self._exchange
        if exchange is not None and exchange.is_tunnel:
            exchange.on_client_body(data)
            return
        if self.idle and not self._buffer:
            self.deadline = self._loop.time() + self.limits.head_timeout_s
        self._buffer += data
        if len(self._buffer) > self._buffer_limit and not self._paused_by_buffer:
            self._paused_by_buffer = True
            self._update_reading()
        self._wake_up()

    def eof_received(self) -> bool:
        exchange = self._exchange
        if exchange is not None and exchange.is_tunnel:
            return False  # a tunnel ends as a whole
        if exchange is not None or not self.idle:
            self._gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()

    def _gone(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._streaming = False
        if self._exchange is not None:
            self._exchange.on_client_lost()
        if self.transport is not None:
            self.transport.abort()
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._exchange is not None and self._exchange.connection is not None:
            self._exchange.connection.pause_reading()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._exchange is not None and self._exchange.connection is not None:
            self._exchange.connection.resume_reading()

    # -- used by the exchange ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send, unless the connection is going down (uvloop raises where asyncio ignores it)."""
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def start_body(self, exchange: Exchange) -> None:
        """From now on body bytes go to the backend, first those that came while the request was held."""
        if self._writing_paused and exchange.connection is not None:
            exchange.connection.pause_reading()
        if self.body_done:
            return
        self._streaming = True
        held, self._buffer = bytes(self._buffer), bytearray()
        if held:
            self._take_body(held)
        self._paused_by_buffer = False
        self._update_reading()

    def start_tunnel(self, exchange: Exchange) -> None:
        """Whatever came glued to the head belongs to the other protocol."""
        self.body_done = True
        self._streaming = False
        glued, self._buffer = bytes(self._buffer), bytearray()
        if glued:
            exchange.on_client_body(glued)
        self._paused_by_buffer = False
        self._update_reading()

    def pause_body(self) -> None:
        self._paused_by_upstream = True
        self._update_reading()

    def resume_body(self) -> None:
        self._paused_by_upstream = False
        self._update_reading()

    def _take_body(self, data: bytes) -> None:
        exchange = self._exchange
        try:
            end = self._tracker.feed(data)
        except FramingError as error:
            self._streaming = False
            self.closing = True
            if exchange is not None:
                exchange.fail(BadRequest(f"The request body is malformed: {error}."))
            return
        piece = data if end < 0 else data[:end]
        if end >= 0:
            self.body_done = True
            self._streaming = False
            self._buffer += data[end:]
            self._buffer_limit = self.limits.pipelined_bytes
        if exchange is not None and piece:
            exchange.on_client_body(piece)

    def _update_reading(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._paused_by_buffer or self._paused_by_upstream:
            if transport.is_reading():
                transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()

    # -- the coroutine -----------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Answer requests until the connection ends. Owned by the listener."""
        try:
            while not self.closing:
                head = await self._next_head()
                if not await self._serve_one(head):
                    break
        except BadRequest as error:
            self.write(error_response(error, close=True))
        except asyncio.CancelledError:
            self._abort()
            raise
        except Exception:
            _log.exception("a request from %s failed", self.peer.decode("latin-1"))
            self._abort()
        finally:
            self.idle = True
            self._close()

    async def _next_head(self) -> RequestHead:
        """Wait for a whole head; reading it moves it out of the buffer.

        Raises:
            BadRequest: It is not one.
        """
        self.idle = True
        self._buffer_limit = self.limits.head_bytes
        now = self._loop.time()
        self.deadline = now + (self.limits.head_timeout_s if self._buffer else self.limits.idle_timeout_s)
        while True:
            while self._buffer.startswith(b"\r\n"):
                del self._buffer[:2]  # RFC 9112 2.2: empty lines before a request are ignored
            raw = bytes(self._buffer)
            end = find_request_end(raw, self.limits.head_bytes, self.limits.request_line_bytes) if raw else -1
            if end >= 0:
                break
            self._resume_if_room()
            await self._more()
        head = parse_request(raw[:end])
        del self._buffer[:end]
        self.idle = False
        self.deadline = NEVER
        if head.chunked:
            self._tracker = Chunked()
        elif head.content_length:
            self._tracker = Length(head.content_length)
        else:
            self._tracker = NoBody()
        self.body_done = isinstance(self._tracker, NoBody)
        self._buffer_limit = self.limits.pipelined_bytes if self.body_done else self.limits.held_body_bytes
        self._resume_if_room()
        return head

    async def _serve_one(self, head: RequestHead) -> bool:
        """Answer one request; returns whether the connection can serve another."""
        head_only = head.method == b"HEAD"
        path = head.target
        result = ExchangeResult()
        try:
            where = self.listener.gateway.route(head.method, head.target, head.host)
            if isinstance(where, LocalResponse):
                return await self._answer(local_response(where, head_only=head_only, close=not head.keep_alive), head)
            path = where.target
            lease = await self.listener.gateway.acquire(where, self._info(head))
            if isinstance(lease, LocalResponse):
                return await self._answer(local_response(lease, head_only=head_only, close=not head.keep_alive), head)
            try:
                return await self._forward(Exchange(self, lease.upstream, where, head, result))
            except JugglerError as error:
                result.error = error.code
                raise
            finally:
                lease.release(result)
        except JugglerError as error:
            if result.status is not None:  # the head is out: all that is left is to break off visibly
                self._abort()
                return False
            close = not head.keep_alive or self.closing or head.expects_continue
            answer = error_response(error, path=path, head_only=head_only, close=close)
            return await self._answer(answer, head) and not close
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("%s %s failed", head.method.decode("latin-1"), path.decode("latin-1"))
            if result.status is None:
                unexpected = JugglerError("an unexpected error in the juggler; its log has the details")
                self.write(error_response(unexpected, path=path, head_only=head_only, close=True))
            else:
                self._abort()
            return False

    def _info(self, head: RequestHead) -> RequestInfo:
        return RequestInfo(
            method=head.method,
            target=head.target,
            client=self.peer.decode("latin-1"),
            headers=tuple((name, value) for _, name, value in head.fields),
        )

    async def _forward(self, exchange: Exchange) -> bool:
        self._exchange = exchange
        try:
            await exchange.run()
        finally:
            self._exchange = None
            self._streaming = False
            self._paused_by_upstream = False
            self._update_reading()
        if not exchange.keep_client:
            return False
        return await self._drop_body()

    async def _answer(self, answer: bytes, head: RequestHead) -> bool:
        """Send a whole answer of ours; returns whether the connection can go on."""
        if head.expects_continue:
            self.write(answer)
            return False  # whether its body comes now is the client's choice: the two cannot be told apart
        self.write(answer)
        return await self._drop_body() and head.keep_alive

    async def _drop_body(self) -> bool:
        """Read away what is left of a body nobody wants, within bounds; False if it is too much or too slow."""
        if self.body_done:
            return True
        if self.closing:
            return False
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.discard_timeout_s):
                while dropped <= self.limits.discard_body_bytes:
                    data, self._buffer = bytes(self._buffer), bytearray()
                    self._resume_if_room()
                    if data:
                        dropped += len(data)
                        self._take_body(data)
                        if self.body_done:
                            return True
                        if self.closing:
                            return False
                    await self._more()
        return False

    async def _more(self) -> None:
        """Until bytes arrive; a lost connection cancels the task."""
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _resume_if_room(self) -> None:
        if self._paused_by_buffer and len(self._buffer) <= self._buffer_limit:
            self._paused_by_buffer = False
            self._update_reading()

    # -- ending ------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """The sweep found the deadline passed."""
        self.deadline = NEVER
        if self.transport is not None and self.transport.is_closing():
            self.transport.abort()  # it would not take our last bytes
        elif self.idle and self._buffer:
            error = BadRequest("The request head did not arrive in time.", status=408, code="head_timeout")
            self.write(error_response(error, close=True))
            self.finish()
        else:
            self.finish()

    def finish(self) -> None:
        """End the connection as soon as the present request is answered."""
        self.closing = True
        if self.idle and self.task is not None:
            self._close()

    def abort(self) -> None:
        """End the connection now, whatever it does."""
        self._gone()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _close(self) -> None:
        """Close after the last bytes are sent; the sweep aborts a client that does not take them."""
        if self.transport is not None and not self.transport.is_closing():
            self.deadline = self._loop.time() + self.limits.flush_timeout_s
            self.transport.close()
