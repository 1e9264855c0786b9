"""What the tests of waiting requests share: a client that reads chunks, a backend that answers with events."""

import asyncio
import json

from juggler.proxy.limits import Limits
from tests.protocol.support import OK, WAIT_S, Handler, Peer, Rig, header, until

SOON = Limits(sweep_interval_s=0.01, comment_after_s=0.02, comment_every_s=0.02)
EVENTS = b'data: {"a": 1}\n\ndata: [DONE]\n\n'
COMMENT = b": waiting for e\n\n"
CHAT = b"/v1/chat/completions"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


def post(
    path: bytes = CHAT, body: bytes = b'{"messages": [], "stream": true}', fields: bytes = b"", minor: int = 1
) -> bytes:
    head = b"POST %b HTTP/1.%d\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n" % (path, minor, len(body), fields)
    return head + body


async def request_of(peer: Peer) -> bytes:
    """A whole request as the backend reads it; its head."""
    head = await peer.head()
    await peer.body(int(header(head, b"content-length") or 0))
    return head


async def chunk(peer: Peer) -> bytes:
    """The payload of the next chunk; empty for the last."""
    async with asyncio.timeout(WAIT_S):
        size = int(await peer.reader.readuntil(b"\r\n"), 16)
        data = await peer.reader.readexactly(size + 2)
    assert data.endswith(b"\r\n")
    return data[:-2]


async def after_comments(peer: Peer) -> bytes:
    """Payload of all chunks from the first that is no comment of the wait to the end of the body."""
    payload = b""
    while piece := await chunk(peer):
        if payload or piece != COMMENT:
            payload += piece
    return payload


async def told_to_wait(setup: Rig, request: bytes) -> Peer:
    """Ask, and return when the client has got a head and two comments."""
    setup.gateway.hold = asyncio.Event()
    peer = await setup.ask(request)
    head = await peer.head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert header(head, b"content-type") == b"text/event-stream"
    for _ in range(2):
        assert await chunk(peer) == COMMENT
    return peer


def go(setup: Rig) -> None:
    assert setup.gateway.hold is not None
    setup.gateway.hold.set()


def event_data(payload: bytes) -> dict[str, object]:
    """The JSON of the only event in a payload."""
    lines = payload.split(b"\n")
    (data,) = [line for line in lines if line.startswith(b"data: ")]
    assert payload.endswith(b"\n\n")
    assert payload.count(b"\n\n") == 1
    found = json.loads(data[6:])
    assert isinstance(found, dict)
    return found


def answering(answer: bytes, *, close: bool = False, heads: list[bytes] | None = None) -> Handler:
    """The first request of a connection gets ``answer``, later ones OK."""

    async def handler(peer: Peer) -> None:
        head = await request_of(peer)
        if heads is not None:
            heads.append(head)
        peer.send(answer)
        while not close:
            await request_of(peer)
            peer.send(OK)

    return handler


def in_chunks(payload: bytes) -> bytes:
    half = len(payload) // 2
    pieces = b"".join(b"%x;x=y\r\n%b\r\n" % (len(one), one) for one in (payload[:half], payload[half:]))
    return pieces + b"0\r\nTrailer: t\r\n\r\n"


ANSWERS = {
    "chunked": (SSE + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(EVENTS), False),
    "length": (SSE + b"Content-Length: %d\r\n\r\n" % len(EVENTS) + EVENTS, False),
    "close": (SSE + b"\r\n" + EVENTS, True),
    "bare LF": (SSE.replace(b"\r\n", b"\n") + b"\n" + EVENTS, True),
}


def refusal(status: bytes, body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body)) + body


LLAMA = b'{"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": 8}}'


async def relayed(setup: Rig) -> None:
    """Wait until the proxy has read the head of the answer."""
    (connection,) = setup.listener.connections
    await until(lambda: connection._exchange is not None and connection._exchange.head_sent)


async def swept(setup: Rig, times: int) -> None:
    """Wait until the sweep has looked at the only connection that often, well past the time of a comment."""
    await until(lambda: bool(setup.listener.connections))
    (connection,) = setup.listener.connections
    wait = connection._wait
    assert wait is not None
    looks = 0
    check = type(wait).check
    loop = asyncio.get_running_loop()
    due = loop.time() + 2 * (SOON.comment_after_s or 0)
    async with asyncio.timeout(WAIT_S):
        while looks < times or loop.time() < due:
            await asyncio.sleep(0.01)
            check(wait, loop.time())  # as the sweep does, which may be late on a busy machine
            looks += 1
