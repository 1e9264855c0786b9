"""Exchanges that become tunnels: who is told, and how they end."""

import asyncio
from collections.abc import Callable

import pytest

from tests.protocol.support import OK, WAIT_S, Peer, header, replies, rig, until

ASK = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


async def echo(peer: Peer) -> None:
    await peer.head()
    peer.send(SWITCH)
    while data := await peer.reader.read(1000):
        peer.send(data)


async def test_the_lease_hears_of_a_tunnel_before_its_bytes() -> None:
    """Once, when the 101 is out and nothing of the tunnel is; bytes glued to either head come after."""
    told: list[int] = []
    got: list[bytes] = []

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(SWITCH + b"hello")
        got.append(await peer.body(2))

    async with rig(backend) as setup:
        setup.gateway.on_switched = lambda: told.append(len(got))
        peer = await setup.ask(ASK + b"hi")
        assert b" 101 " in await peer.head()
        await peer.exactly(b"hello")
        await until(lambda: got == [b"hi"])
        peer.writer.write_eof()
        await peer.to_end()
        result = await setup.result()
        assert told == [0]
        assert setup.gateway.leases[0].tunnels == 1
        assert (result.status, result.bytes_down, result.bytes_up) == (101, 5, 2)


@pytest.mark.parametrize("answer", [OK, b"HTTP/1.1 426 Upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\n"])
async def test_a_refused_upgrade_is_no_tunnel(answer: bytes) -> None:
    """Only the 101 counts."""
    async with rig(replies(answer)) as setup:
        await (await setup.ask(ASK)).answer()
        await setup.result()
        assert setup.gateway.leases[0].tunnels == 0


async def test_an_instance_may_be_stopped_by_the_news() -> None:
    """The lease's owner may find, on the spot, that somebody waits for the memory: the tunnel ends at once."""
    heard = asyncio.get_running_loop().create_future()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(SWITCH + b"first words")
        heard.set_result(await rest_of(peer))

    async with rig(backend) as setup:
        setup.gateway.on_switched = setup.pool.close
        peer = await setup.ask(ASK + b"early")
        assert b"first words" not in await rest_of(peer)
        async with asyncio.timeout(WAIT_S):
            assert await heard == b""
        result = await setup.result()
        assert (result.status, result.error, result.client_gone) == (101, "upstream_closed", False)
        assert (result.bytes_down, result.bytes_up) == (0, 0)


async def rest_of(peer: Peer) -> bytes:
    """What comes until the connection ends or is cut."""
    try:
        return await peer.to_end()
    except ConnectionError:
        return b""


def _event_stream(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n: \n\r\n")


@pytest.mark.parametrize(
    ("begin", "request_bytes"),
    [(lambda peer: peer.send(SWITCH), ASK), (_event_stream, b"GET /events HTTP/1.1\r\nHost: h\r\n\r\n")],
    ids=["tunnel", "stream"],
)
async def test_a_stopped_instance_cuts_what_is_held_open(begin: Callable[[Peer], None], request_bytes: bytes) -> None:
    """Both ends are closed at once, with the reason in the result; a stream does not look as if it had ended."""
    left = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        begin(peer)
        await peer.gone()
        left.set()

    async with rig(backend) as setup:
        peer = await setup.ask(request_bytes)
        head = await peer.head()
        setup.pool.close()
        async with asyncio.timeout(WAIT_S):
            await left.wait()
        assert b"0\r\n\r\n" not in await rest_of(peer)
        result = await setup.result()
        assert result.status == int(head[9:12])
        assert (result.error, result.client_gone) == ("upstream_closed", False)


async def test_many_tunnels_end_together() -> None:
    """A pool with many tunnels is closed in one go, and every lease comes back."""
    async with rig(echo) as setup:
        peers = [await setup.ask(ASK) for _ in range(20)]
        for number, peer in enumerate(peers):
            await peer.head()
            peer.send(b"%02d" % number)
            await peer.exactly(b"%02d" % number)
        setup.pool.close()
        for peer in peers:
            await peer.gone()
        await setup.result(19)
        assert not setup.pool.active


async def test_a_tunnel_does_not_hold_up_a_listener_that_drains_for_ever() -> None:
    """It is cut when the time is up."""
    async with rig(echo) as setup:
        peer = await setup.ask(ASK)
        assert header(await peer.head(), b"upgrade") == b"websocket"
        await setup.listener.close(0.05)
        await peer.gone()
        assert (await setup.result()).error == "shutting_down"
