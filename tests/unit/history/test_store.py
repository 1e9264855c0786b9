"""The writer: what it keeps, its bounds, and disks that fail it."""

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from juggler.history import store as store_module
from juggler.history.database import open_database
from juggler.history.limits import HistoryLimits
from juggler.history.series import Sample
from juggler.history.store import ROWS_QUEUED, HistoryStore, Rows
from juggler.history.sums import Sums
from juggler.units import MIB
from tests.unit.history.make import record, span


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second of waiting in tests."""
    monkeypatch.setattr(store_module, "COLLECT_S", 0.01)
    monkeypatch.setattr(store_module, "PAUSE_S", (0.01, 0.05))


def started(
    path: Path,
    limits: HistoryLimits | None = None,
    opener: Callable[[Path], sqlite3.Connection] = open_database,
) -> HistoryStore:
    store = HistoryStore(path, limits or HistoryLimits(), lambda _: None, opener)
    store.start()
    return store


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def count(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


def rows_of(first: int, number: int) -> Rows:
    return Rows(requests=[record(one) for one in range(first, first + number)])


async def test_everything_is_written(tmp_path: Path) -> None:
    """Requests, spans, samples and sums; sums of a day add up, and a span that changed replaces itself."""
    path = tmp_path / "h.sqlite3"
    store = started(path)
    changed = span(5)
    for why in ("", "evicted by image"):
        changed.why = why
        sample = Sample(1.0, {"gpu0": (3, 4)}, 1, 2, 3)
        days = {"2026-11-28": {"": Sums(requests=2, total_s=1.5), "main/chat": Sums(requests=2)}}
        store.put(Rows([record(1)], [changed], [sample], days))
        await until(lambda: store.up)
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT record, endpoint, bytes_down FROM requests").fetchall() == [
        (1, "main/chat", 56789)
    ]
    assert connection.execute("SELECT span, why FROM spans").fetchall() == [(5, "evicted by image")]
    assert connection.execute("SELECT at, pools, requests FROM series").fetchall() == [(1.0, '{"gpu0": [3, 4]}', 2)]
    assert connection.execute("SELECT endpoint, requests, total_s FROM days ORDER BY endpoint").fetchall() == [
        ("", 4, 3.0),
        ("main/chat", 4, 0.0),
    ]
    connection.close()
    assert store.dropped == 0


async def test_bounded_in_rows(tmp_path: Path) -> None:
    """The newest are kept, the bound is overstepped by little."""
    path = tmp_path / "h.sqlite3"
    store = started(path, HistoryLimits(rows=200))
    for first in range(0, 2000, 100):
        rows = rows_of(first, 100)
        rows.spans = [span(one) for one in range(first, first + 100)]
        store.put(rows)
        await asyncio.sleep(0.02)
    await store.close()
    assert 200 <= count(path, "requests") <= 204
    assert 100 <= count(path, "spans") <= 102
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT max(record) FROM requests").fetchone() == (1999,)
    connection.close()


@pytest.mark.slow
async def test_bounded_in_bytes(tmp_path: Path) -> None:
    """The file and its log stay below the bound, however many rows are allowed, and the newest are kept."""
    path = tmp_path / "h.sqlite3"
    store = started(path, HistoryLimits(rows=10_000_000, bytes=6 * MIB))
    largest = 0
    for first in range(0, 60_000, 6000):
        store.put(rows_of(first, 6000))
        await until(lambda: not store._queued)
        await asyncio.sleep(0.05)
        largest = max(largest, sum(one.stat().st_size for one in tmp_path.iterdir()))
    await store.close()
    assert largest <= 6 * MIB
    assert 1000 < count(path, "requests") < 20_000
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT max(record) FROM requests").fetchone() == (59_999,)
    connection.close()
    assert path.stat().st_size <= 2 * MIB


async def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so, and a new one is begun."""
    path = tmp_path / "h.sqlite3"
    path.write_bytes(b"no database at all" * 1000)
    store = started(path)
    store.put(rows_of(1, 3))
    await until(lambda: store.up)
    await store.close()
    assert count(path, "requests") == 3
    assert (tmp_path / "h.sqlite3.aside").read_bytes().startswith(b"no database")
    assert "it was renamed to h.sqlite3.aside" in caplog.text


