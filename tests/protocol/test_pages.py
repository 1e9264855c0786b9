"""Browsers, programs and people at a terminal: each gets errors and waits in a form that it can use."""

import json

import pytest

from juggler.errors import NotLoaded, RoutingError, StartFailed
from juggler.proxy.page import waiting_page
from tests.protocol.support import OK, header, rig

BROWSER = b"GET /ui HTTP/1.1\r\nHost: h\r\nAccept: text/html,application/xhtml+xml,*/*;q=0.8\r\n"
NAVIGATES = b"Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"
FAILED = StartFailed("'e' ended <b>", endpoint="e", hint="mind the gap", log_tail=["<i>last</i>"], exit_status=2)


async def test_a_page_of_a_wait_and_then_the_real_one() -> None:
    """On one connection: ours is complete, and the next question gets the backend's."""
    async with rig() as setup:
        setup.gateway.local = waiting_page("e", "", 3.0, 1.5)
        peer = await setup.ask(BROWSER + NAVIGATES + b"\r\n")
        status, head, body = await peer.answer()
        assert (status, header(head, b"retry-after"), header(head, b"x-juggler")) == (503, b"3", b"waiting")
        assert b'http-equiv="refresh"' in body
        setup.gateway.local = None
        peer.send(BROWSER + NAVIGATES + b"\r\n")
        await peer.exactly(OK)


@pytest.mark.parametrize("fields", [b"", NAVIGATES])
async def test_a_failed_start_is_shown(fields: bytes) -> None:
    """With hint and last lines, as text; asking again is up to the person."""
    async with rig() as setup:
        setup.gateway.refusal = FAILED
        peer = await setup.ask(BROWSER + fields + b"\r\n")
        status, head, body = await peer.answer()
        assert (status, header(head, b"content-type")) == (503, b"text/html; charset=utf-8")
        assert header(head, b"cache-control") == b"no-store"
        assert (header(head, b"content-security-policy") or b"").startswith(b"default-src 'none'; ")
        for shown in (b"ended &lt;b&gt;", b"Mind the gap.", b"&lt;i&gt;last&lt;/i&gt;", b"exit status 2"):
            assert shown in body
        assert b"refresh" not in body


@pytest.mark.parametrize(
    "request_bytes",
    [
        BROWSER + b"Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n\r\n",
        b"GET /ui HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /ui HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
        BROWSER.replace(b"GET", b"POST") + b"Content-Length: 0\r\n\r\n",
        BROWSER + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
async def test_nobody_else_gets_a_page(request_bytes: bytes) -> None:
    """Scripts, tools, forms and sockets."""
    async with rig() as setup:
        setup.gateway.refusal = FAILED
        peer = await setup.ask(request_bytes)
        status, head, body = await peer.answer()
        assert status == 503
        if b"text/html" in request_bytes:
            assert header(head, b"content-type") == b"text/plain; charset=utf-8"
            assert body == b"'e' ended <b>\nmind the gap\n\nIts last output:\n  <i>last</i>\n"
        else:
            assert json.loads(body)["juggler"]["exit_status"] == 2


async def test_shape_of_an_error_before_and_behind_the_routing() -> None:
    """Without a route the client's own path tells, below any prefix; with one the backend's view."""
    async with rig(prefix=b"/img") as setup:
        setup.gateway.routing_error = RoutingError("No.")
        peer = await setup.ask(b"GET /img/sdapi/v1/options HTTP/1.1\r\nHost: h\r\n\r\n")
        assert json.loads((await peer.answer())[2])["detail"] == "No."
        setup.gateway.routing_error = None
        setup.gateway.refusal = NotLoaded("Not loaded.", endpoint="e")
        for target, key in ((b"/img/prompt", "node_errors"), (b"/img/api/v1/model", "detail"), (b"/img/v1/x", "error")):
            peer.send(b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" % target)
            assert key in json.loads((await peer.answer())[2])
