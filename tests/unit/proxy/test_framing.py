"""Body trackers: the same verdict however a stream is cut, and the one h11 gives."""

import itertools

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.proxy.framing import ChunkDecoder, Chunked, FramingError, Length, NoBody, UntilClose

_CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
_EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b c"', b";" + b"x" * 50])
_TRAILERS = st.sampled_from([b"", b"X-T: 1\r\n", b"A:\r\nB: c d\r\n"])
_CUTS = st.lists(st.integers(0, 400), max_size=12)


def _encoded(chunks: list[bytes], extension: bytes, trailer: bytes) -> bytes:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return body + b"0" + extension + b"\r\n" + trailer + b"\r\n"


def _verdict(data: bytes, cuts: list[int]) -> tuple[object, bytes]:
    """Offset of the end in the whole stream, -1 or "error"; and the payload up to there."""
    decoder = ChunkDecoder()
    places = [0, *sorted(cut for cut in set(cuts) if 0 < cut < len(data)), len(data)]
    try:
        for start, stop in itertools.pairwise(places):
            end = decoder.feed(data[start:stop])
            if end >= 0:
                return start + end, decoder.take_payload()
    except FramingError:
        return "error", b""
    return -1, decoder.take_payload()


def _h11_payload(data: bytes) -> tuple[bytes, bytes] | None:
    """Payload and what follows the body as h11 reads it; None if it refuses or waits."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    payload = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                payload += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return payload, connection.trailing_data[0]
            elif not isinstance(event, h11.Request):
                return None
    except h11.RemoteProtocolError:
        return None


@given(chunks=_CHUNKS, extension=_EXTENSIONS, trailer=_TRAILERS, cuts=_CUTS, rest=st.binary(max_size=20))
@settings(deadline=None, max_examples=300)
def test_valid_streams(chunks: list[bytes], extension: bytes, trailer: bytes, cuts: list[int], rest: bytes) -> None:
    """The end is found to the byte, and the payload is what was put in."""
    data = _encoded(chunks, extension, trailer)
    assert _verdict(data + rest, cuts) == (len(data), b"".join(chunks))


@given(
    chunks=_CHUNKS,
    trailer=_TRAILERS,
    cuts=_CUTS,
    edits=st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 2), st.sampled_from([*b"\r\n0f;:xg-+\0"])), min_size=1, max_size=3
    ),
)
@settings(deadline=None, max_examples=500)
def test_damaged_streams(
    chunks: list[bytes], trailer: bytes, cuts: list[int], edits: list[tuple[int, int, int]]
) -> None:
    """The verdict does not depend on the cuts, and what we accept h11 reads the same."""
    raw = bytearray(_encoded(chunks, b"", trailer))
    for position, removed, inserted in edits:
        raw[position : position + removed] = bytes([inserted])
    data = bytes(raw)
    whole, payload = _verdict(data, [])
    end, in_pieces = _verdict(data, cuts)
    bytewise, _ = _verdict(data, list(range(len(data))))
    assert end == whole == bytewise
    if isinstance(whole, int) and whole >= 0:
        assert in_pieces == payload
        assert _h11_payload(data) == (payload, data[whole:])


def test_collecting_can_stop() -> None:
    """A decoder whose payload nobody wants any more keeps none, and still finds the end."""
    decoder = ChunkDecoder()
    assert decoder.feed(b"3\r\nabc\r\n") == -1
    assert decoder.take_payload() == b"abc"
    decoder.stop_collecting()
    assert decoder.feed(b"3\r\ndef\r\n0\r\n\r\nrest") == 13
    assert decoder.take_payload() == b""


def test_blanks_need_an_extension() -> None:
    """A blank behind a chunk's size belongs to an extension: a line end is refused with its first byte, not later."""
    assert _verdict(b"5 ", []) == (-1, b"")
    assert _verdict(b"5 \r", []) == ("error", b"")
    assert _verdict(b"5 \t;\r", []) == (-1, b"")


def test_simple_trackers() -> None:
    """Lengths count down, no body ends at once, an open end never."""
    length = Length(5)
    assert [length.feed(b"abc"), length.feed(b"defg")] == [-1, 2]
    assert NoBody().feed(b"x") == 0
    assert UntilClose().feed(b"x") == -1


@pytest.mark.parametrize("line", [b"1;" + b"a" * 5000 + b"\r\n", b"0\r\nX: " + b"a" * 5000 + b"\r\n\r\n"])
@pytest.mark.parametrize("step", [1, 700, 100_000])
def test_lines_are_bounded(line: bytes, step: int) -> None:
    """A chunk line or trailer cannot grow for ever, whole or in pieces."""
    tracker = Chunked()

    def feed_all() -> None:
        for start in range(0, len(line), step):
            tracker.feed(line[start : start + step])

    with pytest.raises(FramingError):
        feed_all()
