"""Connections that only stay open, at the control listener."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from juggler.control import connections
from juggler.control.connections import Connection
from juggler.control.server import ControlServer, Receive, Scope, Send

GET = b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, and says how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    one = ControlServer("127.0.0.1", 0)
    await one.start(lambda: app)
    yield one.addresses[0][1]
    await one.close()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the other end closes."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /x HTTP/1.1\r\nHo",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
        GET + b"GET /x HT",
    ],
)
async def test_a_request_that_does_not_come_is_not_waited_for(
    port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    first, limit_s = sent.startswith(GET), 0.05
    monkeypatch.setattr(connections, "REQUEST_LIMIT_S", 20 if first else limit_s)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if first:  # the one before is answered first
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n0")
        sent = sent.removeprefix(GET)
        monkeypatch.setattr(connections, "REQUEST_LIMIT_S", limit_s)
    writer.write(sent)
    assert await ended(reader) == b""
    writer.close()


async def test_one_that_came_whole_may_take_its_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Piece by piece, and twice on one connection: nothing is waited for while it is answered, or after it."""
    made: list[Connection] = []
    begin = Connection.connection_made

    def note(one: Connection, way: asyncio.Transport) -> None:
        made.append(one)
        begin(one, way)

    monkeypatch.setattr(Connection, "connection_made", note)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        for piece in (b"POST /x HTTP/1.1\r\n", b"Host: a\r\nContent-Length: 4\r\n\r\n", b"ab", b"cd"):
            writer.write(piece)
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n4")).startswith(b"HTTP/1.1 200")
        assert [one._late for one in made] == [None]
    writer.close()


async def test_the_quiet_make_room(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest first: who opens many connections and says nothing keeps nobody out."""
    monkeypatch.setattr(connections, "QUIET_MAX", 3)
    quiet = []
    for _ in range(3):
        quiet.append(await asyncio.open_connection("127.0.0.1", port))
        quiet[-1][1].write(b"GET /x")
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    async with asyncio.timeout(10):
        assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
    assert await ended(quiet[0][0]) == b""
    for other, way in quiet[1:]:
        way.write(GET.removeprefix(b"GET /x"))
        async with asyncio.timeout(10):
            assert (await other.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
    for way in (writer, *(way for _, way in quiet)):
        way.close()


async def test_more_than_there_is_room_for_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptors are the data plane's too; those that are there are answered all the same."""
    monkeypatch.setattr(connections, "OPEN_MAX", 3)
    monkeypatch.setattr(connections, "QUIET_MAX", 3)
    one = ControlServer("127.0.0.1", 0)
    await one.start(lambda: app)
    port = one.addresses[0][1]
    kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    for reader, writer in kept:
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
    reader, late = await asyncio.open_connection("127.0.0.1", port)
    assert await ended(reader) == b""
    for writer in (late, *(writer for _, writer in kept)):
        writer.close()
    await one.close()
