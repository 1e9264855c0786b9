"""Answers that come faster than their chunks can be looked at: whole for their client, a moment for the others."""

import asyncio
from collections.abc import Callable

import pytest

from juggler.proxy.turns import Turns
from tests.protocol.support import OK, WAIT_S, Peer, header, rig, until

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"c8\r\n" + b"x" * 200 + b"\r\n"
BODY = CHUNK * 60_000
END = b"0\r\nX-Sum: 1\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


async def _flood(peer: Peer) -> None:
    while True:
        await peer.head()
        peer.send(HEAD + BODY + END)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
async def test_it_comes_whole(late: bool) -> None:
    """With the trailer, and both connections go on; also if the client begins to read when everything is full."""
    async with rig(_flood) as setup:
        peer = await setup.ask(GET)
        if late:
            await until(lambda: any(one.read_paused for one in setup.pool.active))
        for _ in range(2):
            assert header((await peer.head()).removesuffix(b"\r\n\r\n"), b"transfer-encoding") == b"chunked"
            await peer.exactly(BODY + END)
            peer.send(GET)
        await peer.head()
        assert setup.upstream.accepted == 1


async def test_what_is_malformed_in_a_large_piece_is_not_passed_on() -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        peer.send(HEAD + BODY + b"zz\r\n" + BODY)

    async with rig(handler) as setup:
        peer = await setup.ask(GET)
        got = b""
        try:
            while data := await peer.reader.read(1 << 20):
                got += data
        except ConnectionError:
            pass
        assert got.startswith(HEAD + CHUNK)
        assert b"zz" not in got


async def test_who_leaves_is_rid_of_it() -> None:
    """The backend's connection goes with the client, whatever of it waits to be looked at."""
    gone = asyncio.Event()

    async def handler(peer: Peer) -> None:
        request = await peer.head()
        if b"/other" in request:
            peer.send(OK)
            return
        peer.send(HEAD)
        try:
            while True:
                peer.send(BODY)
                await peer.writer.drain()
        finally:
            gone.set()

    async with rig(handler) as setup:
        peer = await setup.ask(GET)
        await peer.head()
        peer.reset()
        async with asyncio.timeout(WAIT_S):
            await gone.wait()
        other = await setup.ask(b"GET /other HTTP/1.1\r\nHost: h\r\n\r\n")
        await other.exactly(OK)


@pytest.mark.parametrize("what", ["answer", "answer to HTTP/1.0", "upload"])
async def test_large_pieces_wait_for_their_turn(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends them: uvloop takes megabytes at once, and nobody else gets on while their chunks are looked at."""
    waited: list[Callable[[], None]] = []
    add = Turns.add

    def added(turns: Turns, loop: asyncio.AbstractEventLoop, job: Callable[[], None]) -> None:
        waited.append(job)
        add(turns, loop, job)

    monkeypatch.setattr(Turns, "add", added)
    whole = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        if what == "upload":
            await peer.exactly(BODY + END)
            whole.set()
            peer.send(OK)
        else:
            peer.send(HEAD + BODY + END)

    async with rig(backend) as setup:
        if what == "upload":
            head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            peer = await setup.ask(head + BODY + END + GET)
            await peer.exactly(OK)
            assert whole.is_set()
            await until(lambda: setup.upstream.accepted == 2)
        elif what == "answer":
            peer = await setup.ask(GET)
            await peer.head()
            await peer.exactly(BODY + END)
        else:
            peer = await setup.ask(b"GET / HTTP/1.0\r\n\r\n")
            await peer.head()
            assert await peer.to_end() == b"x" * 200 * 60_000
    assert len(waited) > 5


async def test_a_malformed_large_piece_of_an_upload_is_refused() -> None:
    async def backend(peer: Peer) -> None:
        await peer.gone()

    async with rig(backend) as setup:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        peer = await setup.ask(head)
        await until(lambda: setup.upstream.accepted == 1)
        peer.send(CHUNK * 2000 + b"zz\r\n")
        assert (await peer.answer())[0] == 400
        assert (await setup.result()).error == "bad_request"
