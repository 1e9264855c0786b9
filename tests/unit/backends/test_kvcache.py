"""Saving and restoring of slots against a server that is played."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from juggler.backends.base import Caller, Response
from juggler.backends.kvcache import MANIFEST, KvCache
from tests.unit.backends.fake_caller import FakeCaller, answer

UNUSED = FakeCaller({})


class Slots:
    """Plays a llama-server's slots; writes files as it would, into ``directory``."""

    def __init__(self, *tokens: int | None) -> None:
        self.tokens: dict[int, int | None] = dict(enumerate(tokens))
        """Tokens of each slot; None: it ran no task yet."""
        self.busy: set[int] = set()
        self.build_info = "b1"
        self.directory = Path()
        self.calls: list[tuple[str, str]] = []
        self.fail_with: Response | BaseException | None = None
        self.limits_s: list[float] = []
        self.size_bytes = 1000

    async def slots(self, caller: Caller) -> list[dict[str, object]]:
        listed: list[dict[str, object]] = []
        for number, tokens in self.tokens.items():
            slot: dict[str, object] = {"id": number, "is_processing": number in self.busy}
            listed.append(slot if tokens is None else {**slot, "id_task": number, "n_prompt_tokens": tokens})
        return listed

    async def build(self, caller: Caller) -> str:
        return self.build_info

    async def call(
        self, caller: Caller, method: str, path: str, body: bytes | None = None, timeout_s: float = 3.0
    ) -> Response:
        number, action = path.removeprefix("/slots/").split("?action=")
        filename = json.loads(body or b"{}")["filename"]
        self.calls.append((f"{action} {number}", filename))
        self.limits_s.append(timeout_s)
        if isinstance(self.fail_with, BaseException):
            raise self.fail_with
        if self.fail_with is not None:
            return self.fail_with
        if action == "restore":
            present = (self.directory / filename).exists()
            return answer(200 if present else 400, {"n_restored": 1} if present else {"error": {"message": "missing"}})
        saved = self.tokens[int(number)] or 0
        (self.directory / filename).write_bytes(bytes(self.size_bytes if saved else 36))
        return answer(200, {"n_saved": saved})

    @property
    def actions(self) -> list[str]:
        return [action for action, _ in self.calls]


class World(NamedTuple):
    """A cache directory and a way to open it anew, as a restart of the juggler does."""

    root: Path

    def open(self, server: Slots, signature: str = "sig", quota: int = 10**6) -> KvCache:
        cache = KvCache(self.root / "kv", signature, quota)
        server.directory = cache.prepare()
        return cache

    def files(self, signature: str = "sig") -> list[str]:
        return sorted(path.name for path in (self.root / "kv" / signature).iterdir() if path.name != MANIFEST)

    def manifest(self, signature: str = "sig") -> Any:
        return json.loads((self.root / "kv" / signature / MANIFEST).read_text())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_all_slots_with_tokens_are_saved_and_restored(world: World) -> None:
    """Empty and unused slots are left out; another run restores what the first one saved."""
    first = Slots(10, None, 0, 30)
    await world.open(first).save(first, UNUSED)
    assert first.actions == ["save 0", "save 3"]
    second = Slots(None, None, None, None)
    await world.open(second).restore(second, UNUSED)
    assert second.actions == ["restore 0", "restore 3"]
    assert sorted(name for _, name in second.calls) == world.files()
    assert [(one["tokens"], one["size_bytes"]) for one in world.manifest()["slots"]] == [(10, 1000), (30, 1000)]


async def test_busy_slots_are_skipped(world: World) -> None:
    """A save on a working slot would wait for its generation."""
    server = Slots(10, 20)
    server.busy = {1}
    await world.open(server).save(server, UNUSED)
    assert server.actions == ["save 0"]


async def test_empty_save_never_replaces_a_good_file(world: World) -> None:
    """A slot that turns out empty (n_saved 0) leaves the last good state in place."""
    server = Slots(10)
    cache = world.open(server)
    await cache.save(server, UNUSED)
    before = world.manifest()
    server.fail_with = answer(200, {"n_saved": 0})
    await cache.save(server, UNUSED)
    assert world.manifest() == before
    assert world.files() == [before["slots"][0]["file"]]


async def test_new_save_replaces_the_old_files(world: World) -> None:
    """After a complete save only its own files are left."""
    server = Slots(10, 20)
    cache = world.open(server)
    await cache.save(server, UNUSED)
    old = world.files()
    await cache.save(server, UNUSED)
    assert len(world.files()) == 2
    assert not set(old) & set(world.files())


