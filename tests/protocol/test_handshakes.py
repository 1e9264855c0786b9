"""Clients of a TLS listener that end their handshake never, or with a request, or that speak something else."""

import asyncio
import contextlib
import errno
import socket
import ssl
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from juggler.proxy import handshakes
from juggler.proxy.contract import LocalResponse
from juggler.proxy.tls import Certificate
from tests.certificates import make_pair, trusting
from tests.protocol.support import OK, WAIT_S, Peer, Rig, Secure, header, rig, until

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
    monkeypatch.setattr(handshakes, "MOST_CALLERS", 5)
    monkeypatch.setattr(handshakes, "SILENCE_S", 0.01)
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        callers = [await _silent(setup) for _ in range(20)]
        for caller in callers[:15]:
            await caller.gone()
        await until(lambda: len(shaking._pending) == 5)
        assert not any(caller.reader.at_eof() for caller in callers[15:])
        await (await setup.ask(GET)).exactly(OK)
        assert len(shaking._pending) < 5


async def test_slow_callers_make_room(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes that stick take no place for long from one that waits for its turn; else they have their time."""
    monkeypatch.setattr(handshakes, "MOST", 2)
    monkeypatch.setattr(handshakes, "PATIENCE_S", 0.3)
    monkeypatch.setattr(handshakes, "_ROOM_EVERY_S", 3600.0)  # one look is enough, and one cut for each who waits
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        callers = [await _silent(setup, b"\x16\x03\x01") for _ in range(4)]
        for caller in callers[:2]:
            await caller.gone()
        await until(lambda: len(shaking._shaking) == 2)
        await (await setup.ask(GET)).exactly(OK)
        await until(lambda: len(shaking._pending) == 1)
        assert not callers[3].reader.at_eof()


async def test_slow_callers_take_turns(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who got its turn a moment ago has as much time as the others, and goes then, for one that waits since before."""
    monkeypatch.setattr(handshakes, "MOST", 1)
    monkeypatch.setattr(handshakes, "PATIENCE_S", 0.3)
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        callers = [await _silent(setup, b"\x16\x03\x01") for _ in range(4)]
        for caller in callers[:3]:
            await caller.gone()
        await until(lambda: len(shaking._shaking) == len(shaking._pending) == 1)
        assert not callers[3].reader.at_eof()


async def test_who_waits_for_a_turn_may_leave(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it, and the next one gets the turn."""
    monkeypatch.setattr(handshakes, "MOST", 1)
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        first, second = [await _silent(setup, b"\x16\x03\x01") for _ in range(2)]
        await until(lambda: [one.speaks for one in shaking._pending.values()] == [True, True])
        shaking._cut(list(shaking._pending)[1])
        await second.gone()
        first.reset()
        await (await setup.ask(GET)).exactly(OK)
        await until(lambda: not shaking._pending and not shaking._shaking)


@pytest.mark.parametrize("silent", [0, 3])
async def test_many_clients_at_once(secure: Secure, monkeypatch: pytest.MonkeyPatch, silent: int) -> None:
    """More than may be in their handshake at a time all get in, also where silent ones take some of the places."""
    monkeypatch.setattr(handshakes, "MOST", 5)
    monkeypatch.setattr(handshakes, "PATIENCE_S", 3600.0)
    async with rig(secure=secure) as setup:
        for _ in range(silent):
            await _silent(setup)
        for peer in await asyncio.gather(*(setup.ask(GET) for _ in range(40))):
            await peer.exactly(OK)


async def test_a_burst_of_callers(secure: Secure) -> None:
    """Many have connected while the loop was busy: it is not held up until all of them are accepted."""
    count = 60
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        with contextlib.ExitStack() as callers:
            for _ in range(count):
                callers.enter_context(socket.create_connection(setup.listener.addresses[0]))
            accepted = [0]
            async with asyncio.timeout(WAIT_S):
                while accepted[-1] < count:
                    await asyncio.sleep(0)
                    accepted.append(len(shaking._pending))
            assert max(after - before for before, after in pairwise(accepted)) <= 2
        await until(lambda: not shaking._pending)


async def test_a_listener_that_goes_in_the_middle_of_an_accept(secure: Secure) -> None:
    """A connection that was accepted in this very turn of the loop is closed like all others."""
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        ours, theirs = socket.socketpair()
        caller = handshakes._Caller(ours, 0.0)
        task = asyncio.get_running_loop().create_task(shaking._shake(caller))
        shaking._pending[task] = caller
        setup.listener.abort()
        theirs.settimeout(5)
        assert theirs.recv(1) == b""
        theirs.close()


async def test_no_descriptors_are_told_once(
    secure: Secure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can be accepted for a while: a line in the log, and then it goes on."""
    failures = 5

    async def fail(loop: asyncio.AbstractEventLoop, listening: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(loop, listening)

    loop = type(asyncio.get_running_loop())
    accept = loop.sock_accept
    monkeypatch.setattr(handshakes, "_PAUSE_S", 0.001)
    monkeypatch.setattr(
        asyncio.get_running_loop(), "sock_accept", partial(fail, asyncio.get_running_loop()), raising=False
    )
    async with rig(secure=secure) as setup:
        await (await setup.ask(GET)).exactly(OK)
        assert not failures
    assert caplog.text.count("no connection can be accepted (Too many open files)") == 1


@pytest.mark.parametrize(
    "request_", [GET, b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n" + bytes(9000)]
)
async def test_plain_http_is_told(secure: Secure, request_: bytes) -> None:
    """Whoever forgot the s of https reads so, also behind half an upload; then the connection ends."""
    async with rig(secure=secure) as setup:
        shaking = setup.listener._handshakes
        assert shaking is not None
        peer = await _silent(setup, request_)
        status, head, body = await peer.answer()
        assert status == 400
        assert header(head, b"content-type") == b"text/plain; charset=utf-8"
        assert header(head, b"connection") == b"close"
        assert b"https://" in body
        assert await peer.to_end() == b""
        peer.writer.close()
        await until(lambda: not shaking._pending)
        await (await setup.ask(GET)).exactly(OK)
        assert not setup.upstream.requests


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
            async with asyncio.timeout(WAIT_S):
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
