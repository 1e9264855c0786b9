"""The stream of events: what changed once, for everybody, from wherever each one is."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from juggler.control import stream as module
from juggler.control.snapshot import Snapshots
from juggler.control.stream import EventStream
from juggler.control.subject import Subject
from juggler.errors import TooManyReaders
from juggler.history.history import Batch


class World:
    """A juggler with one pool and whatever a test puts in."""

    def __init__(self) -> None:
        self.items: dict[str, list[dict[str, object]]] = {
            name: [] for name in ("pools", "instances", "endpoints", "waiting", "running", "listeners")
        }
        self.scalar: dict[str, object] = {"locked": None}
        self.batches: list[Callable[[Batch], None]] = []
        self.reloads: list[Callable[[], None]] = []
        self.looks = 0
        subject = SimpleNamespace(
            history=SimpleNamespace(subscribe=self._subscribe),
            when_changed=self._when_changed,
            config_summary=lambda: {"path": "x"},
            engine=SimpleNamespace(now=lambda: 0.0),
        )
        snapshots = SimpleNamespace(
            collections=self._collections, scalars=lambda: dict(self.scalar), status=self._status
        )
        self.stream = EventStream(cast(Subject, subject), cast(Snapshots, snapshots), "boot")

    def _collections(self) -> dict[str, list[dict[str, object]]]:
        self.looks += 1
        return {name: [dict(item) for item in items] for name, items in self.items.items()}

    def _status(self) -> dict[str, object]:
        return {**self.scalar, **self.items}

    def _subscribe(self, listener: Callable[[Batch], None]) -> Callable[[], None]:
        self.batches.append(listener)
        return lambda: self.batches.remove(listener)

    def _when_changed(self, listener: Callable[[], None]) -> Callable[[], None]:
        self.reloads.append(listener)
        return lambda: self.reloads.remove(listener)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "TICK_S", 0.01)
    one = World()
    task = asyncio.create_task(one.stream.run())
    yield one
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Reader:
    """A client of the stream."""

    def __init__(self, world: World, last_id: str | None = None) -> None:
        self._pieces = world.stream.open(last_id)
        self._here: list[str] = []

    async def next(self) -> tuple[str, str, Any]:
        """The next event: id, name, data."""
        while True:
            if not self._here:
                async with asyncio.timeout(10):
                    piece = (await anext(self._pieces)).decode()
                assert piece.endswith("\n\n")
                self._here = piece.removesuffix("\n\n").split("\n\n")
            event = self._here.pop(0)
            fields = dict(line.split(": ", 1) for line in event.split("\n") if not line.startswith(":"))
            if "id" in fields:
                return fields["id"], fields["event"], json.loads(fields["data"])

    async def alive(self) -> Any:
        """What the next event says, which has no id."""
        async with asyncio.timeout(10):
            while (piece := (await anext(self._pieces)).decode()).startswith("retry"):
                pass
        head, _, data = piece.removesuffix("\n\n").partition("\ndata: ")
        assert head == "event: alive"
        return json.loads(data)

    async def close(self) -> None:
        await cast(Any, self._pieces).aclose()


async def test_a_snapshot_then_what_changes(world: World) -> None:
    world.items["instances"] = [{"instance": "a", "state": "stopped"}, {"instance": "b", "state": "ready"}]
    reader = Reader(world)
    identity, name, data = await reader.next()
    assert (identity, name) == ("boot-0", "snapshot")
    assert data["instances"][1] == {"instance": "b", "state": "ready"}
    world.items["instances"][0]["state"] = "starting"
    identity, name, data = await reader.next()
    assert (identity, name) == ("boot-1", "change")
    assert data["instances"] == [{"instance": "a", "state": "starting"}]
    assert "pools" not in data
    del world.items["instances"][1]
    world.scalar["locked"] = {"by": "me"}
    _, _, data = await reader.next()
    assert data["removed"] == {"instances": ["b"]}
    assert data["locked"] == {"by": "me"}
    await reader.close()


async def test_what_only_counts_is_not_told_each_time(world: World) -> None:
    """Nor is the pause until a failed model is tried again; its error is, when that is another one."""
    error: dict[str, object] = {"message": "it broke", "retry_in_s": 30.0}
    item: dict[str, object] = {"instance": "a", "idle_s": 1.0, "error": error}
    world.items["instances"] = [item]
    reader = Reader(world)
    await reader.next()
    for number in range(3):
        item |= {"idle_s": 2.0 + number, "error": {**error, "retry_in_s": 29.0 - number}}
        looks = world.looks
        async with asyncio.timeout(10):
            while world.looks < looks + 2:
                await asyncio.sleep(0.01)
    item["error"] = {"message": "it broke again", "retry_in_s": 60.0}
    identity, _, data = await reader.next()
    assert identity == "boot-1"
    assert data["instances"][0]["error"] == item["error"]
    await reader.close()


async def test_who_was_away_goes_on_where_it_was(world: World) -> None:
    first, second = Reader(world), Reader(world)
    await first.next()
    await second.next()
    for number in range(3):
        world.items["pools"] = [{"pool": "gpu0", "used_bytes": number}]
        identity, _, _ = await first.next()
    assert identity == "boot-3"
    again = Reader(world, "boot-1")
    assert [(await again.next())[0] for _ in range(2)] == ["boot-2", "boot-3"]
    for one in (first, second, again):
        await one.close()


async def test_what_a_reader_missed_comes_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together what is short; a long message alone, and nobody waits for the next change to get the rest."""
    monkeypatch.setattr(module, "PIECE_BYTES", 600)
    first = Reader(world)
    await first.next()
    for size in (10, 10, 900, 10):
        world.items["pools"] = [{"pool": f"{world.looks:0{size}}"}]
        await first.next()
    again = world.stream.open("boot-0")
    assert await anext(again) == b"retry: 1000\n\n"
    async with asyncio.timeout(10):
        pieces = [(await anext(again)).count(b"event: ") for _ in range(3)]
    assert pieces == [2, 1, 1]
    await cast(Any, again).aclose()
    await first.close()


