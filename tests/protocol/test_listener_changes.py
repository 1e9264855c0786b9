"""A listener under other rules, and one that leaves its address for a while: its connections stay."""

import asyncio
import socket
from dataclasses import replace

import pytest

from tests.ports import free_port
from tests.protocol.support import FAST, rig, until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LONG = b"GET / HTTP/1.1\r\nHost: h\r\nX-Long: " + b"x" * 600 + b"\r\n\r\n"


async def test_other_limits_count_for_the_connections_there_are() -> None:
    """The same request on the same connection is too long afterwards."""
    async with rig(limits=FAST) as setup:
        peer = await setup.ask(LONG)
        assert b" 200 " in await peer.head()
        setup.listener.change(replace(FAST, head_bytes=512))
        peer.send(LONG)
        assert b" 431 " in await peer.head()


async def test_other_numbers_of_connections_count_for_who_comes() -> None:
    async with rig(limits=replace(FAST, connections=1)) as setup:
        setup.gateway.hold = asyncio.Event()  # who has a request in work keeps his place
        first = await setup.ask(GET)
        await until(lambda: len(setup.gateway.asked) == 1)
        refused = await setup.ask(GET)
        assert b" 503 " in await refused.head()
        setup.listener.change(replace(FAST, connections=8))
        second = await setup.ask(GET)
        await until(lambda: len(setup.gateway.asked) == 2)
        setup.gateway.hold.set()
        for peer in (first, second):
            assert b" 200 " in await peer.head()


async def test_a_pause_leaves_the_address_and_keeps_the_connections() -> None:
    """Somebody else can have it meanwhile; then it is taken back."""
    async with rig(port=free_port()) as setup:
        listener = setup.listener
        addresses = list(listener.addresses)
        peer = await setup.ask(GET)
        assert b" 200 " in await peer.head()
        listener.pause()
        assert listener.addresses == []
        await asyncio.sleep(0)
        with socket.create_server(addresses[0]), pytest.raises(OSError, match="in use"):
            await listener.resume()
        await listener.resume()
        assert listener.addresses == addresses
        peer.send(GET)
        assert b" 200 " in await peer.head()
        again = await setup.ask(GET)
        assert b" 200 " in await again.head()
