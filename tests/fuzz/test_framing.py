"""Body trackers against the slow reader of ``reference``, however a stream is cut."""

from hypothesis import given
from hypothesis import strategies as st

from juggler.proxy.framing import Length
from tests.fuzz import oracles, reference
from tests.fuzz.profiles import tries
from tests.fuzz.strategies import chunked_bodies, cut, cuts, damaged


@given(data=damaged(chunked_bodies))
@tries(250)
def test_chunks(data: bytes) -> None:
    """The same end, payload and refusal, whole, in pieces and byte by byte; what is accepted h11 accepts as well."""
    oracles.check_chunked(data)


@given(data=st.text("0123af;= \t\r\nX:", max_size=40).map(str.encode))
@tries(200)
def test_what_chunk_lines_are_made_of(data: bytes) -> None:
    """Any mixture of the characters that matter."""
    oracles.check_chunked(data)


@given(length=st.integers(0, 30), data=st.binary(max_size=40), places=cuts)
@tries(100)
def test_lengths(length: int, data: bytes, places: list[int]) -> None:
    """A body of known length ends where it should, however it is cut."""
    tracker, start, found = Length(length), 0, reference.Body("more", len(data), data)
    for piece in cut(data, places) or [b""]:
        end = tracker.feed(piece)
        if end >= 0:
            found = reference.Body("end", start + end, data[: start + end])
            break
        start += len(piece)
    assert found == reference.read_length(data, length)


def test_the_slow_reader() -> None:
    """It reads what RFC 9112 7.1 describes, and knows its bounds."""
    assert reference.read_chunked(b"3\r\nabc\r\n0\r\n\r\nrest") == reference.Body("end", 13, b"abc")
    assert reference.read_chunked(b'3 ; a="b"\r\nabc\r\n0\r\nX: y\r\n\r\n').verdict == "end"
    assert reference.read_chunked(b"3\r\nab") == reference.Body("more", 5, b"ab")
    for bad in (b"3 \r\n", b"3\n", b"x", b"3\r\nabcd", b"0\r\n X: y\r\n", b"1" * 16, b"1;" + b"a" * 4096):
        assert reference.read_chunked(bad).verdict == "bad", bad
