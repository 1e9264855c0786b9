"""The file is looked at; what counts as a change, and when."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from juggler.reload import watch
from juggler.reload.source import Identity, identity_of
from juggler.reload.watch import Watcher


def version(number: int) -> Identity:
    return ("/config.json", 1, number, 10, number)


async def changes(since: Identity | None, *looks: Identity | None) -> int:
    """How many changes a watcher sees that finds these, one per look, and the last of them for ever."""
    script, seen = list(looks), 0
    rest = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def changed() -> bool:
        nonlocal seen
        seen += 1
        return True

    def look() -> Identity | None:
        if len(script) > 1:
            return script.pop(0)
        loop.call_soon_threadsafe(rest.set)
        return script[0]

    watcher = Watcher(look, changed, since=since, look_every_s=0, stable_s=0)
    task = asyncio.create_task(watcher.run())
    await asyncio.wait_for(rest.wait(), 10)
    rest.clear()
    for _ in range(2):  # whatever the last look has led to
        await asyncio.wait_for(rest.wait(), 10)
        rest.clear()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return seen


async def test_the_same_file_is_no_change() -> None:
    assert await changes(version(1), version(1), version(1)) == 0


async def test_another_file_is_one_change() -> None:
    assert await changes(version(1), version(2)) == 1


async def test_a_moment_without_the_file_is_no_change() -> None:
    assert await changes(version(1), None, None, version(1)) == 0


async def test_a_file_that_vanishes_while_it_is_written_is_looked_at_again() -> None:
    assert await changes(version(1), version(2), None, version(3)) == 1


async def test_what_is_written_in_steps_counts_once() -> None:
    assert await changes(version(1), version(2), version(3), version(4), version(4)) == 1


async def test_back_to_what_it_was_while_it_settles_is_no_change() -> None:
    assert await changes(version(1), version(2), version(1), version(1)) == 0


@pytest.mark.parametrize(("after_s", "expected"), [(0.0, 3), (60.0, 1)])
async def test_a_change_that_could_not_be_taken_up_is_told_again(after_s: float, expected: int) -> None:
    """After a while, and until it could be."""
    told = 0
    looks = 0

    def look() -> Identity | None:
        nonlocal looks
        looks += 1
        return version(2)

    async def changed() -> bool:
        nonlocal told
        told += 1
        return told == 3

    watcher = Watcher(look, changed, since=version(1), look_every_s=0, stable_s=0, again_after_s=after_s)
    task = asyncio.create_task(watcher.run())
    async with asyncio.timeout(10):
        while looks < 20:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert told == expected


async def test_another_change_does_not_wait_for_one_that_was_put_off() -> None:
    versions = [version(2)]
    told: list[Identity] = []
    watcher: Watcher

    async def changed() -> bool:
        told.append(versions[0])
        versions[0] = version(len(told) + 2)
        return len(told) == 2

    watcher = Watcher(lambda: versions[0], changed, since=version(1), look_every_s=0, stable_s=0, again_after_s=60)
    task = asyncio.create_task(watcher.run())
    async with asyncio.timeout(10):
        while len(told) < 2:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert told[:2] == [version(2), version(3)]


async def test_on_a_disk_that_hangs_there_is_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hang for days, and every look that is begun keeps a thread."""
    monkeypatch.setattr(watch, "LOOK_LIMIT_S", 0.01)
    release = threading.Event()
    changed = asyncio.Event()
    looks = 0

    def look() -> Identity | None:
        nonlocal looks
        looks += 1
        release.wait(20)
        return version(2)

    async def change() -> bool:
        changed.set()
        return True

    watcher = Watcher(look, change, since=version(1), look_every_s=0.001, stable_s=0)
    task = asyncio.create_task(watcher.run())
    async with asyncio.timeout(20):
        while not looks:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)
    assert looks == 1
    watcher._one_look._limit_s = 20
    release.set()
    await asyncio.wait_for(changed.wait(), 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_identities(tmp_path: Path) -> None:
    """Each way to change a file gives another one."""
    path = tmp_path / "config.json"
    assert identity_of(path) is None
    path.write_text("1")
    seen = {identity_of(path)}

    def step(change: Callable[[], object]) -> None:
        change()
        found = identity_of(path)
        assert found is not None
        assert found not in seen
        seen.add(found)

    step(lambda: path.write_text("22"))
    (tmp_path / "new").write_text("22")
    step(lambda: (tmp_path / "new").replace(path))
    for name in ("v1", "v2"):
        (tmp_path / name).write_text("22")
    for name in ("v1", "v2"):
        path.unlink()
        step(lambda name=name: path.symlink_to(name))  # type: ignore[misc]
    path.unlink()
    path.symlink_to(path)
    assert identity_of(path) is None, "a circle of links is no file"
