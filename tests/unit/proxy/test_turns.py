"""A little in each turn of the loop: in order, all of it, and others get on in between."""

import asyncio

import pytest

from juggler.proxy import turns as module
from juggler.proxy.turns import Turns


async def test_others_get_on_between_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE_S", 0.0)
    loop, turns, told = asyncio.get_running_loop(), Turns(), list[str]()
    for number in range(3):
        turns.add(loop, lambda number=number: told.append(f"job {number}"))  # type: ignore[misc]
    for number in range(2):
        await asyncio.sleep(0)
        told.append(f"turn {number}")
    await asyncio.sleep(0)
    assert told == ["job 0", "turn 0", "job 1", "turn 1", "job 2"]


async def test_who_adds_one_while_it_runs_begins_no_second_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE_S", 0.0)
    loop, turns, told = asyncio.get_running_loop(), Turns(), list[str]()

    def first() -> None:
        told.append("first")
        turns.add(loop, lambda: told.append("second"))

    turns.add(loop, first)
    await asyncio.sleep(0)
    assert told == ["first"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == ["first", "second"]
    turns.add(loop, lambda: told.append("third"))
    await asyncio.sleep(0)
    assert told == ["first", "second", "third"]


async def test_a_job_that_fails_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SHARE_S", 3600.0)
    loop, turns, told = asyncio.get_running_loop(), Turns(), list[str]()

    def bad() -> None:
        raise ZeroDivisionError

    turns.add(loop, bad)
    turns.add(loop, lambda: told.append("next"))
    await asyncio.sleep(0)
    turns.add(loop, lambda: told.append("later"))
    await asyncio.sleep(0)
    assert told == ["next", "later"]
    assert "this is a bug" in caplog.text
