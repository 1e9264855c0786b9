"""Streams that are begun while their request waits: comments, and how the backend's answer is put into them."""

import asyncio
import contextlib
import json
from dataclasses import replace

import pytest

from juggler.errors import QueueFull, RoutingError, StartFailed
from juggler.proxy.contract import LocalResponse
from juggler.proxy.upstream import UpstreamConnection, UpstreamPool
from juggler.units import KIB, MIB
from tests.protocol.support import OK, WAIT_S, Peer, header, rig, until
from tests.protocol.waiting import (
    ANSWERS,
    CHAT,
    COMMENT,
    EVENTS,
    LLAMA,
    SOON,
    SSE,
    after_comments,
    answering,
    chunk,
    event_data,
    go,
    post,
    refusal,
    relayed,
    request_of,
    told_to_wait,
)


@pytest.mark.parametrize("kind", ANSWERS)
async def test_events_are_put_into_the_stream(kind: str) -> None:
    """However the backend frames its events, they follow our comments unchanged, and the connection goes on."""
    answer, close = ANSWERS[kind]
    async with rig(answering(answer, close=close), limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        assert await after_comments(peer) == EVENTS
        result = await setup.result()
        assert (result.status, result.error, result.client_gone) == (200, None, False)
        setup.upstream.handler = answering(OK)
        peer.send(post(b"/next"))
        await peer.exactly(OK)
        assert setup.upstream.accepted == (2 if close else 1)


async def test_head_of_the_wait() -> None:
    """It forbids storing and buffering, opens no door to other sites, and says nothing nobody asked for."""
    async with rig(limits=SOON) as setup:
        setup.gateway.hold = asyncio.Event()
        head = await (await setup.ask(post())).head()
        names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}
        assert names == {b"date", b"content-type", b"cache-control", b"x-accel-buffering", b"transfer-encoding"}
        assert header(head, b"cache-control") == b"no-store"
        assert header(head, b"x-accel-buffering") == b"no"


