"""What passes through unchanged, and what is changed on purpose."""

import asyncio
from dataclasses import replace

import pytest

from juggler.proxy.limits import Limits
from tests.protocol.support import FAST, OK, Peer, header, replies, rig

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


async def test_request_head_passes_as_received() -> None:
    """Order, case, repetition and 8-bit bytes of the client's fields reach the backend; hop-by-hop ones do not."""
    seen: list[bytes] = []
    async with rig(replies(OK, requests=seen)) as setup:
        peer = await setup.ask(
            b'GET /a%2Fb//../c%zz?q={"x"}|[1]\xc3\xa9 HTTP/1.1\r\nhOsT: Front:80\r\nX-B: 1\r\nx-a: 2\r\nX-B: \xff3\r\n'
            b"Connection: keep-alive, X-Drop\r\nX-Drop: 1\r\nKeep-Alive: 5\r\nAccept-Encoding: gzip\r\n\r\n"
        )
        assert (await peer.answer())[2] == b"ok"
        authority = setup.pool.authority
    assert seen == [
        b'GET /a%2Fb//../c%zz?q={"x"}|[1]\xc3\xa9 HTTP/1.1\r\nhOsT: ' + authority + b"\r\nX-B: 1\r\nx-a: 2\r\n"
        b"X-B: \xff3\r\nAccept-Encoding: gzip\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: Front:80\r\n"
        b"X-Forwarded-Proto: http\r\n\r\n"
    ]


