"""Blocking looks with a deadline."""

import asyncio
import threading

import pytest

from juggler.survey.threads import LOOK, in_thread


def test_results_and_errors_come_back() -> None:
    """What the function returns or raises, ``None`` included."""

    def fail() -> None:
        raise FileNotFoundError("x")

    async def body() -> None:
        assert await in_thread(5, sum, [1, 2]) == 3
        assert await in_thread(5, lambda: None) is None  # type: ignore[func-returns-value]
        with pytest.raises(FileNotFoundError):
            await in_thread(5, fail)

    asyncio.run(body())


def test_a_hanging_look_is_given_up_and_does_not_hold_up_the_end() -> None:
    """The loop ends although the thread still waits; the thread's late answer harms nobody."""
    release = threading.Event()

    async def body() -> None:
        with pytest.raises(TimeoutError):
            await in_thread(0.05, release.wait)

    asyncio.run(body())
    threads = [thread for thread in threading.enumerate() if thread.name == f"{LOOK} wait"]
    assert threads
    assert all(thread.daemon for thread in threads)
    release.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
