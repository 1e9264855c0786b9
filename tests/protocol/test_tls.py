"""HTTPS on either side: clients of a listener with a certificate, and backends behind TLS."""

import asyncio
import contextlib
import datetime
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from juggler.errors import ConnectFailed
from juggler.proxy import tls as proxy_tls
from juggler.proxy.tls import Certificate
from juggler.survey.threads import LOOK
from juggler.tls import BadPair, ServerTls
from tests.certificates import Pair, authority, make_pair, stranger, trusting, write_authority
from tests.protocol.support import FAST, OK, WAIT_S, Peer, Secure, answer_ok, header, rig, until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
ASK = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
BIG = 3_000_000


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path)


@pytest.fixture(params=["clients", "backend", "both"])
def secure(request: pytest.FixtureRequest, pair: Pair, tmp_path: Path) -> Secure:
    """Who speaks TLS."""
    sides = Secure()
    if request.param != "backend":
        sides.certificate, sides.client_context = Certificate(*pair), trusting()
    if request.param != "clients":
        sides.upstream_context = server_side(pair)
        sides.upstream = ServerTls("localhost", "localhost:1", write_authority(tmp_path))
    return sides


def server_side(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def for_clients(pair: Pair) -> Secure:
    return Secure(Certificate(*pair), trusting())


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that clients do is worth a traceback, or a word of the event loop."""
    yield
    assert not [record for record in caplog.records if record.exc_info or record.name == "asyncio"]


async def test_requests_on_one_connection(secure: Secure) -> None:
    """Kept alive on both sides, and told apart by their scheme."""
    heads: list[bytes] = []

    async def backend(peer: Peer) -> None:
        while True:
            heads.append(await peer.head())
            peer.send(OK)

    async with rig(backend, secure=secure) as setup:
        peer = await setup.connect()
        for _ in range(3):
            peer.send(GET)
            await peer.exactly(OK)
        assert setup.upstream.accepted == 1
    scheme = b"http" if secure.certificate is None else b"https"
    assert [header(head, b"x-forwarded-proto") for head in heads] == [scheme] * 3
    assert header(heads[0], b"host") == setup.pool.authority


async def test_what_a_proxy_in_front_says_is_kept(pair: Pair) -> None:
    async def backend(peer: Peer) -> None:
        assert header(await peer.head(), b"x-forwarded-proto") == b"http"
        peer.send(OK)

    async with rig(backend, secure=for_clients(pair)) as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\n\r\n")
        await peer.exactly(OK)


async def test_bodies_both_ways_with_a_slow_reader(secure: Secure) -> None:
    """An upload and a download that no buffer holds, whole and in order."""
    data = os.urandom(BIG)

    async def backend(peer: Peer) -> None:
        await peer.head()
        body = await peer.body(BIG)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG + body)
        await peer.gone()

    async with rig(backend, secure=secure) as setup:
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % BIG + data)
        await peer.head()
        got = bytearray()
        while len(got) < BIG:
            got += await peer.body(min(100_000, BIG - len(got)))
            await asyncio.sleep(0)
        assert bytes(got) == data
        assert (await setup.result()).bytes_down == BIG


async def test_a_stream_arrives_as_it_is_sent(secure: Secure) -> None:
    """Each event before the next one is sent; the end is the connection's, and a clean one."""
    go_on = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go_on.wait()
        peer.send(b"data: 2\n\n")

    async with rig(backend, secure=secure) as setup:
        peer = await setup.ask(GET)
        await peer.head()
        await peer.exactly(b"data: 1\n\n")
        go_on.set()
        assert await peer.to_end() == b"data: 2\n\n"
        assert (await setup.result()).error is None


@pytest.mark.parametrize("first", ["client", "backend"])
async def test_websockets(secure: Secure, first: str) -> None:
    """Bytes pass raw both ways; when either side ends, so does the other, with all that was said before."""
    heard: list[bytes] = []

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(SWITCH + b"hello")
        heard.append(await peer.body(7))
        if first == "client":
            heard.append(await peer.to_end())
        else:
            peer.send(b"bye")

    async with rig(backend, secure=secure) as setup:
        peer = await setup.ask(ASK + b"ear")
        assert b" 101 " in await peer.head()
        await peer.exactly(b"hello")
        peer.send(b"lies")
        if first == "client":
            peer.send(b"bye")
            peer.writer.close()
            await until(lambda: heard == [b"earlies", b"bye"])
        else:
            assert await peer.to_end() == b"bye"
        assert (await setup.result()).error is None


@pytest.mark.parametrize("answered", [False, True], ids=["waiting", "streaming"])
async def test_a_client_that_leaves_is_noticed_by_the_backend(secure: Secure, answered: bool) -> None:
    """At once, whether it closes or is cut off."""
    left = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        if answered:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1")
        await peer.gone()
        left.set()

    for leaves in ("close", "abort"):
        left.clear()
        async with rig(backend, secure=secure) as setup:
            peer = await setup.ask(GET)
            await until(lambda setup=setup: bool(setup.pool.active))  # type: ignore[misc]
            if answered:
                await peer.head()
            getattr(peer.writer.transport, leaves)()
            async with asyncio.timeout(WAIT_S):
                await left.wait()
            assert (await setup.result()).client_gone


async def test_half_an_answer_is_seen_to_be_cut(secure: Secure) -> None:
    """A backend that dies in the middle must not look like the end."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        peer.reset()

    async with rig(backend, secure=secure) as setup:
        peer = await setup.ask(GET)
        await peer.head()
        with contextlib.suppress(ConnectionError):
            assert await peer.to_end() == b"half"
        assert (await setup.result()).error == "upstream_closed"


async def test_a_refusal_reaches_a_client_that_goes_on_sending(pair: Pair) -> None:
    """The answer comes, and soon after the client is silent, the end."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with rig(backend, secure=for_clients(pair)) as setup:
        peer = await setup.ask(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n" + bytes(1000))
        assert (await peer.answer())[0] == 413
        peer.send(bytes(300_000))
        assert await peer.to_end() == b""


async def test_a_client_that_never_says_goodbye_is_not_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draining listener ends an idle connection whose client looks at nothing, and does not wait for its word."""
    monkeypatch.setattr("juggler.proxy.closing.GOODBYE_S", 0.1)
    limits = replace(FAST, flush_timeout_s=3600.0)
    async with rig(answer_ok, limits=limits, secure=for_clients(pair)) as setup:
        raw = socket.create_connection(setup.listener.addresses[0])
        with trusting().wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False) as client:
            await asyncio.to_thread(client.do_handshake)
            client.send(GET)
            assert await asyncio.to_thread(client.recv, 1000) == OK
            async with asyncio.timeout(WAIT_S):
                await setup.listener.close(3600)
            assert await asyncio.to_thread(client.recv, 1000) == b""


async def test_versions_and_protocols(pair: Pair) -> None:
    """1.2 and 1.3; HTTP/1.1 where a client offers more; nothing older."""
    async with rig(answer_ok, secure=for_clients(pair)) as setup:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            setup.context = trusting(version)
            setup.context.set_alpn_protocols(["h2", "http/1.1"])
            peer = await setup.ask(GET)
            await peer.exactly(OK)
            spoken = peer.writer.get_extra_info("ssl_object")
            assert spoken.selected_alpn_protocol() == "http/1.1"
            assert spoken.version() == version.name.replace("_", ".")
    assert Certificate(*pair).context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    "data", [GET, b"\x16\x03\x01\xff\xff", bytes(100), b""], ids=["http", "cut", "zeros", "silence"]
)
async def test_others_than_tls_clients_are_let_go_quietly(pair: Pair, data: bytes) -> None:
    """No traceback, and the next client is served."""
    async with rig(answer_ok, secure=for_clients(pair)) as setup:
        reader, writer = await asyncio.open_connection(*setup.listener.addresses[0])
        writer.write(data)
        if data != b"" and data[0] != 0x16:
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), WAIT_S)
        writer.transport.abort()
        await (await setup.ask(GET)).exactly(OK)


# The certificate


async def serial_of(port: int) -> str:
    """Of the certificate that a new client gets."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(), server_hostname="localhost")
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.transport.abort()
    return str(found)


async def test_a_new_pair_is_for_new_connections(pair: Pair, tmp_path: Path) -> None:
    """1. A connection is open. 2. Both files are replaced. 3. New clients get the new one, with and without a name,
    in either version. 4. The open connection serves on.
    """
    certificate = Certificate(*pair, look_every_s=0.02)
    watching = asyncio.create_task(certificate.watch())
    async with rig(answer_ok, secure=Secure(certificate, trusting())) as setup:
        port = setup.listener.addresses[0][1]
        peer = await setup.ask(GET)
        await peer.exactly(OK)
        before = await serial_of(port)
        make_pair(tmp_path)
        async with asyncio.timeout(WAIT_S):
            while (after := await serial_of(port)) == before:
                await asyncio.sleep(0.01)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting(version), server_hostname="127.0.0.1"
            )
            assert writer.get_extra_info("peercert")["serialNumber"] == after
            writer.transport.abort()
        peer.send(GET)
        await peer.exactly(OK)
        make_pair(tmp_path)  # a second renewal is taken as well
        async with asyncio.timeout(WAIT_S):
            while await serial_of(port) == after:
                await asyncio.sleep(0.01)
    watching.cancel()


async def test_files_replaced_one_after_the_other(pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half a replacement is no news while it is short; if it stays it is told once, and the other half is taken."""
    certificate = Certificate(*pair)
    old = certificate._current
    fresh = make_pair(tmp_path, name="fresh")
    await certificate.look()
    fresh.cert.replace(pair.cert)
    await certificate.look()
    assert certificate._current is old
    assert "does not belong" not in caplog.text
    for _ in range(3):
        await certificate.look()
    assert caplog.text.count("does not belong") == 1
    fresh.key.replace(pair.key)
    await certificate.look()
    assert certificate._current is not old


async def test_a_new_pair_that_has_expired_is_told(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(*pair)
    make_pair(tmp_path, not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    for _ in range(2):
        await certificate.look()
    assert caplog.text.count("has expired: clients will refuse it") == 1


async def test_a_broken_pair_keeps_the_old_one(pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Removed, cut short, and at last good again."""
    async with rig(answer_ok, secure=for_clients(pair)) as setup:
        certificate = setup.listener._certificate
        assert certificate is not None
        port = setup.listener.addresses[0][1]
        before = await serial_of(port)
        pair.cert.unlink()
        for _ in range(3):
            await certificate.look()
        assert caplog.text.count("cannot be read") == 1
        pair.cert.write_text("-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n")
        for _ in range(3):
            await certificate.look()
        assert caplog.text.count("cannot be used") == 1
        assert await serial_of(port) == before
        make_pair(tmp_path)
        await certificate.look()
        assert await serial_of(port) != before


async def test_a_failed_look_is_not_the_last_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong with it, certificates are renewed on, and everything else is served."""
    certificate = Certificate(*pair, look_every_s=0.001)
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(certificate, "look", look)
    watching = asyncio.create_task(certificate.watch())
    await until(lambda: looks > 1 or watching.done())
    assert not watching.done()
    watching.cancel()
    assert "could not be looked at" in caplog.text
    caplog.clear()


async def test_files_that_cannot_be_read_in_time(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their disk hangs: told once, in one thread that nobody waits for; taken when it answers again."""
    monkeypatch.setattr(proxy_tls, "FILES_LIMIT_S", 0.05)
    certificate = Certificate(*pair)
    old = certificate._current
    begun, answers = threading.Event(), threading.Event()
    looks = 0

    def files() -> tuple[object, object]:
        nonlocal looks
        looks += 1
        begun.set()
        answers.wait(3 * WAIT_S)
        return Certificate._files(certificate)

    monkeypatch.setattr(certificate, "_files", files)
    for _ in range(3):
        await certificate.look()
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    assert looks == 1
    assert caplog.text.count("does not answer") == 1
    assert all(one.daemon for one in threading.enumerate() if one.name == f"{LOOK} files")
    make_pair(tmp_path)
    certificate._one_look._limit_s = WAIT_S
    answers.set()

    async def taken() -> None:
        while certificate._current is old:
            await certificate.look()
            await asyncio.sleep(0)

    await asyncio.wait_for(taken(), WAIT_S)


def test_a_listener_needs_a_good_pair(tmp_path: Path) -> None:
    with pytest.raises(BadPair):
        Certificate(tmp_path / "none", tmp_path / "none")


# Attached servers


@pytest.mark.parametrize(
    ("names", "stranger_signs", "trust", "why"),
    [
        (("localhost",), True, None, "authority that is not trusted"),
        (("elsewhere.example",), False, "ca", "for another name than localhost"),
        (("localhost",), False, "missing", "cannot be read"),
        (("localhost",), False, "key", "holds no certificate"),
    ],
)
async def test_a_server_that_proves_nothing_is_refused(
    tmp_path: Path, names: tuple[str, ...], stranger_signs: bool, trust: str | None, why: str
) -> None:
    """Nothing of the request is sent, and the error says whose fault it is."""
    pair = make_pair(tmp_path, *names, by=stranger() if stranger_signs else authority())
    ca = {None: None, "ca": write_authority(tmp_path), "missing": str(tmp_path / "x"), "key": str(pair.key)}[trust]
    upstream = ServerTls("localhost", "localhost:1", ca)
    async with rig(answer_ok, secure=Secure(None, None, upstream, server_side(pair))) as setup:
        with pytest.raises(ConnectFailed, match=why) as raised:
            await setup.pool.acquire()
        assert raised.value.hint
        status, _, body = await (await setup.ask(GET)).answer()
        assert status == 502
        assert why.encode() in body
        assert not setup.upstream.requests


async def test_unless_that_is_wanted(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "elsewhere.example", by=stranger())
    upstream = ServerTls("localhost", "localhost", verify=False)
    async with rig(answer_ok, secure=Secure(None, None, upstream, server_side(pair))) as setup:
        await (await setup.ask(GET)).exactly(OK)


async def test_a_server_that_does_not_speak_tls(tmp_path: Path) -> None:
    """Is named as such, and an answer of a plain server is not waited for."""
    upstream = ServerTls("localhost", "localhost", write_authority(tmp_path))
    async with rig(None, secure=Secure(None, None, upstream, None)) as setup:
        setup.upstream.handler = plain_refusal
        status, _, body = await (await setup.ask(GET)).answer()
        assert status == 502
        assert b"does not speak TLS" in body


async def plain_refusal(peer: Peer) -> None:
    await peer.reader.read(1000)
    peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


async def test_a_certificate_as_its_own_authority(tmp_path: Path) -> None:
    """The server's own certificate in ``ca`` is enough, and a new one there is noticed."""
    pair = make_pair(tmp_path, by=stranger())
    upstream = ServerTls("localhost", "localhost", str(pair.cert))
    async with rig(answer_ok, secure=Secure(None, None, upstream, server_side(pair))) as setup:
        await (await setup.ask(GET)).exactly(OK)


async def test_what_the_sockets_still_hold_counts_as_unsent(pair: Pair) -> None:
    """A client that does not read: what was written is not taken for sent."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(50):
            peer.send(bytes(1_000_000))
            await peer.writer.drain()

    async with rig(backend, secure=for_clients(pair)) as setup:
        raw = socket.create_connection(setup.listener.addresses[0])
        with trusting().wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False) as client:
            await asyncio.to_thread(client.do_handshake)
            client.send(GET)
            await until(lambda: any(one.write_paused for one in setup.listener.connections))
            (connection,) = setup.listener.connections
            assert not proxy_tls.has_sent_all(connection._transport)


async def test_a_slow_reader_gets_the_end_of_the_last_answer(pair: Pair) -> None:
    """1. The connection was closed behind an answer whose end is still here. 2. The client takes all that its system
    has, so that the socket could take more. 3. The sweep comes before the loop has written on: nothing is cut off.
    """
    size = 4 * BIG
    data = os.urandom(size)

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + data)
        await peer.gone()

    limits = replace(FAST, sweep_interval_s=3600.0)
    async with rig(backend, limits=limits, secure=for_clients(pair)) as setup:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        raw.connect(setup.listener.addresses[0])
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
        got = bytearray()  # in place: it comes in hundreds of pieces

        def take(most: int) -> int:
            with contextlib.suppress(BlockingIOError):
                piece = raw.recv(most)
                incoming.write(piece) if piece else incoming.write_eof()
                return len(piece)
            return 0

        def decrypt() -> None:
            with contextlib.suppress(ssl.SSLWantReadError):
                while piece := tls.read(1_000_000):
                    got.extend(piece)

        raw.setblocking(False)
        async with asyncio.timeout(2 * WAIT_S):
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    raw.send(outgoing.read())
                    take(65536)
                    await asyncio.sleep(0.001)
            tls.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            raw.send(outgoing.read())
            await until(lambda: any(one.write_paused for one in setup.listener.connections))
            (connection,) = setup.listener.connections
            while not connection._transport.is_closing():
                take(20_000)
                await asyncio.sleep(0)
            while take(1_000_000):
                pass
            connection.check(asyncio.get_running_loop().time() + 100)
            while got[-1:] != data[-1:] or len(got) < size:
                if not take(1_000_000):
                    await asyncio.sleep(0.001)
                decrypt()
        assert got.endswith(data)
        raw.close()
