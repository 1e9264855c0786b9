"""Message heads: bytes to parts. Pure.

Strict towards clients: a small grammar (RFC 9112), everything else refused, because what two parsers read
differently is how requests get smuggled. Lenient towards backends in all that is not framing: bare LF, folded lines
and odd names are repaired, since the operator cannot fix the program; two answers to "how long is the body" are not.
"""

import re
from dataclasses import dataclass

from juggler.errors import BadRequest
from juggler.proxy.wishes import WISH_FIELDS

Field = tuple[bytes, bytes, bytes]
"""(whole line with its CRLF, name as sent, value without surrounding blanks)."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(%b++) ([\x21-\x7e\x80-\xff]++) HTTP/1\.([01])\r\n" % _TOKEN)
_FIELD_BLOCK = re.compile(rb"(?:%b++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n" % _TOKEN)
_FIELD = re.compile(rb"(([^:\r\n]++):[ \t]*+([^\r\n]*[^ \t\r\n]|)[ \t]*+\r\n)")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?\r\n")
_ABSOLUTE_FORM = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://")
_HOST = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+;=:\[\]]*")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENIENT_END = re.compile(rb"\n\r?\n")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout=([0-9]{1,9})")

_MAX_LENGTH_DIGITS = 18  # below 2**63, as everybody else counts
_HEAD_END = b"\r\n\r\n"

_REQUEST_SPECIALS = WISH_FIELDS | frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect")
)
_RESPONSE_SPECIALS = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade"))
_NO_TOKENS: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class RequestHead:
    """One request head, validated."""

    method: bytes
    target: bytes
    """Raw: origin form (``/path?query``), absolute form or ``*``."""
    minor: int
    """0 or 1, of ``HTTP/1.x``."""
    fields: list[Field]
    host: bytes | None
    """None only from HTTP/1.0 clients."""
    connection: frozenset[bytes]
    """Options of all Connection fields, in lower case."""
    content_length: int | None
    chunked: bool
    keep_alive: bool
    upgrade: bytes | None
    """Value of Upgrade if Connection names it and the client may switch, else None."""
    expects_continue: bool
    wishes: bool = False
    """It has a field that ``wishes.parse_wishes`` reads; nearly none has."""


@dataclass(slots=True)
class ResponseHead:
    """One answer head of a backend, repaired where needed."""

    status: int
    reason: bytes
    minor: int
    fields: list[Field]
    connection: frozenset[bytes]
    content_length: int | None
    chunked: bool
    keep_alive: bool
    keep_alive_timeout_s: int | None
    """From ``Keep-Alive: timeout=N``: the backend closes an idle connection after so many seconds."""
    upgrade: bytes | None


class BadResponse(ValueError):
    """The backend's bytes are not an answer head we can relay safely."""


def find_request_end(buffer: bytes, head_limit: int, line_limit: int) -> int:
    """Offset just past the head at the start of ``buffer``, or -1 if more is needed.

    Raises:
        BadRequest: 414 or 431 over the limits; 400 for line ends that can never become a head.
    """
    end = buffer.find(_HEAD_END)
    line_end = buffer.find(b"\r\n")
    if line_end > line_limit or (line_end < 0 and len(buffer) > line_limit):
        raise BadRequest("The request line is too long.", status=414, code="uri_too_long")
    if end + 4 > head_limit or (end < 0 and len(buffer) > head_limit):
        raise BadRequest("The request head is too long.", status=431, code="head_too_long")
    if end >= 0:
        return end + 4
    if _BARE_LF.search(buffer):
        # Waiting for a CRLF pair would only end in the head timeout.
        raise BadRequest("A line of the request head ends with LF instead of CRLF.")
    return -1


