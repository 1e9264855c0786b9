"""Sources that are slow, hang or fail."""

import asyncio
import threading

import pytest

from juggler.devices.source import Source
from tests.unit.devices.support import LIMIT_S


async def test_an_answer_is_shared() -> None:
    """Two who ask at the same time cause one question; the next one is asked anew."""
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return asked

    source = Source("test", ask)
    assert list(await asyncio.gather(source.answer(LIMIT_S), source.answer(LIMIT_S))) == [1, 1]
    assert await source.answer(LIMIT_S) == 2


@pytest.mark.parametrize("error", [OSError("gone"), ValueError(), RuntimeError("can't start new thread")])
async def test_a_failure_is_no_answer(error: Exception) -> None:
    """Whatever is raised, and the next question is asked all the same."""

    async def ask() -> int:
        raise error

    source = Source("test", ask)
    assert await source.answer(LIMIT_S) is None
    assert await source.answer(LIMIT_S) is None


async def test_one_that_hangs_is_waited_for_once() -> None:
    """1. a question takes too long 2. later ones get None at once and start none 3. when it ends all is well again."""
    release, asked = asyncio.Event(), 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await release.wait()
        return asked

    source = Source("test", ask)
    assert await source.answer(0.01) is None
    for _ in range(100):
        assert await asyncio.wait_for(source.answer(LIMIT_S * 1000), LIMIT_S) is None
    assert asked == 1
    release.set()
    while await source.answer(LIMIT_S) != 2:
        await asyncio.sleep(0)


async def test_a_thread_that_hangs_is_not_joined_by_others() -> None:
    """Files of a dead driver: one thread hangs, however often one asks, and the loop goes on."""
    release, has_begun, started = threading.Event(), threading.Event(), []

    def look() -> str:
        started.append(1)
        has_begun.set()
        release.wait(LIMIT_S)
        return "x"

    source = Source.of_files("test", look)
    try:
        for _ in range(20):
            assert await source.answer(0.01) is None
        assert has_begun.wait(LIMIT_S)
        assert len(started) == 1
    finally:
        release.set()
    await source.close()


async def test_who_asks_may_leave() -> None:
    """Cancelling one who waits takes the answer from nobody else."""
    release = asyncio.Event()

    async def ask() -> int:
        await release.wait()
        return 7

    source = Source("test", ask)
    first = asyncio.create_task(source.answer(LIMIT_S))
    second = asyncio.create_task(source.answer(LIMIT_S))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    release.set()
    assert await second == 7


async def test_closing_ends_the_question() -> None:
    """Who waits gets None; nothing goes on afterwards."""
    ended = asyncio.Event()

    async def ask() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "x"

    source = Source("test", ask)
    waiting = asyncio.create_task(source.answer(LIMIT_S))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await source.close()
    assert ended.is_set()
    assert await waiting is None
