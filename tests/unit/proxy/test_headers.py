"""Heads as they are sent on."""

import pytest

from juggler.proxy.head import NOTABLE, parse_request, parse_response
from juggler.proxy.headers import _REQUEST_HANDLED, Hop, ReturnHop, end_to_end_fields, request_head, response_head

_HOP = Hop(b"/t", b"127.0.0.1:9", b"10.0.0.1")


def _sent(fields: bytes, hop: Hop = _HOP) -> bytes:
    return request_head(parse_request(b"GET /x HTTP/1.1\r\nHost: front\r\n" + fields + b"\r\n"), hop)


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


def test_answer_fields() -> None:
    """Hop-by-hop fields go, equal lengths become one, everything else stays as it was."""
    answer = parse_response(
        b"HTTP/1.1 200 Yes\r\nConnection: close, X-Y\r\nX-Y: 1\r\nKeep-Alive: timeout=5\r\nContent-length: 2\r\n"
        b'Content-Length: 2\r\nETag: "e"\r\n\r\n'
    )
    sent = response_head(answer, ReturnHop(b"127.0.0.1:9"))
    assert sent == b'HTTP/1.1 200 Yes\r\nContent-length: 2\r\nETag: "e"\r\n\r\n'
    assert (answer.keep_alive, answer.keep_alive_timeout_s) == (False, 5)


@pytest.mark.parametrize(
    ("received", "sent"),
    [
        (b"", b"/vision"),
        (b"X-Forwarded-Prefix: /ai/\r\n", b"/ai/vision"),
        (b"X-Forwarded-Prefix: /a\r\nX-Forwarded-Prefix: /b\r\n", b"/a/b/vision"),
        (b"X-Forwarded-Prefix: //evil.example\r\n", b"/vision"),
        (b"X-Forwarded-Prefix: http://evil.example/\r\n", b"/vision"),
    ],
)
def test_prefixes_add_up(received: bytes, sent: bytes) -> None:
    """Each proxy that strips says so; what is no path is taken for nothing."""
    hop = Hop(b"/t", b"127.0.0.1:9", b"10.0.0.1", b"/vision")
    assert b"X-Forwarded-Prefix: " + sent + b"\r\n" in _sent(received, hop)


def test_forwarding_fields_without_a_proxy_in_front() -> None:
    """The client's address, the host it used and the plain scheme; no prefix where none was stripped."""
    sent = _sent(b"")
    assert b"X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Host: front\r\nX-Forwarded-Proto: http\r\n\r\n" in sent
    assert b"X-Forwarded-Prefix" not in sent


def test_addresses_go_back_under_all_prefixes() -> None:
    """Redirect and cookie of an answer get the stripped prefix, and before it what a proxy in front has stripped."""
    request = parse_request(b"GET /vision/ HTTP/1.1\r\nHost: h\r\nX-Forwarded-Prefix: /ai\r\n\r\n")
    answer = parse_response(
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"
    )
    sent = response_head(answer, ReturnHop(b"127.0.0.1:9", b"/vision", request_fields=request.fields))
    assert b"Location: /ai/vision/x\r\nSet-Cookie: a=b; Path=/ai/vision\r\n" in sent


def test_fields_worth_keeping() -> None:
    """What is kept of an answer is what it says, not how this one message was sent."""
    answer = parse_response(
        b"HTTP/1.1 200 OK\r\nDate: d\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n"
        b'AGE: 7\r\nAgency: x\r\nContent-Encoding: gzip\r\nETag: "e"\r\n\r\n'
    )
    kept = end_to_end_fields(answer, ReturnHop(b"127.0.0.1:9"))
    assert kept == b'Date: d\r\nAgency: x\r\nContent-Encoding: gzip\r\nETag: "e"\r\n'


def test_what_is_handled_is_looked_at() -> None:
    """A field that is not passed on as it came must be among those that every request is searched for."""
    assert _REQUEST_HANDLED <= NOTABLE


def test_listed_fields_that_nobody_looks_at_go_too() -> None:
    """Connection takes away whatever it names, but for what says where the message goes or ends."""
    sent = _sent(b"X-A: 1\r\nConnection: x-a, keep-alive, content-type\r\nX-B: 2\r\nContent-Type: t\r\nx-a: 3\r\n")
    assert b"x-a" not in sent.lower()
    assert b"X-B: 2\r\nContent-Type: t\r\n" in sent