def parse_request(raw: bytes) -> RequestHead:
    """Parse one whole head, from the method to the empty line.

    Raises:
        BadRequest: Anything that is not exactly HTTP/1.0 or 1.1 as described in RFC 9112.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _request_line_error(raw)
    if _FIELD_BLOCK.fullmatch(raw, line.end()) is None:
        raise BadRequest("A header field is malformed.")
    method, target, minor = line[1], line[2], 1 if line[3] == b"1" else 0
    _check_target(method, target)
    fields: list[Field] = _FIELD.findall(raw, line.end())
    specials: dict[bytes, bytes] = {}
    for _, name, value in fields:
        lowered = name.lower()
        if lowered in _REQUEST_SPECIALS:
            # Repeated fields are joined as RFC 9110 5.2 says; a joined Host or length then fails its own check.
            specials[lowered] = specials[lowered] + b"," + value if lowered in specials else value
    host = specials.get(b"host")
    if (host is None and minor) or (host is not None and _HOST.fullmatch(host) is None):
        raise BadRequest("The request needs exactly one valid Host field.")
    content_length, chunked = _request_framing(specials, minor)
    connection = connection_options(specials.get(b"connection"))
    return RequestHead(
        method=method,
        target=target,
        minor=minor,
        fields=fields,
        host=host,
        connection=connection,
        content_length=content_length,
        chunked=chunked,
        keep_alive=b"close" not in connection if minor else b"keep-alive" in connection,
        upgrade=_upgrade(specials, connection, minor),
        expects_continue=b"expect" in specials and _expects_continue(specials[b"expect"], minor),
        wishes=not WISH_FIELDS.isdisjoint(specials),
    )


def find_response_end(buffer: bytes) -> int:
    """Offset just past the answer head at the start of ``buffer`` (CRLF or bare LF), or -1 if more is needed."""
    end = buffer.find(_HEAD_END)
    match = _LENIENT_END.search(buffer, 0, end + 4 if end >= 0 else len(buffer))
    return match.end() if match else -1


def parse_response(raw: bytes) -> ResponseHead:
    """Parse one whole answer head of a backend.

    Raises:
        BadResponse: No status line, a line that is no field, or contradictory framing.
    """
    line = _STATUS_LINE.match(raw)
    if line is None or _FIELD_BLOCK.fullmatch(raw, line.end()) is None:
        raw = _repair_response(raw)
        line = _STATUS_LINE.match(raw)
        if line is None:
            raise BadResponse("no HTTP/1.x status line")
    fields: list[Field] = _FIELD.findall(raw, line.end())
    specials: dict[bytes, bytes] = {}
    for _, name, value in fields:
        lowered = name.lower()
        if lowered in _RESPONSE_SPECIALS:
            specials[lowered] = specials[lowered] + b"," + value if lowered in specials else value
    minor = 1 if line[1] == b"1" else 0
    content_length, chunked = _response_framing(specials)
    connection = connection_options(specials.get(b"connection"))
    keep_alive = b"close" not in connection if minor else b"keep-alive" in connection
    timeout = _KEEP_ALIVE_TIMEOUT.search(specials[b"keep-alive"]) if b"keep-alive" in specials else None
    return ResponseHead(
        status=int(line[2]),
        reason=line[3] or b"",
        minor=minor,
        fields=fields,
        connection=connection,
        content_length=content_length,
        chunked=chunked,
        # Chunked in HTTP/1.0 is a fault; what follows on such a connection is anybody's guess (RFC 9112 6.1).
        keep_alive=keep_alive and not (chunked and not minor),
        keep_alive_timeout_s=int(timeout[1]) if timeout else None,
        upgrade=specials.get(b"upgrade"),
    )


def connection_options(value: bytes | None) -> frozenset[bytes]:
    """The options of a Connection field, in lower case."""
    if value is None:
        return _NO_TOKENS
    return frozenset(option.strip(b" \t").lower() for option in value.split(b","))


def _check_target(method: bytes, target: bytes) -> None:
    if method == b"CONNECT":
        raise BadRequest("CONNECT is not supported.", status=501, code="method_not_supported")
    if target.startswith(b"/") or _ABSOLUTE_FORM.match(target) or (target == b"*" and method == b"OPTIONS"):
        return
    raise BadRequest("The request target is malformed.")


def _request_framing(specials: dict[bytes, bytes], minor: int) -> tuple[int | None, bool]:
    length, coding = specials.get(b"content-length"), specials.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not minor:
            raise BadRequest("The length of the request body is ambiguous.")
        if coding.lower() != b"chunked":
            raise BadRequest("The only transfer coding accepted is chunked.", status=501, code="unknown_coding")
        return None, True
    if length is None:
        return None, False
    if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
        raise BadRequest("Content-Length is not a number.")
    return int(length), False


def _response_framing(specials: dict[bytes, bytes]) -> tuple[int | None, bool]:
    length, coding = specials.get(b"content-length"), specials.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or coding.lower() != b"chunked":
            raise BadResponse("the length of the body is ambiguous")
        return None, True
    if length is None:
        return None, False
    values = {value.strip(b" \t") for value in length.split(b",")}
    value = values.pop()
    if values or not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        raise BadResponse("Content-Length is not one number")
    return int(value), False


def _upgrade(specials: dict[bytes, bytes], connection: frozenset[bytes], minor: int) -> bytes | None:
    value = specials.get(b"upgrade")
    if not value or not minor or b"upgrade" not in connection:
        return None
    # Java's HttpClient offers h2c on every request; no backend here speaks it, so the offer is dropped.
    return None if value.lower() == b"h2c" else value


def _expects_continue(value: bytes, minor: int) -> bool:
    if value.lower() != b"100-continue":
        raise BadRequest("The expectation is not 100-continue.", status=417, code="expectation_failed")
    return minor == 1


def _request_line_error(raw: bytes) -> BadRequest:
    line = raw[: raw.find(b"\r\n")]
    if re.fullmatch(rb"%b+ [\x21-\x7e\x80-\xff]+ HTTP/[0-9]\.[0-9]" % _TOKEN, line):
        return BadRequest("Only HTTP/1.0 and HTTP/1.1 are spoken here.", status=505, code="version_not_supported")
    return BadRequest("The request line is malformed.")


def _repair_response(raw: bytes) -> bytes:
    """The head as it should have been sent: CRLF line ends, no folding, no blanks before a colon."""
    lines: list[bytes] = []
    for raw_line in raw.strip(b"\r\n").split(b"\n"):
        line = raw_line.removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            raise BadResponse("control characters in the head")
        if line[:1] in (b" ", b"\t") and len(lines) > 1:
            lines[-1] += b" " + line.strip(b" \t")  # obs-fold, RFC 9112 5.2
            continue
        if lines:
            name, colon, value = line.partition(b":")
            name = name.strip(b" \t")
            if not colon or not name:
                raise BadResponse("a header line without a name")
            line = name + b":" + value
        lines.append(line)
    return b"\r\n".join(lines) + _HEAD_END
