"""Heads that come again are taken for what they are, and for nothing else."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.errors import BadRequest
from juggler.proxy.body import read_request
from juggler.proxy.head import RequestHead, parse_request
from juggler.proxy.headers import Hop, request_head
from juggler.proxy.limits import Limits
from juggler.proxy.repeats import KEPT_BYTES_MAX, repeated, worth_keeping

START = b"POST /v1/completions?q=1 HTTP/1.1\r\nHost: h:1\r\n"
HOP = Hop(b"/completions?q=1", b"127.0.0.1:9", b"10.0.0.7", b"/v1")
FIELDS = [
    b"Accept: */*",
    b"Authorization: Bearer 1024",
    b"X-Length: 1024",
    b"X-Copy: Content-Length: 1024",
    b"Connection: keep-alive, X-Length, Content-Length",
    b"Connection: close",
    b"X-Forwarded-For: 1.2.3.4",
    b"Origin: http://h:1",
    b"TE: trailers",
    b"TE: 1024",
]
LENGTH_LINES = [b"Content-Length: %b", b"content-length:%b", b"CONTENT-LENGTH: \t%b \t"]


def _head(lines: list[bytes]) -> bytes:
    return START + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def _all_of(head: RequestHead) -> tuple[object, ...]:
    """Everything that anybody may ask of a head."""
    return head, head.raw, head.lines, head.fields, head.notable, head.places, request_head(head, HOP)


@given(
    before=st.lists(st.sampled_from(FIELDS), max_size=4, unique=True),
    after=st.lists(st.sampled_from(FIELDS), max_size=4, unique=True),
    line=st.sampled_from(LENGTH_LINES),
    lengths=st.tuples(*[st.integers(0, 10**9).map(b"%d".__mod__) | st.sampled_from([b"0", b"007", b"9" * 18])] * 2),
    rest=st.binary(max_size=5),
)
@settings(deadline=None)
def test_another_length_is_as_if_it_were_read(
    before: list[bytes], after: list[bytes], line: bytes, lengths: tuple[bytes, bytes], rest: bytes
) -> None:
    """The head, and what the backend gets, are the same as without the one before."""
    first, second = (_head([*before, line % length, *after]) for length in lengths)
    last = parse_request(first)
    last.sent = ("route", "pool", request_head(last, HOP))
    found = repeated(last, second + rest)
    assert found is not None
    assert _all_of(found) == _all_of(parse_request(second))
    assert found.sent == ("route", "pool", request_head(parse_request(second), HOP))
    assert (found is last) == (first == second)


@given(data=st.data(), length=st.booleans())
@settings(deadline=None, max_examples=400)
def test_what_differs_is_read_anew(data: st.DataObject, length: bool) -> None:
    """A byte more, less or changed anywhere: not the same head, unless it is in the length."""
    raw = _head([*FIELDS[:4], *([b"Content-Length: 1024"] if length else []), b"X-Last: 1"])
    last = parse_request(raw)
    at = data.draw(st.integers(0, len(raw) - 1))
    piece = data.draw(st.sampled_from([b"", b"0", b"7", b" ", b"\r\n", b"a", b":"]) | st.binary(min_size=1, max_size=2))
    other = raw[:at] + piece + raw[at + data.draw(st.integers(0, 1)) :]
    found = repeated(last, other)
    if found is not None:
        assert _all_of(found) == _all_of(parse_request(found.raw))
        assert other.startswith(found.raw)
        assert found is last or re.sub(rb"(?<=\r\nContent-Length: )\d+", b"1024", found.raw) == raw


def test_a_part_of_it_is_not_yet_a_head() -> None:
    raw = _head([b"Content-Length: 10", b"A: b"])
    last = parse_request(raw)
    assert all(repeated(last, raw[:end]) is None for end in range(1, len(raw)))
    assert repeated(last, raw) is last


def test_a_second_length_is_no_digit_of_the_first() -> None:
    """Two lengths are refused, also behind a head that had one."""
    last = parse_request(_head([b"Content-Length: 10", b"A: b"]))
    for lines in ([b"Content-Length: 10", b"Content-Length: 11", b"A: b"], [b"Content-Length: 10, 10", b"A: b"]):
        assert repeated(last, _head(lines)) is None
    assert repeated(last, _head([b"Content-Length: " + b"1" * 19, b"A: b"])) is None


def test_its_body_is_its_own() -> None:
    """The same head twice, with other bodies; the second comes in two pieces with the next request behind it."""
    raw = _head([b"Content-Length: 3"])
    first = read_request(raw + b"abc", Limits())
    assert first is not None
    second = read_request(raw + b"de", Limits(), first[0].head)
    assert second is not None
    (request, rest), last = second, first[0]
    assert request.head is last.head
    assert (last.body.kept, last.body.complete) == ([b"abc"], True)
    assert (rest, request.body.complete, request.body.feed(rest + b"fGET")) == (b"de", False, 3)


def test_what_is_kept() -> None:
    """Neither long heads nor those that are more than a plain request."""
    assert worth_keeping(parse_request(_head([b"Content-Length: 3"])), 2**16)
    assert not worth_keeping(parse_request(_head([b"X-Juggler-Timing: 1"])), 2**16)
    assert not worth_keeping(parse_request(_head([b"Expect: 100-continue", b"Content-Length: 3"])), 2**16)
    assert not worth_keeping(parse_request(_head([b"Connection: Upgrade", b"Upgrade: websocket"])), 2**16)
    long = parse_request(_head([b"Cookie: " + b"c" * KEPT_BYTES_MAX]))
    assert not worth_keeping(long, 2**16)
    short = parse_request(_head([]))
    assert not worth_keeping(short, len(short.raw))


def test_longer_digits_do_not_pass_the_limit() -> None:
    """A head that may not be longer is not made so by its length."""
    limits = Limits(head_bytes=100)
    raw = _head([b"X-Length: 1234567", b"Content-Length: 1"])
    longer = raw.replace(b": 1\r", b": %b\r" % (b"1" * 18))
    last = parse_request(raw)
    assert len(raw) <= 100 < len(longer)
    with pytest.raises(BadRequest) as refused:
        read_request(longer, limits, last if worth_keeping(last, limits.head_bytes) else None)
    assert refused.value.status == 431
