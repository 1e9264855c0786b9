"""One request forwarded to one upstream: heads rewritten, bodies relayed as received, with backpressure both ways.

``run`` is awaited by the client connection's coroutine; everything between the two heads and the last byte happens
in protocol callbacks. Whatever goes wrong before the answer's head was sent becomes a ``JugglerError`` out of
``run``; afterwards the client's connection is cut, because a clean end would make half an answer look whole.
"""

import asyncio

from juggler.errors import JugglerError, UpstreamClosed, UpstreamError, UpstreamTimeout
from juggler.proxy.answers import KnownAnswer
from juggler.proxy.body import Request
from juggler.proxy.connection import ClientSide
from juggler.proxy.contract import Lease, Route
from juggler.proxy.framing import ChunkDecoder, Chunked, FramingError, Length, NoBody, Tracker, UntilClose
from juggler.proxy.head import BadResponse, ResponseHead, find_response_end, parse_response
from juggler.proxy.headers import ReturnHop, response_head
from juggler.proxy.limits import Limits
from juggler.proxy.replies import Recorder
from juggler.proxy.sending import NEVER, RequestHalf
from juggler.proxy.turns import LARGE_PIECE_BYTES
from juggler.proxy.waiting_room import StreamedAnswer, Wait, tell_first_byte
from juggler.units import SECONDS

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""Doing these twice is doing them once (RFC 9110 9.2.2)."""
_CLOSED_WHILE_IDLE_S = 0.5 * SECONDS
"""Within so much of a request's being sent its connection breaks if the backend had closed that before: a round trip.
Later it may have worked on the request, whatever its system says."""
_NO_BODY = NoBody()
_UNTIL_CLOSE = UntilClose()


class Exchange(RequestHalf):
    """See the module. One per forwarded request; a retry stays in the same exchange."""

    __slots__ = (
        "_answer",
        "_answered",
        "_awaited",
        "_buffer",
        "_client_ended",
        "_decoder",
        "_error",
        "_finished",
        "_held",
        "_inset",
        "_recorder",
        "_retry",
        "_silence",
        "_straight",
        "_tracker",
        "_unframed",
        "_upstream_ended",
        "complete",
        "head_sent",
        "tunnel",
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
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(client, request, route, lease, limits, wait, loop, now)
        self._recorder = recorder  # keeps a copy of the answer, as long as that may be kept
        self._inset: StreamedAnswer | None = None  # the answer goes into the stream that was begun while it waited
        self._awaited = False  # by run; its future, while it sleeps
        self._finished: asyncio.Future[None] | None = None
        self._error: JugglerError | None = None
        self._retry = False
        self._answered = False  # any byte of an answer has arrived
        self._held = b""  # a large piece of the body, not looked at yet
        self._answer: ResponseHead | None = None
        self._tracker: Tracker | None = None
        self._decoder: ChunkDecoder | None = None  # the payload of a chunked answer is wanted
        self._unframed = False  # and the client gets it without its chunks
        self._straight = False  # the answer's body is neither changed nor looked into
        self._buffer = b""  # an unfinished answer head
        self._client_ended = False  # halves of a tunnel
        self._upstream_ended = False
        self.complete = False
        """The answer was passed on whole, or both sides of a tunnel have ended."""
        self.head_sent = False
        """The client has got an answer head: from here on no answer of our own fits in."""
        self.tunnel = False

    def begin(self) -> bool:
        """Send the request at once, on an idle connection; False if none may take it, then ``run`` has to make one.

        The end is told by the client's ``exchange_over``: all that is left to do then is left to ``run``.
        """
        connection = None if self._is_long else self._pool.take_idle()
        if connection is None:
            return False
        self.unreached = False
        try:
            self._start(connection)
        except Exception:  # before anything was sent; ``run`` will meet the same, and tell
            self._upstream = None
            connection.abort()
            self.unreached = True
            return False
        return True

    async def run(self) -> None:
        """Forward, and return when the answer was passed on whole or the client's connection was cut.

        Raises:
            JugglerError: No answer head could be sent.
        """
        self._awaited = True
        try:
            if self.unreached:
                self._start(await self._connected(fresh=self._is_long))
            while not self.done:
                if self._retry:
                    self._retry = False
                    self._start(await self._connected(fresh=True))
                else:
                    self._finished = self._loop.create_future()
                    await self._finished
            if self._error is not None:
                raise self._error
        except asyncio.CancelledError:
            self._note_cut()
            raise
        except JugglerError as error:
            self.result.error = error.code
            raise
        except Exception:
            self.result.error = JugglerError.code
            if self.head_sent:
                self._client.abort()
            raise
        finally:
            self.release()

    def release(self) -> None:
        """It is over: give the lease back, and cut the upstream connection if there still is one. Idempotent."""
        self.done = True
        if self._upstream is not None:
            self._cut_upstream()
        if self._recorder is not None:
            self._recorder.drop()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release(self.result)

    def stop(self) -> None:
        """The client's connection is cut. Who awaits ``run`` is to be cancelled; if nobody does, this is the end."""
        self._cut_upstream()
        if not self._awaited:
            self._note_cut()
            self.release()

    def _note_cut(self) -> None:
        if not self.complete:
            self.result.error = self.result.error or self._client.cut_code
            self.result.client_gone = self.result.error is None

    def on_client_eof(self) -> None:
        """The client's half of a tunnel has ended."""
        self._client_ended = True
        if self._upstream_ended or not self._has_halves:
            self._end_tunnel()
        elif self._upstream is not None:
            self._upstream.write_eof()

    def check(self, now: float) -> None:
        """Called by the sweep: a backend that ignores ``Expect`` would wait for a body that waits for it."""
        if now >= self._expect_deadline and not self.head_sent:
            self._expect_deadline = NEVER
            self._client.write(_CONTINUE)
        if self._inset is not None and now >= self._inset.deadline and not self.done:
            self._complete(reusable=False)
        if self._limits.response_timeout_s is not None:
            self._check_silence(now, self._limits.response_timeout_s)

    def _check_silence(self, now: float, limit_s: float) -> None:
        connection = self._upstream
        if connection is None or self.tunnel:
            return
        progress = (self.result.bytes_up, self.result.bytes_down, self.head_sent)
        seen, since = getattr(self, "_silence", (None, now))  # made here, as hardly any exchange needs it
        if progress != seen or connection.read_paused:
            self._silence = (progress, now)
        elif now - since >= limit_s:
            self._fail(f"sent nothing for {limit_s:g} s", UpstreamTimeout)

    def on_upstream_data(self, data: bytes) -> None:
        tracker = self._tracker
        if tracker is not None:
            if self._held or (len(data) > LARGE_PIECE_BYTES and isinstance(tracker, Chunked)):
                self._hold(data)
                return
            try:
                end = tracker.feed(data)
            except FramingError as error:
                self._fail(f"sent a malformed body ({error})")
                return
            if end < 0 and self._straight:  # nearly all pieces of a stream: for them this is the whole way
                self.result.bytes_down += len(data)
                self._client.write(data)
            else:
                self._relay(data, end)
        elif self.tunnel:
            self.result.bytes_down += len(data)
            self._client.tunnel_activity()
            self._client.write(data)
        else:
            self._on_head_bytes(data)

    def _hold(self, data: bytes) -> None:
        """Look at a large piece when it is its turn, and read nothing more until then.

        In one turn of the loop uvloop takes up to 8 MiB from each socket. Where that is full of small chunks a few
        such streams would keep everybody else waiting for seconds.
        """
        assert self._upstream is not None
        if self._held:  # it was read before the pause took effect
            self._held += data
            return
        self._upstream.pause_reading()
        self._held = data
        self._pool.turns.add(self._loop, self._take_held)

    def _take_held(self) -> None:
        data, self._held = self._held, b""
        connection, tracker = self._upstream, self._tracker
        if not data or connection is None or connection.exchange is not self or tracker is None:
            return  # it was taken at the end of the connection, or the client has left
        try:
            end = tracker.feed(data)
            self._relay(data, end)
        except FramingError as error:
            self._fail(f"sent a malformed body ({error})")
            return
        except Exception:
            self._client.abort()  # nobody else would end it
            raise
        if connection.exchange is self and not self._client.write_paused:
            connection.resume_reading()

    def on_client_drained(self) -> None:
        if not self._held:
            super().on_client_drained()

    def on_upstream_eof(self) -> bool:
        """Returns whether our half of the connection stays open."""
        self._take_held()
        if self.done:
            return False
        if self.tunnel:
            self._upstream_ended = True
            if self._client_ended or not self._has_halves:
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
        self._take_held()
        if self.done:
            return
        reason = "reset the connection" if exc is not None else "was stopped"
        self._broken("was stopped" if self._pool.closed else reason, exc)

    def _on_head_bytes(self, data: bytes) -> None:
        if not self._answered:
            self._answered = True
            self.result.first_byte_s = self._loop.time() - self._started_at
            self._request.body.let_go()
            if self._lease is not None:
                tell_first_byte(self._lease)
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        limit = self._limits.response_head_bytes
        while True:
            end = find_response_end(data)
            if end > limit or (end < 0 and len(data) > limit):
                self._fail("sent an answer head that is too long")
                return
            if end < 0:
                self._buffer = data
                return
            raw, data = data[:end], data[end:]
            known = self._pool.answers.find(raw) if self._is_ordinary else None
            if known is not None:
                self._on_known_head(known, data)
                return
            try:
                answer = parse_response(raw)
            except BadResponse as error:
                self._fail(f"sent something that is not HTTP ({error})")
                return
            self._on_head(answer, raw, data)
            if self.done or self._tracker is not None or self.tunnel:
                return

    @property
    def _is_ordinary(self) -> bool:
        """The client gets what ``response_head`` makes of the answer's head alone, and its connection goes on."""
        head, wait = self._request.head, self._wait
        return (
            head.keep_alive
            and head.minor == 1
            and self._recorder is None
            and (wait is None or (wait.stream is None and not wait.wishes.timing))
            and self._request.body.complete
            and not self._client.draining
        )

    def _on_known_head(self, known: KnownAnswer, rest: bytes) -> None:
        """An ordinary answer with a head that came before."""
        answer = self._answer = known.answer
        self.result.status = answer.status
        self._expect_deadline = NEVER
        self._request.head.drop_fields()
        size = len(rest)
        if size == answer.content_length and size and self._may_have_body(answer.status):
            self.head_sent = True
            self.result.bytes_down += size
            self._client.write(known.sent + rest)
            self._complete(reusable=True)
        else:
            self._relay_first(self._tracker_of(answer, in_events=False), rest, known.sent)

    def _on_head(self, answer: ResponseHead, raw: bytes, rest: bytes) -> None:
        client, request = self._client, self._request.head
        if answer.status >= 200:
            self._answer = answer
            self._on_final_head(answer, raw, rest)
        elif answer.status != 101:
            if answer.status == 100:
                # Ours may have gone out already, and clients that did not ask stumble over it.
                waited, self._expect_deadline = self._expect_deadline, NEVER
                if waited == NEVER:
                    return
            if request.minor and self._stream is None:
                client.write(response_head(answer, self._return_hop()))
        elif request.upgrade is None:
            self._fail("switched protocols without being asked")
        else:
            self.result.status = 101
            self.head_sent = self.tunnel = client.closes = True
            client.write(response_head(answer, self._return_hop(), self._timing_lines()))
            self._start_tunnel(rest)

    def _start_tunnel(self, rest: bytes) -> None:
        """Pass on the first bytes of both sides, if the lease's owner does not stop the instance on the spot."""
        client = self._client
        if self._lease is not None:
            self._lease.switched()
        early = client.start_tunnel()
        if not self.done:
            if rest:
                self.result.bytes_down += len(rest)
                client.write(rest)
            self.send_raw(early)

    def _on_final_head(self, answer: ResponseHead, raw: bytes, rest: bytes) -> None:
        client, request = self._client, self._request
        if self._recorder is not None and not self._recorder.begin(answer):
            self._recorder = None
        stream = self._stream
        if stream is not None:
            assert self._wait is not None
            self._inset = self._wait.take_over(stream, answer, self._loop.time())
        tracker = self._tracker_of(answer, in_events=stream is not None)
        self.result.status = answer.status
        self._expect_deadline = NEVER
        if stream is not None:
            self.head_sent = True
            client.closes = stream.closes or client.draining
            self._relay_first(tracker, rest)
            return
        client.closes = (
            not request.head.keep_alive
            or client.draining
            or self._unframed
            or tracker is _UNTIL_CLOSE
            or not request.body.complete  # nobody can tell where the next request would begin
        )
        connection = b"close" if client.closes else b"" if request.head.minor else b"keep-alive"
        sent = response_head(answer, self._return_hop(connection), self._timing_lines())
        if not client.closes and self._is_ordinary and tracker is not _UNTIL_CLOSE:
            self._pool.answers.note(raw, answer, sent)
        if self._recorder is None:  # nobody will ask for the fields again, and a stream may stay open for long
            request.head.drop_fields()
            answer.fields = []
        self._relay_first(tracker, rest, sent)

    def _tracker_of(self, answer: ResponseHead, *, in_events: bool) -> Tracker:
        """What finds the end of the answer's body."""
        if not self._may_have_body(answer.status):
            return _NO_BODY
        if answer.chunked:
            self._unframed = in_events or not self._request.head.minor
            if not self._unframed and self._recorder is None:
                return Chunked()
            self._decoder = ChunkDecoder()
            return self._decoder
        if answer.content_length is None:
            return _UNTIL_CLOSE
        return Length(answer.content_length) if answer.content_length else _NO_BODY

    def _may_have_body(self, status: int) -> bool:
        return self._request.head.method != b"HEAD" and status not in (204, 304)

    def _timing_lines(self) -> bytes:
        wait = self._wait
        return wait.timing_lines(self._loop.time()) if wait is not None and wait.wishes.timing else b""

    def _return_hop(self, connection: bytes = b"") -> ReturnHop:
        route = self.route
        return ReturnHop(
            self._pool.authority, route.prefix, connection, self._unframed, route.bare, self._request.head.notable
        )

    def _relay_first(self, tracker: Tracker, data: bytes, head: bytes = b"") -> None:
        """Pass on the first piece of the answer's body, which may be empty, behind the answer's head."""
        self._tracker = tracker
        try:
            end = tracker.feed(data)
        except FramingError as error:
            self._fail(f"sent a malformed body ({error})")
        else:
            self._straight = self._decoder is None and self._recorder is None and self._inset is None
            self._relay(data, end, head)
            if end < 0 and self._straight and type(tracker) is Chunked:
                # A stream, which may stay open for long, beside many others.
                self._request.head.forget()
                self._client.forget_head()

    def _relay(self, data: bytes, end: int, head: bytes = b"") -> None:
        """Pass on a piece of the answer's body, which ends at the offset ``end`` or goes on (-1)."""
        excess = 0 <= end < len(data)
        if excess:
            data = data[:end]
        if not self._straight:
            if self._decoder is not None or self._recorder is not None:
                data = self._take_payload(data)
            if self._inset is not None:
                data = self._inset.take(data)
        self.result.bytes_down += len(data)
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
        self.complete = self.done = True
        self.upstream_full = False
        self._wake()

    def _broken(self, what: str, exc: Exception | None = None) -> None:
        """The upstream connection ended before its answer did."""
        connection = self._upstream
        if connection is None:
            return
        head, body = self._request.head, self._request.body
        may_retry = connection.reused and not self._answered and body.kept is not None and not self._pool.closed
        at_once = self._loop.time() - self._started_at <= _CLOSED_WHILE_IDLE_S
        if may_retry and at_once and (head.method in _IDEMPOTENT or connection.refused(exc)):
            # It was closed while idle, which nobody can rule out: the backend has not seen this request. One that has
            # ended is another matter: this request may be what ended it, and must not end the next one as well.
            self._upstream = None
            connection.abort()
            self.upstream_full = False
            self._retry = True
            self._wake()
            return
        self._fail(f"{what} {'in the middle of' if self.head_sent else 'before'} its answer")

    def _fail(self, what: str, kind: type[UpstreamError] = UpstreamClosed) -> None:
        if self._inset is not None and not self._inset.passes:
            self._complete(reusable=False)  # what has come of a refusal tells enough
            return
        self._error = kind(
            f"The backend of {self.route.endpoint_name} {what}.", endpoint=self.route.endpoint_name, phase="forward"
        )
        if self.head_sent:
            self.result.error = self._error.code
            self._error = None
            self._finish()
            if self.ends_by_closing:
                self._client.reset()
            else:
                self._client.abort()
        else:
            self.result.status = None
            self._finish()

    @property
    def ends_by_closing(self) -> bool:
        """To this client a plain end of file is the end of a whole answer."""
        if self._inset is not None:
            return not self._request.head.minor
        return self._tracker is _UNTIL_CLOSE or self._unframed

    @property
    def _has_halves(self) -> bool:
        """Whether a tunnel can end in one direction alone: TLS connections end as a whole."""
        return self._pool.tls is None and not self._client.secure

    def _end_tunnel(self) -> None:
        connection, self._upstream = self._upstream, None
        if connection is not None:
            connection.close()
        self.complete = True
        self._finish()

    def _finish(self) -> None:
        self._cut_upstream()
        self.upstream_full = False
        self._wake()

    def _wake(self) -> None:
        if not self._awaited:
            self._client.exchange_over(self)
        elif self._finished is not None and not self._finished.done():
            self._finished.set_result(None)