class _Disk:
    """A disk that fails on demand."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.tried = 0
        self.before_open: Callable[[], None] = lambda: None
        """Called in the writer's thread."""

    def open(self, path: Path) -> sqlite3.Connection:
        self.before_open()
        return sqlite3.connect(path, isolation_level=None, factory=self._connection(open_database(path)))

    def _connection(self, opened: sqlite3.Connection) -> type[sqlite3.Connection]:
        opened.close()
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
                if sql == "COMMIT":
                    disk.tried += 1
                    if disk.error is not None:
                        raise disk.error
                return super().execute(sql, *values)  # type: ignore[arg-type]

        return Connection


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.OperationalError("disk I/O error"),
        OSError(28, "No space left on device"),
    ],
    ids=str,
)
async def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """One warning, tried again, and nothing of what fits the queue is lost once there is room."""
    caplog.set_level(logging.INFO, "juggler.history")
    path, disk = tmp_path / "h.sqlite3", _Disk()
    store = started(path, opener=disk.open)
    disk.error = error
    for first in range(0, 50, 10):
        store.put(rows_of(first, 10))
    await until(lambda: disk.tried > 3)
    assert not store.up
    disk.error = None
    await until(lambda: store.up)
    await until(lambda: count(path, "requests") == 50)
    await store.close()
    assert store.dropped == 0
    assert [one.levelname for one in caplog.records] == ["WARNING", "INFO"]
    assert "it is kept in memory only" in caplog.text


async def test_damage_while_it_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is found damaged when it is written is set aside, and what waited goes into the new one."""
    path, disk = tmp_path / "h.sqlite3", _Disk()
    store = started(path, opener=disk.open)
    store.put(rows_of(1, 1))
    await until(lambda: store.up and count(path, "requests") == 1)
    disk.error = sqlite3.DatabaseError("database disk image is malformed")

    def damage() -> None:
        disk.before_open = lambda: None
        path.write_bytes(b"no database at all" * 1000)
        disk.error = None

    disk.before_open = damage
    store.put(rows_of(2, 5))
    await until(lambda: store.up and disk.error is None)
    await store.close()
    assert count(path, "requests") == 5
    assert (tmp_path / "h.sqlite3.aside").exists()
    assert store.dropped == 0
    assert "it was renamed to" in caplog.text


async def test_an_index_that_does_not_fit_is_made_anew(tmp_path: Path) -> None:
    """Opening does not find it; writing does, again and again."""
    path = tmp_path / "h.sqlite3"
    connection = open_database(path)
    for number in range(10):
        values = (number, "i", "ready", float(number), number + 1.0, "", None, None)
        connection.execute("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.execute("PRAGMA writable_schema = 1")
    wrong = "CREATE INDEX spans_to_at ON spans (from_at)"
    connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'spans_to_at'", (wrong,))
    connection.close()
    store = started(path)
    store.put(Rows(spans=[span(3)]))
    await until(lambda: store.up and not store._queued)
    await store.close()
    assert count(path, "spans") == 10
    assert store.dropped == 0
    assert not (tmp_path / "h.sqlite3.aside").exists()


async def test_damage_that_opening_never_finds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file is set aside at the second time."""
    path, disk = tmp_path / "h.sqlite3", _Disk()
    store = started(path, opener=disk.open)
    store.put(rows_of(1, 1))
    await until(lambda: store.up and count(path, "requests") == 1)
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    disk.error = error
    store.put(rows_of(2, 5))
    await until((tmp_path / "h.sqlite3.aside").exists)
    disk.error = None
    await until(lambda: store.up)
    await store.close()
    assert count(path, "requests") == 5
    assert store.dropped == 0
    assert "it was renamed to" in caplog.text


