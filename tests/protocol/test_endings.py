"""Who leaves when: disconnects in each phase, backpressure, stale connections, stopping instances and listeners."""

import asyncio
import select
import socket
from collections.abc import Callable

import pytest

from juggler.proxy import exchange
from juggler.proxy.contract import LocalResponse
from juggler.proxy.limits import Limits
from juggler.proxy.listener import start_listener
from juggler.proxy.upstream import UpstreamPool
from juggler.units import KIB, MIB
from tests.protocol.support import (
    FAST,
    OK,
    WAIT_S,
    Peer,
    StubGateway,
    header,
    leave_unread,
    quickest,
    replies,
    rig,
    until,
)

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
SOON_S = 0.1


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("phase", ["held", "waiting", "streaming", "uploading"])
async def test_client_that_leaves_cancels_at_once(phase: str, way: str) -> None:
    """In each phase the hold is cancelled or the backend's connection ends within 100 ms, and the lease goes once."""
    assert await quickest(lambda: _leaving_s(phase, way), SOON_S) < SOON_S


async def _leaving_s(phase: str, way: str) -> float:
    """How long it takes until a client that leaves is missed."""
    left = asyncio.Event()
    clock = asyncio.get_running_loop().time

    async def backend(peer: Peer) -> None:
        await peer.head()
        if phase == "streaming":
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await peer.gone()
        left.set()

    async with rig(backend) as setup:
        request = GET
        if phase == "held":
            setup.gateway.hold = asyncio.Event()
        if phase == "uploading":
            request = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc"
        peer = await setup.ask(request)
        await until(lambda: bool(setup.gateway.asked) if phase == "held" else setup.upstream.accepted == 1)
        if phase == "streaming":
            await peer.head()
        since = clock()
        if way == "close":
            peer.writer.close()
        else:
            _reset(peer)
        if phase == "held":
            await until(lambda: setup.gateway.cancelled == 1)
            assert not setup.gateway.leases
            return clock() - since
        async with asyncio.timeout(WAIT_S):
            await left.wait()
        delay_s = clock() - since
        result = await setup.result()
        assert (result.client_gone, result.error) == (True, None)
        return delay_s


def _reset(peer: Peer) -> None:
    raw = peer.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    peer.reset()


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="only Linux tells without reading")
async def test_client_that_leaves_while_its_upload_is_paused() -> None:
    """A body over the bound is not read on, and still the sweep notices that its client has gone."""
    async with rig(limits=Limits(sweep_interval_s=0.02, held_body_bytes=64 * KIB)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n" + bytes(300 * KIB))
        await until(lambda: bool(setup.gateway.asked))
        await until(lambda: any(one.unread_descriptor() is not None for one in setup.listener.connections))
        _reset(peer)
        await until(lambda: setup.gateway.cancelled == 1)


async def test_held_body_is_bounded_and_then_delivered_whole() -> None:
    """While held, reading pauses at the bound; afterwards every byte arrives in order."""
    body = bytes(range(256)) * 4 * KIB * 8  # 8 MiB
    got = asyncio.get_running_loop().create_future()

    async def backend(peer: Peer) -> None:
        await peer.head()
        got.set_result(await peer.body(len(body)))
        peer.send(OK)

    async with rig(backend) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body))
        peer.send(body)
        (connection,) = setup.listener.connections
        await until(lambda: connection.unread_descriptor() is not None)
        assert connection.held_bytes <= FAST.held_body_bytes + 8 * MIB // 2
        setup.gateway.hold.set()
        assert await got == body
        await peer.exactly(OK)
        assert (await setup.result()).bytes_up == len(body)


async def test_stalled_client_stops_the_backend() -> None:
    """An answer nobody reads is not collected here."""
    sent = 0

    async def backend(peer: Peer) -> None:
        nonlocal sent
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n")
        while True:
            peer.send(bytes(64 * KIB))
            await peer.writer.drain()
            sent += 64 * KIB

    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await _settled(lambda: sent)
        assert sent < 40 * MIB  # kernel buffers of two loopback connections and our marks
        (connection,) = setup.listener.connections
        assert connection.unsent_bytes < MIB


