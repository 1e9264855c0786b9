"""What was learned survives, and nothing that happens to its file stops the program."""

import asyncio
import errno
import json
import logging
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.ids import PoolId
from juggler.memory import store as store_module
from juggler.memory.learning import FootprintRecord
from juggler.memory.store import RECORDS_MAX, Learned, LearnedStore, key_of
from juggler.survey.threads import LOOK

GPU = PoolId("gpu0")
RECORD = Learned(FootprintRecord({GPU: 1}, {GPU: 2}, {GPU: 3}, {GPU: 4}, 5), {"load_cold": [1.5, 2]}, 1000.0)


def saved(path: Path, *records: Learned) -> LearnedStore:
    store = LearnedStore(path)
    for number, record in enumerate(records):
        store.put(f"key {number}", record)
    asyncio.run(store.save())
    return store


def loaded(path: Path) -> LearnedStore:
    store = LearnedStore(path)
    store.load()
    return store


def test_what_is_saved_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    saved(path, RECORD)
    assert loaded(path).get("key 0") == RECORD
    assert loaded(path).get("key 1") is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["learned.json"]


def test_nothing_is_written_where_nothing_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    store = saved(path, RECORD)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    store.put("key 0", RECORD)
    asyncio.run(store.save())
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 2, "records": {}}', '{"version": 1}', "[" * 100_000, '{"version": 1, "records": 3}'],
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "learned.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        loaded(path)
    assert len(caplog.records) == 1
    assert (tmp_path / "learned.json.damaged").read_text() == text
    assert not path.exists()


def test_a_full_disk_is_said_once_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "learned.json"
    saved(path, RECORD)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    store = loaded(path)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            store.put(f"new {number}", RECORD)
            asyncio.run(store.save())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["learned.json"], "no half-written file"
    monkeypatch.undo()
    asyncio.run(store.save())
    assert loaded(path).get("new 2") == RECORD, "tried again when there is room"


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    store = LearnedStore(tmp_path / "gone" / "learned.json")
    store.load()
    store.put("key", RECORD)
    asyncio.run(store.save())
    assert store.get("key") == RECORD


def test_a_disk_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither while the program runs nor at its end; one thread hangs, not one more for each try."""
    monkeypatch.setattr(store_module, "SAVE_LIMIT_S", 0.02)
    back = threading.Event()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: back.wait(10) and real(file))
    store = LearnedStore(tmp_path / "learned.json")
    before = set(threading.enumerate())  # another test's may still be about
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            store.put(f"key {number}", RECORD)
            asyncio.run(store.save())
    assert time.monotonic() - began < 5.0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    looks = [one for one in threading.enumerate() if one not in before and one.name.startswith(LOOK)]
    first, *later = looks  # in the order of their start
    for one in later:
        one.join(5)  # it gives up, soon after nobody waits for it any more
    assert [one.is_alive() for one in looks] == [True, *([False] * len(later))]
    back.set()
    first.join(5)
    monkeypatch.setattr(store_module, "SAVE_LIMIT_S", 20.0)
    asyncio.run(store.save())
    assert loaded(tmp_path / "learned.json").get("key 2") == RECORD


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = LearnedStore(tmp_path / "learned.json")
    for number in range(RECORDS_MAX + 10):
        store.put(str(number), Learned(used_at=float(number)))
    assert store.get("9") is None
    assert store.get("10") is not None


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["peak_load", "steady", "peak_run", "unloaded", "seen", "times", "used_at"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.dictionaries(NAMES, JUNK) | JUNK, max_size=4))
def test_records_of_any_form_are_read_or_passed_over(records: dict[str, object]) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"juggler-store-{os.getpid()}.json"
    path.write_text(json.dumps({"version": 1, "records": records}))
    try:
        store = loaded(path)
        for key in records:
            one = store.get(key)
            if one is not None:
                assert all(isinstance(size, int) and size >= 0 for size in one.footprint.need().values())
    finally:
        path.unlink(missing_ok=True)


def test_the_key_changes_with_what_matters() -> None:
    base = key_of(["llama-server", "-m", "x"], [("x", 5, 7)], ["H100 580"])
    assert base == key_of(["llama-server", "-m", "x"], [("x", 5, 7)], ["H100 580"])
    others = {
        key_of(["llama-server", "-m", "y"], [("x", 5, 7)], ["H100 580"]),
        key_of(["llama-server", "-m", "x"], [("x", 6, 7)], ["H100 580"]),
        key_of(["llama-server", "-m", "x"], [("x", 5, 8)], ["H100 580"]),
        key_of(["llama-server", "-m", "x"], [("x", 5, 7)], ["H100 590"]),
        key_of(["llama-server", "-m x"], [("x", 5, 7)], ["H100 580"]),
    }
    assert base not in others
    assert len(others) == 5
    assert "secret" not in key_of(["--api-key", "secret"], [], [])
