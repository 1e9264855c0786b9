"""Connections that end badly: resets, refusals in the middle, clients that never read."""

import asyncio
import dataclasses
import errno
import socket
import struct
import sys
import threading
import time

import pytest

from juggler.proxy import exchange
from juggler.proxy.client import ClientConnection
from juggler.proxy.contract import LocalResponse
from juggler.proxy.listener import Listener, start_listener
from juggler.proxy.upstream import UpstreamPool
from tests.protocol.support import FAST, OK, WAIT_S, Peer, StubGateway, rig, until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)


async def _reset(peer: Peer) -> None:
    peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    peer.reset()


UNFRAMED = [
    pytest.param(GET, b"HTTP/1.1 200 OK\r\n\r\n", b"%b", id="until close"),
    pytest.param(
        b"GET / HTTP/1.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"4\r\n%b\r\n",
        id="chunks taken off for HTTP/1.0",
    ),
]


@pytest.mark.parametrize(("request_head", "head", "framed"), UNFRAMED)
async def test_truncation_is_an_error_where_the_end_of_file_ends_the_answer(
    request_head: bytes, head: bytes, framed: bytes
) -> None:
    """Half an answer without length is never ended by a plain close, which would make it whole."""
    go_on = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(head + framed % b"half")
        await go_on.wait()
        await _reset(peer)

    async with rig(backend) as setup:
        peer = await setup.ask(request_head)
        await peer.head()
        await peer.exactly(b"half")
        go_on.set()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()
        assert (await setup.result()).error == "upstream_closed"


def _refuse_uploads(server: socket.socket, count: int) -> None:
    """Read a head only, answer, and close with the body unread, which resets the connection."""
    for _ in range(count):
        connection, _address = server.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 413 Too Big\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        connection.close()


def _upload(address: tuple[str, int], size: int) -> bytes:
    """Send a body from a second thread while the answer is read; the first bytes of the answer."""
    with socket.create_connection(address) as client:
        client.settimeout(WAIT_S)
        client.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)

        def send() -> None:
            try:
                client.sendall(b"x" * size)
            except OSError:
                pass  # refused, as expected

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return client.recv(100)
        finally:
            client.shutdown(socket.SHUT_RDWR)
            sender.join(WAIT_S)


async def test_answer_in_front_of_a_reset_reaches_the_uploading_client() -> None:
    """A backend that refuses a body and slams the door is heard, although our writes to it fail.

    1. the answer and the reset arrive together, 2. the client's next piece is written and fails, 3. the loop closes
    the socket before it has read the answer. One upload in four or so went that way, hence the repetition.
    """
    rounds = 30
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_refuse_uploads, args=(server, rounds), daemon=True)
        thread.start()
        pool = UpstreamPool("127.0.0.1", server.getsockname()[1])
        listener = await start_listener(StubGateway(pool), "127.0.0.1", 0, FAST)
        try:
            answers = [await asyncio.to_thread(_upload, listener.addresses[0], 4_000_000) for _ in range(rounds)]
        finally:
            await listener.close(0)
            pool.close()
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 413"] * rounds


async def test_client_that_never_takes_its_answers_is_cut() -> None:
    """Waiting for a client to read has a deadline, or each such client would hold a connection for ever."""
    limits = dataclasses.replace(FAST, flush_timeout_s=0.1)
    async with rig(limits=limits) as setup:
        setup.gateway.local = LocalResponse(200, b"x" * 200_000)
        peer = await setup.connect(limit=1)
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.send(GET * 200)
        await until(lambda: len(setup.gateway.asked) > 1)
        await until(lambda: not setup.listener.connections)


async def test_refused_connections_are_bounded_too() -> None:
    """A flood over the connection limit is not held open to be told so."""
    limits = dataclasses.replace(FAST, connections=2, discard_timeout_s=60.0)
    async with rig(limits=limits) as setup:
        setup.gateway.hold = asyncio.Event()  # who has a request in work makes room for nobody
        for _ in range(2):
            await setup.ask(GET)
        await until(lambda: len(setup.gateway.asked) == 2)
        told = 0
        for _ in range(100):
            peer = await setup.connect()
            try:
                async with asyncio.timeout(WAIT_S):
                    told += (await peer.reader.read(12)) == b"HTTP/1.1 503"
            except ConnectionError:
                pass  # cut
        assert 10 < told < 90
        await until(lambda: len(setup.listener.connections) <= 2 + told)


