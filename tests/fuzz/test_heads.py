"""Heads, generated and damaged, against h11; what is accepted also against llhttp."""

import re
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from juggler.errors import BadRequest
from juggler.proxy.body import RequestBody
from juggler.proxy.framing import FramingError
from juggler.proxy.head import find_request_end, parse_request
from tests.fuzz import oracles
from tests.fuzz.profiles import tries
from tests.fuzz.readings import our_request_head, skipped_empty_lines
from tests.fuzz.strategies import (
    damaged,
    fine_request_heads,
    good_requests,
    odd_request_heads,
    odd_response_heads,
)


@given(data=damaged(odd_request_heads))
@tries(250)
def test_request_heads(data: bytes) -> None:
    """Read as h11 reads them, refused for a listed reason, and forwarded as the same one request."""
    oracles.check_request_head(data)


@given(data=fine_request_heads)
@tries(200)
def test_request_heads_that_contradict_themselves(data: bytes) -> None:
    """The same where no single line gives a reason to refuse them."""
    oracles.check_request_head(data)


@given(data=damaged(odd_response_heads))
@tries(200)
def test_response_heads(data: bytes) -> None:
    """Framing as h11 reads it; what is repaired or refused is listed."""
    oracles.check_response_head(data)


@given(data=damaged(good_requests), longer_head=st.integers(-3, 3), longer_line=st.integers(-3, 3))
@tries(100)
def test_the_end_of_a_head_does_not_depend_on_cuts(data: bytes, longer_head: int, longer_line: int) -> None:
    """A head that comes byte by byte ends where it would in one piece, or is refused as well: bounds included."""
    head_limit = len(data.partition(b"\r\n\r\n")[0]) + 4 + longer_head
    line_limit = len(data.partition(b"\r\n")[0]) + longer_line

    def end_in(buffer: bytes) -> int | None:
        try:
            return find_request_end(buffer, head_limit, line_limit)
        except BadRequest:
            return None

    whole = end_in(data)
    first = next((end for size in range(1, len(data) + 1) if (end := end_in(data[:size])) != -1), -1)
    if first is None and whole is not None:
        assert whole > 0, ("refused in pieces only", data)
        with pytest.raises(BadRequest):
            parse_request(data[:whole])
    else:
        assert first == whole, data


class _Llhttp:
    """What llhttp makes of one request."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.whole = 0
        self.keeps_alive = False
        self.parser: Any = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        if not self.whole:
            self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.whole:
            self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        if not self.whole:
            self.body += body

    def on_message_complete(self) -> None:
        self.whole += 1
        self.keeps_alive = self.parser.should_keep_alive()

    def feed(self, data: bytes) -> bool:
        """Whether it takes the bytes."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return True
        except httptools.HttpParserError:
            return False
        return True


_LLHTTP_METHODS = frozenset((b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT"))
"""Those of its fixed list that are generated here."""
_LLHTTP_TARGET = re.compile(rb"/[\x21-\x7e]*|\*|https?://h/[\x21-\x7e]*")


@given(data=damaged(good_requests))
@tries(200)
def test_llhttp_reads_the_same(data: bytes) -> None:
    """What we accept whole, llhttp reads as the same one request.

    It may refuse what its own grammar does not have: methods beyond its list, bytes from 0x80 and odd schemes and hosts
    in a target.
    """
    found = our_request_head(data)
    if not isinstance(found, tuple) or found[0].upgrade is not None:
        return  # at an upgrade it stops and leaves the body to its user
    head, end = found
    body = RequestBody(head)
    try:
        size = 0 if body.complete else body.feed(data[end:])
    except FramingError:
        return
    if not body.complete:
        return
    theirs = _Llhttp()
    start = skipped_empty_lines(data)
    if not theirs.feed(data[start:end]):
        known = head.method in _LLHTTP_METHODS and _LLHTTP_TARGET.fullmatch(head.target)
        assert not known, ("llhttp refuses what we accept", data)
        return
    if not theirs.feed(data[end : end + size]):
        return  # extensions and trailers are compared with h11's reading
    assert theirs.whole == 1, ("llhttp sees another number of requests", data)
    assert theirs.target == head.target
    assert theirs.fields[: len(head.fields)] == [(name.lower(), value) for _, name, value in head.fields], data
    assert theirs.parser.get_method() == head.method
    assert theirs.body == oracles.payload_of(head, data[end : end + size]), (data, theirs.body)
    # Of "keep-alive, close" in HTTP/1.0 it takes the former, we the latter (RFC 9112 9.3).
    assert theirs.keeps_alive or not head.keep_alive, data
    assert head.keep_alive or not theirs.keeps_alive or head.minor == 0, data
