"""Programs and servers for the doctor to look at."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

TOOL = Path(__file__).parents[2] / "programs" / "fake_version_tool.py"


def install(path: Path) -> Path:
    """The stand-in program under another name; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TOOL}" "$@"\n')
    path.chmod(0o755)
    return path


@asynccontextmanager
async def answering(
    answers: Mapping[str, str], seen: list[str] | None = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server on a free port that answers 200 with a body on some paths and 404 on the others; gives its port.

    Args:
        seen: Collects the request lines.
        context: For HTTPS.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
        if seen is not None:
            seen.append(line)
        body = answers.get(line.split()[1])
        status = "404 Not Found" if body is None else "200 OK"
        data = (body or "").encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
