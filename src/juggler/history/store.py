"""Writes the history to the disk: one thread, a bounded queue, and nobody ever waits for it.

Whatever is wrong with the disk is said once and tried again later, less and less often; meanwhile rows are dropped and
counted. The file is bounded in rows and bytes: the oldest go first.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, fields
from operator import attrgetter
from pathlib import Path

from juggler.history.database import LEAST_BYTES, LOG_BYTES, Unusable, damaged, open_database, set_aside, used_bytes
from juggler.history.limits import HistoryLimits
from juggler.history.records import COLUMNS, RequestRecord
from juggler.history.series import Sample
from juggler.history.sums import NAMES, BySums
from juggler.history.timeline import Span
from juggler.survey.threads import in_thread
from juggler.units import MINUTES, SECONDS

ROWS_QUEUED = 20_000
"""Rows that wait for the disk; more are dropped."""
COLLECT_S = 1 * SECONDS
"""Rows of this long are written together."""
PAUSE_S = (1 * SECONDS, 60 * SECONDS)
"""Until the disk is tried again: at first, and at most."""
SERIES_ROWS = 100_000
DAYS_ROWS = 20_000
"""Days times endpoints."""
SPARE_SHARE = 0.02
"""By how much the oldest rows are pruned at once, and the bounds overstepped until then."""
WARN_AGAIN_S = 10 * MINUTES
"""A disk that fails and works in turns is warned of no more often."""
CLOSE_LIMIT_S = 5 * SECONDS

_log = logging.getLogger("juggler.history")

Opener = Callable[[Path], sqlite3.Connection]


@dataclass(slots=True)
class Rows:
    """What is written together."""

    requests: list[RequestRecord] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    """That have ended, or have changed since."""
    samples: list[Sample] = field(default_factory=list)
    days: dict[str, BySums] = field(default_factory=dict)
    """What came on top of each day's sums."""

    def __len__(self) -> int:
        return len(self.requests) + len(self.spans) + len(self.samples) + sum(map(len, self.days.values()))


