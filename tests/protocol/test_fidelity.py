"""HTTP/1.1 to the byte: what passes, what is taken out for this hop, and where a message ends. See docs/proxy.md.

Together with ``test_relay``, which has the common cases; here are the odd ones.
"""

import asyncio
import socket
import struct
from dataclasses import replace

import pytest

from juggler.errors import QueueFull
from juggler.ids import EndpointId
from juggler.proxy import exchange
from juggler.proxy.contract import LocalResponse, Route
from juggler.routing.table import Entry, RoutingTable
from juggler.routing.traffic import TrafficTable
from tests.protocol.support import FAST, OK, Peer, header, leave_unread, replies, rig, until
from tests.protocol.waiting import request_of

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\n"

# Targets

TARGETS = [
    b"/",
    b"/a%2Fb%2fc",
    b"/%2e%2e/%2E%2E/etc",
    b"/a/./b/../c",
    b"//double//slash//",
    b"/%zz%%25%",
    b"/a;b=c;d/e,f",
    b"/~user/!$&'()*+=:@",
    b'/"<>[]{}|\\^`',
    b"/\xc3\xa9\xff\x80",
    b"/%C3%A9",
    b"/?",
    b"/??a=1&&b=&=c",
    b"/a?q=http://x/y?z#frag",
    b"/a#frag?not-query",
    b"/?q=%20+%2B",
    b"/" + b"a" * 8000 + b"?" + b"b" * 8000,
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: repr(target[:24]))
@pytest.mark.parametrize("prefix", [b"", b"/vision"], ids=["plain", "stripped"])
async def test_targets_pass_unchanged(target: bytes, prefix: bytes) -> None:
    """Nothing is decoded, normalised or encoded; of a stripped prefix exactly its bytes are gone."""
    seen: list[bytes] = []
    async with rig(replies(OK, requests=seen), prefix=prefix) as setup:
        peer = await setup.ask(b"GET " + prefix + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.exactly(OK)
    assert seen[0].split(b"\r\n")[0] == b"GET " + target + b" HTTP/1.1"


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        (b"GET http://other:81/a%2Fb?q", b"GET /a%2Fb?q HTTP/1.1"),
        (b"GET HTTP://other", b"GET / HTTP/1.1"),
        (b"GET https://other?q=1", b"GET /?q=1 HTTP/1.1"),
        (b"OPTIONS *", b"OPTIONS * HTTP/1.1"),
        (b"OPTIONS http://other", b"OPTIONS / HTTP/1.1"),
    ],
)
async def test_other_forms_of_a_target(line: bytes, sent: bytes) -> None:
    """The absolute form is put into the origin form, and its host counts instead of Host (RFC 9112 3.2.2)."""
    table = RoutingTable("s", [Entry(EndpointId("s/e"), "e", "", False, TrafficTable())])
    seen: list[bytes] = []
    async with rig(replies(OK, requests=seen)) as setup:

        def route(method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
            return table.match(method, target)

        setup.gateway.route = route  # type: ignore[method-assign]
        peer = await setup.ask(line + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.exactly(OK)
        authority = setup.pool.authority
    assert seen[0].split(b"\r\n")[0] == sent
    assert header(seen[0], b"host") == authority
    absolute = line.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
    assert header(seen[0], b"x-forwarded-host") == (absolute or b"h")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"CONNECT other:443", 501),
        (b"CONNECT /", 501),
        (b"GET *", 400),
        (b"GET other:443", 400),
        (b"GET http://a@b/", 400),
        (b"GET ftp://other/", 400),
    ],
)
async def test_targets_that_are_refused(line: bytes, status: int) -> None:
    """A reverse proxy tunnels nowhere, and guesses no target."""
    table = RoutingTable("s", [Entry(EndpointId("s/e"), "e", "", False, TrafficTable())])
    async with rig() as setup:
        setup.gateway.route = lambda method, target, host: table.match(method, target)  # type: ignore[method-assign]
        peer = await setup.ask(line + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await peer.answer())[0] == status
        assert setup.upstream.accepted == 0


# Fields