async def test_stalled_backend_stops_the_client() -> None:
    """An upload the backend does not read is not collected here."""
    stop = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await stop.wait()

    async with rig(backend) as setup:
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200000000\r\n\r\n")
        sent = 0

        async def upload() -> None:
            nonlocal sent
            while True:
                peer.send(bytes(64 * KIB))
                await peer.writer.drain()
                sent += 64 * KIB

        task = asyncio.create_task(upload())
        await _settled(lambda: sent)
        task.cancel()
        assert sent < 40 * MIB
        (upstream,) = setup.pool.active
        assert upstream.unsent < MIB
        stop.set()


async def _settled(count: Callable[[], int]) -> None:
    """Wait until ``count()`` has begun and then stands still for a quarter of a second."""
    async with asyncio.timeout(20):
        last, since = count(), asyncio.get_running_loop().time()
        while not last or asyncio.get_running_loop().time() - since < 0.25:
            await asyncio.sleep(0.01)
            if count() != last:
                last, since = count(), asyncio.get_running_loop().time()


async def test_pipelining_client_that_does_not_read_is_not_served_on() -> None:
    """Answers nobody takes hold back the next requests."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)

    async def backend(peer: Peer) -> None:
        while True:
            await peer.head()
            peer.send(answer)

    async with rig(backend) as setup:
        peer = await setup.connect()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(GET * 2000)
        await _settled(lambda: len(setup.gateway.results))
        assert len(setup.gateway.results) < 500
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(2000):
            await peer.exactly(answer)


async def test_connections_to_the_backend_are_reused() -> None:
    """One backend connection serves many clients in turn."""
    async with rig() as setup:
        for _ in range(5):
            peer = await setup.ask(GET)
            await peer.exactly(OK)
        assert setup.upstream.accepted == 1


async def test_without_keepalive_each_request_gets_its_own_connection() -> None:
    """The backend is told to close, and a new connection is made."""
    seen: list[bytes] = []
    async with rig(replies(OK, requests=seen), keepalive=False) as setup:
        peer = await setup.connect()
        for _ in range(3):
            peer.send(GET)
            await peer.exactly(OK)
        assert setup.upstream.accepted == 3
    assert all(header(head, b"connection") == b"close" for head in seen)


async def test_announced_close_is_not_reused() -> None:
    """After ``Connection: close`` the next request opens its own connection; the client notices nothing."""
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with rig(replies(closing)) as setup:
        peer = await setup.connect()
        for _ in range(2):
            peer.send(GET)
            await peer.exactly(OK)
        assert setup.upstream.accepted == 2


async def test_bytes_behind_an_answer_are_not_the_next_answer() -> None:
    """A backend that says too much loses its connection; its surplus reaches nobody."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(OK + b"HTTP/1.1 200 Poison\r\nContent-Length: 0\r\n\r\n")
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.connect()
        for _ in range(2):
            peer.send(GET)
            await peer.exactly(OK)
        assert setup.upstream.accepted == 2


@pytest.mark.parametrize("size", [0, 3, 100_000])
async def test_stale_connection_is_replaced_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A pooled connection is idle. 2. The request is written. 3. The backend closes it unread. 4. A fresh one is
    used, with the whole request, and the client sees one good answer.
    """
    monkeypatch.setattr(exchange, "_CLOSED_WHILE_IDLE_S", 3600.0)

    async def backend(peer: Peer) -> None:
        head = await peer.head()
        await peer.body(int(header(head, b"content-length") or 0))
        peer.send(OK)
        if setup.upstream.accepted == 1:
            await leave_unread(peer)
            return
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.connect()
        for _ in range(2):
            peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
            await peer.exactly(OK)
        assert setup.upstream.accepted == 2
        assert len(setup.gateway.leases) == 2
        assert (await setup.result(1)).error is None


async def test_no_second_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh connection that dies is the backend's failure."""
    monkeypatch.setattr(exchange, "_CLOSED_WHILE_IDLE_S", 3600.0)

    async def backend(peer: Peer) -> None:
        if setup.upstream.accepted == 1:
            await peer.head()
            peer.send(OK)
        await peer.reader.read(1)

    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(OK)
        peer.send(GET)
        assert (await peer.answer())[0] == 502
        assert setup.upstream.accepted == 2


