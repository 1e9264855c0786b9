"""Input that is wrong on purpose, clients that are slow on purpose, and crowds: refused or closed, others unharmed.

Together with ``test_errors``, which has the well-known malformed requests; see docs/proxy.md for the whole list.
"""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from juggler.proxy import crowd
from juggler.proxy.contract import LocalResponse
from juggler.proxy.limits import Limits
from juggler.units import KIB, MIB
from tests.protocol.support import FAST, OK, WAIT_S, Peer, Rig, header, rig, until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\n"
FLOOD = Path(__file__).parents[1] / "programs" / "connection_flood.py"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
CONTROLS = [bytes([code]) for code in (*range(0x20), 0x7F) if code != 0x09]

LENGTHS = [b"-1", b"+1", b"1 1", b"1e3", b"1.0", b"0x1", b"1_0", b"1,1", b"1;", b'"1"', b"9" * 19, b"one"]
LENGTHS += [b"\xef\xbc\x91", b"\xb2"]  # digits to some: a wide one, a square
CODINGS = [b"chunked, chunked", b"chunked;q=1", b'"chunked"', b"chunked,", b",chunked", b"x, chunked", b"\x0bchunked"]
BODIES = {
    "16 digits": b"0000000000000001\r\na\r\n0\r\n\r\n",
    "no digits": b"\r\n\r\n",
    "blank before size": b" 1\r\na\r\n0\r\n\r\n",
    "sign": b"+1\r\na\r\n0\r\n\r\n",
    "size with h": b"1h\r\na\r\n0\r\n\r\n",
    "extension without semicolon": b"1 a\r\na\r\n0\r\n\r\n",
    "NUL in extension": b"1;\0\r\na\r\n0\r\n\r\n",
    "CR in extension": b"1;\ra\r\na\r\n0\r\n\r\n",
    "CR CR LF": b"1\r\r\na\r\n0\r\n\r\n",
    "no end of chunk": b"1\r\na0\r\n\r\n",
    "LF ends chunk": b"1\r\na\n0\r\n\r\n",
    "endless extension": b"1;" + b"x" * 5000,
    "trailer without colon": b"0\r\nX\r\n\r\n",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "blank in trailer's name": b"0\r\nX : a\r\n\r\n",
    "control byte in trailer": b"0\r\nX: \x01\r\n\r\n",
    "LF ends trailer": b"0\r\nX: a\n\r\n",
    "endless trailers": b"0\r\n" + b"X: a\r\n" * 5000,
}


async def _refused(setup: Rig, request: bytes, *statuses: int) -> None:
    """The request, and what is glued to it, reach no backend; the answer is ours, and the last on its connection."""
    peer = await setup.ask(request + SMUGGLED)
    answer = await peer.to_end()
    assert answer.startswith(b"HTTP/1.1 "), request
    assert int(answer[9:12]) in (statuses or (400,)), (request, answer)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert header(answer.partition(b"\r\n\r\n")[0], b"connection") == b"close"
    peer.writer.close()


async def test_control_bytes_are_refused_everywhere() -> None:
    """In method, target, version, name and value, alone and at either end."""
    async with rig() as setup:
        for byte in CONTROLS:
            for line in (b"G%bT / HTTP/1.1", b"GET /%b HTTP/1.1", b"GET /a%bb HTTP/1.1", b"GET / HTTP/1.1%b"):
                if byte == b"\r" and line.endswith(b"%b"):
                    continue  # that makes CR CR LF, below
                await _refused(setup, line % byte + b"\r\nHost: h\r\n\r\n", 400, 505)
            for field in (b"X%b: a", b"%bX: a", b"X: %b", b"X: a%bb", b"X:%ba", b"X: a%b"):
                await _refused(setup, b"GET / HTTP/1.1\r\nHost: h\r\n" + field % byte + b"\r\n\r\n")
        assert setup.upstream.accepted == 0


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\rHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\n",
        b"GET / HTTP/1.1\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\tX: folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX:\r\n \r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /  HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET\t/\tHTTP/1.1\r\nHost: h\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / http/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\n: v\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a@h\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nHost: a, b\r\n\r\n",
    ],
)
async def test_heads_that_could_be_read_in_two_ways_are_refused(head: bytes) -> None:
    """Line ends, folding, blanks, a Host of doubtful meaning."""
    async with rig() as setup:
        await _refused(setup, head)
        assert setup.upstream.accepted == 0