async def test_hop_by_hop_fields_of_a_request_stay_here() -> None:
    """Those the standard names and those that Connection lists, in any case and from several fields."""
    seen: list[bytes] = []
    async with rig(replies(OK, requests=seen)) as setup:
        peer = await setup.ask(
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x-ONE , keep-alive\r\nX-One: 1\r\nx-keep: 1\r\n"
            b"connection: X-Two\r\nx-two: 2\r\nX-TWO: 3\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n"
            b"Proxy-Authorization: Basic eDp5\r\nTE: gzip;q=0.5, trailers\r\nUpgrade: websocket\r\nx-KEEP: 2\r\n\r\n"
        )
        await peer.exactly(OK)
    lines = seen[0].split(b"\r\n")
    assert [line for line in lines if line[:2].lower() == b"x-" and b"orwarded" not in line] == [
        b"x-keep: 1",
        b"x-KEEP: 2",
    ]
    assert header(seen[0], b"te") == b"trailers"
    for name in (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"upgrade"):
        assert header(seen[0], name) is None


async def test_hop_by_hop_fields_of_an_answer_stay_here() -> None:
    """The same on the way back; everything else keeps order, case, repetition and 8-bit bytes."""
    async with rig(
        replies(
            b"HTTP/1.1 200 \xe9t\xe9\r\nset-cookie: a=1\r\nConnection: X-Priv, keep-alive\r\nX-Priv: 1\r\n"
            b"SET-COOKIE: b=2\r\nKeep-Alive: timeout=5, max=9\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n"
            b"set-cookie: a=1\r\nX-A:no blank\r\nX-B:  \xff  two  blanks \r\nX-Empty:\r\nProxy-Authenticate: Basic\r\n"
            b"Content-Length: 2\r\n\r\nok"
        )
    ) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(
            b"HTTP/1.1 200 \xe9t\xe9\r\nset-cookie: a=1\r\nSET-COOKIE: b=2\r\nset-cookie: a=1\r\nX-A:no blank\r\n"
            b"X-B:  \xff  two  blanks \r\nX-Empty:\r\nProxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nok"
        )


async def test_framing_cannot_be_listed_away() -> None:
    """``Connection: content-length`` is a way to smuggle: the field stays, on both ways."""
    got: list[bytes] = []

    async def backend(peer: Peer) -> None:
        got.append(await peer.head())
        got.append(await peer.body(3))
        peer.send(b"HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nok")
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(POST + b"Connection: Content-Length, Host\r\nContent-Length: 3\r\n\r\nabc")
        await peer.exactly(OK)
    assert (header(got[0], b"content-length"), got[1]) == (b"3", b"abc")
    assert header(got[0], b"host") is not None


# Where an answer ends

