"""Heads of answers that come again: the client gets what it would have got without the memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.proxy.answers import KNOWN_BYTES_MAX, KNOWN_MOST, AnswerHeads
from juggler.proxy.head import BadResponse, parse_response
from juggler.proxy.headers import ReturnHop, response_head

HOP = ReturnHop(b"127.0.0.1:9", b"/vision")
FIELDS = [
    b"Server: x",
    b"Date: Sat, 28 Nov 2026 10:00:00 GMT",
    b"X-Copy: Content-Length: 10",
    b"Connection: keep-alive, X-Copy",
    b"Keep-Alive: timeout=5, max=100",
    b"Trailer: X",
]
LENGTH_LINES = [b"Content-Length: %b", b"content-length: %b", b"Content-Length:%b", b"CONTENT-LENGTH: %b"]


def _head(lines: list[bytes], status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def _note(known: AnswerHeads, raw: bytes) -> None:
    answer = parse_response(raw)
    known.note(raw, answer, response_head(answer, HOP))


def _is_right(known: AnswerHeads, raw: bytes) -> bool:
    """What is found, if anything, is what reading it gives."""
    found = known.find(raw)
    if found is None:
        return False
    answer = parse_response(raw)
    assert found.sent == response_head(answer, HOP)
    answer.fields = []
    assert found.answer == answer
    return True


@given(
    before=st.lists(st.sampled_from(FIELDS), max_size=3, unique=True),
    after=st.lists(st.sampled_from(FIELDS), max_size=3, unique=True),
    line=st.sampled_from(LENGTH_LINES),
    lengths=st.lists(
        st.integers(0, 10**9).map(b"%d".__mod__) | st.sampled_from([b"007", b"0"]), min_size=2, max_size=4
    ),
    status=st.sampled_from([b"200 OK", b"404 Not Found", b"204 No Content", b"304 Not Modified"]),
)
@settings(deadline=None)
def test_other_lengths_are_as_if_they_were_read(
    before: list[bytes], after: list[bytes], line: bytes, lengths: list[bytes], status: bytes
) -> None:
    known = AnswerHeads()
    for length in [*lengths, *lengths]:
        raw = _head([*before, line % length, *after], status)
        _is_right(known, raw)
        _note(known, raw)
    usual = line in LENGTH_LINES[:2] and set(lengths) != {b"007"} and not status.startswith(b"204")
    assert _is_right(known, _head([*before, line % b"12345", *after], status)) == usual


@given(data=st.data(), lines=st.sampled_from([[], [b"Content-Length: 10"], [b"Transfer-Encoding: chunked"]]))
@settings(deadline=None, max_examples=400)
def test_what_differs_is_read_anew(data: st.DataObject, lines: list[bytes]) -> None:
    """A byte more, less or changed anywhere."""
    known = AnswerHeads()
    raw = _head([*FIELDS[:3], *lines, b"X-Last: 1"])
    _note(known, raw)
    at = data.draw(st.integers(0, len(raw) - 1))
    piece = data.draw(
        st.sampled_from([b"", b"0", b"7", b" ", b"\r\n", b"\n", b":"]) | st.binary(min_size=1, max_size=2)
    )
    other = raw[:at] + piece + raw[at + data.draw(st.integers(0, 1)) :]
    try:
        parse_response(other)
    except BadResponse:
        assert known.find(other) is None
    else:
        _is_right(known, other)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 3", b"Location: /x"],
        [b"Content-Length: 3", b"Content-Location: /x"],
        [b"Content-Length: 3", b"Set-Cookie: a=b"],
        [b"Content-Length: 3", b"Content-Length: 3"],
        [b"Server: until the connection ends"],
        [b"Content-Length: 3", b"X: " + b"x" * KNOWN_BYTES_MAX],
    ],
)
def test_what_is_not_kept(lines: list[bytes]) -> None:
    """What depends on more than the head, says its length twice or not at all, or is long."""
    known = AnswerHeads()
    raw = _head(lines)
    _note(known, raw)
    assert known.find(raw) is None


def test_a_length_beside_another_is_never_taken_for_known() -> None:
    """Equal lengths pass as one, different ones are an error: the first must not open a door for the second."""
    known = AnswerHeads()
    _note(known, _head([b"Content-Length: 5"]))
    _note(known, _head([b"Content-Length: 5", b"Content-Length: 5"]))
    assert known.find(_head([b"Content-Length: 6", b"Content-Length: 5"])) is None
    assert known.find(_head([b"Content-Length: 5", b"Content-Length: 6"])) is None


def test_there_is_a_bound() -> None:
    known = AnswerHeads()
    raws = [_head([b"Content-Length: 3", b"X-Number: %d" % number]) for number in range(KNOWN_MOST + 1)]
    for raw in raws:
        _note(known, raw)
    assert [raw for raw in raws if known.find(raw) is not None] == raws[-1:]


def test_a_length_that_goes_on_in_the_next_line_is_none_of_these() -> None:
    """``7 ,7`` is one length, told twice; ``9 ,7`` is a contradiction, which only reading finds."""
    known = AnswerHeads()
    _note(known, _head([b"Content-Length: 7\r\n ,7"]))
    assert known.find(_head([b"Content-Length: 9\r\n ,7"])) is None
