"""Our own answers: malformed requests, refusals, broken backends, slow clients."""

import asyncio
import json
import logging
from dataclasses import replace

import pytest

from juggler.errors import BlockedRoute, QueueFull, StartFailed
from juggler.proxy.contract import LocalResponse
from juggler.proxy.limits import Limits
from tests.ports import free_port
from tests.protocol.support import FAST, OK, Peer, header, replies, rig, until

H = b"Host: h\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\n"

MALFORMED = {
    "length and chunks": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "length +3": (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    "length list": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "length hex": (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "length empty": (POST + b"Content-Length:\r\n\r\n", 400),
    "coding xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "coding identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 501),
    "coding gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "coding twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
    "blank before colon": (POST + b"Content-Length : 3\r\n\r\nabc", 400),
    "chunks in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "folded field": (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400),
    "folded coding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: h\n\n", 400),
    "bare LF in field": (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\nY: b\r\n\r\n", 400),
    "bare CR": (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", 400),
    "NUL": (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", 400),
    "bad name": (b"GET / HTTP/1.1\r\nHost: h\r\nX(y): a\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n", 400),
    "no Host": (b"GET / HTTP/1.1\r\nX: y\r\n\r\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "control in target": (b"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "blank in target": (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "relative target": (b"GET a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
    "unknown expectation": (POST + b"Expect: cake\r\nContent-Length: 1\r\n\r\na", 417),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "long line": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
    "long head": (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
}

BAD_CHUNKS = {
    "0x size": b"0x2\r\nab\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n",
    "negative": b"-1\r\n",
    "too long": b"1" * 17 + b"\r\n",
    "LF only": b"2\nab\n0\n\n",
    "bad end": b"2\r\nabc\r\n0\r\n\r\n",
    "LF in extension": b"2;a\nb\r\nab\r\n0\r\n\r\n",
}


@pytest.mark.parametrize(("request_bytes", "status"), MALFORMED.values(), ids=list(MALFORMED))
async def test_malformed_request_is_refused(request_bytes: bytes, status: int) -> None:
    """What two parsers could read differently never reaches a backend, and ends the connection."""
    async with rig() as setup:
        peer = await setup.ask(request_bytes)
        got, head, body = await peer.answer()
        assert got == status
        assert (header(head, b"x-juggler"), header(head, b"connection")) == (b"error", b"close")
        assert json.loads(body)["error"]["message"]
        assert await peer.to_end() == b""
        assert setup.upstream.accepted == 0
        assert not setup.gateway.asked


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=list(BAD_CHUNKS))
@pytest.mark.parametrize("held", [False, True])
async def test_malformed_chunks_are_refused(body: bytes, held: bool) -> None:
    """A bad chunked body is a 400 whether it comes glued to its head or while the request is held or forwarded."""

    async def silent(peer: Peer) -> None:
        await peer.gone()

    async with rig(silent) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        await until(lambda: bool(setup.gateway.asked))
        if not held:
            setup.gateway.hold.set()
            await until(lambda: setup.upstream.accepted == 1)
        peer.send(body)
        assert (await peer.answer())[0] == 400
        assert await peer.to_end() == b""
        if not held:
            assert (await setup.result()).error == "bad_request"


async def test_refusal_of_the_gateway_has_our_shape() -> None:
    """A temporary refusal says when to come back, and the connection goes on."""
    async with rig() as setup:
        setup.gateway.refusal = QueueFull("Full.", endpoint="e", phase="queued", retry_after_s=2.2)
        peer = await setup.ask(POST + b"Content-Length: 2\r\n\r\nab")
        status, head, body = await peer.answer()
        assert (status, header(head, b"retry-after"), header(head, b"x-should-retry")) == (429, b"3", None)
        answer = json.loads(body)
        assert answer["error"] == {"message": "Full.", "type": "rate_limit_error", "code": "queue_full"}
        assert (answer["juggler"]["endpoint"], answer["juggler"]["phase"]) == ("e", "queued")
        setup.gateway.refusal = None
        peer.send(GET)
        await peer.exactly(OK)


async def test_permanent_failure_says_not_to_retry() -> None:
    """A start that failed is told with exit status and last lines, and clients are kept from trying thrice."""
    async with rig() as setup:
        setup.gateway.refusal = StartFailed("No.", endpoint="e", exit_status=-9, log_tail=["boom"])
        peer = await setup.ask(GET)
        status, head, body = await peer.answer()
        assert (status, header(head, b"x-should-retry")) == (503, b"false")
        assert json.loads(body)["juggler"]["log_tail"] == ["boom"]
        assert json.loads(body)["juggler"]["exit_status"] == -9


async def test_routing_error_and_head_request() -> None:
    """An error answer to HEAD has a length and no body."""
    async with rig() as setup:
        setup.gateway.routing_error = BlockedRoute("Closed.")
        peer = await setup.ask(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" + GET)
        head = await peer.head()
        assert head.startswith(b"HTTP/1.1 403 ")
        assert int(header(head, b"content-length") or 0) > 0
        assert (await peer.answer())[0] == 403


async def test_unexpected_exception_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    """A bug behind the gateway costs one request, not the connection."""
    async with rig() as setup:
        setup.gateway.refusal = ZeroDivisionError("oops")
        with caplog.at_level(logging.ERROR, "juggler.proxy"):
            peer = await setup.ask(GET)
            status, _, body = await peer.answer()
        assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
        assert "oops" not in body.decode()
        assert any(record.exc_info for record in caplog.records)
        setup.gateway.refusal = None
        peer.send(GET)
        await peer.exactly(OK)


async def test_local_response_from_acquire() -> None:
    """An answer made here keeps the connection."""
    async with rig() as setup:
        setup.gateway.local = LocalResponse(200, b"{}", headers=(("X-A", "b"),))
        peer = await setup.ask(GET + GET)
        for _ in range(2):
            status, head, body = await peer.answer()
            assert (status, header(head, b"x-a"), body) == (200, b"b", b"{}")


BROKEN = {
    "nothing": b"",
    "garbage": b"SSH-2.0-x\r\n\r\n",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000,
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=list(BROKEN))
async def test_broken_answer_is_a_bad_gateway(answer: bytes) -> None:
    """A backend that closes early or does not speak HTTP is a 502; the client's connection goes on."""
    async with rig(replies(answer)) as setup:
        peer = await setup.ask(GET)
        status, _, body = await peer.answer()
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_closed")
        result = await setup.result()
        assert (result.error, result.status) == ("upstream_closed", None)
        setup.upstream.handler = replies(OK)
        peer.send(GET)
        await peer.exactly(OK)


SLOPPY = {
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "bad name": b"HTTP/1.1 200 OK\r\nX y: a\r\nContent-Length: 2\r\n\r\nok",
    "equal lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("answer", SLOPPY.values(), ids=list(SLOPPY))
async def test_sloppy_backend_is_tolerated(answer: bytes) -> None:
    """What is not about framing is repaired, since the operator cannot repair the backend."""
    async with rig(replies(answer)) as setup:
        peer = await setup.ask(GET)
        status, head, body = await peer.answer()
        assert (status, body) == (200, b"ok")
        assert b"X y" not in head


TRUNCATED = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
}


@pytest.mark.parametrize("name", TRUNCATED)
async def test_truncated_answer_never_looks_whole(name: str) -> None:
    """Once the head is out, the client's connection is cut: the stream does not end as if it were complete."""
    go_on = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(TRUNCATED[name])
        await go_on.wait()
        if name == "bad chunk":
            peer.send(b"zz\r\n")
            await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(TRUNCATED[name])
        go_on.set()
        await peer.gone()
        result = await setup.result()
        assert (result.status, result.error, result.client_gone) == (200, "upstream_closed", False)


async def test_refused_connection_is_a_bad_gateway() -> None:
    """Nobody at the backend's port is told as such."""
    async with rig() as setup:
        setup.pool.port = free_port()
        peer = await setup.ask(GET)
        status, _, body = await peer.answer()
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_connect_failed")
        assert (await setup.result()).error == "upstream_connect_failed"


async def test_slow_head_is_told_so() -> None:
    """A head that does not arrive in time is a 408, however often single bytes come."""
    async with rig(limits=Limits(sweep_interval_s=0.02, head_timeout_s=0.1)) as setup:
        peer = await setup.ask(b"GET / HT")
        assert (await peer.answer())[0] == 408
        assert await peer.to_end() == b""


async def test_idle_connection_is_closed() -> None:
    """A connection without a request goes after the idle time, silently."""
    async with rig() as setup:
        peer = await setup.ask(GET)
        await peer.exactly(OK)
        setup.listener.change(replace(FAST, idle_timeout_s=0.1))
        assert await peer.to_end() == b""


async def test_one_connection_too_many_is_refused() -> None:
    """The bound on connections is told, and room comes back."""
    async with rig(limits=Limits(sweep_interval_s=0.02, connections=1)) as setup:
        setup.gateway.hold = asyncio.Event()  # who has a request in work makes room for nobody
        first = await setup.ask(GET)
        await until(lambda: bool(setup.gateway.asked))
        second = await setup.connect()
        status, head, _ = await second.answer()
        assert (status, header(head, b"retry-after")) == (503, b"1")
        setup.gateway.hold.set()
        await first.exactly(OK)
        second.writer.close()
        first.writer.close()
        await until(lambda: not setup.listener.connections)
        await (await setup.ask(GET)).exactly(OK)
