"""Who is told that it waits, and how: comments for those who asked for events, 102 for others, silence for the rest."""

import asyncio
from dataclasses import replace

import pytest

from juggler.units import MIB
from tests.protocol.support import FAST, OK, Peer, header, rig, until
from tests.protocol.waiting import (
    ANSWERS,
    COMMENT,
    EVENTS,
    SOON,
    after_comments,
    answering,
    chunk,
    go,
    post,
    swept,
    told_to_wait,
)

SILENT = {
    "no stream": post(body=b'{"stream": false}'),
    "nested": post(body=b'{"a": {"stream": true}}'),
    "in a text": post(body=b'{"a": "\\"stream\\": true"}'),
    "no JSON": post(body=b'"stream": true'),
    "deep": post(body=b'{"stream": true, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "other path": post(b"/sdapi/v1/txt2img"),
    "ollama chat": post(b"/api/chat"),
    "ollama generate": post(b"/ollama/api/generate", fields=b"Accept: text/event-stream\r\n"),
    "either way": post(b"/mcp", fields=b"Accept: application/json, text/event-stream\r\n"),
    "foreign page": post(fields=b"Origin: http://evil.example\r\n"),
    "websocket": post(fields=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "body on its way": b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n"
    + b'{"stream": true, "prompt": "',
    "long": post(body=b'{"stream": true, "a": "' + b"a" * MIB + b'"}'),
    "light": b"GET /v1/chat/completions HTTP/1.1\r\nHost: h\r\n\r\n",
}


@pytest.mark.parametrize("kind", SILENT)
async def test_who_gets_no_comment(kind: str) -> None:
    """Requests that are not sure to be answered with events wait in silence and get the backend's own answer."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await peer.gone()

    async with rig(backend, limits=SOON) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(SILENT[kind])
        await until(lambda: bool(setup.gateway.asked))
        await swept(setup, 6)
        go(setup)
        assert (await peer.head()).startswith(b"HTTP/1.1 418 I'm a teapot\r\n")


ASKING = {
    "chunked body": b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b'a\r\n{"stream" \r\n7\r\n: true}\r\n0\r\n\r\n',
    "responses": post(b"/v1/responses"),
    "llama.cpp": post(b"/completion", fields=b"Content-Type: application/x-www-form-urlencoded\r\n"),
    "below a prefix": post(b"/a/b/v1/chat/completions?x=/api/chat"),
    "koboldcpp": post(b"/api/extra/generate/stream", b'{"prompt": "x"}'),
    "event source": b"GET /gradio/queue/data HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n",
    "own page": post(fields=b"Origin: http://h\r\n"),
    "own page by its browser": post(fields=b"Origin: http://other\r\nSec-Fetch-Site: same-origin\r\n"),
}


@pytest.mark.parametrize("kind", ASKING)
async def test_who_gets_comments(kind: str) -> None:
    """All the ways to ask for events."""
    async with rig(limits=SOON) as setup:
        await told_to_wait(setup, ASKING[kind])


async def test_body_that_completes_late() -> None:
    """As soon as the whole body is here, it is looked at."""
    async with rig(limits=SOON) as setup:
        setup.gateway.hold = asyncio.Event()
        request = post()
        peer = await setup.ask(request[:-3])
        await until(lambda: bool(setup.gateway.asked))
        await swept(setup, 3)
        peer.send(request[-3:])
        assert header(await peer.head(), b"content-type") == b"text/event-stream"


async def test_comments_can_be_switched_off() -> None:
    """``comment_after_s=None``: silence until the backend answers."""
    async with rig(answering(OK), limits=replace(SOON, comment_after_s=None)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post())
        await until(lambda: bool(setup.gateway.asked))
        await swept(setup, 6)
        go(setup)
        await peer.exactly(OK)


async def test_no_comment_for_those_who_need_not_wait() -> None:
    """What is forwarded at once stays the backend's own answer, byte by byte."""
    async with rig(answering(ANSWERS["length"][0]), limits=replace(SOON, comment_after_s=0.0)) as setup:
        peer = await setup.ask(post())
        await peer.exactly(ANSWERS["length"][0])


PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"


async def test_processing() -> None:
    """Where the operator wants it, 102s precede the answer of a request that is none for events."""
    async with rig(answering(OK), limits=replace(SOON, send_processing=True)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post(b"/sdapi/v1/txt2img"))
        await peer.exactly(PROCESSING * 2)
        go(setup)
        while (head := await peer.head()) == PROCESSING:
            pass
        assert head + await peer.body(2) == OK


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    ],
)
async def test_no_processing(request_bytes: bytes) -> None:
    """Not in HTTP/1.0, not before a 101, not to those who wait for a 100."""
    async with rig(limits=replace(SOON, send_processing=True)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(request_bytes)
        await until(lambda: bool(setup.gateway.asked))
        await swept(setup, 6)
        go(setup)
        assert (await peer.head()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_processing_never_follows_the_head() -> None:
    """A 1xx in the middle of a body would be garbage."""
    async with rig(answering(ANSWERS["length"][0]), limits=replace(SOON, send_processing=True)) as setup:
        setup.gateway.hold = asyncio.Event()
        peer = await setup.ask(post())
        while (head := await peer.head()) == PROCESSING:
            pass
        assert header(head, b"content-type") == b"text/event-stream"
        for _ in range(3):
            assert await chunk(peer) == COMMENT
        go(setup)
        assert await after_comments(peer) == EVENTS


def test_the_default_is_patience() -> None:
    """Other tests of this folder rely on ten seconds of silence."""
    assert (FAST.comment_after_s, FAST.send_processing) == (10, False)
