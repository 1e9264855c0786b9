"""The body of one request on its way through: counted, delimited, and kept only as far as a bound allows. No I/O."""

from juggler.proxy.framing import Chunked, Length, NoBody, Tracker
from juggler.proxy.head import RequestHead

_NO_BODY = NoBody()


class RequestBody:
    """What has arrived of one request's body, as received (chunk framing included).

    Args:
        head: Says how the body is framed.
    """

    __slots__ = ("_tracker", "complete", "kept", "size")

    def __init__(self, head: RequestHead) -> None:
        self._tracker: Tracker
        if head.chunked:
            self._tracker = Chunked()
        elif head.content_length:
            self._tracker = Length(head.content_length)
        else:
            self._tracker = _NO_BODY
        self.complete = self._tracker is _NO_BODY
        self.size = 0
        """Bytes so far."""
        self.kept: list[bytes] | None = []
        """All bytes so far, for the first or a second connection; None once they were let go."""

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
        return end

    def keep(self, data: bytes) -> None:
        """Remember a piece, unless the pieces before it were already let go."""
        if self.kept is not None:
            self.kept.append(data)

    def let_go(self) -> None:
        """No other connection will need what has arrived so far."""
        self.kept = None