async def test_all_readers_are_woken(world: World) -> None:
    readers = [Reader(world) for _ in range(5)]
    for one in readers:
        await one.next()
    for number in range(3):
        world.items["pools"] = [{"pool": "gpu0", "used_bytes": number}]
        for one in readers:
            assert (await one.next())[2]["pools"][0]["used_bytes"] == number
    for one in readers:
        await one.close()


@pytest.mark.parametrize("last_id", ["other-1", "boot-99", "boot-x", "boot--1", "boot-" + "9" * 5000, ""])
async def test_an_id_that_says_nothing_gets_a_snapshot(world: World, last_id: str) -> None:
    first = Reader(world)
    await first.next()
    again = Reader(world, last_id)
    assert (await again.next())[1] == "snapshot"
    await first.close()
    await again.close()


async def test_a_slow_reader_gets_a_snapshot_and_holds_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring stays within its bound while one does not read at all."""
    monkeypatch.setattr(module, "RING_MESSAGES", 8)
    slow, quick = Reader(world), Reader(world)
    await slow.next()
    await quick.next()
    for number in range(30):
        world.items["pools"] = [{"pool": "gpu0", "used_bytes": number}]
        assert (await quick.next())[2]["pools"][0]["used_bytes"] == number
    assert len(world.stream._ring) == 8
    identity, name, data = await slow.next()
    assert (identity, name) == ("boot-30", "snapshot")
    assert data["pools"] == [{"pool": "gpu0", "used_bytes": 29}]
    await slow.close()
    await quick.close()


async def test_the_ring_is_bounded_in_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_BYTES", 3000)
    reader = Reader(world)
    await reader.next()
    for number in range(10):
        world.items["pools"] = [{"pool": "x" * 900 + str(number)}]
        await reader.next()
    assert sum(len(message.data) for message in world.stream._ring) <= 3000
    await reader.close()


async def test_what_only_counts_is_not_told_every_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.items["waiting"] = [{"request": 1, "position": 1, "expected_s": 9.0}]
    reader = Reader(world)
    await reader.next()
    world.items["waiting"] = [{"request": 1, "position": 1, "expected_s": 8.0}]
    looks = world.looks
    while world.looks < looks + 3:
        await asyncio.sleep(0.01)
    world.items["waiting"] = [{"request": 1, "position": 2, "expected_s": 7.0}]
    identity, _, data = await reader.next()
    assert identity == "boot-1", "nothing was told in between"
    assert data["waiting"] == [{"request": 1, "position": 2, "expected_s": 7.0}]
    monkeypatch.setattr(module, "RESEND_AFTER_S", 0.0)
    world.items["waiting"][0]["expected_s"] = 3.0
    assert (await reader.next())[2]["waiting"][0]["expected_s"] == 3.0
    await reader.close()


async def test_reloads_and_batches_are_told(world: World) -> None:
    reader = Reader(world)
    await reader.next()
    while not world.batches:
        await asyncio.sleep(0.01)
    world.batches[0](Batch(skipped=7))
    assert (await reader.next())[1:] == ("finished", {"requests": [], "skipped": 7})
    world.reloads[0]()
    _, name, data = await reader.next()
    assert (name, data["config"]) == ("change", {"path": "x"})
    await reader.close()


async def test_nobody_looks_nothing_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle juggler stays idle; and whoever comes back after that gets a snapshot."""
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    reader = Reader(world)
    await reader.next()
    await reader.close()
    while world.batches:
        await asyncio.sleep(0.01)
    looks = world.looks
    await asyncio.sleep(0.05)
    assert world.looks == looks
    again = Reader(world, "boot-0")
    assert (await again.next())[1] == "snapshot"
    await again.close()


