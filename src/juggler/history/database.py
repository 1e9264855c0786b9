"""The history's file: its tables, their versions, and what to do with one that cannot be used. Blocking.

WAL with ``synchronous=NORMAL``: a loss of power may lose the last seconds, and damages nothing
(https://sqlite.org/wal.html section 3). Numbers of records are microseconds since 1970, so that the order of the rows
is the order in time, over all runs.
"""

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from juggler.units import MIB

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE requests (
        record INTEGER PRIMARY KEY, request INTEGER, endpoint TEXT, instance TEXT, method TEXT, target TEXT,
        client TEXT, traffic TEXT, arrived_at REAL, granted_at REAL, queue_s REAL, load_s REAL, evicted_s REAL,
        first_byte_s REAL, ended_at REAL, status INTEGER, outcome TEXT, error TEXT, bytes_up INTEGER, bytes_down INTEGER
    ) STRICT;
    CREATE TABLE spans (
        span INTEGER PRIMARY KEY, instance TEXT, state TEXT, from_at REAL, to_at REAL, why TEXT, decision INTEGER,
        evicted_by TEXT
    ) STRICT;
    CREATE INDEX spans_to_at ON spans (to_at);
    CREATE TABLE days (
        day TEXT, endpoint TEXT, requests INTEGER, failures INTEGER, total_s REAL, waited_s REAL, loading_s REAL,
        swaps INTEGER, loads INTEGER, bytes_up INTEGER, bytes_down INTEGER, PRIMARY KEY (day, endpoint)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE series (
        at REAL PRIMARY KEY, pools TEXT, loads INTEGER, requests INTEGER, bytes_down INTEGER
    ) STRICT, WITHOUT ROWID;
    """,
)
"""What leads from each version to the next; the version is how many have been made. Never changed, only added to."""

BUSY_LIMIT_S = 2.0
"""For a lock that another connection holds."""

LOG_PAGES = 500
"""Pages of the write-ahead log (2 MiB) after which it is carried over into the file."""

LOG_BYTES = 2 * LOG_PAGES * 4096
"""What it may come to: what is written together is carried over together."""


class Unusable(Exception):
    """The file is damaged, or of a newer version; the text says which. It can be set aside."""


def open_database(path: Path, steps: Sequence[str] = STEPS) -> sqlite3.Connection:
    """Open the file for writing, make it if it is missing, and bring its tables up to date.

    Raises:
        Unusable: See there.
        sqlite3.Error: The disk does not do what it should.
        OSError: The same.
    """
    # SQLite gives its two other files the rights of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
    path.chmod(0o600)
    connection = sqlite3.connect(path, timeout=BUSY_LIMIT_S, isolation_level=None)
    try:
        _prepare(connection, steps)
    except sqlite3.DatabaseError as error:
        connection.close()
        if damaged(error):
            raise Unusable(f"it is damaged: {error}") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, steps: Sequence[str]) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in a file without tables only
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_PAGES * 4096}")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise Unusable(f"it is damaged: {verdict}")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(steps):
        raise Unusable(f"it was written by a newer version (its format is {version}, ours {len(steps)})")
    for number, step in enumerate(steps[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {step}; PRAGMA user_version = {number}; COMMIT;")


def damaged(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is not what it should be."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def set_aside(path: Path) -> Path:
    """Rename the file and what belongs to it; one that was set aside before is replaced.

    Raises:
        OSError: It cannot be renamed.
    """
    aside = path.with_name(path.name + ".aside")
    for ending in ("-wal", "-shm", ""):
        source, target = path.with_name(path.name + ending), aside.with_name(aside.name + ending)
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        with contextlib.suppress(FileNotFoundError):
            source.replace(target)
    return aside


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def mark_end(connection: sqlite3.Connection, later_s: float) -> None:
    """An earlier run that was cut off has told no end of its series: it has ended ``later_s`` after its last sample.

    Raises:
        sqlite3.Error: The file cannot be written.
    """
    last = connection.execute("SELECT at, pools FROM series ORDER BY at DESC LIMIT 1").fetchone()
    if last is not None and last[1] is not None:
        connection.execute("INSERT OR IGNORE INTO series VALUES (?, NULL, 0, 0, 0)", (last[0] + later_s,))


LEAST_BYTES = 1 * MIB
"""Empty tables, and the log beside them, have room in this."""
