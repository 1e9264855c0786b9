"""Clients of a TLS listener that never finish their handshake, or begin to speak with its last message."""

import asyncio
import ssl
from pathlib import Path

import pytest

from juggler.proxy import handshakes
from juggler.proxy.contract import LocalResponse
from juggler.proxy.tls import Certificate
from tests.certificates import make_pair, trusting
from tests.protocol.support import OK, Peer, Rig, Secure, rig, until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def secure(tmp_path: Path) -> Secure:
    pair = make_pair(tmp_path)
    return Secure(Certificate(pair.cert, pair.key), trusting())


async def _silent(setup: Rig, first: bytes = b"") -> Peer:
    """A connection without a handshake."""
    host, port = setup.listener.addresses[0]
    peer = Peer(*await asyncio.open_connection(host, port))
    setup._clients.append(peer)
    peer.send(first)
    return peer


async def test_silent_callers_make_room(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes when there are too many; one more client gets in meanwhile, and is served."""
    monkeypatch.setattr(handshakes, "MOST", 5)
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        callers = [await _silent(setup, b"\x16\x03\x01" if number % 2 else b"") for number in range(20)]
        for caller in callers[:15]:
            await caller.gone()
        await until(lambda: len(shaking._pending) == 5)
        assert not any(caller.reader.at_eof() for caller in callers[15:])
        await (await setup.ask(GET)).exactly(OK)
        assert len(shaking._pending) < 5


async def test_handshakes_that_fail_leave_nothing(secure: Secure, caplog: pytest.LogCaptureFixture) -> None:
    """Clients that leave, speak plain HTTP, or do not believe us."""
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        for first in (b"", b"\x16\x03", GET, b"\0" * 1000):
            peer = await _silent(setup, first)
            await peer.writer.drain()
            peer.writer.write_eof()
            await peer.gone()
        host, port = setup.listener.addresses[0]
        with pytest.raises((ssl.SSLError, ConnectionError)):  # uvloop tells of the end, not of the reason
            await asyncio.open_connection(host, port, ssl=ssl.create_default_context(), server_hostname="localhost")
        await until(lambda: not shaking._pending)
        assert not setup.listener.connections
        await (await setup.ask(GET)).exactly(OK)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_slow_handshakes_have_their_time(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing is cut."""
    monkeypatch.setattr(handshakes, "HANDSHAKE_LIMIT_S", 0.2)
    async with rig(secure=secure) as setup:
        peer = await _silent(setup)
        await peer.gone()
        shaking = setup.listener._handshakes
        assert shaking is not None
        await until(lambda: not shaking._pending)


async def test_what_comes_with_the_last_message_of_a_handshake(secure: Secure) -> None:
    """A request glued to it is read like any other, many times over."""
    async with rig(secure=secure) as setup:
        setup.gateway.local = LocalResponse(200, b"ok")
        for _ in range(20):
            assert secure.client_context is not None
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = secure.client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            peer = await _silent(setup)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    peer.send(outgoing.read())
                    incoming.write(await peer.reader.read(65536))
            tls.write(GET)
            peer.send(outgoing.read())  # the client's Finished and its request in one piece
            got = b""
            async with asyncio.timeout(5):
                while b"ok" not in got:
                    incoming.write(await peer.reader.read(65536))
                    try:
                        got += tls.read(65536)
                    except ssl.SSLWantReadError:
                        continue
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_listener_that_goes_waits_for_no_handshake(secure: Secure) -> None:
    """Closing cuts those who have not been let in."""
    async with rig(secure=secure) as setup:
        peer = await _silent(setup)
        shaking = setup.listener._handshakes
        assert shaking is not None
        await until(lambda: len(shaking._pending) == 1)
        await setup.listener.close(0)
        await peer.gone()
        assert not shaking._pending
