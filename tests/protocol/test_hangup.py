"""Clients that leave while nobody reads them: the backend, or the queue, hears of it within 100 ms."""

import asyncio
import select
import socket
from dataclasses import replace

import pytest

from juggler.proxy.client import ClientConnection
from juggler.units import KIB, MIB
from tests.protocol.support import FAST, OK, WAIT_S, Peer, Rig, quickest, rig, until

pytestmark = pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="only Linux tells without reading")

# The sweep must have no part in it.
LIMITS = replace(FAST, sweep_interval_s=30.0, held_body_bytes=64 * KIB)
UPLOAD = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200000000\r\n\r\n"
SOON_S = 0.1


def _leave(peer: Peer, way: str) -> None:
    if way == "reset":
        raw = peer.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    peer.writer.transport.abort()


def _paused(setup: Rig) -> bool:
    return any(one.unread_descriptor() is not None for one in setup.listener.connections)


def _full(setup: Rig) -> bool:
    """Whether a client is not read because its backend takes no more."""
    exchanges = (one._exchange for one in setup.listener.connections)
    return _paused(setup) and any(one is not None and one.upstream_full for one in exchanges)


async def _fill(setup: Rig, peer: Peer) -> None:
    """Upload until nothing more is taken."""
    async with asyncio.timeout(WAIT_S):
        while not _full(setup):
            peer.send(bytes(64 * KIB))
            await asyncio.sleep(0)


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_while_the_upload_of_a_held_request_is_paused(way: str) -> None:
    """It leaves the queue."""
    async with rig(limits=LIMITS) as setup:
        setup.gateway.hold = asyncio.Event()

        async def leaving_s() -> float:
            wanted = setup.gateway.cancelled + 1
            # An end of file that waits behind bytes nobody takes cannot be seen by anybody; a reset overtakes them.
            peer = await setup.ask(UPLOAD + bytes(MIB if way == "reset" else 100 * KIB))
            await until(lambda: _paused(setup))
            since = asyncio.get_running_loop().time()
            _leave(peer, way)
            await until(lambda: setup.gateway.cancelled == wanted)
            return asyncio.get_running_loop().time() - since

        assert await quickest(leaving_s, SOON_S) < SOON_S


async def test_while_a_slow_backend_holds_the_upload() -> None:
    """The backend's connection is reset, so that it hears of it although it has much to read."""
    busy, left = asyncio.Event(), asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        busy.set()
        poller = select.poll()
        poller.register(peer.writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
        await until(lambda: bool(poller.poll(0)))
        left.set()

    async with rig(backend, limits=LIMITS) as setup:

        async def leaving_s() -> float:
            busy.clear()
            left.clear()
            peer = await setup.ask(UPLOAD)
            await busy.wait()
            await _fill(setup, peer)
            since = asyncio.get_running_loop().time()
            _leave(peer, "reset")
            async with asyncio.timeout(WAIT_S):
                await left.wait()
            delay_s = asyncio.get_running_loop().time() - since
            await until(lambda: not setup.listener.connections)
            return delay_s

        assert await quickest(leaving_s, SOON_S) < SOON_S
        assert all(one.client_gone for one in setup.gateway.results)


async def test_while_it_has_sent_too_much_ahead() -> None:
    """A pipelining client whose further requests are not being read is noticed, too."""
    async with rig(limits=LIMITS) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 30_000)
        await until(lambda: _paused(setup))
        _leave(peer, "reset")
        await until(lambda: setup.gateway.cancelled == 1)


async def test_whoever_is_read_again_is_forgotten() -> None:
    """A pause that has passed leaves nothing behind, and the request is answered."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        await peer.body(MIB)
        peer.send(OK)

    async with rig(backend, limits=LIMITS) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % MIB + bytes(MIB))
        await until(lambda: _paused(setup))
        setup.gateway.hold.set()
        await peer.exactly(OK)
        hang_ups = setup.listener._hang_ups
        await until(lambda: not hang_ups._unread and hang_ups._timer is None)


async def test_a_half_that_ends_behind_an_upload_is_no_leaving_where_it_is_answered() -> None:
    """``answer_half_closed``: the end of file waits behind a body that is not being read, and says nothing."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        await peer.body(MIB)
        peer.send(OK)

    async with rig(backend, limits=replace(LIMITS, answer_half_closed=True)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % MIB + bytes(MIB))
        await until(lambda: _paused(setup))
        peer.writer.write_eof()
        await asyncio.sleep(0.2)
        assert setup.gateway.cancelled == 0
        setup.gateway.hold.set()
        await peer.exactly(OK)


async def test_a_mistake_in_one_ending_leaves_no_other_unseen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """1. Two clients leave. 2. Ending the request of one raises. 3. The other one leaves the queue all the same."""
    upload = UPLOAD + bytes(100 * KIB)
    async with rig(limits=LIMITS) as setup:
        setup.gateway.hold = asyncio.Event()
        peers = [await setup.ask(upload) for _ in range(2)]
        await until(lambda: len(setup.listener._hang_ups._unread) == 2)
        broken: list[ClientConnection] = []
        leave = ClientConnection._leave

        def fail(connection: ClientConnection) -> None:
            leave(connection)
            if not broken or broken[0] is connection:
                broken[:] = [connection]
                raise RuntimeError("a mistake")

        monkeypatch.setattr(ClientConnection, "_leave", fail)
        for peer in peers:
            _leave(peer, "close")
        await until(lambda: setup.gateway.cancelled == 2 and not setup.listener.connections)
        monkeypatch.undo()
    assert "a mistake" in caplog.text
