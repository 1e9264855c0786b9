"""Body trackers. Damaged streams, and what h11 makes of them: ``tests/fuzz/test_framing.py``."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.oracles import read_in_pieces
from tests.fuzz.strategies import cut, cuts

from juggler.proxy.framing import ChunkDecoder, Chunked, FramingError, Length, NoBody, UntilClose

_CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
_EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b c"', b";" + b"x" * 50])
_TRAILERS = st.sampled_from([b"", b"X-T: 1\r\n", b"A:\r\nB: c d\r\n"])


def _encoded(chunks: list[bytes], extension: bytes, trailer: bytes) -> bytes:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return body + b"0" + extension + b"\r\n" + trailer + b"\r\n"


@given(chunks=_CHUNKS, extension=_EXTENSIONS, trailer=_TRAILERS, places=cuts, rest=st.binary(max_size=20))
@settings(deadline=None, max_examples=300)
def test_valid_streams(chunks: list[bytes], extension: bytes, trailer: bytes, places: list[int], rest: bytes) -> None:
    """The end is found to the byte, and the payload is what was put in."""
    data = _encoded(chunks, extension, trailer)
    assert read_in_pieces(cut(data + rest, places)) == (len(data), b"".join(chunks))


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
    assert read_in_pieces([b"5 "]) == "more"
    assert read_in_pieces([b"5 \r"]) == "bad"
    assert read_in_pieces([b"5 \t;\r"]) == "more"


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
