"""One request on its way to a backend: how long it waits, what its client is told meanwhile, and what follows.

The sweep looks in on every request that waits. Who asked for events gets, after ``Limits.comment_after_s``, the head
of an answer and a comment, and further comments until the backend answers; others may get ``102 Processing``. From
the head on the connection speaks our framing: whatever comes, the backend's events, its refusal or an error of our
own, is put into that one answer, which ends cleanly only when it is whole.

Not for pages of other sites: whether they may read the answer is the backend's to say (CORS), in its own head.
"""

from collections.abc import Sequence
from dataclasses import replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from juggler.errors import JugglerError
from juggler.proxy.contract import Lease, LeaseTiming, LocalResponse, RequestInfo, Route
from juggler.proxy.head import Field, ResponseHead
from juggler.proxy.limits import Limits
from juggler.proxy.origin import is_from_own_page
from juggler.proxy.sse import (
    Dialect,
    asks_for_events,
    comment,
    error_event,
    failure_event,
    is_event_stream,
    wanted_dialect,
)
from juggler.proxy.wishes import Wishes

if TYPE_CHECKING:
    from juggler.proxy.body import Request

_PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
_IDENTITY: Field = (b"Accept-Encoding: identity\r\n", b"accept-encoding", b"identity")


class WaitingClient(Protocol):
    """What a waiting request needs of its client's connection."""

    write_paused: bool

    @property
    def draining(self) -> bool: ...
    @property
    def secure(self) -> bool: ...
    def write(self, data: bytes) -> None: ...


class EventStream:
    """The one answer of a client that was told to wait: events in our own framing.

    Args:
        dialect: In whose shape errors are told.
        endpoint: Name of the endpoint.
        chunked: False for HTTP/1.0, where the answer ends with the connection.
        closes: The connection ends after it.
    """

    __slots__ = ("chunked", "closes", "dialect", "endpoint", "taken_over")

    def __init__(self, dialect: Dialect, endpoint: str, *, chunked: bool, closes: bool) -> None:
        self.dialect = dialect
        self.endpoint = endpoint
        self.chunked = chunked
        self.closes = closes
        self.taken_over = False
        """The backend has answered: no comment may come between its bytes."""

    def head(self, added: Sequence[tuple[str, str]] = ()) -> bytes:
        """The head of the answer."""
        lines = [
            "HTTP/1.1 200 OK",
            f"Date: {formatdate(usegmt=True)}",
            "Content-Type: text/event-stream",
            "Cache-Control: no-store",
            "X-Accel-Buffering: no",  # nginx before us would collect comments until its buffer is full
            *(f"{name}: {value}" for name, value in added),
        ]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        if self.closes:
            lines.append("Connection: close")
        return "\r\n".join((*lines, "", "")).encode("latin-1", "replace")

    def frame(self, data: bytes) -> bytes:
        """A piece of events as it is sent."""
        if not self.chunked or not data:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)

    def end(self) -> bytes:
        """What says that the answer is whole."""
        return b"0\r\n\r\n" if self.chunked else b""


class StreamedAnswer:
    """A backend's answer inside an event stream: events are passed on, anything else becomes one error event.

    Args:
        stream: Where it goes.
        answer: Its head.
        limits: How much of a refusal is read, and for how long.
        now: Seconds on the loop's clock.
    """

    __slots__ = ("_answer", "_collected", "_room", "_stream", "deadline", "passes")

    def __init__(self, stream: EventStream, answer: ResponseHead, limits: Limits, now: float) -> None:
        stream.taken_over = True
        self._stream = stream
        self._answer = answer
        self._collected: list[bytes] = []
        self._room = limits.failure_bytes
        self.passes = is_event_stream(answer)
        """Its events are passed on; otherwise it is read, within bounds, and told at its end."""
        self.deadline = float("inf") if self.passes else now + limits.failure_timeout_s

    @property
    def full(self) -> bool:
        """No more of it is wanted."""
        return self._room <= 0

    def take(self, payload: bytes) -> bytes:
        """A piece of its body without chunks; returns what the client gets."""
        if self.passes:
            return self._stream.frame(payload)
        if not self.full:
            self._collected.append(payload[: self._room])
            self._room -= len(payload)
        return b""

    def finish(self) -> bytes:
        """It has ended; returns the rest of what the client gets."""
        if self.passes:
            return self._stream.end()
        stream = self._stream
        event = failure_event(self._answer, b"".join(self._collected), stream.dialect, stream.endpoint)
        return stream.frame(event) + stream.end()


