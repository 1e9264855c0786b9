"""Light requests whose backend cannot answer get its last good reply."""

import asyncio

import pytest

from juggler.errors import BackendExited, JugglerError, NotReady, QueueFull, ShuttingDown
from juggler.proxy.upstream import UpstreamPool
from juggler.units import MIB
from tests.protocol.support import OK, Peer, Rig, header, replies, rig, until

GET = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
LIST = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: "1"\r\nContent-Length: 11\r\n\r\n{"data":[]}'


def down(setup: Rig, error: JugglerError | None = None) -> None:
    setup.gateway.refusal = error or NotReady("not loaded", retry_after_s=3)


async def ask(setup: Rig, request: bytes = GET) -> tuple[int, bytes, bytes]:
    return await (await setup.ask(request)).answer()


async def test_the_last_good_reply_stands_in() -> None:
    """Same fields and body, marked with its age; the connection lives on, and HEAD gets the same head."""
    async with rig(replies(LIST)) as setup:
        setup.gateway.light = True
        clock = asyncio.get_running_loop().time
        began = clock()
        peer = await setup.ask(GET)
        await peer.exactly(LIST)
        down(setup)
        for method in (b"GET", b"GET", b"HEAD"):
            peer.send(GET.replace(b"GET", method))
            got = await peer.head()
            age = int(header(got, b"age") or b"")
            assert 0 <= age <= clock() - began
            expected = LIST.replace(b"\r\n\r\n", b"\r\nAge: %d\r\nX-Juggler: cached\r\n\r\n" % age)
            if method == b"GET":
                got += await peer.body(len(b'{"data":[]}'))
                assert got == expected
            else:
                assert got == expected[: expected.index(b"{")]
        peer.send(GET.replace(b"1.1\r\n", b"1.1\r\nConnection: close\r\n"))
        assert b"\r\nConnection: close\r\n" in await peer.head()
        assert await peer.to_end() == b'{"data":[]}'
        assert len(setup.gateway.leases) == 1


async def test_without_an_earlier_reply_the_refusal_stays() -> None:
    """Nothing asked before, something else, or somebody else: 503 with Retry-After."""
    async with rig(replies(LIST)) as setup:
        setup.gateway.light = True
        down(setup)
        status, head, _ = await ask(setup)
        assert (status, header(head, b"retry-after")) == (503, b"3")
        setup.gateway.refusal = None
        await ask(setup)
        down(setup)
        assert (await ask(setup))[0] == 200
        assert (await ask(setup, GET.replace(b"models", b"other")))[0] == 503
        assert (await ask(setup, GET.replace(b"Host", b"Authorization: Bearer x\r\nHost")))[0] == 503
        assert (await ask(setup, GET.replace(b"Host", b"Cookie: a=b\r\nHost")))[0] == 503
        assert (await ask(setup, GET.replace(b"GET", b"OPTIONS")))[0] == 503
        setup.gateway.endpoint = "s/other"
        assert (await ask(setup))[0] == 503


async def test_work_is_never_answered_from_earlier() -> None:
    """A GET that is work is neither kept nor replaced."""
    async with rig(replies(LIST, LIST)) as setup:
        await ask(setup)
        setup.gateway.light = True
        down(setup)
        assert (await ask(setup))[0] == 503
        setup.gateway.refusal = None
        await ask(setup)
        setup.gateway.light = False
        down(setup)
        assert (await ask(setup))[0] == 503


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotReady("down", retry_after_s=1), 200),
        (BackendExited("gone"), 200),
        (QueueFull("too many"), 429),
        (ShuttingDown("bye"), 503),
    ],
)
async def test_only_for_backends_that_cannot_answer(error: JugglerError, status: int) -> None:
    """Refusals that are about the request or the juggler itself are told as they are."""
    async with rig(replies(LIST)) as setup:
        setup.gateway.light = True
        await ask(setup)
        down(setup, error)
        assert (await ask(setup))[0] == status