@pytest.mark.parametrize(
    "failure", [answer(500, {"error": {"message": "Unable to save slot"}}), TimeoutError(), OSError()]
)
async def test_failed_save_keeps_the_old_state(
    world: World, failure: Response | BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong is one log line, and what was saved before stays."""
    server = Slots(10)
    cache = world.open(server)
    await cache.save(server, UNUSED)
    before = world.files()
    server.fail_with = failure
    await cache.save(server, UNUSED)
    assert world.files() == before
    assert "slot 0 could not be saved" in caplog.text


async def test_restored_but_unused_slots_are_kept(world: World) -> None:
    """A restored slot that ran no task says nothing of its tokens; its file outlives the next save."""
    first = Slots(10, 20)
    await world.open(first).save(first, UNUSED)
    second = Slots(None, None)
    cache = world.open(second)
    await cache.restore(second, UNUSED)
    second.tokens = {0: 99, 1: None}
    await cache.save(second, UNUSED)
    assert [(one["slot"], one["tokens"]) for one in world.manifest()["slots"]] == [(0, 99), (1, 20)]
    assert len(world.files()) == 2


async def test_other_build_gets_nothing(world: World) -> None:
    """Files of another build, or of another model file, are not restored."""
    server = Slots(10)
    await world.open(server).save(server, UNUSED)
    other = Slots(None)
    other.build_info = "b2"
    await world.open(other).restore(other, UNUSED)
    assert other.calls == []


async def test_fewer_slots_than_files(world: World) -> None:
    """Slot numbers wrap around in the server: a number beyond its slots must not be used."""
    first = Slots(10, 20, 30)
    await world.open(first).save(first, UNUSED)
    second = Slots(None)
    await world.open(second).restore(second, UNUSED)
    assert second.actions == ["restore 0"]


@pytest.mark.parametrize("failure", [answer(400, {"error": {"message": "no"}}), TimeoutError(), ConnectionResetError()])
async def test_failed_restore_is_logged(
    world: World, failure: Response | BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """A start goes on without its saved state."""
    first = Slots(10)
    await world.open(first).save(first, UNUSED)
    second = Slots(None)
    second.fail_with = failure
    await world.open(second).restore(second, UNUSED)
    assert "slot 0 could not be restored" in caplog.text


async def test_not_supported_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """501 turns the feature off for this run, with one line."""
    caplog.set_level("INFO")
    server = Slots(10, 20)
    cache = world.open(server)
    server.fail_with = answer(501, {"error": {"message": "not supported by multimodal"}})
    await cache.save(server, UNUSED)
    await cache.save(server, UNUSED)
    assert server.actions == ["save 0"]
    assert caplog.text.count("cannot save its slots") == 1


async def test_modes_are_private(world: World) -> None:
    """Directories 0700, every file 0600."""
    server = Slots(10)
    await world.open(server).save(server, UNUSED)
    assert server.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in server.directory.iterdir()} == {0o600}


async def test_leftovers_are_removed(world: World) -> None:
    """What an interrupted save left goes at the next start; the good files stay."""
    server = Slots(10)
    await world.open(server).save(server, UNUSED)
    good = world.files()
    (server.directory / "slot0-interrupted.bin").write_bytes(b"half")
    (server.directory / (MANIFEST + ".new")).write_text("{")
    world.open(server)
    assert world.files() == good


@pytest.mark.parametrize("text", ["", "{", "[]", '{"slots": [{}], "build": ""}', '{"slots": 3, "build": 1}'])
async def test_damaged_list_is_survived(world: World, text: str) -> None:
    """A manifest that cannot be read restores nothing and hinders nothing."""
    server = Slots(10)
    cache = world.open(server)
    (server.directory / MANIFEST).write_text(text)
    await world.open(server).restore(server, UNUSED)
    assert server.calls == []
    await cache.save(server, UNUSED)
    assert len(world.files()) == 1


async def test_truncated_file_is_not_restored(world: World) -> None:
    """A file of another size than its save had is damaged."""
    server = Slots(10)
    cache = world.open(server)
    await cache.save(server, UNUSED)
    (server.directory / world.files()[0]).write_bytes(b"short")
    fresh = Slots(None)
    await world.open(fresh).restore(fresh, UNUSED)
    assert fresh.calls == []


async def test_quota_takes_the_oldest_first(world: World) -> None:
    """The save just made stays; of the others the oldest goes until all fit."""
    for number, signature in enumerate(("old", "mid", "new")):
        server = Slots(10)
        await world.open(server, signature, quota=3000).save(server, UNUSED)
        for path in server.directory.iterdir():
            os.utime(path, (1000 + number, 1000 + number))
    assert [len(world.files(name)) for name in ("old", "mid", "new")] == [0, 1, 1]


async def test_save_larger_than_the_quota_is_dropped(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Alone over the quota: dropped with a line, nobody else suffers."""
    small = Slots(10)
    await world.open(small, "small", quota=5000).save(small, UNUSED)
    large = Slots(10)
    large.size_bytes = 6000
    await world.open(large, "large", quota=5000).save(large, UNUSED)
    assert world.files("large") == []
    assert len(world.files("small")) == 1
    assert "exceed the quota" in caplog.text


async def test_full_disk_saves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last of the disk belongs to others."""
    server = Slots(10)
    cache = world.open(server)
    usage = type(shutil.disk_usage("/"))(100 * 1024**3, 99 * 1024**3, 10 * 1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    await cache.save(server, UNUSED)
    assert server.calls == []
    assert "nearly full" in caplog.text


async def test_limits_grow_with_the_size_and_end(world: World) -> None:
    """5 s for anything, more for more tokens, never beyond what a stop may take."""
    server = Slots(10)
    await world.open(server).save(server, UNUSED)
    large = Slots(10_000_000)
    await world.open(large, "large").save(large, UNUSED)
    assert 5.0 <= server.limits_s[0] < 6.0
    assert 10.0 < large.limits_s[0] <= 25.0


async def test_cancelling_a_save_is_not_swallowed(world: World) -> None:
    """A shutdown that hurries ends a save in the middle, and the old state stays."""
    server = Slots(10)
    cache = world.open(server)
    await cache.save(server, UNUSED)
    before = world.files()
    reached = asyncio.Event()

    async def hang(*_: object, **__: object) -> Response:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    server.call = hang  # type: ignore[method-assign]
    saving = asyncio.create_task(cache.save(server, UNUSED))
    await asyncio.wait_for(reached.wait(), 5)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert world.files() == before
