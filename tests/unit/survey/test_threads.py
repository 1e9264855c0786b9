"""Blocking looks with a deadline."""

import asyncio
import threading

import pytest

from juggler.survey.threads import LOOK, OneLook, in_thread


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


async def test_while_one_look_hangs_no_other_is_begun() -> None:
    """Whoever looks every few seconds does not fill the machine with threads; afterwards all is as before."""
    release, has_begun = threading.Event(), threading.Event()
    begun = 0

    def look() -> int:
        nonlocal begun
        begun += 1
        has_begun.set()
        release.wait(20)
        return begun

    one = OneLook(0.02)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await one.in_thread(look)
    assert has_begun.wait(20)
    assert begun == 1
    release.set()
    for thread in [thread for thread in threading.enumerate() if thread.name == f"{LOOK} look"]:
        thread.join(5)
    assert await OneLook(20).in_thread(look) == 2
    one._limit_s = 20
    assert await one.in_thread(lambda: 3) == 3


async def test_a_look_that_fails_is_followed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    one = OneLook(5)

    def fail() -> None:
        raise FileNotFoundError("x")

    with pytest.raises(FileNotFoundError):
        await one.in_thread(fail)
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Thread", _no_thread)
        with pytest.raises(RuntimeError, match="can't start"):
            await one.in_thread(fail)
    assert await one.in_thread(lambda: 1) == 1


def _no_thread(**_: object) -> None:
    raise RuntimeError("can't start new thread")
