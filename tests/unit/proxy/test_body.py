"""What is kept of a request's body."""

import pytest

from juggler.proxy.body import RequestBody
from juggler.proxy.framing import FramingError
from juggler.proxy.head import parse_request


def _body(fields: bytes) -> RequestBody:
    return RequestBody(parse_request(b"POST / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n"))


@pytest.mark.parametrize("fields", [b"", b"Content-Length: 0\r\n"])
def test_no_body_is_complete(fields: bytes) -> None:
    """Nothing is waited for."""
    assert _body(fields).complete


def test_end_and_rest_are_told_apart() -> None:
    """Bytes behind the body belong to the next request."""
    body = _body(b"Content-Length: 3\r\n")
    assert (body.feed(b"ab"), body.complete) == (2, False)
    assert (body.feed(b"cGET"), body.complete, body.size) == (1, True, 3)


def test_let_go_is_for_good() -> None:
    """Once bytes are gone, keeping later ones would make a body with a hole."""
    body = _body(b"Content-Length: 9\r\n")
    body.keep(b"abc")
    assert body.kept == [b"abc"]
    body.let_go()
    body.keep(b"def")
    assert body.kept is None


def test_malformed_chunks_raise() -> None:
    """The caller refuses the request."""
    with pytest.raises(FramingError):
        _body(b"Transfer-Encoding: chunked\r\n").feed(b"zz\r\n")


def test_stalled_is_what_stops_while_it_is_wanted() -> None:
    """The time begins anew with each piece, and whenever nobody waits for it."""
    body = _body(b"Content-Length: 9\r\n")
    assert not body.stalled(100.0, 5.0, wanted=True)
    assert not body.stalled(104.0, 5.0, wanted=True)
    body.feed(b"a")
    assert not body.stalled(106.0, 5.0, wanted=True)
    assert not body.stalled(111.5, 5.0, wanted=False)
    assert not body.stalled(116.0, 5.0, wanted=True)
    assert body.stalled(116.5, 5.0, wanted=True)


def test_a_copy_stays_when_the_bytes_are_let_go() -> None:
    """All of it, from the first byte, and not what follows; whole only once it is whole."""
    body = _body(b"Content-Length: 5\r\n")
    body.feed(b"ab")
    body.keep(b"ab")
    body.keep_copy()
    body.let_go()
    assert body.whole is None
    told = []
    body.on_complete = lambda: told.append(body.complete)
    body.feed(b"c")
    assert not told
    body.feed(b"deGET")
    assert told == [True]
    assert body.whole == b"abcde"


def test_what_was_let_go_is_not_whole() -> None:
    """Bytes that are gone are not mistaken for none."""
    body = _body(b"Content-Length: 2\r\n")
    body.feed(b"ab")
    body.keep(b"ab")
    assert body.whole == b"ab"
    body.let_go()
    assert body.whole is None
    assert _body(b"").whole == b""
