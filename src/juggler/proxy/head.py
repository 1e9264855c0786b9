"""Message heads: bytes to parts. Pure.

Strict towards clients: a small grammar (RFC 9112), everything else refused, because what two parsers read
differently is how requests get smuggled. Lenient towards backends in all that is not framing: bare LF, folded lines
and odd names are repaired, since the operator cannot fix the program; two answers to "how long is the body" are not.
"""

import re
from dataclasses import dataclass, field, replace

from juggler.errors import BadRequest
from juggler.proxy.wishes import WISH_FIELDS
from juggler.routing.client import KEY_HEADERS, SESSION_HEADERS

Field = tuple[bytes, bytes, bytes]
"""(whole line with its CRLF, name in lower case, value without surrounding blanks); the line begins with the name."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(%b++) ([\x21-\x7e\x80-\xff]++) HTTP/1\.([01])\r\n" % _TOKEN)
_FIELD_LINE = re.compile(rb"(%b++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)\r\n" % _TOKEN)
_NAME = re.compile(_TOKEN + rb"++")
_CONTROLS = re.compile(rb"[\x01-\x08\x0b-\x1f\x7f]")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?\r\n")
_ABSOLUTE_FORM = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://([^/?#]*)")
_HOST = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+;=:\[\]]*")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout=([0-9]{1,9})")

_KNOWN_LINES_MAX = 4096
_KNOWN_LINE_BYTES = 200
_known_lines: dict[bytes, Field] = {}
"""Field lines read before: programs send the same ones with each request. Forgotten when full."""
_plain_lines: set[bytes] = set()
"""Those among them that ``NOTABLE`` does not name."""
_SECRETS = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-api-key", b"api-key"))
"""Lines that are not remembered: a credential does not outlive its request here."""

_MAX_LENGTH_DIGITS = 18  # below 2**63, as everybody else counts
_HEAD_END = b"\r\n\r\n"

_REQUEST_SPECIALS = WISH_FIELDS | frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect")
)
NOTABLE = (
    _REQUEST_SPECIALS
    | KEY_HEADERS
    | SESSION_HEADERS
    | frozenset(
        (
            b"keep-alive",
            b"origin",
            b"proxy-authorization",
            b"proxy-connection",
            b"sec-fetch-site",
            b"te",
            b"x-forwarded-for",
            b"x-forwarded-host",
            b"x-forwarded-prefix",
            b"x-forwarded-proto",
        )
    )
)
"""Names of fields that every request is searched for. The others, nearly all, are only passed on."""
_RESPONSE_SPECIALS = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade"))
_NO_TOKENS: frozenset[bytes] = frozenset()
_USUAL_OPTIONS = {one: frozenset((one.lower(),)) for one in (b"keep-alive", b"Keep-Alive", b"close", b"Upgrade")}


@dataclass(slots=True)
class RequestHead:
    """One request head, validated."""

    method: bytes
    target: bytes
    """Raw: origin form (``/path?query``), absolute form or ``*``."""
    minor: int
    """0 or 1, of ``HTTP/1.x``."""
    raw: bytes
    """The whole head as received, from the method to the empty line."""
    _lines: list[bytes] | None = field(compare=False, repr=False)
    notable: list[Field]
    """The fields that ``NOTABLE`` names, in order."""
    places: list[int]
    """Of each of them, its place in ``lines``."""
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
    _fields: list[Field] | None = field(default=None, compare=False)
    sent: tuple[object, object, bytes] | None = field(default=None, compare=False, repr=False)
    """What a backend got for it last, with the route and the pool that it was written for (``proxy.exchange``)."""

    @property
    def lines(self) -> list[bytes]:
        """All field lines, each with its CRLF."""
        if self._lines is None:
            self._lines = _split_lines(self.raw, self.raw.index(b"\n") + 1)
        return self._lines

    @property
    def fields(self) -> list[Field]:
        """All fields. Taken apart when first asked for: most requests are forwarded without."""
        if self._fields is None:
            known = _known_lines.get
            self._fields = [known(line) or _read_field(line) for line in self.lines]
        return self._fields

    def drop_fields(self) -> None:
        """They have been passed on: keep no more than ``raw`` and ``notable``."""
        self._lines = self._fields = None

    def forget(self) -> None:
        """It has been passed on, and will not be compared with another: keep no more than ``notable``."""
        self.raw, self.sent = b"", None
        self._lines, self._fields = [], None

    def with_fields(self, fields: list[Field]) -> "RequestHead":
        """The same head with other fields; what it says of itself stays."""
        places = [place for place, (_, name, _) in enumerate(fields) if name in NOTABLE]
        lines, notable = [line for line, _, _ in fields], [fields[place] for place in places]
        return replace(self, _lines=lines, notable=notable, places=places, _fields=fields, sent=None)


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
    if line_end > line_limit or (line_end < 0 and len(buffer) > line_limit + 1):  # its CR may be there
        raise BadRequest("The request line is too long.", status=414, code="uri_too_long")
    if end + 4 > head_limit or (end < 0 and len(buffer) > head_limit):
        raise BadRequest("The request head is too long.", status=431, code="head_too_long")
    if end >= 0:
        return end + 4
    if buffer.count(b"\n") != buffer.count(b"\r\n"):
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
    lines, notable, places = _notable_fields(raw, line.end())
    method, target, minor = line[1], line[2], 1 if line[3] == b"1" else 0
    authority = _check_target(method, target)
    specials = _specials(notable, _REQUEST_SPECIALS)
    host = specials.get(b"host")
    if authority is not None and host is not None and _HOST.fullmatch(host) is not None:
        host = authority  # where there are two, this one counts (RFC 9112 3.2.2)
    if (host is None and minor) or (host is not None and _HOST.fullmatch(host) is None):
        raise BadRequest("The request needs exactly one valid Host field.")
    content_length, chunked = _request_framing(specials, minor)
    connection = connection_options(specials.get(b"connection"))
    keep_alive = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    upgrade = _upgrade(specials, connection, minor) if connection else None
    expects_continue = b"expect" in specials and _expects_continue(specials[b"expect"], minor)
    wishes = not WISH_FIELDS.isdisjoint(specials)
    # By position: with names it takes twice as long.
    return RequestHead(
        method,
        target,
        minor,
        raw,
        lines,
        notable,
        places,
        host,
        connection,
        content_length,
        chunked,
        keep_alive,
        upgrade,
        expects_continue,
        wishes,
    )


def find_response_end(buffer: bytes) -> int:
    """Offset just past the answer head at the start of ``buffer`` (CRLF or bare LF), or -1 if more is needed."""
    blank = buffer.find(b"\n\r\n")
    bare = buffer.find(b"\n\n", 0, blank + 1 if blank >= 0 else len(buffer))
    if bare >= 0:
        return bare + 2
    return blank + 3 if blank >= 0 else -1


def parse_response(raw: bytes) -> ResponseHead:
    """Parse one whole answer head of a backend.

    Raises:
        BadResponse: No status line, a line that is no field, or contradictory framing.
    """
    line = _STATUS_LINE.match(raw)
    fields = _read_fields(raw, line.end()) if line is not None else None
    if fields is None:
        raw = _repair_response(raw)
        line = _STATUS_LINE.match(raw)
        if line is None:
            raise BadResponse("no HTTP/1.x status line")
        fields = _read_fields(raw, line.end())
    assert line is not None
    assert fields is not None
    specials = _specials(fields, _RESPONSE_SPECIALS)
    minor = 1 if line[1] == b"1" else 0
    content_length, chunked = _response_framing(specials)
    connection = connection_options(specials.get(b"connection"))
    keep_alive = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    timeout = _KEEP_ALIVE_TIMEOUT.search(specials[b"keep-alive"]) if b"keep-alive" in specials else None
    # Chunked in HTTP/1.0 is a fault; what follows on such a connection is anybody's guess (RFC 9112 6.1).
    keep_alive = keep_alive and (minor == 1 or not chunked)
    timeout_s = int(timeout[1]) if timeout else None
    upgrade = specials.get(b"upgrade")
    return ResponseHead(
        int(line[2]), line[3] or b"", minor, fields, connection, content_length, chunked, keep_alive, timeout_s, upgrade
    )


def connection_options(value: bytes | None) -> frozenset[bytes]:
    """The options of a Connection field, in lower case."""
    if value is None:
        return _NO_TOKENS
    usual = _USUAL_OPTIONS.get(value)
    return usual if usual is not None else frozenset([option.strip(b" \t").lower() for option in value.split(b",")])


def _notable_fields(raw: bytes, start: int) -> tuple[list[bytes], list[Field], list[int]]:
    """The field lines of a request from the offset ``start`` on, and those among them that are looked at.

    Raises:
        BadRequest: Anything there is not exactly a field.
    """
    lines = _split_lines(raw, start)
    notable: list[Field] = []
    places: list[int] = []
    plain = bytes(map(_plain_lines.__contains__, lines))  # a byte for each line: searching it is quicker than a loop
    place = plain.find(0)
    try:
        while place >= 0:
            line = lines[place]
            field = _known_lines.get(line) or _read_field(line)
            if field[1] in NOTABLE:
                notable.append(field)
                places.append(place)
            place = plain.find(0, place + 1)
    except _NoField:
        raise BadRequest("A header field is malformed.") from None
    return lines, notable, places


def _split_lines(raw: bytes, start: int) -> list[bytes]:
    """The lines of a head from the offset ``start`` on, each with its line end, but for the empty one."""
    return raw[start:-2].splitlines(keepends=True)


def _read_fields(raw: bytes, start: int) -> list[Field] | None:
    """The fields of a head from the offset ``start`` on; None if anything there is not exactly one of them."""
    known = _known_lines.get
    try:
        return [known(line) or _read_field(line) for line in _split_lines(raw, start)]
    except _NoField:
        return None


class _NoField(ValueError):
    """A line of a head is not exactly a field."""


def _read_field(line: bytes) -> Field:
    """One line with its CRLF.

    Raises:
        _NoField: It is no field.
    """
    match = _FIELD_LINE.fullmatch(line)
    if match is None:
        raise _NoField
    name = match[1].lower()
    field = (line, name, match[2].rstrip(b" \t"))
    if len(line) <= _KNOWN_LINE_BYTES and name not in _SECRETS:
        if len(_known_lines) >= _KNOWN_LINES_MAX:
            _known_lines.clear()
            _plain_lines.clear()
        _known_lines[line] = field
        if name not in NOTABLE:
            _plain_lines.add(line)
    return field


def _specials(fields: list[Field], wanted: frozenset[bytes]) -> dict[bytes, bytes]:
    """The values of the few fields that are looked at.

    Repeated ones are joined as RFC 9110 5.2 says; a joined Host or length then fails its own check.
    """
    found: dict[bytes, bytes] = {}
    for _, name, value in fields:
        if name in wanted:
            found[name] = found[name] + b"," + value if name in found else value
    return found


def _check_target(method: bytes, target: bytes) -> bytes | None:
    """The host and port in a target that has them."""
    if method == b"CONNECT":
        raise BadRequest("CONNECT is not supported.", status=501, code="method_not_supported")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return None
    absolute = _ABSOLUTE_FORM.match(target)
    if absolute is None:
        raise BadRequest("The request target is malformed.")
    return absolute[1]


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
    if length.isdigit() and len(length) <= _MAX_LENGTH_DIGITS:
        return int(length), False
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
    """The head as it should have been sent: CRLF line ends, no folding, no blanks before a colon, no control bytes.

    Fields with a name that is none are left out, as Go's servers do: clients would refuse the whole answer.
    """
    lines: list[bytes] = []
    for raw_line in raw.strip(b"\r\n").split(b"\n"):
        line = raw_line.removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            raise BadResponse("control characters in the head")
        if line[:1] in (b" ", b"\t") and len(lines) > 1:
            lines[-1] += b" " + line.strip(b" \t")  # obs-fold, RFC 9112 5.2
        else:
            lines.append(line)
    repaired = lines[:1]
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.strip(b" \t")
        if not colon or not name:
            raise BadResponse("a header line without a name")
        if _NAME.fullmatch(name) is not None:
            repaired.append(name + b":" + _CONTROLS.sub(b" ", value))  # RFC 9110 5.5
    return b"\r\n".join(repaired) + _HEAD_END