async def test_while_nothing_happens_the_time_shows_life(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALIVE_EVERY_S", 0.02)
    reader = Reader(world)
    await reader.next()
    assert set(await reader.alive()) == {"now_at"}
    await reader.close()


async def test_who_missed_nothing_is_told_the_time(world: World) -> None:
    """Its clock stood while it was away, and nothing else may come for long."""
    reader = Reader(world)
    identity, _, _ = await reader.next()
    again = Reader(world, identity)
    assert (await again.alive())["now_at"] == pytest.approx(time.time(), abs=60)
    await reader.close()
    await again.close()


async def test_there_is_room_for_so_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READERS_MAX", 1)
    reader = Reader(world)
    await reader.next()
    with pytest.raises(TooManyReaders):
        world.stream.open(None)
    await reader.close()
    again = Reader(world)
    await again.next()
    await again.close()


async def test_the_end_ends_all_streams(world: World) -> None:
    reader = Reader(world)
    await reader.next()
    world.stream.close()
    with pytest.raises(StopAsyncIteration):
        await reader.next()


async def test_a_mistake_in_a_look_ends_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Told once; once it can be looked again, everything goes on."""
    reader = Reader(world)
    await reader.next()
    good = world._collections
    failed = 0

    def bad() -> dict[str, list[dict[str, object]]]:
        nonlocal failed
        failed += 1
        raise ZeroDivisionError

    cast(Any, world.stream)._snapshots.collections = bad
    while failed < 3:
        await asyncio.sleep(0.01)
    cast(Any, world.stream)._snapshots.collections = good
    world.items["pools"] = [{"pool": "gpu0", "used_bytes": 7}]
    assert (await reader.next())[2]["pools"] == [{"pool": "gpu0", "used_bytes": 7}]
    assert sum("could not be looked at" in record.message for record in caplog.records) == 1
    await reader.close()


async def test_changes_while_nobody_reads_end_nothing(world: World) -> None:
    """1. The only page is closed. 2. Something changes. 3. A page that is opened then is told what changes next."""
    reader = Reader(world)
    await reader.next()
    await reader.close()
    world.items["pools"] = [{"pool": "gpu0", "used_bytes": 1}]
    looks = world.looks
    async with asyncio.timeout(10):
        while world.looks < looks + 3:
            await asyncio.sleep(0.01)
    again = Reader(world)
    assert (await again.next())[1] == "snapshot"
    world.items["pools"] = [{"pool": "gpu0", "used_bytes": 2}]
    assert (await again.next())[2]["pools"] == [{"pool": "gpu0", "used_bytes": 2}]
    await again.close()
