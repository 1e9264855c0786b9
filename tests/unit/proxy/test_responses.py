"""Our own answers as bytes."""

import json

import pytest

from juggler.errors import BackendExited, QueueFull
from juggler.ids import EndpointId
from juggler.proxy.contract import LocalResponse, Route
from juggler.proxy.head import RequestHead, parse_request
from juggler.proxy.responses import error_response, local_response
from juggler.routing.apis import Api
from juggler.routing.traffic import TrafficClass


def request(fields: bytes = b"", target: bytes = b"/x/api/chat?y", method: bytes = b"GET") -> RequestHead:
    return parse_request(b"%b %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (method, target, fields))


def route(target: bytes = b"/api/chat?y", api: Api | None = None) -> Route:
    return Route(EndpointId("s/e"), "e", target, TrafficClass.WORK, api=api)


@pytest.mark.parametrize(
    ("head", "to", "key"),
    [
        (None, None, "message"),
        (request(), None, ""),
        (request(), route(b"/v1/messages?x"), "message"),
        (request(), route(), ""),
        (request(), route(api=Api.COMFYUI), "details"),
    ],
)
def test_shape_by_route(head: RequestHead | None, to: Route | None, key: str) -> None:
    """The backend's view of the path counts, and its type; without a route what the client sent."""
    error = json.loads(error_response(QueueFull("Full."), head, to).partition(b"\r\n\r\n")[2])["error"]
    assert key in error if key else error == "Full."


def test_forms() -> None:
    """A page for a browser, text for who prefers it, JSON for all others; a HEAD gets the head of the same."""
    error = QueueFull("Full.", hint="Wait.", endpoint="e", retry_after_s=3)
    page = error_response(error, request(b"Accept: text/html\r\n"), route())
    assert b"\r\nContent-Type: text/html; charset=utf-8\r\n" in page
    assert b"\r\nContent-Security-Policy: default-src 'none'; " in page
    text = error_response(error, request(b"Accept: text/plain\r\n"), route())
    assert text.endswith(b"\r\n\r\nFull.\nWait.\n")
    assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in text
    head = error_response(error, request(b"Accept: text/plain\r\n", method=b"HEAD"), route())
    assert head == text[: -len(b"Full.\nWait.\n")]
    plain = error_response(error, request(b"Accept: */*\r\n"), route())
    assert b"\r\nContent-Type: application/json\r\n" in plain
    for one in (page, text, plain):
        assert one.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nX-Juggler: error\r\n" in one
        assert one.count(b"\r\nCache-Control: no-store\r\n") == 1
        assert one.count(b"\r\nX-Content-Type-Options: nosniff\r\n") == 1
        assert b"\r\nRetry-After: 3\r\n" in one


def test_retry_hints() -> None:
    """A time to come back is rounded up; where no retry helps, that is said."""
    assert b"\r\nRetry-After: 2\r\n" in error_response(QueueFull("F", retry_after_s=1.1))
    final = error_response(BackendExited("gone"))
    assert b"\r\nx-should-retry: false\r\n" in final
    assert b"Retry-After" not in final


@pytest.mark.parametrize(
    ("seconds", "told", "header"),
    [(1.2665111359999628, 1.3, b"2"), (0.0, 1.0, b"1"), (0.97, 1.0, b"1"), (2, 2.0, b"2"), (1.1, 1.1, b"2")],
)
def test_retry_hints_agree(seconds: float, told: float, header: bytes) -> None:
    """Body and header say the same, in tenths and in whole seconds, and never "at once"."""
    head, _, body = error_response(QueueFull("F", retry_after_s=seconds)).partition(b"\r\n\r\n")
    assert json.loads(body)["juggler"]["retry_after_s"] == told
    assert b"\r\nRetry-After: %s" % header in head


@pytest.mark.parametrize("text", ['ä\n"quoted"', "\ud800"])
def test_any_text_fits(text: str) -> None:
    """Names the operator chose cannot break the answer."""
    head, _, body = error_response(QueueFull(text)).partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"


def test_local_response() -> None:
    """Own fields are kept, line ends in them are not."""
    answer = local_response(LocalResponse(200, b"x", "text/plain", (("A", "b\r\nC: d"),)), close=True)
    assert b"\r\nA: b  C: d\r\n" in answer
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nx")
    assert b"Content-Length" not in local_response(LocalResponse(204, b""))
