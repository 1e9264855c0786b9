"""Clients that end their half of the connection behind a request: by default they have left, else they are answered."""

import asyncio
import socket
from dataclasses import replace

import pytest

from juggler.proxy.limits import Limits
from tests.protocol.support import FAST, OK, WAIT_S, Peer, quickest, rig, until
from tests.protocol.waiting import ANSWERS, COMMENT, EVENTS, SOON, after_comments, answering, chunk, go, post

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
ANSWER = replace(FAST, answer_half_closed=True)


async def silent(peer: Peer) -> None:
    await peer.head()
    await peer.gone()


@pytest.mark.parametrize("how", ["half", "whole"])
@pytest.mark.parametrize("phase", ["held", "forwarded"])
async def test_by_default_it_has_left(phase: str, how: str) -> None:
    """A client that closes, as cancelling ones do, is missed at once in every phase; one that ends its half too."""
    assert await quickest(lambda: _leaving_s(phase, how), 0.1) < 0.1


async def _leaving_s(phase: str, how: str) -> float:
    """How long it takes until a client that leaves is missed."""
    async with rig(silent) as setup:
        if phase == "held":
            setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(GET)
        if phase == "held":
            await until(lambda: bool(setup.gateway.asked))
        else:
            await until(lambda: setup.upstream.accepted == 1)
        began = asyncio.get_running_loop().time()
        if how == "half":
            peer.writer.write_eof()
        else:
            peer.writer.close()
        await until(lambda: setup.gateway.cancelled == 1 if phase == "held" else bool(setup.gateway.results))
        delay_s = asyncio.get_running_loop().time() - began
        if phase == "forwarded":
            assert (await setup.result()).client_gone
        return delay_s


@pytest.mark.parametrize("phase", ["at once", "held", "forwarded"])
async def test_where_that_is_set_it_is_answered(phase: str) -> None:
    """Whole, and then the connection ends from our side too."""
    ready = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        await ready.wait()
        peer.send(OK)
        await peer.gone()

    async with rig(backend, limits=ANSWER) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(GET)
        if phase == "at once":
            ready.set()
            setup.gateway.hold.set()
        elif phase == "held":
            await until(lambda: bool(setup.gateway.asked))
        else:
            setup.gateway.hold.set()
            await until(lambda: setup.upstream.accepted == 1)
        peer.writer.write_eof()
        await asyncio.sleep(0.05)
        setup.gateway.hold.set()
        ready.set()
        await peer.exactly(OK)
        assert await peer.to_end() == b""
        result = await setup.result()
        assert (result.client_gone, result.status) == (False, 200)


async def test_all_that_it_asked_before_is_answered() -> None:
    """Requests sent one behind the other before the end, as by a pipe; then the connection ends."""
    async with rig(limits=ANSWER) as setup:
        peer = await setup.ask(post(b"/a", b"12345") + GET * 2)
        peer.writer.write_eof()
        await peer.exactly(OK * 3)
        assert await peer.to_end() == b""


@pytest.mark.parametrize("limits", [FAST, ANSWER], ids=["leave", "answer"])
async def test_half_a_request_is_none(limits: Limits) -> None:
    """Whoever ends in the middle of a body cannot mean it."""
    async with rig(silent, limits=limits) as setup:
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf")
        await until(lambda: setup.upstream.accepted == 1)
        peer.writer.write_eof()
        assert (await setup.result()).client_gone
        await peer.gone()


async def test_a_stream_that_was_begun_goes_on() -> None:
    """Comments, then the events."""
    async with rig(answering(ANSWERS["length"][0]), limits=replace(SOON, answer_half_closed=True)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post())
        peer.writer.write_eof()
        await peer.head()
        assert await chunk(peer) == COMMENT
        go(setup)
        assert await after_comments(peer) == EVENTS
        assert await peer.to_end() == b""


@pytest.mark.parametrize("phase", ["held", "streaming"])
async def test_one_that_closed_is_missed_when_something_is_sent(phase: str) -> None:
    """The price: not at once, but at the second comment or piece of the answer."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            while peer.reader.at_eof() is False and not peer.writer.is_closing():
                peer.send(b"1\r\nx\r\n")
                await asyncio.sleep(0.01)
                if setup.gateway.results:
                    return

    limits = replace(SOON, answer_half_closed=True)
    async with rig(backend, limits=limits) as setup:
        if phase == "held":
            setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post() if phase == "held" else GET)
        if phase == "held":
            await until(lambda: bool(setup.gateway.asked))
        else:
            await peer.head()
        peer.writer.close()
        await until(lambda: setup.gateway.cancelled == 1 if phase == "held" else bool(setup.gateway.results))
        await until(lambda: not setup.listener.connections)


async def test_a_reset_is_noticed_without_sending_anything() -> None:
    """The sweep asks the kernel about those of whom no more is read."""
    async with rig(silent, limits=ANSWER) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(GET)
        await until(lambda: bool(setup.gateway.asked))
        peer.writer.write_eof()
        await until(lambda: all(one.half_closed for one in setup.listener.connections))
        option = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        peer.reset()
        await until(lambda: setup.gateway.cancelled == 1)


async def test_a_tunnel_learns_that_its_client_has_ended() -> None:
    """Its end came before the tunnel began."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        await until(lambda: all(one.half_closed for one in setup.listener.connections))
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        assert await peer.to_end() == b""
        peer.send(b"bye")
        peer.writer.close()

    async with rig(backend, limits=ANSWER) as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        peer.writer.write_eof()
        assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
        assert await peer.to_end() == b"bye"