class HistoryStore:
    """See the module.

    Args:
        path: The file; its directory exists.
        limits: Its bounds.
        on_opened: Called once, in the writer's thread, when the file is first open and nothing has been written yet:
            with the file's connection.
        opener: Opens the file.
    """

    def __init__(
        self,
        path: Path,
        limits: HistoryLimits,
        on_opened: Callable[[sqlite3.Connection], None],
        opener: Opener = open_database,
    ) -> None:
        self.path = path
        self.up = False
        """The last thing that was tried succeeded."""
        self.dropped = 0
        """Rows that were not written."""
        self._limits = limits
        self._on_opened: Callable[[sqlite3.Connection], None] | None = on_opened
        self._opener = opener
        self._connection: sqlite3.Connection | None = None
        self._queue: list[Rows] = []
        self._queued = 0
        self._changed = threading.Condition()
        self._closing = False
        self._complaint: int | None = None
        """The level at which it was said that the disk fails; None: it does not."""
        self._warn_at = 0.0
        self._damages = 0
        """How often in a row writing has told of damage: opening a file does not find all that there may be."""
        self._counts: dict[str, int] = {}
        """Rows of each table, as far as known."""
        self._thread = threading.Thread(target=self._run, name="history writer", daemon=True)

    def start(self) -> None:
        """Begin: the file is opened in the thread."""
        self._thread.start()

    def put(self, rows: Rows) -> None:
        """Have rows written. Never waits; drops them where too many wait already."""
        count = len(rows)
        with self._changed:
            if self._queued + count > ROWS_QUEUED or self._closing:
                self.dropped += count
                return
            self._queue.append(rows)
            self._queued += count
            if len(self._queue) == 1:
                self._changed.notify()

    async def close(self) -> None:
        """Write what waits, once, and close the file; takes ``CLOSE_LIMIT_S`` at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        try:
            await in_thread(CLOSE_LIMIT_S, self._thread.join)
        except TimeoutError:
            _log.warning("%s could not be closed: the disk does not answer", self.path)

    # -- in the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        pending: list[Rows] = []
        failures = 0
        while True:
            failures = 0 if self._attempt(pending) else failures + 1
            ends = self._await_rows(min(PAUSE_S[1], PAUSE_S[0] * 2 ** min(failures - 1, 10)) if failures else None)
            if ends or not pending:  # what failed is tried again alone: the bound of the queue counts the rest
                pending += self._take()
            if ends:
                break
        if pending and not self._attempt(pending):
            self._drop(pending)
        if self._connection is not None:
            try:
                self._connection.close()
            except sqlite3.Error as error:
                self._complain(error)

    def _await_rows(self, pause_s: float | None) -> bool:
        """Wait for rows and a little longer for more of them, or for ``pause_s``; returns whether this is the end."""
        with self._changed:
            if pause_s is None:
                while not self._queue and not self._closing:
                    self._changed.wait()
                pause_s = COLLECT_S
            self._changed.wait_for(lambda: self._closing, timeout=pause_s)
            return self._closing

    def _take(self) -> list[Rows]:
        with self._changed:
            taken, self._queue, self._queued = self._queue, [], 0
            return taken

    def _drop(self, rows: list[Rows]) -> None:
        with self._changed:
            self.dropped += sum(map(len, rows))

    def _attempt(self, pending: list[Rows]) -> bool:
        """Open the file, if it is not open, write, and empty the list; returns whether that went well."""
        try:
            connection = self._opened()
            if pending:
                self._write(connection, pending)
                pending.clear()
                self._prune_bytes(connection)
                self._damages = 0
        except Exception as error:  # the thread goes on, whatever it was
            self._damages += isinstance(error, sqlite3.Error) and damaged(error)
            self._fail(error)
            if not _of_disk(error):
                self._drop(pending)  # it is the rows: they would fail for ever
                pending.clear()
            return False
        if self._complaint is not None:
            _log.log(min(self._complaint, logging.INFO), "the history is written to %s again", self.path)
            self._complaint = None
        self.up = True
        return True

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                connection = self._usable()
            except Unusable as error:
                aside = set_aside(self.path)
                _log.warning("%s cannot be used, %s: it was renamed to %s", self.path, error, aside.name)
                self._damages = 0
                connection = self._opener(self.path)
            self._connection = connection
            if self._on_opened is not None:
                self._on_opened(connection)
                self._on_opened = None
        return self._connection

    def _usable(self) -> sqlite3.Connection:
        """The file, opened; where writing told of damage, its indexes are made anew, and if that did not help, not.

        Raises:
            Unusable: See there.
        """
        if self._damages > 1:
            raise Unusable("it is damaged")
        connection = self._opener(self.path)
        try:
            if self._damages:
                connection.execute("REINDEX")
        except sqlite3.DatabaseError as error:
            connection.close()
            if damaged(error) or isinstance(error, sqlite3.IntegrityError):
                raise Unusable(f"it is damaged: {error}") from error
            raise
        return connection

    def _fail(self, error: Exception) -> None:
        self.up = False
        self._counts.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                pass  # what it has to say was said by the first error
        self._complain(error)  # of damage too: it is looked for when the file is opened again

    def _complain(self, error: Exception) -> None:
        if self._complaint is not None:
            return
        now = time.monotonic()
        self._complaint = logging.WARNING if now >= self._warn_at else logging.DEBUG
        if self._complaint == logging.WARNING:
            self._warn_at = now + WARN_AGAIN_S
        why = getattr(error, "strerror", None) or error
        _log.log(self._complaint, "the history cannot be written to %s: %s; it is kept in memory only", self.path, why)

    def _write(self, connection: sqlite3.Connection, pending: list[Rows]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for rows in pending:
                connection.executemany(_INSERT_REQUEST, map(_request_row, rows.requests))
                connection.executemany(_INSERT_SPAN, map(_span_row, rows.spans))
                connection.executemany(_INSERT_SAMPLE, map(_sample_row, rows.samples))
                for day, sums in rows.days.items():
                    connection.executemany(_ADD_DAY, [(day, name, *astuple(one)) for name, one in sums.items()])
            self._prune_rows(connection, pending)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _prune_rows(self, connection: sqlite3.Connection, added: list[Rows]) -> None:
        """Rows are counted when the file is opened, and from then on by what is added: counting reads all of them."""
        more = {
            "requests": sum(len(rows.requests) for rows in added),
            "spans": sum(len(rows.spans) for rows in added),
            "series": sum(len(rows.samples) for rows in added),
            "days": sum(len(sums) for rows in added for sums in rows.days.values()),
        }
        most = {
            "requests": self._limits.rows,
            "spans": max(1, self._limits.rows // 2),
            "series": SERIES_ROWS,
            "days": DAYS_ROWS,
        }
        for table, key in _KEYS.items():
            known = self._counts.get(table)
            if known is not None:
                count = known + more[table]
            else:
                count = int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
            self._counts[table] = count
            if count > most[table] * (1 + SPARE_SHARE):
                beyond = f"SELECT {key} FROM {table} ORDER BY {key} DESC LIMIT 1 OFFSET ?"
                connection.execute(f"DELETE FROM {table} WHERE {key} <= ({beyond})", (most[table],))
                del self._counts[table]  # counted anew next time: rows that were replaced were counted twice

    def _prune_bytes(self, connection: sqlite3.Connection) -> None:
        """Bring the file below its bound; the log beside it counts as full."""
        most = max(LEAST_BYTES, self._limits.bytes - LOG_BYTES)
        if used_bytes(connection) <= most:
            return
        for _ in range(20):
            for table, key in (item for item in _KEYS.items() if item[0] != "days"):
                eighth = f"SELECT {key} FROM {table} ORDER BY {key} LIMIT (SELECT count(*) / 8 + 1 FROM {table})"
                connection.execute(f"DELETE FROM {table} WHERE {key} IN ({eighth})")
            if used_bytes(connection) <= most:
                break
        self._counts.clear()
        connection.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _of_disk(error: Exception) -> bool:
    """Whether trying again may help."""
    return isinstance(error, (OSError, Unusable, sqlite3.OperationalError)) or type(error) is sqlite3.DatabaseError


def _insert(table: str, columns: tuple[str, ...]) -> str:
    marks = ", ".join("?" for _ in columns)
    return f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})"


_KEYS = {"requests": "record", "spans": "span", "series": "at", "days": "day"}
"""What the rows of each table are ordered by, the oldest first."""

REQUEST_COLUMNS = COLUMNS
SPAN_COLUMNS = tuple(one.name for one in fields(Span))
SAMPLE_COLUMNS = ("at", "pools", "loads", "requests", "bytes_down")

_INSERT_REQUEST = _insert("requests", REQUEST_COLUMNS)
_INSERT_SPAN = _insert("spans", SPAN_COLUMNS)
_INSERT_SAMPLE = _insert("series", SAMPLE_COLUMNS)
_ADD_DAY = (
    f"INSERT INTO days (day, endpoint, {', '.join(NAMES)}) VALUES (?, ?, {', '.join('?' for _ in NAMES)}) "
    f"ON CONFLICT (day, endpoint) DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in NAMES)}"
)


_request_row = attrgetter(*REQUEST_COLUMNS)
_span_row = attrgetter(*SPAN_COLUMNS)


def _sample_row(sample: Sample) -> tuple[object, ...]:
    pools = None if sample.pools is None else json.dumps({name: list(both) for name, both in sample.pools.items()})
    return sample.at, pools, sample.loads, sample.requests, sample.bytes_down
