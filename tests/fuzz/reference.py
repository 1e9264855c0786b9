"""Slow and simple readers, written from the specifications and not from our parsers. Pure."""

import re
import struct
from dataclasses import dataclass, field

_HEX = b"0123456789abcdefABCDEF"
_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

LINE_MAX = 4096
"""Of a chunk-size line or a trailer line with its CRLF: our bound, RFC 9112 asks for some bound."""
TRAILER_MAX = 16384
SIZE_DIGITS_MAX = 15


@dataclass(frozen=True)
class Body:
    """What a reader makes of a body."""

    verdict: str
    """``end``, ``more`` or ``bad``."""
    end: int = 0
    """Offset of the first byte behind it."""
    payload: bytes = b""


def _is_text(byte: int) -> bool:
    """RFC 9110 5.5: HTAB, SP, VCHAR and obs-text."""
    return byte == 0x09 or 0x20 <= byte <= 0x7E or byte >= 0x80


def read_chunked(data: bytes) -> Body:
    """RFC 9112 7.1, one byte after the other; the first byte that no valid body can have refuses it."""
    state, digits, remaining, line, trailer = "size", "", 0, 0, 0
    payload = bytearray()
    for offset, byte in enumerate(data):
        if state == "data":
            payload.append(byte)
            remaining -= 1
            if not remaining:
                state = "data CR"
            continue
        if state in ("data CR", "data LF"):
            if byte != (0x0D if state == "data CR" else 0x0A):
                return Body("bad")
            state, digits, line = ("data LF", "", 0) if state == "data CR" else ("size", "", 0)
            continue
        line += 1
        if line > LINE_MAX:
            return Body("bad")
        if state == "size":  # chunk-size = 1*HEXDIG
            if byte in _HEX and len(digits) < SIZE_DIGITS_MAX:
                digits += chr(byte)
            elif digits and byte == 0x3B:
                state = "extension"
            elif digits and byte in b" \t":
                state = "blank"  # BWS of chunk-ext, which needs its ";"
            elif digits and byte == 0x0D:
                state = "size LF"
            else:
                return Body("bad")
        elif state == "blank":
            if byte == 0x3B:
                state = "extension"
            elif byte not in b" \t":
                return Body("bad")
        elif state == "extension":  # read as text, names and values of extensions are nobody's business
            if byte == 0x0D:
                state = "size LF"
            elif not _is_text(byte):
                return Body("bad")
        elif state == "size LF":
            if byte != 0x0A:
                return Body("bad")
            remaining, line = int(digits, 16), 0
            state = "data" if remaining else "trailer"
        elif state == "trailer":  # field-line or the last CRLF
            if byte == 0x0D:
                state = "last LF"
            elif byte in _TOKEN:
                state = "name"
            else:
                return Body("bad")
        elif state == "name":
            if byte == 0x3A:
                state = "value"
            elif byte not in _TOKEN:
                return Body("bad")
        elif state == "value":
            if byte == 0x0D:
                state = "value LF"
            elif not _is_text(byte):
                return Body("bad")
        elif state == "value LF":
            if byte != 0x0A:
                return Body("bad")
            trailer += line
            if trailer > TRAILER_MAX:
                return Body("bad")
            state, line = "trailer", 0
        elif state == "last LF":
            if byte != 0x0A:
                return Body("bad")
            return Body("end", offset + 1, bytes(payload))
    return Body("more", len(data), bytes(payload))


def read_length(data: bytes, length: int) -> Body:
    """A body of known length."""
    if len(data) < length:
        return Body("more", len(data), data)
    return Body("end", length, data[:length])


def read_events(data: bytes) -> list[tuple[str, str]]:
    """Name and data of each event of a stream, as WHATWG HTML 9.2.6 reads them."""
    events: list[tuple[str, str]] = []
    name, lines = "", list[str]()
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    *whole, _ = re.split("\r\n|\n|\r", text)  # an unfinished line is discarded
    for line in whole:
        if not line:
            if lines:
                events.append((name or "message", "\n".join(lines)))
            name, lines = "", []
            continue
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            lines.append(value)
    return events


class BadGguf(ValueError):
    """Not a head that we take, for whichever reason."""


@dataclass
class Gguf:
    """What a GGUF head holds."""

    entries: list[tuple[str, object]] = field(default_factory=list)
    """In the order of the file; lists of texts are lists of bytes."""
    tensors: list[tuple[str, int]] = field(default_factory=list)
    dimensions_max: int = 0
    length: int = 0


_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_gguf(data: bytes) -> Gguf:
    """``docs/gguf.md`` of ggml, one value after the other, without any bound but the length of ``data``."""
    place = 0

    def take(count: int) -> bytes:
        nonlocal place
        if count > len(data) - place:
            raise BadGguf("short")
        place += count
        return data[place - count : place]

    def number(form: str) -> int:
        return int(struct.unpack("<" + form, take(struct.calcsize("<" + form)))[0])

    def text() -> bytes:
        return take(number("Q"))

    def value(kind: int) -> object:
        if kind == 8:
            return text()
        if kind not in _SCALARS:
            raise BadGguf("kind")
        return struct.unpack("<" + _SCALARS[kind], take(struct.calcsize("<" + _SCALARS[kind])))[0]

    if take(4) != b"GGUF" or number("I") not in (2, 3):
        raise BadGguf("magic")
    found = Gguf()
    tensors, keys = number("Q"), number("Q")
    for _ in range(keys):
        key, kind = _decoded(text()), number("I")
        if kind != 9:
            one = value(kind)
            found.entries.append((key, _decoded(one) if isinstance(one, bytes) else one))
        else:
            kind, count = number("I"), number("Q")
            if kind != 8 and kind not in _SCALARS:
                raise BadGguf("kind")
            found.entries.append((key, [value(kind) for _ in range(count)]))
    for _ in range(tensors):
        name, dimensions = _decoded(text()), number("I")
        take(8 * dimensions + 4)
        found.dimensions_max = max(found.dimensions_max, dimensions)
        found.tensors.append((name, number("Q")))
    found.length = place
    return found


def _decoded(data: bytes) -> str:
    return data[:4096].decode("utf-8", "replace")


def json_without_extras(text: str) -> str:
    """Our JSON with its comments and trailing commas taken out, which leaves JSON; texts in quotes stay."""
    out: list[str] = []
    place = 0
    while place < len(text):
        rest = text[place:]
        if rest[0] == '"':
            end = place + 1
            while end < len(text) and text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            out.append(text[place : end + 1])
            place = end + 1
        elif rest[0] == "#" or rest.startswith("//"):
            while place < len(text) and text[place] not in "\r\n":
                place += 1
        elif rest.startswith("/*"):
            end = text.find("*/", place + 2)
            place = len(text) if end < 0 else end + 2
            out.append(" ")
        elif rest[0].isspace():
            out.append(" ")
            place += 1
        else:
            out.append(rest[0])
            place += 1
    return _without_trailing_commas(out)


def _without_trailing_commas(pieces: list[str]) -> str:
    """A comma before a closing bracket goes if an entry stands before it."""
    kept: list[str] = []
    for piece in pieces:
        if piece in ("]", "}"):
            said = [index for index, one in enumerate(kept) if one.strip()]
            if len(said) > 1 and kept[said[-1]] == "," and kept[said[-2]] not in ("[", "{", ","):
                del kept[said[-1]]
        kept.append(piece)
    return "".join(kept)