ENDINGS = {
    "205 with length": (GET, b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", None),
    "205 in chunks": (GET, b"HTTP/1.1 205 Reset Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
    "HEAD of chunks": (
        b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        None,
    ),
    "HEAD without length": (b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", None),
    "HEAD 404": (b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n", None),
    "304 of chunks": (GET, b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    "304 with ETag": (GET, b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', None),
    "204 with length": (
        GET,
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX: y\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
    ),
    "204 with a false length": (
        GET,
        b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ),
    "204 of chunks": (
        GET,
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ),
    "103 with a length": (
        GET,
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\nLink: </a>\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
    ),
}


@pytest.mark.parametrize(("request_bytes", "answer", "passed"), ENDINGS.values(), ids=list(ENDINGS))
async def test_answers_without_a_body_end_with_their_head(
    request_bytes: bytes, answer: bytes, passed: bytes | None
) -> None:
    """Whatever their fields say; 1xx and 204 lose fields about a body, as they must not have any (RFC 9110 8.6)."""
    async with rig(replies(answer, OK)) as setup:
        peer = await setup.ask(request_bytes)
        await peer.exactly(passed or answer)
        peer.send(GET)
        await peer.exactly(OK)
        assert setup.upstream.accepted == 1


@pytest.mark.parametrize(
    ("request_bytes", "head"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 40\r\n\r\n"),
    ],
)
async def test_a_body_where_none_may_be_reaches_nobody(request_bytes: bytes, head: bytes) -> None:
    """The backend's connection is given up, so its surplus is not taken for the next answer."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        if setup.upstream.accepted == 1:
            peer.send(head + b"HTTP/1.1 200 Poison\r\nContent-Length: 0\r\n\r\n")
        else:
            peer.send(OK)
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(request_bytes)
        await peer.exactly(head)
        peer.send(GET)
        await peer.exactly(OK)
        assert setup.upstream.accepted == 2


async def test_205_without_length_ends_by_close() -> None:
    """Of the answers that must be empty, 205 is the one whose end HTTP does not know by its status (RFC 9112 6.3)."""
    async with rig(replies(b"HTTP/1.1 205 Reset Content\r\n\r\n")) as setup:
        peer = await setup.ask(GET)
        assert await peer.to_end() == b"HTTP/1.1 205 Reset Content\r\nConnection: close\r\n\r\n"
        assert (await setup.result()).error is None


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum, Content-Length\r\n\r\n"
    b'1;a\r\n\r\r\n3 ; b="0\\"" ; c\r\n0\r\n\r\n0005;ext=0;\xff\r\n0\r\n\r\n\r\n'
    b"0;last\r\nX-Sum: 1\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\nx-sum:\r\n\r\n"
)
"""Payload that looks like framing, extensions, a size with zeros in front, trailers that name framing fields."""


@pytest.mark.parametrize("step", [1, 2, 7, len(CHUNKED)])
async def test_extensions_and_trailers_of_an_answer(step: int) -> None:
    """However it is cut, every byte passes, the end is where it is, and the connections live on."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        for start in range(0, len(CHUNKED), step):
            peer.send(CHUNKED[start : start + step])
            await asyncio.sleep(0)
        await peer.head()
        peer.send(OK)
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(CHUNKED)
        peer.send(GET)
        await peer.exactly(OK)
        assert setup.upstream.accepted == 1


@pytest.mark.parametrize("step", [1, 2, 7, len(CHUNKED)])
async def test_extensions_and_trailers_of_a_request(step: int) -> None:
    """The same on the way to the backend, with the next request glued behind."""
    body = CHUNKED.partition(b"\r\n\r\n")[2]
    request = POST + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n" + body + GET
    got: list[bytes] = []

    async def backend(peer: Peer) -> None:
        got.append(await peer.head())
        got.append(await peer.body(len(body)))
        peer.send(OK)
        got.append(await peer.head())
        peer.send(OK)
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.connect()
        for start in range(0, len(request), step):
            peer.send(request[start : start + step])
            await asyncio.sleep(0)
        await peer.exactly(OK + OK)
    assert got[1] == body
    assert header(got[0], b"trailer") == b"X-Sum"
    assert got[2].startswith(b"GET / HTTP/1.1\r\n")


async def test_http_1_0_client_gets_no_trailers() -> None:
    """Chunks, extensions and trailers are taken off together."""
    async with rig(replies(CHUNKED)) as setup:
        peer = await setup.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert await peer.to_end() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n\r" + b"0\r\n" + b"0\r\n\r\n"


async def test_http_1_0_client_sends_a_body() -> None:
    """With a length, without Host, and without waiting for a 100 that HTTP/1.0 does not know."""
    seen: list[bytes] = []

    async def backend(peer: Peer) -> None:
        seen.append(await request_of(peer))
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK)
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(b"POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc")
        assert await peer.to_end() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        assert header(seen[0], b"host") == setup.pool.authority
    assert seen[0].startswith(b"POST / HTTP/1.1\r\n")
    assert header(seen[0], b"expect") is None
    assert header(seen[0], b"x-forwarded-host") is None


async def test_what_follows_a_close_is_not_served() -> None:
    """``Connection: close`` ends the connection after its own answer, whatever was sent behind it."""
    async with rig() as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET)
        assert await peer.to_end() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        await setup.result()
        assert len(setup.gateway.results) == 1


# Expectations and interim answers


@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
async def test_no_continue_before_a_refusal(framing: bytes) -> None:
    """Who cannot be served is told so at once, and his body is never asked for."""
    async with rig(limits=replace(FAST, expect_timeout_s=0.01)) as setup:
        setup.gateway.refusal = QueueFull("Full.", retry_after_s=1)
        peer = await setup.ask(POST + framing + b"\r\nExpect: 100-Continue\r\n\r\n")
        answer = await peer.to_end()
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert header(answer.partition(b"\r\n\r\n")[0], b"connection") == b"close"
        assert b" 100 " not in answer


async def test_no_continue_while_the_request_waits() -> None:
    """However long it waits: the body is asked for when a backend can take it."""

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        peer.send(OK)

    async with rig(backend, limits=replace(FAST, expect_timeout_s=0.01)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        await until(lambda: bool(setup.gateway.asked))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await peer.reader.read(1)
        setup.gateway.hold.set()
        await peer.exactly(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.send(b"abc")
        await peer.exactly(OK)


async def test_an_expectation_without_a_body_is_none() -> None:
    """Nothing is to be continued: the field goes no further (RFC 9110 10.1.1)."""
    seen: list[bytes] = []
    async with rig(replies(OK, requests=seen)) as setup:
        await (await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n")).exactly(OK)
    assert header(seen[0], b"expect") is None


async def test_interim_answers_pass_in_every_phase() -> None:
    """Before, during and after the upload, with all their fields but hop-by-hop ones; unasked 100s do not."""
    between = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
        await peer.body(3)
        peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nConnection: X\r\nX: y\r\nlink: </b>\r\n\r\n")
        await between.wait()
        peer.send(b"HTTP/1.1 199 Odd\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK)
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(POST + b"Content-Length: 3\r\n\r\n")
        await peer.exactly(b"HTTP/1.1 102 Processing\r\n\r\n")
        peer.send(b"abc")
        await peer.exactly(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nlink: </b>\r\n\r\n")
        between.set()
        await peer.exactly(b"HTTP/1.1 199 Odd\r\n\r\n" + OK)


# Order


async def test_pipelined_requests_of_all_kinds_are_answered_in_order() -> None:
    """Answers from here and from the backend, HEAD, errors and a body in chunks do not overtake one another."""

    async def backend(peer: Peer) -> None:
        while True:
            head = await peer.head()
            if header(head, b"transfer-encoding"):
                await peer.body(len(b"1\r\na\r\n0\r\n\r\n"))
            path = head.split(b" ")[1]
            await asyncio.sleep(0.01 if path == b"/slow" else 0)
            peer.send(b"HTTP/1.1 200 OK\r\nX-Path: %b\r\nContent-Length: 0\r\n\r\n" % path)

    async with rig(backend) as setup:
        routed = setup.gateway.route

        def route(method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
            if target == b"/here":
                return LocalResponse(200, b"here", "text/plain", (("X-Path", "/here"),))
            return routed(method, target, host)

        setup.gateway.route = route  # type: ignore[method-assign]
        peer = await setup.ask(
            b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n"
            b"GET /here HTTP/1.1\r\nHost: h\r\n\r\n"
            b"POST /chunks HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
            b"\r\n"  # as old clients send behind a body
            b"GET /last HTTP/1.1\r\nHost: h\r\n\r\n"
            b"nonsense\r\n\r\n"
        )
        for path in (b"/slow", b"/here", b"/chunks", b"/last"):
            status, head, _ = await peer.answer()
            assert (status, header(head, b"x-path")) == (200, path)
        assert (await peer.answer())[0] == 400
        assert await peer.to_end() == b""


# Upgrades


@pytest.mark.parametrize("protocol", [b"websocket", b"tcp", b"IRC/6.9, RTA/x11", b"connect-udp"])
async def test_upgrades_of_any_protocol(protocol: bytes) -> None:
    """The offer, the body of the request, the switch and everything glued to either head arrive in order."""
    got: list[bytes] = []

    async def backend(peer: Peer) -> None:
        got.append(await peer.head())
        got.append(await peer.body(3))
        peer.send(
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n"
            b"\x00HTTP/1.1 200 OK\r\n\r\n" % protocol
        )
        got.append(await peer.body(5))
        assert await peer.to_end() == b""  # the client's half has ended; ours still speaks
        peer.send(b"last words")

    async with rig(backend) as setup:
        peer = await setup.ask(
            b"POST /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: %b\r\nContent-Length: 3\r\n\r\nabcGET /"
            % protocol
        )
        await peer.exactly(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        assert (await peer.head()).startswith(b"HTTP/1.1 101 Go\r\n")
        await peer.exactly(b"\x00HTTP/1.1 200 OK\r\n\r\n")
        peer.writer.write_eof()
        assert await peer.to_end() == b"last words"
    assert (header(got[0], b"connection"), header(got[0], b"upgrade")) == (b"Upgrade", protocol)
    assert got[1:] == [b"abc", b"GET /"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n",
    ],
    ids=["HTTP/1.0", "not in Connection"],
)
async def test_an_offer_that_is_none(head: bytes) -> None:
    """HTTP/1.0 cannot switch, and an Upgrade that Connection does not name was meant for nobody (RFC 9110 7.8)."""
    seen: list[bytes] = []
    async with rig(replies(OK, requests=seen)) as setup:
        assert b" 200 " in await (await setup.ask(head)).head()
    assert (header(seen[0], b"upgrade"), header(seen[0], b"connection")) == (None, None)


# Early answers and connections that end under our feet


@pytest.mark.parametrize("framing", [b"Content-Length: 3000000", b"Transfer-Encoding: chunked"])
async def test_an_early_answer_is_read_by_a_client_that_goes_on_sending(framing: bytes) -> None:
    """The rest of the upload is thrown away for a while, or a reset would overtake the answer."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with rig(backend, limits=replace(FAST, discard_timeout_s=60.0)) as setup:
        peer = await setup.ask(POST + framing + b"\r\n\r\n" + (b"2dc6c0\r\n" if b"chunked" in framing else b""))
        await until(lambda: setup.upstream.accepted == 1)
        await until(lambda: bool(setup.gateway.results))
        for _ in range(30):
            peer.send(bytes(100_000))
            await peer.writer.drain()
        assert await peer.to_end() == b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
        result = await setup.result()
        assert (result.status, result.error, result.client_gone) == (401, None, False)


async def test_an_answer_may_begin_before_the_upload_ends() -> None:
    """Both ways at once, piece by piece; only then the connection ends, as nobody can be sure of the rest."""

    async def echo(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for _ in range(5):
            peer.send(await peer.body(1))

    async with rig(echo) as setup:
        peer = await setup.ask(POST + b"Content-Length: 5\r\n\r\n")
        await peer.head()
        for letter in (b"a", b"b", b"c", b"d", b"e"):
            peer.send(letter)
            await peer.exactly(letter)
        assert await peer.to_end() == b""


class Closing:
    """A backend that ends its kept connection while the second request is on its way, and serves every other one.

    Args:
        reads: Whether it takes that request off its connection before; if not, the request was never seen.
    """

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.served: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            head = await peer.head()
            await peer.body(int(header(head, b"content-length") or 0))
            self.served.append(head.split(b" ")[0])
            if len(self.served) == 2 and self.reads:
                return
            peer.send(OK)
            if len(self.served) == 1 and not self.reads:
                await leave_unread(peer)
                return


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE", b"POST", b"PATCH", b"FOO"])
async def test_a_request_that_nobody_took_is_sent_once_more(method: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend closes with the request unread: whatever it asks for, it was not done."""
    monkeypatch.setattr(exchange, "_CLOSED_WHILE_IDLE_S", 3600.0)
    backend = Closing(reads=False)
    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(OK)
        peer.send(method + b" / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
        await peer.exactly(OK)
        assert setup.upstream.accepted == 2
    assert backend.served == [b"GET", method]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
async def test_a_request_that_may_be_repeated_is_sent_once_more(method: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend took it and closed without a word; doing these twice is doing them once (RFC 9110 9.2.2)."""
    monkeypatch.setattr(exchange, "_CLOSED_WHILE_IDLE_S", 3600.0)
    backend = Closing(reads=True)
    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(OK)
        peer.send(method + b" / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
        assert (await peer.head()).startswith(b"HTTP/1.1 200 OK\r\n")
    assert backend.served == [b"GET", method, method]


@pytest.mark.parametrize("method", [b"POST", b"PATCH", b"FOO"])
async def test_a_request_that_may_have_been_done_is_not_repeated(
    method: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend took it and closed without a word: it may have done what it was asked for."""
    monkeypatch.setattr(exchange, "_CLOSED_WHILE_IDLE_S", 3600.0)
    backend = Closing(reads=True)
    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(OK)
        peer.send(method + b" / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
        assert (await peer.answer())[0] == 502
        peer.send(GET)
        await peer.exactly(OK)
    assert backend.served == [b"GET", method, b"GET"]


async def test_a_reset_answer_without_length_is_not_whole() -> None:
    """Ended by close is whole; ended by a reset is not, and the client gets the reset."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await peer.writer.drain()
        await go_on.wait()
        raw = peer.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.reset()

    go_on = asyncio.Event()
    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.head()
        await peer.exactly(b"half")
        go_on.set()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()