class _ResetTransport(asyncio.Transport):
    """A connection that the peer has reset and whose loop has not noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def abort(self) -> None:
        self.aborted = True


async def test_reset_just_before_our_half_is_ended() -> None:
    """``shutdown`` of a connection the client has just reset raises; the connection ends, its task does not fail."""
    pool = UpstreamPool("127.0.0.1", 1)
    connection = ClientConnection(Listener(StubGateway(pool), FAST))
    transport = _ResetTransport()
    connection.connection_made(transport)
    task = connection.task
    assert task is not None
    connection.data_received(b"GET / HTTP/1.2\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        await task
    assert transport.aborted
    connection.connection_lost(None)


@pytest.mark.parametrize(("request_head", "head", "framed"), UNFRAMED)
async def test_an_answer_that_the_end_of_the_juggler_cuts_does_not_look_whole(
    request_head: bytes, head: bytes, framed: bytes
) -> None:
    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(head + framed % b"half")
        await peer.gone()

    async with rig(backend) as setup:
        peer = await setup.ask(request_head)
        await peer.head()
        await peer.exactly(b"half")
        await setup.listener.close(0.05)
        with pytest.raises(ConnectionResetError):
            await peer.to_end()


def _with_small_buffers(listener: Listener) -> None:
    """Or the kernel would take megabytes from us, and see to the client itself."""
    for server in listener._servers:
        for one in server.sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)


async def test_an_answer_whose_end_is_not_taken_does_not_look_whole() -> None:
    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000)

    def read_late(address: tuple[str, int], gone: threading.Event) -> int:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            client.settimeout(WAIT_S)
            client.connect(address)
            client.sendall(GET)
            received = len(client.recv(1000))
            gone.wait(2 * WAIT_S)
            while data := client.recv(8000):
                received += len(data)
            return received

    async with rig(backend, limits=dataclasses.replace(FAST, flush_timeout_s=0.2)) as setup:
        _with_small_buffers(setup.listener)
        gone = threading.Event()
        reading = asyncio.create_task(asyncio.to_thread(read_late, setup.listener.addresses[0], gone))
        await setup.result()
        await until(lambda: not setup.listener.connections)
        gone.set()
        with pytest.raises(ConnectionResetError):
            await reading


def _read_slowly(address: tuple[str, int], request_head: bytes, fast_bytes: int) -> int:
    """Bytes up to the end of the connection; after the first so many of them at 80 kB/s."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        client.settimeout(WAIT_S)
        client.connect(address)
        client.sendall(request_head)
        received = 0
        while data := client.recv(8000):
            received += len(data)
            if received > fast_bytes:
                time.sleep(0.1)
        return received


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells what the client has taken")
@pytest.mark.parametrize("then", [b"close", b"keep-alive"])
async def test_who_reads_slowly_and_steadily_gets_it_all(then: bytes) -> None:
    """However long it takes; the time for taking the end of an answer counts from the last byte that was taken."""
    size = 700_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(head + b"x" * size)
        await peer.gone()

    async with rig(backend, limits=dataclasses.replace(FAST, flush_timeout_s=3.0, idle_timeout_s=3.0)) as setup:
        _with_small_buffers(setup.listener)
        request_head = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: %b\r\n\r\n" % then
        received = await asyncio.to_thread(_read_slowly, setup.listener.addresses[0], request_head, size - 400_000)
        assert received >= size + len(head)


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("way", ["end", "reset"])
async def test_what_a_backend_worked_on_before_it_broke_is_not_sent_again(
    method: bytes, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike what came to a connection that had been closed before: its end is there within a round trip."""
    monkeypatch.setattr(exchange, "_CLOSED_WHILE_IDLE_S", 0.05)

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(OK)
        await peer.head()
        await asyncio.sleep(0.15)
        if way == "reset":
            await _reset(peer)
        else:
            peer.reset()

    async with rig(backend) as setup:
        peer = await setup.ask(GET)
        await peer.answer()
        peer.send(method + b" / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        assert (await peer.answer())[0] == 502
        assert setup.upstream.accepted == 1