@pytest.mark.parametrize("method", [b"FOO", b"patch", b"PROPFIND", b"DELETE"])
async def test_any_method_passes(method: bytes) -> None:
    """Methods are the backend's business."""
    seen: list[bytes] = []
    async with rig(replies(OK, requests=seen)) as setup:
        peer = await setup.ask(method + b" / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await peer.answer())[0] == 200
    assert seen[0].startswith(method + b" / HTTP/1.1\r\n")


ANSWERS = [
    pytest.param(
        b"HTTP/1.1 200 Fine By Me\r\nx-a: 1\r\nX-A: 2\r\nServer: s\r\nContent-Length: 3\r\n\r\nabc", id="length"
    ),
    pytest.param(
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3;e="q"\r\nabc\r\n0\r\nX-T: 1\r\n\r\n',
        id="chunked-trailer",
    ),
    pytest.param(b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", id="204"),
    pytest.param(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", id="304"),
    pytest.param(b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", id="empty"),
    pytest.param(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK,
        id="1xx",
    ),
]


@pytest.mark.parametrize("answer", ANSWERS)
async def test_answer_passes_as_received(answer: bytes) -> None:
    """Status, reason, fields, framing, trailers and interim answers are untouched, and the connections stay usable."""
    async with rig(replies(answer, OK)) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(answer)
        peer.send(GET)
        await peer.exactly(OK)
        assert setup.upstream.accepted == 1
        assert (await setup.result()).client_gone is False


async def test_head_answer_has_no_body_whatever_its_length_says() -> None:
    """The answer to HEAD ends with its head."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"
    async with rig(replies(answer, OK)) as setup:
        peer = await setup.ask(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.exactly(answer)
        peer.send(GET)
        await peer.exactly(OK)


async def test_answer_until_close_ends_the_client_connection() -> None:
    """Without length or chunks the end of the connection is the end of the body, on both sides."""
    async with rig(replies(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nabc")) as setup:
        peer = await setup.ask(GET)
        assert await peer.to_end() == b"HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\nabc"
        assert (await setup.result()).error is None


async def test_events_are_passed_on_as_they_come() -> None:
    """Nothing of a stream is kept back."""
    step = asyncio.Event()

    async def stream(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            peer.send(b"6\r\ndata:x\r\n")
            await step.wait()
            step.clear()
        peer.send(b"0\r\n\r\n")

    async with rig(stream) as setup:
        peer = await setup.ask(GET)
        assert header(await peer.head(), b"content-type") == b"text/event-stream"
        for _ in range(3):
            await peer.exactly(b"6\r\ndata:x\r\n")
            step.set()
        await peer.exactly(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 5", b"hello"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\nX-T: v\r\n\r\n"),
    ],
)
async def test_request_body_passes_byte_by_byte(framing: bytes, body: bytes) -> None:
    """However the client cuts its request, the backend gets the same bytes, and the next request begins after them."""
    got: list[bytes] = []

    async def backend(peer: Peer) -> None:
        for _ in range(2):
            await peer.head()
            got.append(await peer.body(len(body)))
            peer.send(OK)

    request = b"POST / HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n" + body
    async with rig(backend) as setup:
        peer = await setup.connect()
        for byte in request:
            peer.send(bytes([byte]))
            await asyncio.sleep(0)
        await peer.exactly(OK)
        peer.send(request)
        await peer.exactly(OK)
    assert got == [body, body]


async def test_empty_lines_before_a_request_are_skipped() -> None:
    """However many, and however they are cut: old clients send one behind a body (RFC 9112 2.2)."""
    async with rig() as setup:
        peer = await setup.ask(b"\r\n\r\n" + GET)
        await peer.exactly(OK)
        for piece in (b"\r\n", b"\r", b"\n\r\n" + GET):
            peer.send(piece)
            await asyncio.sleep(0.005)
        await peer.exactly(OK)
        peer.send(b"\r\n" * 3 + b"\n" + GET)
        assert (await peer.answer())[0] == 400


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Requests glued together, bodies included, are taken one after the other."""
    seen: list[bytes] = []

    async def backend(peer: Peer) -> None:
        while True:
            head = await peer.head()
            seen.append(head.split(b" ")[1])
            await peer.body(int(header(head, b"content-length") or b"0"))
            path = seen[-1]
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    request = b"".join(b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" % n for n in range(20))
    async with rig(backend) as setup:
        peer = await setup.ask(request)
        for n in range(20):
            assert (await peer.answer())[2] == b"/%d" % n
    assert seen == [b"/%d" % n for n in range(20)]


async def test_http_1_0_client_gets_plain_bytes() -> None:
    """A client that knows no chunks gets the payload, and the end of the connection as its end."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with rig(replies(b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer)) as setup:
        peer = await setup.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert await peer.to_end() == b"HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\nabcde"


async def test_http_1_0_client_may_keep_its_connection() -> None:
    """HTTP/1.0 with keep-alive is kept when the length is known."""
    async with rig(replies(OK, OK)) as setup:
        peer = await setup.connect()
        for _ in range(2):
            peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            await peer.exactly(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok")


async def test_connection_close_is_honoured_and_announced() -> None:
    """The client's wish to close ends its connection, not the backend's."""
    async with rig() as setup:
        for _ in range(2):
            peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert await peer.to_end() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        assert setup.upstream.accepted == 1


async def test_expect_continue_reaches_the_backend_only_with_a_lease() -> None:
    """No 100 goes out while the request is held; then it is the backend's own."""

    async def backend(peer: Peer) -> None:
        assert header(await peer.head(), b"expect") == b"100-continue"
        peer.send(b"HTTP/1.1 100 Go On\r\n\r\n")
        assert await peer.body(3) == b"abc"
        peer.send(OK)

    async with rig(backend, limits=replace(FAST, expect_timeout_s=3600.0)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await peer.reader.read(1)
        setup.gateway.hold.set()
        await peer.exactly(b"HTTP/1.1 100 Go On\r\n\r\n")
        peer.send(b"abc")
        await peer.exactly(OK)


async def test_expect_continue_is_answered_for_a_backend_that_ignores_it() -> None:
    """After a silence the proxy asks for the body itself, once."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        assert await peer.body(3) == b"abc"
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    async with rig(backend, limits=Limits(sweep_interval_s=0.02, expect_timeout_s=0.05)) as setup:
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        await peer.exactly(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.send(b"abc")
        await peer.exactly(OK)


async def test_refusal_instead_of_continue_is_relayed() -> None:
    """A final answer to an expectation reaches the client, whose connection then ends."""
    refusal = replies(b"HTTP/1.1 413 Too Big\r\nContent-Length: 0\r\n\r\n")
    async with rig(refusal, limits=replace(FAST, expect_timeout_s=3600.0)) as setup:
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert (await peer.to_end()).startswith(b"HTTP/1.1 413 Too Big\r\n")


async def test_early_answer_during_upload_reaches_the_client() -> None:
    """A backend that refuses a big upload in the middle is heard, and the upload does not go on for ever."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        await peer.body(1000)
        peer.send(b"HTTP/1.1 413 Too Big\r\nContent-Length: 3\r\n\r\nbig")
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 100_000)
        status, head, body = await peer.answer()
        assert (status, header(head, b"connection"), body) == (413, b"close", b"big")
        result = await setup.result()
        assert (result.status, result.error) == (413, None)


async def test_upgrade_becomes_a_raw_tunnel_with_glued_bytes() -> None:
    """After 101 bytes go both ways unseen, also those that came glued to either head; ends are passed on."""

    async def backend(peer: Peer) -> None:
        head = await peer.head()
        assert (header(head, b"upgrade"), header(head, b"connection")) == (b"websocket", b"Upgrade")
        assert header(head, b"sec-websocket-extensions") == b"permessage-deflate"
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: y\r\n\r\nhello")
        assert await peer.body(5) == b"\x00\xff\r\n\r"
        peer.send(b"bye")
        assert await peer.to_end() == b""

    async with rig(backend) as setup:
        peer = await setup.ask(
            b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n\x00\xff\r\n\r"
        )
        head = await peer.head()
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n")
        await peer.exactly(b"hellobye")
        peer.writer.write_eof()
        assert await peer.to_end() == b""
        result = await setup.result()
        assert (result.status, result.error, result.client_gone) == (101, None, False)


async def test_refused_upgrade_is_an_ordinary_answer() -> None:
    """A backend that does not switch leaves the connection as it was."""
    async with rig(replies(OK, OK)) as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + GET)
        await peer.exactly(OK + OK)


async def test_unasked_switch_is_a_bad_gateway() -> None:
    """101 without a wish to upgrade is not relayed."""
    async with rig(replies(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")) as setup:
        peer = await setup.ask(GET)
        assert (await peer.answer())[0] == 502


async def test_h2c_offer_on_a_post_is_dropped() -> None:
    """Java clients offer h2c on every request; the request is forwarded without the offer, with its body."""
    got: list[bytes] = []

    async def backend(peer: Peer) -> None:
        got.append(await peer.head())
        got.append(await peer.body(2))
        peer.send(OK)

    async with rig(backend) as setup:
        peer = await setup.ask(
            b"POST / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 2\r\nHost: h\r\n"
            b"HTTP2-Settings: AAE\r\nUpgrade: h2c\r\n\r\nhi"
        )
        await peer.exactly(OK)
    assert header(got[0], b"upgrade") is None
    assert header(got[0], b"http2-settings") is None
    assert got[1] == b"hi"


async def test_addresses_are_mapped_back_under_a_stripped_prefix() -> None:
    """Redirects and cookie paths of a backend that knows nothing of its prefix stay under it."""
    seen: list[bytes] = []

    async def backend(peer: Peer) -> None:
        head = await peer.head()
        seen.append(head)
        host = header(head, b"host") or b""
        peer.send(
            b"HTTP/1.1 302 Found\r\nLocation: http://" + host + b"/x?y\r\nSet-Cookie: a=b; Path=/; HttpOnly\r\n"
            b"Content-Length: 0\r\n\r\n"
        )

    async with rig(backend, prefix=b"/vision") as setup:
        peer = await setup.ask(b"GET /vision/a HTTP/1.1\r\nHost: front:1\r\nOrigin: http://front:1\r\n\r\n")
        _, head, _ = await peer.answer()
    assert header(head, b"location") == b"/vision/x?y"
    assert header(head, b"set-cookie") == b"a=b; Path=/vision; HttpOnly"
    assert seen[0].startswith(b"GET /a HTTP/1.1\r\n")
    assert header(seen[0], b"origin") is None
    assert header(seen[0], b"x-forwarded-prefix") == b"/vision"
