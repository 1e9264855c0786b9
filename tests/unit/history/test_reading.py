"""Questions to the file."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from juggler.history import reading
from juggler.history.database import open_database
from juggler.history.limits import HistoryLimits
from juggler.history.reading import HistoryReader
from juggler.history.series import Sample
from juggler.history.store import HistoryStore, Rows
from juggler.history.sums import Sums
from tests.unit.history.make import record, span


async def written(path: Path, rows: Rows) -> HistoryReader:
    store = HistoryStore(path, HistoryLimits(), lambda _: None)
    store.start()
    store.put(rows)
    await store.close()
    return HistoryReader(path)


async def test_what_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    """Every field of every kind of row comes back."""
    records = [record(1), record(2, outcome="refused")]
    spans = [span(10, why="evicted by b", decision=3, evicted_by="main/b")]
    samples = [Sample(5.0, {"gpu0": (1, 2)}, 1, 2, 3), Sample(6.0, None)]
    days = {"2026-11-28": {"": Sums(1, 2, 3.0, 4.0, 5.0, 6, 7, 8, 9)}}
    reader = await written(tmp_path / "h # 1.sqlite3", Rows(records, spans, samples, days))
    assert await reader.requests(None, 10, None, None) == records[::-1]
    (found,) = await reader.spans(0.0, 1.0, None, 10)
    assert found.plain() == spans[0].plain()
    assert found.evicted_by == "main/b"
    assert await reader.samples(0.0, 10.0) == samples
    assert await reader.days("2026-01-01") == days


async def test_pages_and_filters_of_requests(tmp_path: Path) -> None:
    """The newest first, those before a record, of one endpoint, with one outcome."""
    records = [record(one, "m/a" if one % 2 else "m/b", "ok" if one % 3 else "error") for one in range(1, 31)]
    reader = await written(tmp_path / "h.sqlite3", Rows(records))

    async def numbers(*question: object) -> list[int]:
        return [one.record for one in await reader.requests(*question)]  # type: ignore[arg-type]

    assert await numbers(None, 3, None, None) == [30, 29, 28]
    assert await numbers(28, 3, None, None) == [27, 26, 25]
    assert await numbers(None, 3, "m/a", None) == [29, 27, 25]
    assert await numbers(28, 3, "m/a", "error") == [27, 21, 15]
    assert await numbers(1, 3, None, None) == []


async def test_spans_of_a_time(tmp_path: Path) -> None:
    """All that overlap it, the last ones where there are too many."""
    spans = [span(number * 1_000_000) for number in range(20)]
    reader = await written(tmp_path / "h.sqlite3", Rows(spans=spans))
    found = await reader.spans(5.5, 8.5, None, 10)
    assert [one.from_at for one in found] == [5.0, 6.0, 7.0, 8.0]
    assert [one.from_at for one in await reader.spans(5.5, 8.5, 8_000_000, 2)] == [6.0, 7.0]


async def test_samples_begin_with_the_one_before(tmp_path: Path) -> None:
    """It tells what the memory was when the time began."""
    samples = [Sample(float(at), {}) for at in (10, 20, 30, 40)]
    reader = await written(tmp_path / "h.sqlite3", Rows(samples=samples))
    assert [one.at for one in await reader.samples(25.0, 35.0)] == [20.0, 30.0]
    assert [one.at for one in await reader.samples(5.0, 15.0)] == [10.0]
    assert await reader.samples(0.0, 5.0) == []


async def test_what_cannot_be_read_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The answer is empty, and the asker need not know why."""
    for name in ("missing", "begun", "damaged"):
        path = tmp_path / f"{name}.sqlite3"
        if name == "begun":
            path.touch()
        if name == "damaged":
            path.write_bytes(b"no database at all" * 1000)
        reader = HistoryReader(path)
        for _ in range(2):
            assert await reader.requests(None, 10, None, None) == []
            assert await reader.days("2026-01-01") == {}
        assert len(caplog.records) == (name == "damaged")  # of one that is not there yet the writer tells
    assert "cannot be read" in caplog.text


async def test_a_long_question_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can keep a thread busy for ever."""
    monkeypatch.setattr(reading, "LIMIT_S", 0.05)
    monkeypatch.setattr(reading, "_LOOKED_EVERY", 100)
    path = tmp_path / "h.sqlite3"
    open_database(path).close()
    reader = HistoryReader(path)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def question(connection: sqlite3.Connection) -> list[object]:
        try:
            return list(connection.execute(endless))
        finally:
            loop.call_soon_threadsafe(ended.set)

    nothing: list[object] = []
    assert await reader._ask(question, nothing) == []
    async with asyncio.timeout(20):
        await ended.wait()


async def test_reading_beside_a_writer(tmp_path: Path) -> None:
    """A reader sees what is committed, and locks nobody out."""
    path = tmp_path / "h.sqlite3"
    writer = open_database(path)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO days (day, endpoint, requests) VALUES ('2026-11-28', '', 1)")
    assert await HistoryReader(path).days("2026-01-01") == {}
    writer.execute("COMMIT")
    assert list(await HistoryReader(path).days("2026-01-01")) == ["2026-11-28"]
    writer.close()
