"""The body of one request on its way through: counted, delimited, and kept only as far as a bound allows. No I/O."""

from juggler.proxy.framing import Chunked, Length, NoBody, Tracker
from juggler.proxy.head import RequestHead

_NO_BODY = NoBody()


class RequestBody:
    """What has arrived of one request's body, as received (chunk framing included).

    Args:
        head: Says how the body is framed.
    """

    __slots__ = ("_seen", "_seen_at", "_tracker", "complete", "kept", "size")

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
        return end

    def keep(self, data: bytes) -> None:
        """Remember a piece, unless the pieces before it were already let go."""
        if self.kept is not None:
            self.kept.append(data)

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
