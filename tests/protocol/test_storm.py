"""Clients that wait and leave at any moment, backends that answer, refuse and die as they like: h11 reads it all."""

import asyncio
import contextlib
import logging
import random
from dataclasses import replace

import h11
import pytest

from juggler.errors import QueueFull
from juggler.proxy.contract import LocalResponse, RequestInfo, Route
from juggler.proxy.upstream import UpstreamPool
from tests.protocol.support import OK, WAIT_S, Peer, Rig, StubLease, rig, until
from tests.protocol.test_hold_again import dead_pool
from tests.protocol.waiting import ANSWERS, LLAMA, SOON, SSE, post, refusal, request_of

SEEDS = range(3)
CLIENTS = 40
HASTY = replace(
    SOON,
    sweep_interval_s=0.004,
    comment_after_s=0.006,
    comment_every_s=0.005,
    send_processing=True,
    failure_timeout_s=0.05,
    body_timeout_s=0.05,
)
SAID = (
    *(answer for answer, _ in ANSWERS.values()),
    refusal(b"400 Bad Request", LLAMA),
    OK,
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz",
    b"garbage\r\n\r\n",
    SSE + b"Content-Length: 500\r\n\r\nshort",
)
ASKED = (
    post(),
    post(minor=0),
    post(fields=b"X-Juggler-Timing: 1\r\n"),
    post(b"/x"),
    post(b"/x", minor=0),
    b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
    post(fields=b"Expect: 100-continue\r\n"),
    post()[:-5],
)


def check(request: bytes, got: bytes, *, ended: bool) -> str:
    """What h11 makes of one answer: whole, or visibly cut off. Anything else fails the test.

    Args:
        request: What was asked.
        got: All that came back.
        ended: The connection ended cleanly; otherwise the client gave up on it.
    """
    if not got:
        return "cut"
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="HEAD" if request[:4] == b"HEAD" else "GET", target="/", headers=[("Host", "h")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(got)
    if ended:
        reader.receive_data(b"")
    while True:
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError as error:
            if ended and ("closed" in str(error) or "incomplete" in str(error)):
                return "cut"
            raise AssertionError(request, got) from error
        if isinstance(event, h11.InformationalResponse):
            assert b" HTTP/1.1\r\n" in request, (request, got)
        elif event is h11.NEED_DATA:
            assert not ended, (request, got)
            return "cut"
        elif isinstance(event, h11.EndOfMessage):
            assert not reader.trailing_data[0], (request, got)
            return "whole"


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_answer_is_whole_or_visibly_cut(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing garbled, no 1xx for HTTP/1.0, each lease released once, no connection left, no mistake in the log."""
    chance = random.Random(seed)

    async def backend(peer: Peer) -> None:
        while True:
            await request_of(peer)
            mood = chance.random()
            if mood < 0.15:
                peer.reset()
            if mood < 0.25:
                return
            if mood < 0.35:
                await asyncio.sleep(0.05)
            answer = chance.choice(SAID)
            step = max(1, len(answer) // chance.randint(1, 6))
            for start in range(0, len(answer), step):
                with contextlib.suppress(RuntimeError):  # uvloop's, for a connection that is gone
                    peer.send(answer[start : start + step])
                await asyncio.sleep(chance.random() * 0.004)
            if chance.random() < 0.5:
                return

    async with rig(backend, limits=HASTY) as setup:
        nobody = _be_moody(setup, chance)
        outcomes: list[str] = []
        async with asyncio.timeout(WAIT_S):
            while "whole" not in outcomes:  # a machine that stands still cuts them all
                outcomes += await asyncio.gather(*(_client(setup, chance) for _ in range(CLIENTS)))
        await until(lambda: not setup.listener.connections)
        nobody.close()
    assert not [record for record in caplog.records if record.name == "juggler.proxy" and record.levelno > logging.INFO]


def _be_moody(setup: Rig, chance: random.Random) -> UpstreamPool:
    """Have the gateway hold, refuse, and now and then give out a dead backend; returns that one's pool."""
    gateway, good, dead = setup.gateway, setup.gateway.pool, dead_pool()
    acquire, try_acquire = gateway.acquire, gateway.try_acquire

    async def moody(route: Route, request: RequestInfo) -> StubLease | LocalResponse:
        await asyncio.sleep(chance.choice((0, 0.002, 0.01, 0.02)))
        if chance.random() < 0.1:
            raise QueueFull("full", retry_after_s=1)
        gateway.pool = dead if chance.random() < 0.05 else good
        return await acquire(route, request)

    def at_once(route: Route, request: RequestInfo) -> StubLease | None:
        if chance.random() < 0.5:
            return None
        gateway.pool = dead if chance.random() < 0.05 else good
        return try_acquire(route, request)

    gateway.acquire = moody  # type: ignore[method-assign]
    gateway.try_acquire = at_once  # type: ignore[method-assign]
    return dead


async def _client(setup: Rig, chance: random.Random) -> str:
    request = chance.choice(ASKED)
    got, ended = b"", False
    with contextlib.suppress(ConnectionError, TimeoutError):
        peer = await setup.ask(request)
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.03)
            peer.reset()
            return "left"
        async with asyncio.timeout(0.3):
            while piece := await peer.reader.read(65536):
                got += piece
        ended = True
    peer.writer.close()
    return check(request, got, ended=ended)