async def test_no_retry_after_the_first_answer_byte() -> None:
    """A backend that began to answer has acted: the request is not repeated."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(OK)
        await peer.head()
        peer.send(b"HTTP/1.1 2")

    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(OK)
        peer.send(GET)
        assert (await peer.answer())[0] == 502
        assert setup.upstream.accepted == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_stopped_instance_ends_its_exchanges(begun: bool) -> None:
    """Closing the pool cuts running exchanges: 502 before the head, a cut connection after it."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        if begun:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        if begun:
            await peer.head()
        await until(lambda: setup.upstream.accepted == 1 and bool(setup.pool.active))
        setup.pool.close()
        if begun:
            await peer.gone()
        else:
            assert (await peer.answer())[0] == 502
        result = await setup.result()
        assert (result.error, result.client_gone) == ("upstream_closed", False)


async def test_stop_between_lease_and_connection() -> None:
    """A pool closed before the exchange began is ``upstream_closed`` as well."""
    async with rig() as setup:
        setup.pool.close()
        peer = await setup.ask(GET)
        assert (await peer.answer())[0] == 502
        assert (await setup.result()).error == "upstream_closed"


async def test_tunnel_ends_with_its_client() -> None:
    """A client that resets a tunnel takes the backend's half with it, within 100 ms."""
    assert await quickest(_leaving_a_tunnel_s, SOON_S) < SOON_S


async def _leaving_a_tunnel_s() -> float:
    left = asyncio.Event()
    clock = asyncio.get_running_loop().time

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        await peer.gone()
        left.set()

    async with rig(backend) as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        await peer.head()
        since = clock()
        _reset(peer)
        async with asyncio.timeout(WAIT_S):
            await left.wait()
        delay_s = clock() - since
        assert (await setup.result()).status == 101
        return delay_s


