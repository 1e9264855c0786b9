"""Heads as they are sent on."""

import pytest

from juggler.proxy.head import parse_request, parse_response
from juggler.proxy.headers import Hop, ReturnHop, is_same_origin, map_location, request_head, response_head

_HOP = Hop(b"/t", b"127.0.0.1:9", b"10.0.0.1")


def _sent(fields: bytes, hop: Hop = _HOP) -> bytes:
    return request_head(parse_request(b"GET /x HTTP/1.1\r\nHost: front\r\n" + fields + b"\r\n"), hop)


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        (b"http://a:80", b"a", True),
        (b"https://A", b"a:443", True),
        (b"http://a:8080", b"a:8080", True),
        (b"http://b", b"a", False),
        (b"null", b"a", False),
        (b"http://a/x", b"a", False),
        (b"http://a", None, False),
    ],
)
def test_same_origin(origin: bytes, host: bytes | None, same: bool) -> None:
    """Ports that are the scheme's own do not matter, letters' case neither."""
    assert is_same_origin(origin, host) is same


def test_foreign_origin_stays() -> None:
    """The backend's own policy against foreign pages keeps working."""
    assert b"Origin: http://evil\r\n" in _sent(b"Origin: http://evil\r\n")
    assert b"Origin" not in _sent(b"Origin: http://front\r\n")


def test_forwarding_fields_of_a_proxy_in_front_are_continued() -> None:
    """Addresses are appended; the host and scheme the user sees are kept."""
    sent = _sent(b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: example.org\r\n")
    assert b"X-Forwarded-For: 1.2.3.4, 10.0.0.1\r\n" in sent
    assert b"X-Forwarded-Proto: https\r\n" in sent
    assert b"X-Forwarded-Host: example.org\r\n" in sent
    assert b"X-Forwarded-Host: front" not in sent


def test_connection_cannot_take_framing_away() -> None:
    """Naming Content-Length or Host in Connection does not remove them (that would smuggle)."""
    sent = _sent(b"Connection: content-length, host, x-y\r\nContent-Length: 0\r\nX-Y: 1\r\n")
    assert b"Content-Length: 0\r\n" in sent
    assert b"Host: 127.0.0.1:9\r\n" in sent
    assert b"X-Y" not in sent


@pytest.mark.parametrize(
    ("value", "mapped"),
    [
        (b"/a?b", b"/p/a?b"),
        (b"http://127.0.0.1:9/a", b"/p/a"),
        (b"http://127.0.0.1:9", b"/p/"),
        (b"http://other/a", b"http://other/a"),
        (b"//other/a", b"//other/a"),
        (b"a/b", b"a/b"),
        (b"/p/a", b"/p/a"),
        (b"/pa", b"/p/pa"),
    ],
)
def test_locations(value: bytes, mapped: bytes) -> None:
    """Only what points at the backend itself is mapped."""
    assert map_location(value, b"127.0.0.1:9", b"/p") == mapped


def test_answer_fields() -> None:
    """Hop-by-hop fields go, equal lengths become one, everything else stays as it was."""
    answer = parse_response(
        b"HTTP/1.1 200 Yes\r\nConnection: close, X-Y\r\nX-Y: 1\r\nKeep-Alive: timeout=5\r\nContent-length: 2\r\n"
        b'Content-Length: 2\r\nETag: "e"\r\n\r\n'
    )
    sent = response_head(answer, ReturnHop(b"127.0.0.1:9"))
    assert sent == b'HTTP/1.1 200 Yes\r\nContent-length: 2\r\nETag: "e"\r\n\r\n'
    assert (answer.keep_alive, answer.keep_alive_timeout_s) == (False, 5)
