"""The file is looked at; what counts as a change, and when."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from juggler.reload.source import Identity, identity_of
from juggler.reload.watch import Watcher


def version(number: int) -> Identity:
    return ("/config.json", 1, number, 10, number)


async def changes(since: Identity | None, *looks: Identity | None) -> int:
    """How many changes a watcher sees that finds these, one per look, and the last of them for ever."""
    script, seen = list(looks), 0
    rest = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def changed() -> None:
        nonlocal seen
        seen += 1

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