async def test_half_closed_tunnel_does_not_live_for_ever() -> None:
    """After one side has ended, silence of the other has a bound."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        await asyncio.Event().wait()

    async with rig(backend, limits=Limits(sweep_interval_s=0.02, half_close_timeout_s=0.1)) as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        await peer.head()
        peer.writer.write_eof()
        await peer.gone()
        await setup.result()


async def test_listener_drains() -> None:
    """Closing: idle connections end, nobody new gets in, a running exchange finishes and says close."""
    go_on = asyncio.Event()

    async def backend(peer: Peer) -> None:
        while True:
            await peer.head()
            if setup.upstream.accepted == 2:
                await go_on.wait()
            peer.send(OK)

    async with rig(backend) as setup:
        idle = await setup.ask(GET)
        await idle.exactly(OK)
        setup.pool.close()
        setup.gateway.pool = pool = UpstreamPool("127.0.0.1", setup.upstream.port)
        busy = await setup.ask(GET)
        await until(lambda: setup.upstream.accepted == 2)
        closing = asyncio.create_task(setup.listener.close(30))
        assert await idle.to_end() == b""
        with pytest.raises(OSError, match=r"(?i)connect|refused"):
            await setup.connect()
        assert not closing.done()
        go_on.set()
        assert header((await busy.answer())[1], b"connection") == b"close"
        await busy.to_end()
        busy.writer.close()
        await closing
        pool.close()


async def test_listener_cuts_after_the_drain_time() -> None:
    """An exchange that outlives the drain is cut, and its lease given back with the reason."""

    async def silent(peer: Peer) -> None:
        await peer.gone()

    async with rig(silent) as setup:
        peer = await setup.ask(GET)
        await until(lambda: setup.upstream.accepted == 1)
        await setup.listener.close(0.05)
        assert not setup.listener.connections
        await peer.gone()
        result = await setup.result()
        assert (result.error, result.client_gone) == ("shutting_down", False)


async def test_taken_address_is_named() -> None:
    """The operator reads which address cannot be had."""
    async with rig() as setup:
        port = setup.listener.addresses[0][1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}"):
            await start_listener(setup.gateway, "127.0.0.1", port)


async def test_localhost_is_both_loopback_addresses() -> None:
    """``localhost`` listens on IPv4 and, where there is one, IPv6, on one port."""
    listener = await start_listener(StubGateway(UpstreamPool("127.0.0.1", 1)), "localhost", 0)
    try:
        hosts = [host for host, _ in listener.addresses]
        assert hosts in (["127.0.0.1"], ["127.0.0.1", "::1"])
        assert len({port for _, port in listener.addresses}) == 1
        for host, port in listener.addresses:
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    finally:
        await listener.close(0)


async def test_client_that_leaves_with_an_answer_unread() -> None:
    """Bytes the client never took do not delay the end: its backend connection goes within 100 ms, too."""
    assert await quickest(_leaving_much_unread_s, SOON_S) < SOON_S


async def _leaving_much_unread_s() -> float:
    left = asyncio.Event()
    clock = asyncio.get_running_loop().time

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n" + bytes(60 * MIB))
        await peer.gone()
        left.set()

    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = setup.listener.connections
        await until(lambda: connection.write_paused)
        since = clock()
        peer.writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            await left.wait()
        delay_s = clock() - since
        assert (await setup.result()).client_gone
        return delay_s


async def test_a_client_that_still_reads_when_the_drain_begins_is_not_waited_for_afterwards() -> None:
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000

    async def backend(peer: Peer) -> None:
        while True:
            await peer.head()
            peer.send(body)

    async with rig(backend) as setup:
        peer = await setup.connect()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: len(setup.listener.connections) == 1)
        (connection,) = setup.listener.connections
        asked = 0
        while not connection.write_paused:
            peer.send(GET)
            asked += 1
            await until(lambda: connection.write_paused or len(setup.gateway.results) == asked)  # noqa: B023
        closing = asyncio.create_task(setup.listener.close(60))
        await asyncio.sleep(0)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(asked):
            await peer.exactly(body)
        assert await peer.to_end() == b""
        peer.writer.close()
        async with asyncio.timeout(WAIT_S):
            await closing


async def test_the_last_of_many_requests_is_read_again_behind() -> None:
    """Reading paused for those that came early; with none of them left, a client that leaves is to be noticed."""
    go_on = asyncio.Event()
    post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n" + b"y" * 100_000

    async def backend(peer: Peer) -> None:
        await peer.head()
        await go_on.wait()
        peer.send(OK)
        await peer.head()
        await peer.body(100_000)
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(GET + post)
        await until(lambda: any(one._read_paused for one in setup.listener.connections))
        go_on.set()
        await peer.exactly(OK)
        await until(lambda: len(setup.gateway.asked) == 2)
        (connection,) = setup.listener.connections
        assert not connection._read_paused


async def test_many_requests_at_once_leave_time_for_others() -> None:
    """Answered here without a wait, they are answered one per turn of the loop."""
    turns: list[int] = [0]

    class Refusing(StubGateway):
        def route(self, method: bytes, target: bytes, host: bytes | None) -> LocalResponse:
            turns[-1] += 1
            return LocalResponse(404, b"")

    async def others() -> None:
        while True:
            turns.append(0)
            await asyncio.sleep(0)

    async with rig() as setup:
        setup.listener.gateway = Refusing(setup.pool)
        ticking = asyncio.create_task(others())
        peer = await setup.ask(GET * 500)
        for _ in range(500):
            assert (await peer.answer())[0] == 404
        ticking.cancel()
    assert sum(turns) >= 500
    assert max(turns) <= 2


async def test_a_connection_that_the_backend_has_ended_is_not_used_again() -> None:
    """Behind TLS it goes on for a moment. The end comes while it is idle, or with the end of an answer."""
    async with rig() as setup:
        for comes_early in (False, True):
            connection = await setup.pool.acquire()
            if comes_early:
                connection.ended = True
                setup.pool.release(connection)
            else:
                setup.pool.release(connection)
                assert connection in setup.pool.idle
                connection.eof_received()
            assert not setup.pool.idle
            assert connection.transport is not None
            assert connection.transport.is_closing()
