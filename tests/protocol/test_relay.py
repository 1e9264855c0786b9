"""Raw bytes through the data plane, both ways."""

import asyncio

import pytest

from juggler.errors import StartFailed
from juggler.proxy.limits import Limits
from tests.protocol.support import LIMIT_S, Client, answering, eventually, plane, read_request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_a_request_reaches_the_backend_unchanged_but_for_its_hop() -> None:
    """Path bytes, header order, case and repeats arrive as sent; hop-by-hop fields do not."""
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    async with plane(script) as p:
        raw = (
            b"FOO /a%2Fb//../%zz?q=%20&[] HTTP/1.1\r\nhOsT: example.org:1\r\nX-b: 1\r\nX-A: 2\r\nx-b: 3\r\n"
            b"Connection: close, x-drop\r\nX-Drop: 1\r\nKeep-Alive: 5\r\n\r\n"
        )
        answer = await p.ask(raw)
        head = seen[0]
        assert head.startswith(b"FOO /a%2Fb//../%zz?q=%20&[] HTTP/1.1\r\n")
        assert head.index(b"X-b: 1\r\n") < head.index(b"X-A: 2\r\n") < head.index(b"x-b: 3\r\n")
        assert b"x-drop" not in head.lower()
        assert b"keep-alive" not in head.lower()
        assert b"hOsT: 127.0.0.1:" in head
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in head
        assert b"X-Forwarded-Host: example.org:1\r\n" in head
        assert answer.endswith(b"\r\n\r\nok")
        assert len(p.gateway.released) == 1
        assert p.gateway.released[0].status == 200


async def test_both_sides_are_kept_alive_and_pipelined_requests_answered_in_order() -> None:
    """Three requests in one write come back in order, over one backend connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_request(reader)
            path = head.split(b" ")[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with plane(script) as p:
        client = await p.connect()
        client.send(GET % b"1" + GET % b"22" + GET % b"333")
        for path in (b"/1", b"/22", b"/333"):
            head = await client.until(b"\r\n\r\n")
            assert b"Content-Length: %d" % len(path) in head
            assert await client.exactly(len(path)) == path
        client.close()
        assert p.backend.connections == 1
        assert len(p.gateway.released) == 3


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_body_leave_the_connection_usable(status: int) -> None:
    """204 and 304 have no body, and HEAD has none whatever the headers say."""
    first = b"HTTP/1.1 %d X\r\nContent-Length: 9\r\n\r\n" % status
    async with plane(answering(first, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", OK)) as p:
        client = await p.connect()
        client.send(GET % b"a" + b"HEAD /b HTTP/1.1\r\nHost: a\r\n\r\n" + GET % b"c")
        assert b"%d X" % status in await client.until(b"\r\n\r\n")
        assert b"Content-Length: 7" in await client.until(b"\r\n\r\n")
        await client.until(b"\r\n\r\n")
        assert await client.exactly(2) == b"ok"
        client.close()


async def test_a_stream_arrives_event_by_event() -> None:
    """Each event reaches the client before the backend sends the next; the chunks are relayed as they are."""
    go = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            writer.write(b"9\r\ndata: %d\n\n\r\n" % number)
            await go.wait()
            go.clear()
        writer.write(b"0\r\nX-Trailer: 1\r\n\r\n")
        await reader.read(1)

    async with plane(script) as p:
        client = await p.connect()
        client.send(GET % b"stream")
        assert b"chunked" in await client.until(b"\r\n\r\n")
        for number in range(3):
            assert await client.until(b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number
            go.set()
        assert await client.until(b"\r\n\r\n") == b"0\r\nX-Trailer: 1\r\n\r\n"
        client.close()


async def test_an_http_1_0_client_gets_no_chunks() -> None:
    """The chunks are taken off and the end is the close."""
    body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    async with plane(answering(body)) as p:
        answer = await p.ask(b"GET / HTTP/1.0\r\n\r\n")
        head, _, payload = answer.partition(b"\r\n\r\n")
        assert payload == b"abc"
        assert b"chunked" not in head.lower()


async def test_an_upload_is_streamed_and_a_stalled_backend_holds_it() -> None:
    """A backend that does not read stops the client's upload instead of filling memory."""
    read_on = asyncio.Event()
    total = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal total
        await reader.readuntil(b"\r\n\r\n")
        await read_on.wait()
        while total < size:
            total += len(await reader.read(1 << 20))
        writer.write(OK)

    size = 64 << 20
    async with plane(script) as p:
        client = await p.connect()
        client.send(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        block = bytes(1 << 20)

        async def upload() -> None:
            for _ in range(size >> 20):
                client.send(block)
                await client.writer.drain()

        uploading = asyncio.create_task(upload())
        done, _ = await asyncio.wait({uploading}, timeout=0.5)
        assert not done, "64 MiB went somewhere although nobody read them"
        read_on.set()
        await client.until(b"\r\n\r\n")
        assert await client.exactly(2) == b"ok"
        await uploading
        client.close()
        assert total == size


async def test_a_stalled_client_holds_the_backend() -> None:
    """A client that does not read stops the backend's download instead of filling memory."""
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1

    async with plane(script) as p:
        client = await p.connect()
        client.send(GET % b"down")
        await client.until(b"\r\n\r\n")
        previous = -1
        while previous != sent:  # until nothing moves any more
            previous = sent
            await asyncio.sleep(0.2)
        assert sent < 40
        client.writer.transport.abort()
        await eventually(lambda: len(p.gateway.released) == 1, "the lease is released")


@pytest.mark.parametrize("phase", ["held", "waiting for the head", "streaming", "uploading"])
async def test_a_client_that_leaves_is_noticed_in_each_phase(phase: str) -> None:
    """The backend's connection ends within 100 ms and the lease is released exactly once."""
    started = asyncio.Event()
    ended_after: list[float] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if phase == "streaming":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        started.set()
        while await reader.read(65536):
            pass
        ended_after.append(asyncio.get_running_loop().time())

    async with plane(script) as p:
        if phase == "held":
            p.gateway.hold = asyncio.Event()
        client = await p.connect()
        body = b"Content-Length: 100\r\n\r\nabc" if phase == "uploading" else b"\r\n"
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + body)
        if phase == "held":
            await eventually(lambda: p.gateway.hold is not None, "held")
            await asyncio.sleep(0)
            client.close()
            await eventually(lambda: p.gateway.cancelled == 1, "the hold is cancelled")
            assert not p.gateway.released
            return
        await started.wait()
        if phase == "streaming":
            await client.until(b"1\r\na\r\n")
        left_at = asyncio.get_running_loop().time()
        client.close()
        await eventually(lambda: bool(ended_after), "the backend hears of it")
        assert ended_after[0] - left_at < 0.1
        await eventually(lambda: len(p.gateway.released) == 1, "released once")
        assert p.gateway.released[0].client_gone


