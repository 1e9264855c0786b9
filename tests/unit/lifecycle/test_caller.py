"""Our own HTTP calls: the parser on cut bytes, and the caller on real loopback sockets."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ports import free_port

from juggler.backends.base import Address, Response
from juggler.lifecycle.caller import HEAD_LIMIT_BYTES, HttpCaller, ResponseParser

GOOD: list[tuple[str, bytes, bool, int, bytes]] = [
    ("sized", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", False, 200, b"hello"),
    ("extra bytes", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello", False, 200, b"he"),
    ("empty", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", False, 503, b""),
    ("no reason", b"HTTP/1.0 200\r\ncontent-length:1\r\n\r\nx", False, 200, b"x"),
    ("bare LF", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", False, 200, b"ok"),
    ("same length twice", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", False, 200, b"ok"),
    (
        "chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
        False,
        200,
        b"abc0123456789",
    ),
    ("chunked, empty", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", False, 200, b""),
    ("204", b"HTTP/1.1 204 No Content\r\n\r\n", False, 204, b""),
    ("304 with a length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", False, 304, b""),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", True, 200, b""),
    (
        "1xx first",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
        b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx",
        False,
        201,
        b"x",
    ),
]

BAD: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "without an answer"),
    ("ssh", b"SSH-2.0-OpenSSH_9.6\r\n", "begins with"),
    ("http/2", b"HTTP/2 200\r\n\r\n", "begins with"),
    ("half a head", b"HTTP/1.1 200 OK\r\nConte", "middle"),
    ("short body", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "middle"),
    ("no last chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "middle"),
    ("bad chunk size", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n", "chunk size"),
    ("bad chunk end", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", "followed by"),
    ("gzip", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "transfer coding"),
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n", "two different"),
    ("bad length", b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", "length"),
    ("endless length", b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 30 + b"2\r\n\r\nok", "length"),
    ("too long", b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", "longer than 100"),
    ("chunk too long", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", "longer than 100"),
    ("until close too long", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "longer than 100"),
    ("upgrade", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "switched"),
    ("no colon", b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "header line"),
    ("folded", b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "header line"),
    ("long head", b"HTTP/1.1 200 OK\r\nA: " + b"x" * HEAD_LIMIT_BYTES, "head is longer"),
    ("endless 1xx", b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, "head is longer"),
]


def _parse(pieces: list[bytes], *, bodiless: bool = False) -> Response:
    parser = ResponseParser(limit_bytes=100, bodiless=bodiless)
    for piece in pieces:
        if (response := parser.feed(piece)) is not None:
            return response
    return parser.end()


@pytest.mark.parametrize(("name", "data", "bodiless", "status", "body"), GOOD, ids=[case[0] for case in GOOD])
def test_answers_are_understood_however_they_are_cut(
    name: str, data: bytes, bodiless: bool, status: int, body: bytes
) -> None:
    """Each framing of RFC 9112 gives the same answer whole and byte by byte."""
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        response = _parse(pieces, bodiless=bodiless)
        assert (response.status, response.body) == (status, body)


@pytest.mark.parametrize(("name", "data", "complaint"), BAD, ids=[case[0] for case in BAD])
def test_what_is_no_answer_is_an_error(name: str, data: bytes, complaint: str) -> None:
    """Whatever is not a whole answer within the limit is refused with its reason."""
    with pytest.raises(ValueError, match=complaint):
        _parse([data])


def test_a_body_until_close_ends_with_the_connection() -> None:
    """Old servers mark the end of the body by closing."""
    assert _parse([b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nab", b"c"]) == Response(200, {"x": "y"}, b"abc")


@given(data=st.binary(max_size=300), cut=st.integers(0, 300))
def test_garbage_never_does_worse_than_value_error(data: bytes, cut: int) -> None:
    """No bytes of a foreign server raise anything but the one error that is mapped."""
    for whole in (data, b"HTTP/1.1 200 OK\r\n" + data, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data):
        try:
            _parse([whole[:cut], whole[cut:]])
        except ValueError:
            pass


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class _Server:
    """A server that records the request heads and bodies and answers with fixed bytes, or not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.got_request = asyncio.Event()
        self.peer_closed = asyncio.Event()
        self.address = Address("127.0.0.1", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            data = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in data.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            data += await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
            self.requests.append(data)
            self.got_request.set()
            if self.answer is not None:
                writer.write(self.answer)
                if self.answer.endswith(b"<close>"):
                    writer.close()
            await reader.read()
        except ConnectionError:
            pass
        finally:
            self.peer_closed.set()
            writer.close()


@asynccontextmanager
async def _serving(answer: bytes | None, host: str = "127.0.0.1") -> AsyncIterator[_Server]:
    fake = _Server(answer)
    server = await asyncio.start_server(fake.serve, host, 0)
    fake.address = Address(host, server.sockets[0].getsockname()[1])
    try:
        yield fake
        async with asyncio.timeout(5):
            await fake.peer_closed.wait()  # whatever the test did: its connection is closed in the end
    finally:
        server.close()


async def test_a_get_says_what_it_should() -> None:
    """The request names the address as its host, wants no connection kept and no compression."""
    async with _serving(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as server:
        response = await HttpCaller(server.address).call("GET", "/a b/ü?x=%20|\r\nX: y", headers={"X-Key": "v"})
    assert (response.status, response.json()) == (200, {})
    head = server.requests[0].decode()
    assert head.startswith("GET /a%20b/%C3%BC?x=%20|%0D%0AX:%20y HTTP/1.1\r\n")
    fields = head.split("\r\n")[1:-2]
    assert fields == [f"Host: {server.address}", "Accept-Encoding: identity", "X-Key: v", "Connection: close"]


async def test_a_post_carries_its_body() -> None:
    """Body and length belong together; a POST without a body says length 0."""
    for body, length in ((b'{"a":1}', 7), (None, 0)):
        async with _serving(b"HTTP/1.1 204 No Content\r\n\r\n") as server:
            await HttpCaller(server.address).call("POST", "/", body=body)
        head, _, sent = server.requests[0].partition(b"\r\n\r\n")
        assert f"Content-Length: {length}".encode() in head
        assert sent == (body or b"")


async def test_ipv6_works() -> None:
    """An IPv6 address is put in brackets in the Host field."""
    async with _serving(b"HTTP/1.1 200 OK\r\n\r\nuntil <close>", "::1") as server:
        response = await HttpCaller(server.address).call("GET", "/")
    assert response.body == b"until <close>"
    assert f"Host: [::1]:{server.address.port}".encode() in server.requests[0]


async def test_a_silent_server_is_a_timeout_and_its_socket_is_closed() -> None:
    """The deadline covers the answer, and the connection does not outlive the call.

    Where it has passed before the request is there, on a busy machine, a longer one is tried.
    """
    timeout_s = 0.05
    async with _serving(None) as server:
        while not server.got_request.is_set():
            with pytest.raises(TimeoutError, match="no answer within"):
                await HttpCaller(server.address).call("GET", "/", timeout_s=timeout_s)
            timeout_s *= 2


async def test_a_cancelled_call_closes_its_socket() -> None:
    """Whoever gives a call up leaves no connection behind; ``_serving`` waits for the end of it."""
    async with _serving(None) as server:
        call = asyncio.create_task(HttpCaller(server.address).call("GET", "/"))
        await server.got_request.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_cancelling_at_any_step_leaks_nothing() -> None:
    """Cancel after each number of loop turns: no unclosed socket is ever found (warnings are errors)."""
    async with _serving(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as server:
        for turns in range(12):
            call = asyncio.create_task(HttpCaller(server.address).call("GET", "/"))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await HttpCaller(server.address).call("GET", "/")
    gc.collect()


async def test_a_refused_connection_is_an_os_error() -> None:
    """Nobody listens: the error says so at once."""
    with pytest.raises(ConnectionRefusedError):
        await HttpCaller(Address("127.0.0.1", free_port())).call("GET", "/")


async def test_bad_http_is_a_connection_error() -> None:
    """A foreign protocol is reported as a broken connection that names the address."""
    async with _serving(b"SSH-2.0-x\r\n") as server:
        with pytest.raises(ConnectionError, match=rf"{server.address} does not speak HTTP"):
            await HttpCaller(server.address).call("GET", "/")


async def test_a_large_answer_is_refused_and_not_read() -> None:
    """The limit is the caller's; a flood does not fill our memory."""
    async with _serving(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000) as server:
        with pytest.raises(ConnectionError, match="longer than 1000 bytes"):
            await HttpCaller(server.address).call("GET", "/", limit_bytes=1000)


@pytest.mark.parametrize(
    ("method", "headers"), [("GET /x HTTP/1.1\r\nA: b", {}), ("GET", {"A\r\nB": "c"}), ("GET", {"A": "b\r\nC: d"})]
)
async def test_nothing_breaks_out_of_its_line(method: str, headers: dict[str, str]) -> None:
    """A method or header with a line end is not sent at all."""
    with pytest.raises(ConnectionError, match="not a valid HTTP request"):
        await HttpCaller(Address("127.0.0.1", 9)).call(method, "/", headers=headers)


async def test_an_impossible_host_is_an_os_error() -> None:
    """A host name that no resolver takes does not raise foreign exceptions."""
    with pytest.raises(OSError, match="is not a host that can be called"):
        await HttpCaller(Address("a" * 80 + ".invalid", 80)).call("GET", "/")
