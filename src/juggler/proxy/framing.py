"""Where a body ends: trackers that look at bytes which are relayed unchanged. Pure.

A tracker's ``feed`` says at which offset of the piece the body ends, or -1 if it goes on. Any way of cutting a
stream into pieces gives the same verdict.
"""

import re
from typing import Protocol

from juggler.units import KIB

_MAX_LINE_BYTES = 4 * KIB
"""A chunk-size line or trailer line; extensions are never used by model clients."""
_MAX_TRAILER_BYTES = 16 * KIB

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*+;%b*+)?\r\n" % _TEXT)
_SIZE_LINE_START = re.compile(rb"(?:[0-9A-Fa-f]{1,15}(?:[ \t]++|(?:[ \t]*+;%b*+)?\r?))?" % _TEXT)
_TRAILER_LINE = re.compile(rb"%b++:%b*+\r\n" % (_TOKEN, _TEXT))
_TRAILER_LINE_START = re.compile(rb"\r|(?:%b++(?::%b*+\r?)?)?" % (_TOKEN, _TEXT))


class FramingError(ValueError):
    """The bytes are not a body of the announced kind."""


class Tracker(Protocol):
    """One per body."""

    def feed(self, data: bytes) -> int:
        """Offset just past the end of the body within ``data``, or -1 if it goes on.

        Raises:
            FramingError: The body is malformed; nothing of ``data`` should be relayed.
        """
        ...


class NoBody:
    """An answer that has none: to HEAD, 204, 304, or Content-Length 0."""

    __slots__ = ()

    def feed(self, data: bytes) -> int:
        return 0


class UntilClose:
    """An answer that ends with its connection."""

    __slots__ = ()

    def feed(self, data: bytes) -> int:
        return -1


class Length:
    """A body of known length."""

    __slots__ = ("remaining",)

    def __init__(self, length: int) -> None:
        self.remaining = length

    def feed(self, data: bytes) -> int:
        size, remaining = len(data), self.remaining
        if size < remaining:
            self.remaining = remaining - size
            return -1
        self.remaining = 0
        return remaining


class Chunked:
    """A chunked body with extensions and trailers (RFC 9112 7.1), strictly."""

    __slots__ = ("_after_data", "_carry", "_in_trailer", "_payload", "_remaining", "_trailer_bytes")

    def __init__(self) -> None:
        self._carry = b""  # start of a line whose end has not come yet; already relayed
        self._remaining = 0  # payload bytes of the current chunk still to come
        self._after_data = False  # the CRLF that closes a chunk comes next
        self._in_trailer = False
        self._trailer_bytes = 0
        self._payload: list[bytes] | None = None  # collects payload for ChunkDecoder

    def feed(self, data: bytes) -> int:
        if not (self._carry or self._remaining or self._after_data or self._in_trailer):
            # Streams of events come like this: one whole chunk in each piece.
            match = _SIZE_LINE.match(data)
            if match is not None:
                start, length = match.end(), int(match[1], 16)
                if length and start + length + 2 == len(data) and start <= _MAX_LINE_BYTES and data.endswith(b"\r\n"):
                    if self._payload is not None:
                        self._payload.append(data[start:-2])
                    return -1
        carried = len(self._carry)
        if carried:
            data = self._carry + data
            self._carry = b""
        position, size = 0, len(data)
        while position < size:
            if self._remaining:
                step = min(self._remaining, size - position)
                if self._payload is not None:
                    self._payload.append(data[position : position + step])
                self._remaining -= step
                position += step
                self._after_data = self._remaining == 0
            elif self._after_data:
                ending = data[position : position + 2]
                if ending == b"\r":
                    self._carry = ending
                    return -1
                if ending != b"\r\n":
                    raise FramingError("a chunk is longer than its size line says")
                self._after_data = False
                position += 2
            elif self._in_trailer:
                if data.startswith(b"\r\n", position):
                    return position + 2 - carried
                match = _TRAILER_LINE.match(data, position)
                if match is None:
                    self._keep(data[position:], _TRAILER_LINE_START)
                    return -1
                self._check_line(position, match.end())
                self._trailer_bytes += match.end() - position
                if self._trailer_bytes > _MAX_TRAILER_BYTES:
                    raise FramingError("the trailer is too long")
                position = match.end()
            else:
                match = _SIZE_LINE.match(data, position)
                if match is None:
                    self._keep(data[position:], _SIZE_LINE_START)
                    return -1
                start = match.end()
                if start - position > _MAX_LINE_BYTES:
                    self._check_line(position, start)
                length = int(match[1], 16)
                position = start + length
                if length and data.startswith(b"\r\n", position):
                    # Whole, as most are when many come at once.
                    if self._payload is not None:
                        self._payload.append(data[start:position])
                    position += 2
                    continue
                position = start
                self._remaining = length
                self._in_trailer = length == 0
        return -1

    def _keep(self, partial: bytes, grammar: re.Pattern[bytes]) -> None:
        """Keep an unfinished line, unless it can no longer become a valid one."""
        if len(partial) > _MAX_LINE_BYTES or grammar.fullmatch(partial) is None:
            raise FramingError("a chunk-size or trailer line is malformed")
        self._carry = partial

    @staticmethod
    def _check_line(start: int, end: int) -> None:
        # Also for lines that arrive whole, or the verdict would depend on how the stream is cut.
        if end - start > _MAX_LINE_BYTES:
            raise FramingError("a chunk-size or trailer line is too long")


class ChunkDecoder(Chunked):
    """Also takes the payload out of the chunks: for clients that do not know them (HTTP/1.0), and to keep a reply."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self._payload = []

    def take_payload(self) -> bytes:
        """The payload found since the last call."""
        payload = b"".join(self._payload or ())
        self._payload = []
        return payload

    def stop_collecting(self) -> None:
        """Nobody wants the payload any more: only the end of the body."""
        self._payload = None
