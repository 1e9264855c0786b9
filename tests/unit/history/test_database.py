"""The file: made, brought up to date, refused."""

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from juggler.history.database import STEPS, Unusable, damaged, mark_end, open_database, set_aside, used_bytes


def tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_new_file(tmp_path: Path) -> None:
    """It has its tables and version, can shrink, and only its owner can read it and what lies beside it."""
    path = tmp_path / "h.sqlite3"
    connection = open_database(path)
    assert tables(connection) == {"requests", "spans", "days", "series"}
    assert connection.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert used_bytes(connection) > 0
    assert {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) == 3
    connection.close()
    path.chmod(0o644)
    open_database(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    """Rows stay, and each step is made once."""
    path = tmp_path / "h.sqlite3"
    connection = open_database(path)
    connection.execute("INSERT INTO spans (span, instance) VALUES (1, 'a')")
    connection.close()
    steps = (
        *STEPS,
        "ALTER TABLE spans ADD COLUMN more TEXT",
        "CREATE TABLE extra (a) STRICT".replace("(a)", "(a TEXT)"),
    )
    for _ in range(2):
        connection = open_database(path, steps)
        assert connection.execute("SELECT span, more FROM spans").fetchall() == [(1, None)]
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
        connection.close()


def test_a_step_that_fails_leaves_the_version_before(tmp_path: Path) -> None:
    """Half a step is none."""
    path = tmp_path / "h.sqlite3"
    open_database(path).close()
    with pytest.raises(sqlite3.Error):
        open_database(path, (*STEPS, "CREATE TABLE extra (a TEXT) STRICT; CREATE TABLE spans (a TEXT) STRICT"))
    connection = open_database(path)
    assert "extra" not in tables(connection)
    connection.close()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """One of a newer version and one that is damaged are told apart from a disk that fails."""
    newer = tmp_path / "newer.sqlite3"
    open_database(newer, (*STEPS, "CREATE TABLE extra (a TEXT) STRICT")).close()
    with pytest.raises(Unusable, match="newer version"):
        open_database(newer)
    damaged_file = tmp_path / "damaged.sqlite3"
    damaged_file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(Unusable, match="damaged"):
        open_database(damaged_file)
    with pytest.raises(OSError, match="No such file"):
        open_database(tmp_path / "missing" / "h.sqlite3")
    with pytest.raises(OSError, match="directory"):
        open_database(tmp_path)


def test_damage_in_the_middle_is_found(tmp_path: Path) -> None:
    """Pages that hold something else are seen when the file is opened, not when somebody asks."""
    path = tmp_path / "h.sqlite3"
    connection = open_database(path)
    rows = [(number, f"instance {number}" * 20) for number in range(1000)]
    connection.executemany("INSERT INTO spans (span, instance) VALUES (?, ?)", rows)
    connection.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(20_000))
    with pytest.raises(Unusable):
        open_database(path)


def test_a_file_is_set_aside_with_what_belongs_to_it(tmp_path: Path) -> None:
    """Its log must not be taken for that of the next one; what was set aside before is replaced."""
    path = tmp_path / "h.sqlite3"
    for content in (b"first", b"second"):
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").write_bytes(content)
        assert set_aside(path) == tmp_path / "h.sqlite3.aside"
    assert {one.name for one in tmp_path.iterdir()} == {
        "h.sqlite3.aside",
        "h.sqlite3.aside-wal",
        "h.sqlite3.aside-shm",
    }
    assert all(one.read_bytes() == b"second" for one in tmp_path.iterdir())


def test_a_run_that_was_cut_off_has_an_end(tmp_path: Path) -> None:
    """Its memory is not shown for the time in which nothing ran; a second look adds nothing."""
    connection = open_database(tmp_path / "h.sqlite3")
    mark_end(connection, 10.0)
    connection.execute("INSERT INTO series VALUES (100.0, '{}', 1, 2, 3)")
    for _ in range(2):
        mark_end(connection, 10.0)
    assert connection.execute("SELECT * FROM series").fetchall() == [(100.0, "{}", 1, 2, 3), (110.0, None, 0, 0, 0)]
    connection.close()


def test_only_damage_is_damage() -> None:
    """Other errors have other causes."""
    assert not damaged(sqlite3.OperationalError("database is locked"))
