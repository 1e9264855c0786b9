"""Heads: accepted and refused ones, against h11 as a second opinion."""

import h11
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from juggler.errors import BadRequest
from juggler.proxy.head import (
    BadResponse,
    RequestHead,
    find_request_end,
    find_response_end,
    parse_request,
    parse_response,
)

_TOKENS = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=8).map(str.encode)
_VALUES = st.text('abcXYZ019 \t,;:=/"\xe4', max_size=12).map(lambda text: text.strip(" \t").encode("latin-1"))
_FIELDS = st.lists(
    st.tuples(_TOKENS, _VALUES).filter(
        lambda pair: pair[0].lower() not in (b"host", b"content-length", b"transfer-encoding", b"expect")
    ),
    max_size=6,
)
_TARGETS = st.text('abc019%/?&=.~[]|{}"', max_size=20).map(lambda text: b"/" + text.encode())


def _h11_request(raw: bytes) -> h11.Request | None:
    """The head as h11 reads it, or None if it refuses."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) else None


def _assert_same(ours: RequestHead, theirs: h11.Request) -> None:
    assert (ours.method, ours.target) == (theirs.method, theirs.target)
    assert [(name.lower(), value) for _, name, value in ours.fields] == list(theirs.headers)
    lengths = [value for name, value in theirs.headers if name == b"content-length"]
    assert ours.content_length == (int(lengths[0]) if lengths else None)


@given(method=_TOKENS, target=_TARGETS, fields=_FIELDS, length=st.none() | st.integers(0, 10**9))
@settings(deadline=None)
def test_valid_heads_are_read_as_h11_reads_them(
    method: bytes, target: bytes, fields: list[tuple[bytes, bytes]], length: int | None
) -> None:
    """Method, target, names, values and length agree, and the lines are kept as received."""
    assume(method != b"CONNECT")
    lines = [b"Host: h"] + [b"%b: %b" % field for field in fields]
    if length is not None:
        lines.append(b"Content-Length: %d" % length)
    raw = b"%b %b HTTP/1.1\r\n" % (method, target) + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    ours, theirs = parse_request(raw), _h11_request(raw)
    assert theirs is not None
    _assert_same(ours, theirs)
    assert b"".join(line for line, _, _ in ours.fields) == b"".join(line + b"\r\n" for line in lines)


_BASE = (
    b"POST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX: y\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close, x\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
)
_EDITS = st.lists(
    st.tuples(st.integers(0, 90), st.integers(0, 2), st.sampled_from([*b'\r\n\0 :;,\t+-xA03\x7f"(', 0xE4])),
    min_size=1,
    max_size=4,
)


@given(base=st.sampled_from(_BASE), edits=_EDITS)
@settings(deadline=None, max_examples=500)
def test_whatever_we_accept_h11_reads_the_same(base: bytes, edits: list[tuple[int, int, int]]) -> None:
    """Damaged heads: ours is the stricter grammar, and never a different reading."""
    raw = bytearray(base)
    for position, removed, inserted in edits:
        raw[position : position + removed] = bytes([inserted])
    assume(bytes(raw).endswith(b"\r\n\r\n"))
    line = raw.partition(b"\r\n")[0]
    assume(all(byte < 0x80 for byte in line))  # h11 refuses raw UTF-8 in targets, which we pass on
    try:
        if find_request_end(bytes(raw), 10_000, 10_000) != len(raw):
            return
        ours = parse_request(bytes(raw))
    except BadRequest:
        return
    theirs = _h11_request(bytes(raw))
    assert theirs is not None
    _assert_same(ours, theirs)


@given(raw=st.sampled_from(_BASE), cuts=st.sets(st.integers(1, 80)))
def test_the_end_of_a_head_does_not_depend_on_cuts(raw: bytes, cuts: set[int]) -> None:
    """A head is found exactly when its last byte is there."""
    for cut in sorted(cut for cut in cuts if cut < len(raw)):
        assert find_request_end(raw[:cut], 1000, 1000) == -1
    assert find_request_end(raw + b"rest", 1000, 1000) == len(raw)


@given(raw=st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_a_head_or_an_error(raw: bytes) -> None:
    """Neither parser fails in a way nobody expects."""
    for data in (raw, b"HTTP/1.1 200 OK\r\n" + raw + b"\r\n\r\n"):
        end = find_response_end(data)
        if end > 0:
            try:
                parse_response(data[:end])
            except BadResponse:
                pass
    try:
        parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + raw + b"\r\n\r\n")
    except BadRequest:
        pass


@pytest.mark.parametrize(
    ("fields", "minor", "keep_alive"),
    [
        (b"", 1, True),
        (b"Connection: close\r\n", 1, False),
        (b"Connection: x, CLOSE\r\n", 1, False),
        (b"", 0, False),
        (b"Connection: Keep-Alive\r\n", 0, True),
        (b"Connection: keep-alive, close\r\n", 0, False),
        (b"Connection: close\r\nConnection: keep-alive\r\n", 0, False),
    ],
)
def test_keep_alive(fields: bytes, minor: int, keep_alive: bool) -> None:
    """Who keeps the connection: RFC 9112 9.3. Of contradictory wishes the careful one counts, on both sides."""
    assert parse_request(b"GET / HTTP/1.%d\r\nHost: h\r\n" % minor + fields + b"\r\n").keep_alive is keep_alive
    assert parse_response(b"HTTP/1.%d 200 OK\r\n" % minor + fields + b"\r\n").keep_alive is keep_alive


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"HTTP/2 200 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "one number"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "ambiguous"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "ambiguous"),
        (b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", "control"),
        (b"HTTP/1.1 200 OK\r\n: b\r\n\r\n", "name"),
    ],
)
def test_answers_that_cannot_be_relayed(raw: bytes, reason: str) -> None:
    """Framing of a backend is never guessed."""
    with pytest.raises(BadResponse, match=reason):
        parse_response(raw)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b"X y: a\r\n b\r\nZ: 1\r\n", [b"Z: 1\r\n"]),
        (b"X\x01: a\r\nZ: 1\r\n", [b"Z: 1\r\n"]),
        (b"X\xe4: a\r\nZ: 1\r\n", [b"Z: 1\r\n"]),
        (b"X(y): a\r\nZ : 1\r\n", [b"Z: 1\r\n"]),
        (b"Content Length: 5\r\nZ: 1\r\n", [b"Z: 1\r\n"]),
        (b"Z: \x1b[1ma\x7fb\x01\tc\r\n", [b"Z:  [1ma b \tc\r\n"]),
    ],
)
def test_odd_fields_of_an_answer_reach_no_client(sent: bytes, read: list[bytes]) -> None:
    """What is no name is left out, with its folded lines; control bytes in a value become blanks."""
    head = parse_response(b"HTTP/1.1 200 OK\r\n" + sent + b"\r\n")
    assert [line for line, _, _ in head.fields] == read
    assert head.content_length is None


def test_what_was_read_before_is_read_the_same() -> None:
    """Known lines are not read again: neither their order nor their repetition may get lost by that."""
    raw = b"GET / HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nAccept: */*\r\nX-A: 1\r\nCookie: c\r\n\r\n"
    first, second = parse_request(raw), parse_request(raw)
    assert first.fields == second.fields
    assert b"".join(line for line, _, _ in second.fields) == raw[16:-2]
    with pytest.raises(BadRequest):
        parse_request(raw.replace(b"X-A: 1", b"Host: h", 1))