@pytest.mark.parametrize("length", LENGTHS)
async def test_odd_lengths_are_refused(length: bytes) -> None:
    """Alone, and beside a good one on either side."""
    async with rig() as setup:
        odd, good = b"Content-Length: " + length + b"\r\n", b"content-length: 1\r\n"
        for fields in (odd, odd + good, good + odd):
            await _refused(setup, POST + fields + b"\r\na")
        assert setup.upstream.accepted == 0


async def test_repeated_lengths_are_refused() -> None:
    """Equal ones too: a client that repeats itself is broken, and nothing needs it."""
    async with rig() as setup:
        await _refused(setup, POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na")
        assert setup.upstream.accepted == 0


@pytest.mark.parametrize("coding", CODINGS)
async def test_odd_codings_are_refused(coding: bytes) -> None:
    """Only ``chunked`` is known, and only once; beside a length never."""
    async with rig() as setup:
        await _refused(setup, POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n", 400, 501)
        for length in (b"Content-Length: 5\r\n", b"Content-Length: 0\r\n"):
            for fields in (b"Transfer-Encoding: chunked\r\n" + length, length + b"Transfer-Encoding: chunked\r\n"):
                await _refused(setup, POST + fields + b"\r\n0\r\n\r\n")
        assert setup.upstream.accepted == 0


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
@pytest.mark.parametrize("step", [1, 10_000])
async def test_odd_chunks_are_refused(body: bytes, step: int) -> None:
    """However they are cut; what came before may have been forwarded, but never as a whole request."""
    whole: list[bytes] = []

    async def backend(peer: Peer) -> None:
        try:
            await peer.head()
            await peer.reader.readuntil(b"0\r\n\r\n")
            whole.append(b"yes")
        except asyncio.LimitOverrunError:
            await peer.gone()

    async with rig(backend, limits=replace(FAST, discard_timeout_s=60.0)) as setup:
        peer = await setup.ask(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), step):
            peer.send(body[start : start + step])
            await asyncio.sleep(0)
        peer.send(SMUGGLED)
        answer = await peer.to_end()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        await until(lambda: not setup.pool.active)
        assert setup.upstream.accepted <= 1
    assert not whole


# Giant, endless and slow heads


@pytest.mark.parametrize(
    ("line_bytes", "head_bytes", "status"),
    [(1024, 4096, 200), (1025, 4096, 414), (1024, 4097, 431), (1025, 4097, 414)],
)
@pytest.mark.parametrize("step", [1, 100_000])
async def test_the_bounds_of_a_head_are_exact(line_bytes: int, head_bytes: int, status: int, step: int) -> None:
    """At the bound it passes, one byte above it does not, however it is cut."""
    line = b"GET /".ljust(line_bytes - len(b" HTTP/1.1"), b"a") + b" HTTP/1.1"
    start = line + b"\r\nHost: h\r\nX: "
    head = start.ljust(head_bytes - 4, b"x") + b"\r\n\r\n"
    assert (len(line), len(head)) == (line_bytes, head_bytes)
    async with rig(limits=replace(FAST, request_line_bytes=1024, head_bytes=4096)) as setup:
        peer = await setup.connect()
        for at in range(0, len(head), step):
            peer.send(head[at : at + step])
            await asyncio.sleep(0)
        assert (await peer.answer())[0] == status


@pytest.mark.parametrize(
    "piece", [b"a", b"X: y\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n"], ids=["name", "fields", "heads"]
)
async def test_an_endless_head_is_not_collected(piece: bytes) -> None:
    """It is refused at the bound, and what follows is thrown away, for a while."""
    limits = replace(FAST, discard_timeout_s=0.2)
    async with rig(limits=limits) as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\n")
        answered = asyncio.create_task(peer.answer())
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    peer.send(piece * (64 * KIB // len(piece)))
                    await peer.writer.drain()
                    for connection in setup.listener.connections:
                        assert len(connection._buffer) <= limits.head_bytes + 256 * KIB
                    await asyncio.sleep(0.01)
        except ConnectionError:
            pass  # cut, in the end
        status = (await answered)[0]
        assert status in (400, 431)


async def test_a_head_that_drips_has_its_time() -> None:
    """A byte now and then does not prolong it."""
    async with rig(limits=replace(FAST, head_timeout_s=0.3, idle_timeout_s=60.0)) as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nX: ")
        answered = asyncio.create_task(peer.answer())
        async with asyncio.timeout(WAIT_S):
            while not answered.done():
                peer.send(b"a")
                await asyncio.sleep(0.02)
        assert (await answered)[0] == 408


async def test_empty_lines_do_not_keep_a_connection() -> None:
    """They are passed over, but they are no request."""
    async with rig(limits=replace(FAST, idle_timeout_s=0.3)) as setup:
        peer = await setup.connect()
        ended = asyncio.create_task(peer.gone())
        async with asyncio.timeout(WAIT_S):
            while not ended.done():
                peer.send(b"\r\n")
                await asyncio.sleep(0.02)


async def test_the_body_of_a_waiting_request_is_read_up_to_its_bound() -> None:
    """1 MiB and at most one read more, whatever the client sends; the client is held, and the rest follows later."""
    size = 16 * MIB

    async def backend(peer: Peer) -> None:
        await peer.head()
        await peer.body(size)
        peer.send(OK)

    async with rig(backend) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(POST + b"Content-Length: %d\r\n\r\n" % size)
        peer.send(bytes(size))
        await until(lambda: any(one.unread_descriptor() is not None for one in setup.listener.connections))
        await asyncio.sleep(0.1)
        (connection,) = setup.listener.connections
        assert FAST.held_body_bytes <= connection.held_bytes <= FAST.held_body_bytes + 256 * KIB
        assert peer.writer.transport.get_write_buffer_size() > 0
        setup.gateway.hold.set()
        await peer.exactly(OK)


# Crowds


async def _connect_from(setup: Rig, address: str) -> Peer:
    host, port = setup.listener.addresses[0]
    peer = Peer(*await asyncio.open_connection(host, port, local_addr=(address, 0)))
    setup._clients.append(peer)
    return peer


async def test_one_client_cannot_take_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told so, with the bound; others connect, and its own requests go on."""
    monkeypatch.setattr(crowd, "client_of", lambda address: address)  # loopback addresses are not counted
    async with rig(limits=replace(FAST, connections_per_client=3)) as setup:
        own = [await setup.connect() for _ in range(3)]
        await until(lambda: len(setup.listener.connections) == 3)
        late = await setup.connect()
        status, head, body = await late.answer()
        assert (status, header(head, b"retry-after"), header(head, b"connection")) == (429, b"1", b"close")
        error = json.loads(body)
        assert error["error"]["code"] == "too_many_connections"
        assert "127.0.0.1 has 3 connections open already" in error["error"]["message"]
        assert await late.to_end() == b""
        for peer in (*own, await _connect_from(setup, "127.0.0.2")):
            peer.send(GET)
            await peer.exactly(OK)
        own[0].writer.close()
        late.writer.close()
        await until(lambda: len(setup.listener.connections) == 3)
        await (await setup.ask(GET)).exactly(OK)


@pytest.mark.parametrize("slow", [b"", b"GET / HT"], ids=["idle", "half a head"])
async def test_who_does_nothing_makes_room(slow: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener full of silent connections serves whoever comes, and the one at work is not cut."""
    monkeypatch.setattr(crowd, "_IDLE_S", 0.1)
    monkeypatch.setattr(crowd, "_SLOW_HEAD_S", 0.1)
    async with rig(limits=replace(FAST, connections=10)) as setup:
        setup.gateway.hold = asyncio.Event()
        busy = await setup.ask(GET)
        await until(lambda: bool(setup.gateway.asked))
        for _ in range(9):
            await setup.ask(slow)
        clock = asyncio.get_running_loop().time
        await until(lambda: [one.quiet_s(clock()) > 0.1 for one in setup.listener.connections].count(True) == 9)
        setup.gateway.hold.set()
        await busy.exactly(OK)
        setup.gateway.hold.clear()
        busy.send(GET)
        await until(lambda: len(setup.gateway.asked) == 2)
        setup.gateway.local = LocalResponse(200, b"ok")
        setup.gateway.hold = None
        for _ in range(9):
            peer = await setup.ask(GET)
            assert (await peer.answer())[0] == 200
        assert busy.reader.at_eof() is False
        assert any(not one.idle for one in setup.listener.connections)


async def test_a_flood_of_connections_does_not_stop_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that come and go at once, cleanly or by reset, with and without bytes: one client is served."""
    monkeypatch.setattr(crowd, "_IDLE_S", 3600.0)  # he makes room for nobody if he pauses between two requests
    async with rig(limits=replace(FAST, connections=64)) as setup:
        address = setup.listener.addresses[0]
        peer = await setup.ask(GET)
        await peer.exactly(OK)

        flood = await asyncio.create_subprocess_exec(sys.executable, str(FLOOD), address[0], str(address[1]), "3000")
        ended = asyncio.create_task(flood.wait())
        served = 0
        try:
            while not ended.done():
                peer.send(GET)
                await peer.exactly(OK)
                served += 1
        finally:
            if not ended.done():
                flood.kill()
            status = await ended
        assert status == 0
        assert served > 10
        await until(lambda: len(setup.listener.connections) == 1)


# Silence of the backend


async def _silent(peer: Peer) -> None:
    await peer.head()
    await peer.gone()


async def test_a_silent_backend_is_waited_for_unless_told_otherwise() -> None:
    """By default nothing ends a request; with ``response_timeout`` its client is told 504, and the backend is free."""
    assert Limits().response_timeout_s is None
    async with rig(_silent, limits=replace(FAST, response_timeout_s=0.2)) as setup:
        peer = await setup.ask(GET)
        status, _, body = await peer.answer()
        assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")
        assert (await setup.result()).error == "upstream_timeout"


async def test_an_answer_that_stops_is_cut_where_that_is_wanted() -> None:
    """After its head nothing can be told any more, but the end must not look like the end of a whole answer."""

    go_on = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            await go_on.wait()
            go_on.clear()
            peer.send(b"1\r\na\r\n")
        await peer.gone()

    # The test sweeps itself, at moments of its own.
    async with rig(backend, limits=replace(FAST, response_timeout_s=100.0, sweep_interval_s=3600.0)) as setup:
        peer = await setup.ask(GET)
        await peer.head()
        (connection,) = setup.listener.connections
        now = asyncio.get_running_loop().time()
        for _ in range(5):  # longer in all than the bound
            go_on.set()
            await peer.exactly(b"1\r\na\r\n")
            connection.check(now)
            now += 99
            connection.check(now)
        assert not setup.gateway.results
        connection.check(now + 1)
        await peer.gone()
        result = await setup.result()
        assert (result.status, result.error, result.client_gone) == (200, "upstream_timeout", False)


async def test_a_client_that_does_not_read_is_not_the_backends_silence() -> None:
    """While the answer is held back for its reader, the bound does not run; nor does it in a tunnel."""

    async def backend(peer: Peer) -> None:
        if b"upgrade" in (await peer.head()).lower():
            peer.send(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
            await peer.gone()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 30000000\r\n\r\n" + bytes(30_000_000))
        await peer.gone()

    async with rig(backend, limits=replace(FAST, response_timeout_s=100.0, sweep_interval_s=3600.0)) as setup:
        tunnel = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        await tunnel.head()
        peer = await setup.ask(GET)
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: any(one.read_paused for one in setup.pool.active))
        now = asyncio.get_running_loop().time()
        for moment in (now, now + 200, now + 400):
            for connection in list(setup.listener.connections):
                connection.check(moment)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await peer.body(30_000_000)) == 30_000_000
        assert not tunnel.reader.at_eof()
