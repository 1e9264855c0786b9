"""Questions to the history's file, answered in threads with connections of their own: the loop never waits for a disk.

What cannot be read is left out of the answer, and said once: what is in memory is shown all the same.
"""

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from juggler.history.records import RequestRecord
from juggler.history.series import Sample
from juggler.history.store import REQUEST_COLUMNS, SPAN_COLUMNS
from juggler.history.sums import NAMES, BySums, Sums
from juggler.history.timeline import Span
from juggler.survey.threads import in_thread
from juggler.units import SECONDS

LIMIT_S = 5 * SECONDS
"""For one question."""
AT_ONCE = 2
"""Questions that are worked on at the same time; others wait."""
BUSY_LIMIT_S = 1.0

_LOOKED_EVERY = 20_000
"""Steps of SQLite's machine between two looks at the clock."""

_log = logging.getLogger("juggler.history")

_T = TypeVar("_T")


class HistoryReader:
    """See the module.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._complained = False

    async def requests(
        self, before: int | None, limit: int, endpoint: str | None, outcome: str | None
    ) -> list[RequestRecord]:
        """The newest requests first, of those with a smaller ``record`` than ``before``."""
        wheres, values = ["record < ?"], [before if before is not None else 1 << 62]
        filters: list[object] = []
        for column, wanted in (("endpoint", endpoint), ("outcome", outcome)):
            if wanted is not None:
                wheres.append(f"{column} = ?")
                filters.append(wanted)
        question = (
            f"SELECT {', '.join(REQUEST_COLUMNS)} FROM requests WHERE {' AND '.join(wheres)} "
            "ORDER BY record DESC LIMIT ?"
        )
        rows = await self._rows(question, (*values, *filters, limit))
        return [RequestRecord(*row) for row in rows]

    async def spans(self, from_at: float, to_at: float, before: int | None, limit: int) -> list[Span]:
        """The last spans that overlap a time and have a smaller number than ``before``, by their beginning."""
        question = (
            f"SELECT {', '.join(SPAN_COLUMNS)} FROM spans WHERE span < ? AND from_at <= ? AND to_at >= ? "
            "ORDER BY span DESC LIMIT ?"
        )
        number = before if before is not None else 1 << 62
        rows = await self._rows(question, (number, to_at, from_at, limit))
        return [Span(*row) for row in reversed(rows)]

    async def days(self, since: str) -> dict[str, BySums]:
        """The sums of each day from ``since`` (2026-11-28) on."""
        nothing: dict[str, BySums] = {}
        return await self._ask(lambda db: read_days(db, since), nothing)

    async def samples(self, from_at: float, to_at: float) -> list[Sample]:
        """The samples of a time, and the one before it."""
        question = (
            "SELECT at, pools, loads, requests, bytes_down FROM series WHERE at <= ? AND at >= "
            "coalesce((SELECT max(at) FROM series WHERE at <= ?), 0) ORDER BY at"
        )
        rows = await self._rows(question, (to_at, from_at))
        return [Sample(at, _pools(pools), *counts) for at, pools, *counts in rows]

    async def _rows(self, question: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        nothing: list[tuple[Any, ...]] = []
        return await self._ask(lambda db: db.execute(question, values).fetchall(), nothing)

    async def _ask(self, question: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        try:
            async with self._turns:
                return await in_thread(LIMIT_S, self._answer, question)
        except FileNotFoundError:
            return otherwise  # nothing was written yet; where that is no matter of time the writer says so
        except (sqlite3.Error, OSError, ValueError) as error:
            if not self._complained:
                self._complained = True
                _log.warning("the history in %s cannot be read: %s", self._path, str(error) or "no answer in time")
            return otherwise

    def _answer(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        self._path.stat()
        address = f"file:{quote(str(self._path))}?mode=ro"
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_LIMIT_S)
        try:
            until = time.monotonic() + LIMIT_S
            connection.set_progress_handler(lambda: int(time.monotonic() > until), _LOOKED_EVERY)
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                raise FileNotFoundError(self._path)  # it is being made
            return question(connection)
        finally:
            connection.close()


def read_days(connection: sqlite3.Connection, since: str) -> dict[str, BySums]:
    """As ``HistoryReader.days``; blocking.

    Raises:
        sqlite3.Error: The file cannot be read.
    """
    days: dict[str, BySums] = {}
    question = f"SELECT day, endpoint, {', '.join(NAMES)} FROM days WHERE day >= ? ORDER BY day"
    for day, endpoint, *sums in connection.execute(question, (since,)):
        days.setdefault(day, {})[endpoint] = Sums(*sums)
    return days


def _pools(text: str | None) -> dict[str, tuple[int, int]] | None:
    return None if text is None else {name: (used, foreign) for name, (used, foreign) in json.loads(text).items()}
