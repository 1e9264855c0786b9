"""Is it a juggler that answers at a control address?"""

import asyncio
import json

import pytest

from juggler.survey.running import RunningJuggler, running_juggler


def ask(body: bytes, status: str = "200 OK") -> RunningJuggler | None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    async def talk() -> RunningJuggler | None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            return await running_juggler("0.0.0.0", server.sockets[0].getsockname()[1])

    return asyncio.run(asyncio.wait_for(talk(), 20))


def test_a_juggler() -> None:
    """Its version and the endpoints it serves."""
    document = {"version": "1.2", "endpoints": [{"endpoint": "S/a"}, {"endpoint": "S/b"}, {"endpoint": "T/c"}]}
    assert ask(json.dumps(document).encode()) == RunningJuggler("1.2", frozenset({"S/a", "S/b", "T/c"}))


def test_a_juggler_that_wants_its_key() -> None:
    """It is one all the same."""
    document = {"error": {"code": "key_needed", "message": "this needs the admin key", "hint": None}}
    assert ask(json.dumps(document).encode(), "401 Unauthorized") == RunningJuggler(None, None)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'{"version": "1"}', b'{"endpoints": []}', b'{"endpoints": 3}', b'{"error": {"code": "x"}}'],
)
def test_somebody_else(body: bytes) -> None:
    """Not JSON, or JSON of another kind."""
    assert ask(body) is None


def test_nobody() -> None:
    """A closed port."""
    assert asyncio.run(running_juggler("127.0.0.1", 1)) is None