async def test_a_backend_that_vanishes_is_one_that_cannot_answer() -> None:
    """Refused connections and answers that never begin count, too; the reply outlives the pool of its instance."""
    async with rig(replies(LIST), keepalive=False) as setup:
        setup.gateway.light = True
        await ask(setup)
        setup.pool.close()  # the instance is stopped
        assert header((await ask(setup))[1], b"x-juggler") == b"cached"
        assert setup.gateway.results[-1].error == "upstream_closed"
        setup.gateway.pool = UpstreamPool("127.0.0.1", 1)  # nobody listens there
        assert header((await ask(setup))[1], b"x-juggler") == b"cached"
        setup.gateway.pool = UpstreamPool("127.0.0.1", setup.upstream.port)
        setup.upstream.handler = replies(b"nonsense\r\n\r\n")
        assert header((await ask(setup))[1], b"x-juggler") == b"cached"
        setup.gateway.pool.close()


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
    b"3\r\nabc\r\n4;e=1\r\ndefg\r\n0\r\nX-T: 1\r\n\r\n"
)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_chunks_are_kept_without_their_framing(version: bytes) -> None:
    """The answer passes as received, a later reader gets a length; pieces may be cut anywhere."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        for byte in CHUNKED:
            peer.send(bytes([byte]))
            await asyncio.sleep(0)

    async with rig(backend) as setup:
        setup.gateway.light = True
        peer = await setup.ask(GET.replace(b"1.1", version))
        if version == b"1.1":
            await peer.exactly(CHUNKED)
        else:
            assert await peer.to_end() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdefg"
        await setup.result()
        down(setup)
        status, head, body = await ask(setup)
        assert (status, body) == (200, b"abcdefg")
        assert (header(head, b"transfer-encoding"), header(head, b"trailer")) == (None, None)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nabc",
    ],
)
async def test_half_answers_are_not_kept(answer: bytes) -> None:
    """What was cut off, or may have been, is never shown as whole."""
    async with rig(replies(answer)) as setup:
        setup.gateway.light = True
        peer = await setup.ask(GET.replace(b"Host", b"Connection: close\r\nHost"))
        await peer.gone()
        await setup.result()
        assert len(setup.listener.replies) == 0


async def test_an_answer_whose_reader_left_is_not_kept() -> None:
    """Only what passed whole."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(LIST[:-3])
        await peer.gone()

    async with rig(backend) as setup:
        setup.gateway.light = True
        peer = await setup.ask(GET)
        await peer.head()
        peer.reset()
        assert (await setup.result()).client_gone
        assert len(setup.listener.replies) == 0


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_long_answer_passes_and_is_not_kept(chunked: bool) -> None:
    """Nothing is held of a body over the bound, however it is framed, and it arrives unchanged."""
    body = bytes(range(256)) * 4096 * 10  # 10 MiB
    if chunked:
        pieces = b"".join(b"%x\r\n%b\r\n" % (65536, body[at : at + 65536]) for at in range(0, len(body), 65536))
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"
    else:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with rig(replies(answer, LIST)) as setup:
        setup.gateway.light = True
        peer = await setup.connect(limit=16 * MIB)
        peer.send(GET)
        await peer.exactly(answer)
        assert len(setup.listener.replies) == 0
        peer.send(GET)
        await peer.exactly(LIST)
        await until(lambda: len(setup.listener.replies) == 1)


async def test_the_latest_good_reply_counts() -> None:
    """A newer answer replaces the older, a failing one does not, a refusal drops it."""
    newer = LIST.replace(b'"1"', b'"2"')
    failed = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
    refused = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"
    async with rig(replies(LIST, newer, failed, refused)) as setup:
        setup.gateway.light = True
        for _ in range(3):
            await ask(setup)
        down(setup)
        assert header((await ask(setup))[1], b"etag") == b'"2"'
        setup.gateway.refusal = None
        assert (await ask(setup))[0] == 401
        down(setup)
        assert (await ask(setup))[0] == 503


async def test_addresses_in_kept_replies_are_the_clients() -> None:
    """What was mapped for the first reader is right for the next."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Location: /a\r\nContent-Length: 0\r\n\r\n"
    async with rig(replies(answer), prefix=b"/vision") as setup:
        setup.gateway.light = True
        request = b"GET /vision/x HTTP/1.1\r\nHost: h\r\n\r\n"
        await ask(setup, request)
        down(setup)
        assert header((await ask(setup, request))[1], b"content-location") == b"/vision/a"


async def test_pipelined_readers_get_their_replies_in_order() -> None:
    """Kept replies keep their place between others."""
    async with rig(replies(LIST, OK)) as setup:
        setup.gateway.light = True
        await ask(setup)
        down(setup)
        peer = await setup.ask(GET + GET.replace(b"models", b"none") + GET)
        assert [(await peer.answer())[0] for _ in range(3)] == [200, 503, 200]


async def test_a_copy_ends_with_its_exchange() -> None:
    """A client that leaves in the middle of an answer leaves no half of it in our memory."""

    async def half(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        await peer.gone()

    async with rig(half) as setup:
        setup.gateway.light = True
        peer = await setup.ask(GET)
        await until(lambda: setup.listener.replies.copying_bytes == 5)
        peer.reset()
        await until(lambda: setup.listener.replies.copying_bytes == 0)
        assert len(setup.listener.replies) == 0