async def test_an_upgrade_is_spliced_with_bytes_glued_to_both_heads() -> None:
    """After 101 both directions are raw; what came with the heads is not lost."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Upgrade: websocket" in head
        writer.write(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        while data := await reader.read(100):
            writer.write(data.upper())

    async with plane(script) as p:
        client = await p.connect()
        client.send(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nglued")
        assert b"101" in await client.until(b"\r\n\r\n")
        assert sorted(await client.exactly(10)) == sorted(b"helloGLUED")
        client.send(b"more")
        assert await client.exactly(4) == b"MORE"
        client.close()
        await eventually(lambda: len(p.gateway.released) == 1, "the tunnel ends as a whole")


async def test_expect_100_continue_goes_end_to_end() -> None:
    """The backend's 100 reaches the client before the body is sent, and not before the lease is there."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await reader.readexactly(4) == b"body"
        writer.write(OK)

    async with plane(script) as p:
        p.gateway.hold = asyncio.Event()
        client = await p.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.read(1)
        p.gateway.hold.set()
        assert b"100" in await client.until(b"\r\n\r\n")
        client.send(b"body")
        assert b"200" in await client.until(b"\r\n\r\n")
        client.close()


async def test_a_kept_connection_that_died_is_retried_once() -> None:
    """The backend closes after each answer without saying so; the second request still gets its answer."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")  # takes the next request and dies without a byte

    async with plane(script) as p:
        client = await p.connect()
        for _ in range(2):
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
            assert b"200" in await client.until(b"\r\n\r\n")
            await client.exactly(2)
        client.close()
        assert p.backend.connections == 2


async def test_failures_before_the_head_are_told_and_after_it_break_off() -> None:
    """502 in our shape before, an aborted connection (never a clean end) after."""

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with plane(dies) as p:
        answer = await p.ask(GET.replace(b"Host", b"Connection: close\r\nHost") % b"v1/x")
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b'"upstream_closed"' in answer

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"SSH-2.0-nope\r\n\r\n")

    async with plane(garbage) as p:
        assert (await p.ask(b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 502 ")

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")

    async with plane(breaks) as p:
        client = await p.connect()
        client.send(GET % b"x")
        await client.until(b"\r\n\r\n")
        tail = b""
        try:
            tail = await client.rest()
        except ConnectionResetError:
            pass
        assert b"0\r\n\r\n" not in tail
        assert p.gateway.released[0].error == "upstream_closed"
        client.close()


async def test_refusals_are_json_with_the_reason_and_keep_the_connection() -> None:
    """A start failure is 503 with exit status and last lines; the next request on the connection works."""
    async with plane(answering(OK)) as p:
        p.gateway.refusal = StartFailed(
            "'e' ended before it was ready", endpoint="e", phase="starting", exit_status=3, log_tail=["boom"]
        )
        client = await p.connect()
        client.send(b"POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        head = await client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"x-should-retry: false" in head
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        body = await client.exactly(length)
        assert b'"exit_status": 3' in body
        assert b"boom" in body
        p.gateway.refusal = None
        client.send(GET % b"x")
        assert b"200 OK" in await client.until(b"\r\n\r\n")
        client.close()


async def test_answers_made_here_and_unknown_paths() -> None:
    """A local answer and a 404 need no backend; HEAD gets the same head without a body."""
    async with plane(answering()) as p:
        client = await p.connect()
        client.send(GET % b"local" + b"HEAD /local HTTP/1.1\r\nHost: a\r\n\r\n" + GET % b"nowhere")
        assert b"200" in await client.until(b"\r\n\r\n")
        assert await client.exactly(14) == b'{"here": true}'
        assert b"Content-Length: 14" in await client.until(b"\r\n\r\n")
        assert b"404" in await client.until(b"\r\n\r\n")
        client.close()
        assert p.backend.connections == 0


async def test_a_prefix_is_mapped_back_in_location_and_cookies() -> None:
    """Redirects and cookies of the backend work for the client that sees a prefix."""
    answer = b"HTTP/1.1 302 Found\r\nLocation: /login\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"
    async with plane(answering(answer)) as p:
        p.gateway.prefix = b"/vision"
        client = await p.connect()
        client.send(GET % b"vision/x")
        head = await client.until(b"\r\n\r\n")
        assert b"Location: /vision/login\r\n" in head
        assert b"Path=/vision/" in head
        client.close()


MALFORMED = {
    "both lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "differing lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "signed length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    "hexadecimal length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
    "odd coding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "two codings": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n",
    "folded line": b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "control byte in target": b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "version": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "connect": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: a\r\nnope\r\n\r\n",
    "chunked in 1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "endless head": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000,
    "long request line": b"GET /" + b"a" * 20_000,
}


@pytest.mark.parametrize("name", list(MALFORMED))
async def test_malformed_requests_are_refused_and_never_forwarded(name: str) -> None:
    """4xx or 5xx and a closed connection; the backend never hears of it."""
    async with plane(answering(OK)) as p:
        answer = await p.ask(MALFORMED[name])
        status = int(answer.split(b" ")[1])
        assert 400 <= status < 600, answer
        assert p.backend.connections == 0


@pytest.mark.parametrize("chunk", [b"0x2\r\nab\r\n", b"-1\r\n", b"2\nab\r\n", b"2\r\nabX\r\n", b"1_0\r\n"])
async def test_malformed_chunks_are_refused(chunk: bytes) -> None:
    """The framing of an upload is checked on its way; a malformed piece is never passed on."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received.append(await reader.read())

    received: list[bytes] = []
    async with plane(script) as p:
        answer = await p.ask(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        await eventually(lambda: bool(received), "the backend's connection ends")
        assert chunk not in received[0]


async def test_slow_heads_idle_connections_and_floods_are_bounded() -> None:
    """A head that trickles in gets 408, an idle connection is closed, connections above the limit are refused."""
    limits = Limits(head_timeout_s=0.2, idle_timeout_s=0.3, sweep_interval_s=0.05, connections=2)
    async with plane(answering(OK), limits) as p:
        slow = await p.connect()
        slow.send(b"GET / HT")
        assert (await slow.rest()).startswith(b"HTTP/1.1 408 ")
        slow.close()
        idle: list[Client] = [await p.connect() for _ in range(2)]
        above = await p.connect()
        assert (await above.rest()).startswith(b"HTTP/1.1 503 ")
        above.close()
        for one in idle:
            assert await one.rest() == b""
            one.close()


async def test_closing_a_listener_lets_running_exchanges_end() -> None:
    """An idle connection goes at once, a running one gets its answer first."""
    go = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await go.wait()
        writer.write(OK)

    async with plane(script) as p:
        idle, busy = await p.connect(), await p.connect()
        busy.send(GET % b"x")
        await eventually(lambda: p.gateway.acquired == 1, "the request runs")
        closing = asyncio.create_task(p.listener.close(LIMIT_S))
        assert await idle.rest() == b""
        go.set()
        assert (await busy.rest()).endswith(b"ok")
        async with asyncio.timeout(LIMIT_S):
            await closing
        idle.close()
        busy.close()
