"""Clients that stop in the middle, or vanish without a word; and a sweep that goes on whatever happens in it."""

import asyncio
import json
import socket
from dataclasses import replace

import pytest

from juggler.proxy import listener
from juggler.proxy.client import ClientConnection
from tests.protocol.support import FAST, OK, WAIT_S, Peer, Rig, header, rig, until

LIMIT_S = 120.0
UNSWEPT = replace(FAST, body_timeout_s=LIMIT_S, sweep_interval_s=3600.0)
"""The tests sweep themselves, at moments of their own."""
HALF = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello"


async def silent(peer: Peer) -> None:
    """A backend that answers when the whole body is there."""
    await peer.head()
    await peer.body(10)
    peer.send(OK)


async def arrived(setup: Rig, size: int) -> ClientConnection:
    """The one connection, when so much of its request's body is there."""
    await until(lambda: [one.held_bytes for one in setup.listener.connections] == [size])
    (connection,) = setup.listener.connections
    return connection


async def bound(setup: Rig, size: int) -> ClientConnection:
    """The same, when a backend waits for the rest."""
    connection = await arrived(setup, size)
    await until(lambda: connection._exchange is not None and connection._exchange.bound)
    return connection


async def test_a_body_that_stops_coming_does_not_keep_its_backend() -> None:
    """1. Half a body is forwarded. 2. Nothing follows. 3. The client is told 408, the backend is free again."""
    async with rig(silent, limits=UNSWEPT) as setup:
        peer = await setup.ask(HALF)
        connection = await bound(setup, 5)
        now = asyncio.get_running_loop().time()
        connection.check(now)
        connection.check(now + LIMIT_S - 1)
        assert not setup.gateway.results
        connection.check(now + LIMIT_S + 0.001)
        status, head, body = await peer.answer()
        assert (status, header(head, b"connection")) == (408, b"close")
        assert json.loads(body)["error"]["code"] == "request_timeout"
        assert (await setup.result()).error == "request_timeout"


async def test_a_slow_body_is_no_stalled_one() -> None:
    """Each piece starts the time anew."""
    async with rig(silent, limits=UNSWEPT) as setup:
        peer = await setup.ask(HALF)
        now = asyncio.get_running_loop().time()
        for size, piece in enumerate((b"w", b"o", b"r", b"l", b"d"), start=5):
            connection = await bound(setup, size)
            connection.check(now)
            now += LIMIT_S - 1
            connection.check(now)
            peer.send(piece)
        await peer.exactly(OK)


async def test_a_held_body_may_wait() -> None:
    """1. Half a body is there, and the request is held for longer than that. 2. It is let through, the rest follows."""
    async with rig(silent, limits=UNSWEPT) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(HALF)
        connection = await arrived(setup, 5)
        now = asyncio.get_running_loop().time()
        for moment in (now, now + 2 * LIMIT_S):
            connection.check(moment)
        setup.gateway.hold.set()
        await bound(setup, 5)
        connection.check(now + 3 * LIMIT_S - 1)  # the time counts from here
        peer.send(b"world")
        await peer.exactly(OK)


async def test_a_body_may_pause_once_the_answer_has_begun() -> None:
    """Then both sides talk, and who is silent when is theirs to say."""

    async def both(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        peer.send(await peer.body(10))

    async with rig(both, limits=UNSWEPT) as setup:
        peer = await setup.ask(HALF)
        assert (await peer.head()).startswith(b"HTTP/1.1 200 OK\r\n")
        connection = await bound(setup, 5)
        now = asyncio.get_running_loop().time()
        for moment in (now, now + 2 * LIMIT_S):
            connection.check(moment)
        peer.send(b"world")
        assert await peer.body(10) == b"helloworld"


async def test_clients_that_vanish_are_noticed() -> None:
    """Without a byte to send, only the kernel's probes find out that a laptop was closed: it would wait for ever."""
    async with rig() as setup:
        await setup.connect()
        await until(lambda: bool(setup.listener.connections))
        (connection,) = setup.listener.connections
        taken = connection._transport.get_extra_info("socket")
        assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


async def test_a_mistake_in_the_sweep_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cut and the mistake logged; the deadlines of all others go on being met."""
    async with rig() as setup:
        unlucky = await setup.connect()
        await until(lambda: len(setup.listener.connections) == 1)
        (broken,) = setup.listener.connections
        check = ClientConnection.check

        def fail(connection: ClientConnection, now: float) -> None:
            if connection is broken:
                raise RuntimeError("a mistake")
            check(connection, now)

        monkeypatch.setattr(ClientConnection, "check", fail)
        other = await setup.connect()
        setup.listener.change(replace(FAST, idle_timeout_s=0.2))
        await unlucky.gone()
        async with asyncio.timeout(WAIT_S):
            await other.gone()
        assert "a mistake" in caplog.text


async def test_a_long_sweep_lets_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look into a waiting request of 1 MiB takes 5 to 15 ms: hundreds of them must not stop every stream."""
    async with rig() as setup:
        for _ in range(4):
            await setup.connect()
        await until(lambda: len(setup.listener.connections) == 4)
        story: list[str] = []
        over = False
        loop = asyncio.get_running_loop()

        def look(connection: ClientConnection, now: float) -> None:
            story.append("look")

        def tick() -> None:
            story.append("turn")
            if not over:
                loop.call_soon(tick)

        monkeypatch.setattr(ClientConnection, "check", look)
        monkeypatch.setattr(listener, "_TURN_S", -1.0)  # every look takes too long
        tick()
        await until(lambda: story.count("look") >= 8)
        over = True
        monkeypatch.undo()
        assert "look look" not in " ".join(story)
