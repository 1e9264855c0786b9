"""One message head as each of two parsers reads it, in the same terms."""

from dataclasses import dataclass

import h11

from juggler.errors import BadRequest
from juggler.proxy import head
from juggler.proxy.head import (
    BadResponse,
    RequestHead,
    ResponseHead,
    find_request_end,
    find_response_end,
    parse_request,
    parse_response,
)
from juggler.proxy.limits import Limits

_LIMITS = Limits()
_NO_LIMIT = 2**30  # h11 bounds what it buffers; our bounds are among the differences


@dataclass(frozen=True)
class Refused:
    """The bytes can never become a head."""

    status: int
    why: str


@dataclass(frozen=True)
class Reading:
    """A head, and where it ends."""

    start: tuple[bytes | int, ...]
    """Method and target, or status and reason."""
    minor: bytes
    """``1.1``: the version."""
    fields: tuple[tuple[bytes, bytes], ...]
    """Names in lower case."""
    chunked: bool
    length: int | None
    keep_alive: bool
    end: int
    """Offset of the first byte behind it."""

    @property
    def host(self) -> bytes | None:
        return next((value for name, value in self.fields if name == b"host"), None)

    def values(self, wanted: bytes) -> list[bytes]:
        """Of all fields of a name."""
        return [value for name, value in self.fields if name == wanted]


Outcome = Reading | Refused | None
"""None: more bytes are needed."""


def skipped_empty_lines(data: bytes) -> int:
    """How many bytes of empty lines stand before a request; a server should ignore them (RFC 9112 2.2)."""
    start = 0
    while data.startswith(b"\r\n", start):
        start += 2
    return start


def our_request_head(data: bytes) -> tuple[RequestHead, int] | Refused | None:
    """The first request head of a stream, found as the client connection finds it."""
    start = skipped_empty_lines(data)
    try:
        end = find_request_end(data[start:], _LIMITS.head_bytes, _LIMITS.request_line_bytes)
        if end < 0:
            return None
        return _parsed_cold_and_warm(data[start : start + end]), start + end
    except BadRequest as error:
        return Refused(error.status, error.message)


def _parsed_cold_and_warm(raw: bytes) -> RequestHead:
    """``parse_request``, which remembers lines: what it remembers must not change its verdict."""
    outcomes: list[RequestHead | str] = []
    for forget in (True, False):
        if forget:
            memories = [one for name, one in vars(head).items() if name in ("_known_lines", "_plain_lines")]
            assert len(memories) == 2
            for memory in memories:
                memory.clear()
        try:
            parsed = parse_request(raw)
        except BadRequest as error:
            outcomes.append(error.message)
        else:
            assert parsed.fields is not None  # taken apart when asked for
            outcomes.append(parsed)
    assert outcomes[0] == outcomes[1], ("depends on what was read before", raw, outcomes)
    return parse_request(raw)


def our_request(data: bytes) -> Outcome:
    """``our_request_head`` in common terms."""
    found = our_request_head(data)
    if found is None or isinstance(found, Refused):
        return found
    read, end = found
    return Reading((read.method, read.target), *_common(read), end)


def h11_request(data: bytes) -> Outcome:
    """The first request head of a stream, as h11 reads it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_NO_LIMIT)
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return Refused(error.error_status_hint, str(error))
    if not isinstance(event, h11.Request):
        return None
    return _h11_reading((event.method, event.target), event, len(data) - len(connection.trailing_data[0]))


def our_response_head(data: bytes) -> tuple[ResponseHead, int] | Refused | None:
    """The first answer head of a stream."""
    end = find_response_end(data)
    if end < 0:
        return None
    try:
        return parse_response(data[:end]), end
    except BadResponse as error:
        return Refused(502, str(error))


def our_response(data: bytes) -> Outcome:
    """``our_response_head`` in common terms."""
    found = our_response_head(data)
    if found is None or isinstance(found, Refused):
        return found
    read, end = found
    return Reading((read.status, read.reason), *_common(read), end)


def h11_response(data: bytes) -> Outcome:
    """The first answer head of a stream (interim ones count), as h11 reads it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_NO_LIMIT)
    # It offers an upgrade, or h11 would refuse any 101.
    offer = [("Host", "h"), ("Connection", "upgrade"), ("Upgrade", "x")]
    connection.send(h11.Request(method="GET", target="/", headers=offer))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return Refused(502, str(error))
    if not isinstance(event, (h11.InformationalResponse, h11.Response)):
        return None
    return _h11_reading((event.status_code, event.reason), event, len(data) - len(connection.trailing_data[0]))


def _h11_reading(
    start: tuple[bytes | int, ...], event: h11.Request | h11.InformationalResponse | h11.Response, end: int
) -> Reading:
    fields = tuple([(bytes(name), bytes(value)) for name, value in event.headers])
    coded = any(name == b"transfer-encoding" for name, _ in fields)
    lengths = [int(value) for name, value in fields if name == b"content-length"]
    options = {
        option.strip().lower() for name, value in fields if name == b"connection" for option in value.split(b",")
    }
    # RFC 9112 9.3; h11 itself never keeps an HTTP/1.0 connection.
    keep_alive = b"close" not in options and (event.http_version >= b"1.1" or b"keep-alive" in options)
    return Reading(start, bytes(event.http_version), fields, coded, lengths[0] if lengths else None, keep_alive, end)


def _common(
    read: RequestHead | ResponseHead,
) -> tuple[bytes, tuple[tuple[bytes, bytes], ...], bool, int | None, bool]:
    fields = tuple([(name.lower(), _canonical(name, value)) for _, name, value in read.fields])
    return b"1.%d" % read.minor, fields, read.chunked, read.content_length, read.keep_alive


def _canonical(name: bytes, value: bytes) -> bytes:
    # h11 gives codings in lower case.
    return value.lower() if name.lower() == b"transfer-encoding" else value