async def test_events_arrive_one_by_one() -> None:
    """An event is with the client before the backend has sent the next."""
    step = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        peer.send(SSE + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await step.wait()
        peer.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        await peer.gone()

    async with rig(backend, limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        while (piece := await chunk(peer)) == COMMENT:
            pass
        assert piece == b"data: 1\n\n"
        (connection,) = setup.listener.connections
        assert connection._wait is not None
        connection._wait.check(asyncio.get_running_loop().time() + 60)  # no comment between the backend's bytes
        step.set()
        assert [await chunk(peer), await chunk(peer)] == [b"data: 2\n\n", b""]


async def test_comments_go_on_until_the_backend_answers() -> None:
    """A stream once begun is kept alive over a long prompt too; the backend's first byte ends the comments."""
    answer = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        await answer.wait()
        peer.send(SSE + b"Content-Length: 9\r\n\r\n")
        await until(lambda: setup.gateway.leases[0].upstream.active != set())
        peer.send(b"data: 1\n\n")
        await peer.gone()

    async with rig(backend, limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        await until(lambda: setup.upstream.accepted == 1)
        for _ in range(3):
            assert await chunk(peer) == COMMENT
        answer.set()
        assert await after_comments(peer) == b"data: 1\n\n"


async def test_backend_gets_the_request_as_it_was_but_for_compression() -> None:
    """What goes into our stream must be readable as it comes, so the backend is not offered to compress it."""
    heads: list[bytes] = []
    async with rig(answering(ANSWERS["length"][0], heads=heads), limits=SOON) as setup:
        peer = await told_to_wait(setup, post(fields=b"Accept-Encoding: gzip, br\r\nX-Own: 1\r\n"))
        go(setup)
        assert await after_comments(peer) == EVENTS
        assert heads[0].lower().count(b"accept-encoding") == 1
        assert header(heads[0], b"accept-encoding") == b"identity"
        assert header(heads[0], b"x-own") == b"1"


async def test_interim_answers_stay_out_of_the_stream() -> None:
    """A 103 of the backend has no place in a body."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with rig(answering(early + ANSWERS["length"][0]), limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        assert await after_comments(peer) == EVENTS


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refusal(b"400 Bad Request", LLAMA), "too long"),
        (refusal(b"500 Oh", b'{"error": "no such model"}'), "no such model"),
        (refusal(b"422 Unprocessable", b'{"detail": "bad field"}'), "bad field"),
        (refusal(b"503 Busy", b"come back", b"text/plain"), "come back"),
        (refusal(b"502 Bad Gateway", b"<html>", b"text/html"), "The backend of e answered 502 Bad Gateway."),
        (refusal(b"200 OK", b"{}"), "The backend of e answered application/json where events were asked for."),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "The backend of e answered something of no stated type"),
        (b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n4\r\noops\r\n0\r\n\r\n", "oops"),
        (SSE + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx", "The backend of e answered text/event-stream"),
    ],
)
async def test_refusal_of_the_backend_becomes_an_error_event(answer: bytes, message: str) -> None:
    """Its own words reach the client, the stream ends cleanly, and both connections are used again."""
    async with rig(answering(answer), limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        body = event_data(await after_comments(peer))
        assert isinstance(body["error"], dict)
        assert str(body["error"]["message"]).startswith(message)
        result = await setup.result()
        assert (result.status, result.error) == (int(answer[9:12]), None)
        peer.send(post(b"/next"))
        await peer.exactly(OK)
        assert setup.upstream.accepted == 1


async def test_refusal_keeps_what_clients_look_at() -> None:
    """llama.cpp's error object arrives as it was."""
    async with rig(answering(refusal(b"400 Bad Request", LLAMA)), limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        body = event_data(await after_comments(peer))
        assert body["error"] == json.loads(LLAMA)["error"]
        assert body["juggler"] == {"endpoint": "e", "phase": "forward", "status": 400}


async def test_long_refusal_is_cut() -> None:
    """Only so much of a refusal is read; then its connection is closed."""
    left = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        peer.send(b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\nContent-Length: 99999999\r\n\r\n" + b"a" * 4000)
        peer.send(b"b" * 200_000)
        await peer.gone()
        left.set()

    async with rig(backend, limits=replace(SOON, failure_bytes=4 * KIB)) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        body = event_data(await after_comments(peer))
        assert isinstance(body["error"], dict)
        assert body["error"]["message"] == "a" * 4000 + "b" * 96
        async with asyncio.timeout(WAIT_S):
            await left.wait()


@pytest.mark.parametrize("ending", ["hangs", "closes", "resets", "malformed"])
async def test_refusal_that_does_not_end(ending: str) -> None:
    """A backend that hangs or dies in the middle of its refusal has said enough."""

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        (connection,) = setup.listener.connections
        exchange = connection._exchange
        assert exchange is not None
        peer.send(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n4\r\noops\r\n")
        await until(lambda: exchange.head_sent)
        if ending == "malformed":
            peer.send(b"zz\r\n")
        if ending == "hangs":
            await until(lambda: exchange.done)
            exchange.check(float("inf"))  # a sweep before the coroutine has run finds nothing left to do
        if ending in ("hangs", "malformed"):
            await peer.gone()
        elif ending == "resets":
            peer.reset()

    async with rig(backend, limits=replace(SOON, failure_timeout_s=0.1 if ending == "hangs" else 60.0)) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        body = event_data(await after_comments(peer))
        assert isinstance(body["error"], dict)
        assert body["error"]["message"] == "oops"
        assert (await setup.result()).status == 500


@pytest.mark.parametrize("way", ["error", "local"])
async def test_own_error_after_the_head(way: str) -> None:
    """A load that fails late is told as an event with everything we know, and the stream ends cleanly."""
    async with rig(limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        if way == "error":
            setup.gateway.refusal = StartFailed("It crashed.", endpoint="e", exit_status=1, log_tail=["boom"])
        else:
            setup.gateway.local = LocalResponse(503, b'{"error": "It crashed."}')
        go(setup)
        body = event_data(await after_comments(peer))
        assert isinstance(body["error"], dict)
        assert isinstance(body["juggler"], dict)
        assert body["error"]["message"] == "It crashed."
        if way == "error":
            assert body["error"]["code"] == "backend_start_failed"
            assert body["juggler"]["log_tail"] == ["boom"]
        setup.gateway.refusal = setup.gateway.local = None
        peer.send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.exactly(OK)


async def test_error_events_have_the_shape_of_their_api() -> None:
    """Anthropic's and the Responses API name the event; nobody is told that the answer is whole."""
    for path, name, kind in (
        (b"/v1/messages", b"event: error\n", "error"),
        (b"/below/v1/messages?beta=true", b"event: error\n", "error"),
        (b"/v1/responses", b"event: error\n", "error"),
        (CHAT, b"", None),
        (b"/completion", b"", None),
    ):
        async with rig(limits=SOON) as setup:
            peer = await told_to_wait(setup, post(path))
            setup.gateway.refusal = QueueFull("Full.", details={"queue": {"waiting": 3}})
            go(setup)
            payload = await after_comments(peer)
            body = event_data(payload)
            assert payload.startswith(name + b"data: ")
            assert body.get("type") == kind
            assert isinstance(body["error"], dict)
            assert body["error"]["message"] == "Full."
            assert b"[DONE]" not in payload
            if path == b"/v1/responses":
                assert (body["message"], body["code"]) == ("Full.", "queue_full")
            assert isinstance(body["juggler"], dict)
            assert body["juggler"]["queue"] == {"waiting": 3}


async def test_bug_after_the_head_is_told_as_well(caplog: pytest.LogCaptureFixture) -> None:
    """Even an error that nobody foresaw ends the stream with an event."""
    async with rig(limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        setup.gateway.refusal = ZeroDivisionError()
        go(setup)
        body = event_data(await after_comments(peer))
        assert isinstance(body["error"], dict)
        assert body["error"]["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text


async def test_backend_that_closes_before_its_answer() -> None:
    """No head at all: our own error, as an event."""

    async def backend(peer: Peer) -> None:
        await request_of(peer)

    async with rig(backend, limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        body = event_data(await after_comments(peer))
        assert isinstance(body["error"], dict)
        assert body["error"]["code"] == "upstream_closed"
        assert (await setup.result()).error == "upstream_closed"


@pytest.mark.parametrize("kind", ["chunked", "length", "malformed"])
async def test_break_in_the_middle_is_no_clean_end(kind: str) -> None:
    """Half an answer must not look whole: the connection ends without the last chunk."""
    framing = b"Content-Length: 999\r\n\r\ndata: 1\n\n"
    if kind != "length":
        framing = b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        peer.send(SSE + framing)
        await relayed(setup)
        if kind == "malformed":
            peer.send(b"zz\r\n")
            await peer.gone()

    async with rig(backend, limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        rest = b""
        with contextlib.suppress(ConnectionError):
            rest = await peer.to_end()
        assert rest.endswith(b"9\r\ndata: 1\n\n\r\n")
        assert (await setup.result()).error == "upstream_closed"


async def test_http_1_0() -> None:
    """No chunks for a client that does not know them; the end of the connection is the end of the answer."""
    async with rig(answering(ANSWERS["chunked"][0]), limits=SOON) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post(minor=0, fields=b"Connection: keep-alive\r\n"))
        head = await peer.head()
        assert header(head, b"transfer-encoding") is None
        assert header(head, b"connection") == b"close"
        await peer.exactly(COMMENT)
        go(setup)
        rest = await peer.to_end()
        assert rest.replace(COMMENT, b"") == EVENTS


async def test_http_1_0_after_an_own_error() -> None:
    """The event is the last of the connection."""
    async with rig(limits=SOON) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post(minor=0, fields=b"Connection: keep-alive\r\n"))
        await peer.head()
        setup.gateway.refusal = StartFailed("It crashed.")
        go(setup)
        body = event_data((await peer.to_end()).replace(COMMENT, b""))
        assert isinstance(body["error"], dict)
        assert body["error"]["message"] == "It crashed."


async def test_next_request_is_not_taken_for_the_stream() -> None:
    """An error of the following request has a head of its own, even if it never comes to wait."""
    async with rig(answering(ANSWERS["length"][0]), limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        go(setup)
        assert await after_comments(peer) == EVENTS
        setup.gateway.routing_error = RoutingError("Nothing here.")
        peer.send(post(b"/next"))
        assert (await peer.answer())[0] == 404


async def test_http_1_0_sees_a_break() -> None:
    """Where a plain end would look like the answer's, the connection is reset."""

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        peer.send(SSE + b"Content-Length: 999\r\n\r\ndata: 1\n\n")
        await relayed(setup)

    async with rig(backend, limits=SOON) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post(minor=0))
        await peer.head()
        go(setup)
        with pytest.raises(ConnectionResetError):
            await peer.to_end()


async def test_client_that_wants_to_close_is_obeyed() -> None:
    """Connection: close holds for a stream that was begun early too."""
    async with rig(answering(ANSWERS["length"][0]), limits=SOON) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post(fields=b"Connection: close\r\n"))
        assert header(await peer.head(), b"connection") == b"close"
        go(setup)
        assert await after_comments(peer) == EVENTS
        assert await peer.to_end() == b""


@pytest.mark.parametrize("phase", ["held", "forwarded", "streaming"])
async def test_client_that_leaves(phase: str) -> None:
    """After the head of the wait a client is missed as soon as before it."""
    left = asyncio.Event()

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        if phase == "streaming":
            peer.send(SSE + b"\r\ndata: 1\n\n")
        await peer.gone()
        left.set()

    async with rig(backend, limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        if phase == "held":
            peer.writer.close()
            await until(lambda: setup.gateway.cancelled == 1)
            assert not setup.gateway.leases
            return
        go(setup)
        await until(lambda: setup.upstream.accepted == 1)
        if phase == "streaming":
            await relayed(setup)
        peer.writer.close()
        async with asyncio.timeout(WAIT_S):
            await left.wait()
        result = await setup.result()
        assert (result.client_gone, result.error) == (True, None)


async def test_slow_reader_stops_the_backend() -> None:
    """Events nobody reads are not collected here, and arrive whole once they are read."""
    sent = 0
    piece = b"data: " + b"x" * (64 * KIB - 8) + b"\n\n"
    count = 1600  # 100 MiB: kernel buffers take some, we must not

    async def backend(peer: Peer) -> None:
        nonlocal sent
        await request_of(peer)
        peer.send(SSE + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(count):
            peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await peer.writer.drain()
            sent += len(piece)
        peer.send(b"0\r\n\r\n")
        await peer.gone()

    async with rig(backend, limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        go(setup)
        (connection,) = setup.listener.connections
        await until(lambda: connection.write_paused)
        await _settled(lambda: sent)
        assert sent < 60 * MIB
        assert connection.unsent_bytes < MIB
        with contextlib.suppress(RuntimeError):  # the reader has resumed it itself, having room
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        total = 0
        while data := await chunk(peer):
            total += len(data) if data != COMMENT else 0
        assert total == count * len(piece)


async def _settled(value: object) -> None:
    assert callable(value)
    last = value()
    calm = 0
    async with asyncio.timeout(WAIT_S):
        while calm < 10:
            await asyncio.sleep(0.02)
            calm = calm + 1 if value() == last else 0
            last = value()


async def test_held_again_within_the_stream() -> None:
    """A backend that died before it was reached: the wait goes on in the same stream."""
    async with rig(answering(ANSWERS["length"][0]), limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        good, dead = setup.gateway.pool, UpstreamPool("127.0.0.1", 1)
        setup.gateway.pool = dead
        go(setup)
        await until(lambda: len(setup.gateway.leases) == 1)
        setup.gateway.pool = good
        assert await after_comments(peer) == EVENTS
        dead.close()


async def test_held_again_begins_the_stream() -> None:
    """A wait that begins only after a first backend was lost is a wait like any other."""
    async with rig(answering(ANSWERS["length"][0]), limits=SOON) as setup:
        good, dead = setup.gateway.pool, UpstreamPool("127.0.0.1", 1)
        setup.gateway.pool = dead
        acquire = dead.acquire

        async def lost(*, fresh: bool = False) -> UpstreamConnection:
            setup.gateway.pool, setup.gateway.hold = good, asyncio.Event()
            return await acquire(fresh=fresh)

        dead.acquire = lost  # type: ignore[method-assign]
        peer = await setup.ask(post())
        assert header(await peer.head(), b"content-type") == b"text/event-stream"
        assert await chunk(peer) == COMMENT
        go(setup)
        assert await after_comments(peer) == EVENTS
        assert [result.error for result in setup.gateway.results] == ["upstream_connect_failed", None]
        dead.close()


async def test_drain_ends_the_connection_after_the_stream() -> None:
    """A listener that closes lets the stream end, then ends the connection."""
    async with rig(answering(ANSWERS["length"][0]), limits=SOON) as setup:
        peer = await told_to_wait(setup, post())
        closing = asyncio.create_task(setup.listener.close(WAIT_S), name="drain")
        await until(lambda: setup.listener.draining)
        go(setup)
        assert await after_comments(peer) == EVENTS
        assert await peer.to_end() == b""
        await closing


@pytest.mark.parametrize("ending", ["whole", "refused", "failed"])
async def test_openai_client(ending: str) -> None:
    """The official client skips the comments, and raises with our or the backend's words."""
    openai = pytest.importorskip("openai")
    delta = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    events = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(delta).encode()
    answer = SSE + b"Content-Length: %d\r\n\r\n" % len(events) + events
    if ending == "refused":
        answer = refusal(b"400 Bad Request", LLAMA)
    async with rig(answering(answer), limits=SOON) as setup:
        setup.gateway.hold = asyncio.Event()
        host, port = setup.listener.addresses[0]
        # Its own limit for connecting is 5 s, in which it imports a lot.
        async with openai.AsyncOpenAI(
            base_url=f"http://{host}:{port}/v1", api_key="x", max_retries=0, timeout=2 * WAIT_S
        ) as client:
            stream = await client.chat.completions.create(model="m", messages=[], stream=True)
            if ending == "failed":
                setup.gateway.refusal = StartFailed("It crashed.")
            go(setup)
            if ending == "whole":
                assert [chunk.id async for chunk in stream] == ["x"]
            else:
                with pytest.raises(openai.APIError, match="too long" if ending == "refused" else r"It crashed\."):
                    async for _ in stream:
                        pass