class Wait:
    """See the module. One per forwarded request; it lasts until the answer is over.

    Args:
        client: Its connection.
        request: What waits.
        route: Where it goes.
        wishes: What it asked for.
        limits: Of its listener.
        now: Seconds on the loop's clock.
    """

    __slots__ = (
        "_client",
        "_dialect",
        "_lease",
        "_leased_at",
        "_limits",
        "_looked",
        "_next_sign_at",
        "_request",
        "_route",
        "_since",
        "stream",
        "wishes",
    )

    def __init__(
        self, client: WaitingClient, request: "Request", route: Route, wishes: Wishes, limits: Limits, now: float
    ) -> None:
        self._client = client
        self._request = request
        self._route = route
        self._limits = limits
        self._since = now
        self._leased_at: float | None = None
        self._lease: Lease | None = None
        self._next_sign_at: float | None = None
        self._looked = False  # whether it asks for events is known: _dialect says so
        self._dialect: Dialect | None = None
        self.wishes = wishes
        self.stream: EventStream | None = None
        """The answer that was begun while it waited."""

    def leased(self, lease: Lease, now: float) -> None:
        """The wait is over."""
        self._lease = lease
        self._leased_at = now

    def lost_lease(self) -> None:
        """The wait goes on."""
        self._lease = None
        self._leased_at = None

    def rest_of(self, info: RequestInfo, now: float) -> RequestInfo:
        """What the gateway is told when the wait goes on: the client's bound is for all of it."""
        bound_s = self.wishes.max_wait_s
        if bound_s is None:
            return info
        left_s = max(0.0, bound_s - (now - self._since))
        return info.wishing(replace(self.wishes, max_wait_s=left_s))

    def check(self, now: float) -> None:
        """Called by the sweep: give the client a sign of life if one is due."""
        stream, limits = self.stream, self._limits
        if stream is not None:
            if not stream.taken_over and now >= (self._next_sign_at or 0.0):
                self._comment(stream, now)
        elif self._leased_at is None:
            after_s = limits.comment_after_s
            if after_s is not None and now - self._since >= after_s and self._wants_events():
                self._open(now)
            elif limits.send_processing:
                self._send_processing(now)

    def failed(self, error: JugglerError) -> bytes:
        """The end of the stream that was begun: an error of our own."""
        stream = self.stream
        assert stream is not None
        stream.taken_over = True
        return stream.frame(error_event(error, stream.dialect)) + stream.end()

    def answered_here(self, response: LocalResponse) -> bytes:
        """The end of the stream that was begun: the gateway has answered after all."""
        stream = self.stream
        assert stream is not None
        kind = response.content_type.encode("latin-1", "replace")
        head = ResponseHead(
            response.status, b"", 1, [(b"", b"content-type", kind)], frozenset(), None, False, True, None, None
        )
        answer = StreamedAnswer(stream, head, self._limits, 0.0)
        return answer.take(response.body) + answer.finish()

    def timing(self, now: float) -> list[tuple[str, str]]:
        """The fields that tell of the wait so far, if they were asked for."""
        if not self.wishes.timing:
            return []
        waited_s = (now if self._leased_at is None else self._leased_at) - self._since
        fields = [("X-Juggler-Wait", f"{waited_s:.3f}")]
        timing = lease_timing(self._lease)
        if timing is not None:
            fields += [("X-Juggler-Queue", f"{timing.queue_s:.3f}"), ("X-Juggler-Load", f"{timing.load_s:.3f}")]
        return [*fields, self._named()]

    def timing_lines(self, now: float) -> bytes:
        """``timing`` as lines of a head."""
        return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in self.timing(now))

    def backend_fields(self, fields: list[Field]) -> list[Field]:
        """The request's fields for the backend: events that we put into our stream must not be compressed."""
        if self.stream is None:
            return fields
        return [*(field for field in fields if field[1] != b"accept-encoding"), _IDENTITY]

    def take_over(self, stream: EventStream, answer: ResponseHead, now: float) -> StreamedAnswer:
        """The backend's head has come: what puts its body into the stream."""
        timing = self.timing(now)
        if timing:
            told = "; ".join(f"{name}: {value}" for name, value in timing)
            self._client.write(stream.frame(comment(told)))
        return StreamedAnswer(stream, answer, self._limits, now)

    def _named(self) -> tuple[str, str]:
        name = self._route.endpoint_name
        plain = name.isascii() and name.isprintable() and "%" not in name
        return "X-Juggler-Endpoint", name if plain else quote(name, safe="/")

    def _wants_events(self) -> bool:
        """Whether it will be answered with events; asked again until its body is there whole."""
        request, limits = self._request, self._limits
        body = request.body
        if not self._looked and body.complete and body.kept is not None:
            self._looked = True
            if body.size <= limits.stream_look_bytes and is_from_own_page(request.head, secure=self._client.secure):
                dialect = wanted_dialect(request.head, self._route.target)
                if dialect is not None and asks_for_events(request.head, self._route.target, body.kept):
                    self._dialect = dialect
        return self._dialect is not None

    def _open(self, now: float) -> None:
        """Begin the answer."""
        head, client = self._request.head, self._client
        assert self._dialect is not None
        chunked = head.minor == 1
        closes = not head.keep_alive or not chunked or client.draining
        stream = EventStream(self._dialect, self._route.endpoint_name, chunked=chunked, closes=closes)
        self.stream = stream
        client.write(stream.head([self._named()] if self.wishes.timing else []))
        self._comment(stream, now)

    def _comment(self, stream: EventStream, now: float) -> None:
        self._next_sign_at = now + self._limits.comment_every_s
        if not self._client.write_paused:  # who does not read needs no sign of life, and they must not pile up
            self._client.write(stream.frame(comment(f"waiting for {self._route.endpoint_name}")))

    def _send_processing(self, now: float) -> None:
        """A 1xx, to those who can be expected to wait for the final answer behind it."""
        head = self._request.head
        if head.minor == 0 or head.upgrade is not None or head.expects_continue:
            return
        if self._next_sign_at is None:
            self._next_sign_at = self._since + self._limits.comment_every_s
        if now >= self._next_sign_at and not self._client.write_paused:
            self._next_sign_at = now + self._limits.comment_every_s
            self._client.write(_PROCESSING)


def tell_first_byte(lease: Lease) -> None:
    """The first byte of the backend's answer is here, if the lease wants to know (``contract.TimedLease``)."""
    tell = getattr(lease, "first_byte", None)
    if tell is not None:
        tell()


def lease_timing(lease: Lease | None) -> LeaseTiming | None:
    """What a lease tells of its wait, if it is one that does (``contract.TimedLease``)."""
    timing = getattr(lease, "timing", None)
    return timing if isinstance(timing, LeaseTiming) else None