async def test_a_file_that_cannot_be_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is no history on the disk, and all else goes on."""

    def refuse(_: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store_module, "set_aside", refuse)
    path = tmp_path / "h.sqlite3"
    path.write_bytes(b"no database at all" * 1000)
    store = started(path)
    store.put(rows_of(1, 1))
    await store.close()
    assert (store.up, store.dropped) == (False, 1)


async def test_more_than_the_queue_holds_is_dropped_and_counted(tmp_path: Path) -> None:
    """While the disk fails memory stays bounded."""
    disk = _Disk()
    disk.error = sqlite3.OperationalError("database or disk is full")
    store = started(tmp_path / "h.sqlite3", opener=disk.open)
    store.put(rows_of(0, 10))
    await until(lambda: disk.tried > 0)
    for first in range(0, 3 * ROWS_QUEUED, 1000):
        store.put(rows_of(first, 1000))
    assert store.dropped == 2 * ROWS_QUEUED
    await store.close()
    assert store.dropped == 3 * ROWS_QUEUED + 10


async def test_a_bad_row_does_not_stop_the_writer(tmp_path: Path) -> None:
    """Text that no file can hold is dropped with its batch, and counted."""
    path = tmp_path / "h.sqlite3"
    store = started(path)
    bad = record(1)
    bad.target = "\ud800"
    store.put(Rows([bad]))
    await until(lambda: store.dropped == 1)
    store.put(rows_of(2, 1))
    await until(lambda: store.up and count(path, "requests") == 1)
    await store.close()


async def test_a_disk_that_hangs_does_not_hold_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The program ends without what could not be written."""
    monkeypatch.setattr(store_module, "CLOSE_LIMIT_S", 0.05)
    hangs = threading.Event()

    def opener(path: Path) -> sqlite3.Connection:
        hangs.wait(20)
        return open_database(path)

    store = started(tmp_path / "h.sqlite3", opener=opener)
    store.put(rows_of(1, 1))
    await store.close()
    assert "the disk does not answer" in caplog.text
    hangs.set()
    store._thread.join(20)


async def test_nothing_runs_while_nothing_is_put(tmp_path: Path) -> None:
    """An idle writer sleeps without a timeout."""
    path, disk = tmp_path / "h.sqlite3", _Disk()
    store = started(path, opener=disk.open)
    store.put(rows_of(1, 1))
    await until(lambda: store.up and count(path, "requests") == 1)
    tried = disk.tried
    await asyncio.sleep(0.2)
    assert disk.tried == tried == 1
    await store.close()


_CHILD = """
import asyncio, sys, threading
from pathlib import Path
from juggler.history import store as module
from juggler.history.limits import HistoryLimits
from juggler.history.store import HistoryStore, Rows
from tests.unit.history.make import record
module.COLLECT_S = 0.01
store = HistoryStore(Path(sys.argv[1]), HistoryLimits(), lambda _: None)
store.start()
first, been_up = 0, False
while True:
    store.put(Rows([record(one) for one in range(first, first + 50)]))
    first += 50
    threading.Event().wait(0.005)
    up = store.up
    been_up = been_up or up
    print(up, store.dropped, flush=True)
    {more}
"""


async def test_a_killed_writer_leaves_a_good_file(tmp_path: Path) -> None:
    """kill -9 in the middle of writing: the file opens, is whole, and batches are there whole or not at all."""
    path = tmp_path / "h.sqlite3"
    child = subprocess.Popen([sys.executable, "-c", _CHILD.replace("{more}", ""), str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        while not (await asyncio.to_thread(child.stdout.readline)).startswith(b"True"):
            assert child.poll() is None
        await until(lambda: count(path, "requests") > 0)
        for _ in range(60):
            await asyncio.to_thread(child.stdout.readline)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    connection = open_database(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    kept = connection.execute("SELECT count(*), max(record) + 1 FROM requests").fetchone()
    connection.close()
    assert kept[0] > 0
    assert kept[0] == kept[1]
    assert kept[0] % 50 == 0
    store = started(path)
    store.put(rows_of(10**6, 1))
    await until(lambda: store.up)
    await store.close()
    assert not (tmp_path / "h.sqlite3.aside").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no limits of that kind")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file that may not grow any more: the child goes on, says so once, and what it wrote before is good.

    It ends when more waits than the file could take at once.
    """
    path = tmp_path / "h.sqlite3"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
    ends = "if been_up and not up and store._queued >= 5000: break"
    code = limit + _CHILD.replace("{more}", ends) + "\nasyncio.run(store.close())\nprint('end', store.dropped > 0)"
    child = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=50)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert lines[-1] == "end True"
    assert any(line.startswith("True") for line in lines)
    assert any(line.startswith("False") for line in lines[-10:])
    assert child.stderr.count("the history cannot be written") == 1
    connection = open_database(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
