"""A listener opens and closes whole: all connections are cut, its port is free again, its errors name the address."""

import asyncio
import errno
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from juggler.proxy import listener as listener_module
from juggler.proxy.client import ClientConnection
from juggler.proxy.listener import Listener, start_listener
from juggler.proxy.tls import Certificate
from tests.certificates import make_pair, trusting
from tests.ports import free_port
from tests.protocol.support import FAST, OK, WAIT_S, Rig, Secure, rig, until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture(params=["http", "https"])
def secure(request: pytest.FixtureRequest, tmp_path: Path) -> Secure:
    if request.param == "http":
        return Secure()
    return Secure(Certificate(*make_pair(tmp_path)), trusting())


async def again(setup: Rig, secure: Secure) -> Listener:
    """Another listener on the same port."""
    port = setup.listener.addresses[0][1]
    return await start_listener(setup.gateway, "127.0.0.1", port, FAST, certificate=secure.certificate)


async def test_a_closed_listener_has_left_its_port(secure: Secure) -> None:
    """Somebody else, or its successor, can have it at once."""
    async with rig(secure=secure, port=free_port()) as setup:
        await setup.listener.close(0)
        other = await again(setup, secure)
        await other.close(0)


@pytest.mark.parametrize("ends", ["abort", "close"])
async def test_one_connection_that_cannot_be_cut_saves_no_other(
    ends: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake that shows while a request is cut is logged; all other connections are cut as well."""
    async with rig() as setup:
        setup.gateway.hold = asyncio.Event()
        peers = [await setup.ask(GET) for _ in range(3)]
        await until(lambda: len(setup.gateway.asked) == 3)
        broken = next(iter(setup.listener.connections))
        leave = ClientConnection._leave

        def fail(connection: ClientConnection) -> None:
            leave(connection)
            if connection is broken:
                raise RuntimeError("a mistake")

        monkeypatch.setattr(ClientConnection, "_leave", fail)
        if ends == "abort":
            setup.listener.abort()
        else:
            await setup.listener.close(0)
        monkeypatch.undo()
        for peer in peers:
            await peer.gone()
        assert "a mistake" in caplog.text


async def test_one_that_is_cancelled_while_it_opens_listens_nowhere(secure: Secure) -> None:
    """In whichever turn of the loop that is."""
    async with rig(secure=secure, port=free_port()) as setup:
        port = setup.listener.addresses[0][1]
        await setup.listener.close(0)
        turns = 0
        while True:
            opening = asyncio.create_task(again(setup, secure))
            for _ in range(turns):
                await asyncio.sleep(0)
            if opening.done():
                break
            opening.cancel()
            assert isinstance((await asyncio.gather(opening, return_exceptions=True))[0], asyncio.CancelledError)
            with socket.create_server(("127.0.0.1", port)):
                pass
            turns += 1
        assert turns > 1
        await (await opening).close(0)


async def test_whoever_is_accepted_first_is_probed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket has it before it listens: a closed laptop would hold its model for ever."""
    listening: list[bool] = []
    probe = listener_module._probe_silent_peers

    def look(sock: socket.socket) -> None:
        listening.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0)
        probe(sock)

    monkeypatch.setattr(listener_module, "_probe_silent_peers", look)
    async with rig():
        assert listening == [False]


async def test_two_may_wait_for_its_end() -> None:
    """1. A listener that is to go drains. 2. The juggler goes down and closes it, too. 3. Both hear of its end."""
    async with rig() as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(GET)
        await until(lambda: len(setup.gateway.asked) == 1)
        closing = [asyncio.create_task(setup.listener.close(3600)) for _ in range(2)]
        await asyncio.sleep(0)
        setup.gateway.hold.set()
        await peer.exactly(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*closing)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64])
async def test_names_without_an_address(host: str) -> None:
    """The error says what is wrong, in words."""
    async with rig() as setup:
        with pytest.raises(OSError, match=f"cannot listen on {host}:0: ") as raised:
            await start_listener(setup.gateway, host, 0, FAST)
        assert "nknown error" not in str(raised.value)


async def test_half_an_opening_leaves_nothing(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. One of two sockets is open. 2. Something fails. 3. The first one's port is free again."""
    port = free_port()

    def fail(listening: socket.socket) -> None:
        raise OSError(errno.EMFILE, "")

    async with rig() as setup:
        with monkeypatch.context() as patch:
            patch.setattr(listener_module, "_probe_silent_peers", fail)
            with pytest.raises(OSError, match="Too many open files"):
                await start_listener(setup.gateway, "localhost", port, FAST, certificate=secure.certificate)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()


async def test_a_port_that_is_taken_on_one_of_two_addresses(secure: Secure) -> None:
    """``localhost`` is both loopbacks or none: nobody else gets half of our clients."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    port = free_port()
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("::1", port))
        except OSError:
            pytest.skip("no IPv6 loopback here")
        other.listen()
        async with rig() as setup:
            with pytest.raises(OSError, match="cannot listen on"):
                await start_listener(setup.gateway, "localhost", port, FAST, certificate=secure.certificate)
            with socket.socket() as taken:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken.bind(("127.0.0.1", port))
                taken.listen()


async def test_those_who_have_gone_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that takes several turns meets connections that have ended meanwhile."""
    looked: list[ClientConnection] = []
    async with rig(limits=replace(FAST, sweep_interval_s=3600.0)) as setup:
        for _ in range(3):
            await setup.connect()
        await until(lambda: len(setup.listener.connections) == 3)
        monkeypatch.setattr(ClientConnection, "check", lambda connection, now: looked.append(connection))
        before = list(setup.listener.connections)
        for connection in before[:2]:
            connection.cut(None)
        await until(lambda: len(setup.listener.connections) == 1)
        setup.listener._look_at(iter(before))
        assert looked == before[2:]


@pytest.mark.parametrize("began", [b"", b"GET / HT"])
async def test_new_bounds_make_nobody_older(began: bytes) -> None:
    """Who has just come is not taken for one that was quiet for long, and the new time counts from when it was."""
    async with rig(limits=replace(FAST, sweep_interval_s=3600.0)) as setup:
        await setup.ask(began)
        await until(lambda: [one.idle for one in setup.listener.connections] == [not began])
        (connection,) = setup.listener.connections
        now = asyncio.get_running_loop().time()
        before = connection.quiet_s(now)
        setup.listener.change(replace(FAST, idle_timeout_s=5000.0, head_timeout_s=4000.0))
        assert connection.quiet_s(now) == pytest.approx(before, abs=1e-6)
        connection.check(now + 3000)
        assert not connection._transport.is_closing()
