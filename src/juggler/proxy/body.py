"""The body of one request on its way through: counted, delimited, and kept only as far as a bound allows. No I/O."""

from collections.abc import Callable
from dataclasses import dataclass

from juggler.errors import BadRequest
from juggler.proxy.framing import Chunked, FramingError, Length, NoBody, Tracker
from juggler.proxy.head import RequestHead, find_request_end, parse_request
from juggler.proxy.limits import Limits
from juggler.proxy.repeats import repeated

_NO_BODY = NoBody()


_METHOD_START = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\r")


class RequestBody:
    """What has arrived of one request's body, as received (chunk framing included).

    Args:
        head: Says how the body is framed.
        whole: All of it, if that is here already; only of one with a length.
    """

    __slots__ = ("_seen", "_seen_at", "_tracker", "complete", "copy", "kept", "on_complete", "size")

    def __init__(self, head: RequestHead, whole: bytes = b"") -> None:
        self._tracker: Tracker
        if whole:
            self._tracker = _NO_BODY
        elif head.chunked:
            self._tracker = Chunked()
        elif head.content_length:
            self._tracker = Length(head.content_length)
        else:
            self._tracker = _NO_BODY
        self.complete = self._tracker is _NO_BODY
        self.size = len(whole)
        """Bytes so far."""
        self.kept: list[bytes] | None = [whole] if whole else []
        """All bytes so far, for the first or a second connection; None once they were let go."""
        self.copy: list[bytes] | None = None
        """All bytes so far, where somebody wants them to the end (``keep_copy``)."""
        self.on_complete: Callable[[], None] | None = None
        """Called once it has arrived whole."""
        self._seen = -1  # size at the last look of stalled, and since when it has been that
        self._seen_at = 0.0

    def feed(self, data: bytes) -> int:
        """Count ``data``, which arrives while the body is not complete.

        Returns:
            How many bytes of ``data`` belong to the body; the rest follows it on the connection.

        Raises:
            FramingError: The chunks are malformed; nothing of ``data`` should be relayed.
        """
        end = self._tracker.feed(data)
        if end < 0:
            end = len(data)
        else:
            self.complete = True
        self.size += end
        if self.copy is not None:
            self.copy.append(data[:end])
        if self.complete and self.on_complete is not None:
            self.on_complete()
        return end

    def keep(self, data: bytes) -> None:
        """Remember a piece, unless the pieces before it were already let go."""
        if self.kept is not None:
            self.kept.append(data)

    def keep_copy(self) -> None:
        """From now on the bytes stay, whoever lets them go; for short bodies, before any was let go."""
        if self.copy is None:
            self.copy = list(self.kept or ())

    @property
    def chunked(self) -> bool:
        """Each piece is looked through for chunks."""
        return type(self._tracker) is Chunked

    @property
    def whole(self) -> bytes | None:
        """All of it; None if it is not here yet, or was let go."""
        pieces = self.copy if self.copy is not None else self.kept
        return b"".join(pieces) if self.complete and pieces is not None else None

    def stalled(self, now: float, limit_s: float, *, wanted: bool) -> bool:
        """Whether nothing of it has come for ``limit_s`` seconds although somebody waits for it.

        Args:
            now: Seconds; this is to be asked every now and then, until the body is complete.
            limit_s: Counted from the look at which the last piece was noticed.
            wanted: Whether somebody waits for it; if not, the time begins anew.
        """
        if not wanted or self.size != self._seen:
            self._seen, self._seen_at = self.size, now
        return now - self._seen_at >= limit_s

    def let_go(self) -> None:
        """No other connection will need what has arrived so far."""
        self.kept = None


@dataclass(slots=True)
class Request:
    """A request as it came in: its head, and its body as far as it has arrived."""

    head: RequestHead
    body: RequestBody


def read_request(buffer: bytes, limits: Limits, last: RequestHead | None = None) -> tuple[Request, bytes] | None:
    """The request at the start of ``buffer``; None while its head is not there whole.

    Args:
        buffer: Not empty.
        limits: Of the listener.
        last: The head before on the same connection, if it is ``worth_keeping``.

    Returns:
        With it, what follows its head, but for a body that is there whole.

    Raises:
        BadRequest: It can never be one.
    """
    head = repeated(last, buffer) if last is not None else None
    if head is None:
        end = find_request_end(buffer, limits.head_bytes, limits.request_line_bytes)
        if end < 0:
            if buffer[0] not in _METHOD_START:
                raise BadRequest("This is not HTTP.", hint="The address wants http://, not https://.")
            return None
        head = parse_request(buffer[:end])
    rest = buffer[len(head.raw) :]
    if rest and len(rest) == head.content_length:
        return Request(head, RequestBody(head, rest)), b""
    return Request(head, RequestBody(head)), rest


def bad_body(error: FramingError) -> BadRequest:
    """What the client is told of its body."""
    return BadRequest(f"The request body is malformed: {error}.")
