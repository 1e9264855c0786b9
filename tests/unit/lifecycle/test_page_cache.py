"""What of a file is in the page cache, as the kernel of this machine tells."""

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from juggler.lifecycle import local, page_cache, prefetch
from juggler.lifecycle.page_cache import FileCache, look_at, share_of
from juggler.lifecycle.prefetch import budget_bytes, memory_is_short, read_ahead
from juggler.units import MIB

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(MIB) * 8)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return path


def test_a_file_just_written_is_there_whole(file: Path) -> None:
    assert look_at([str(file)]) == [FileCache(str(file), 8 * MIB, 1.0)]


def test_the_older_way_agrees(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "_CACHESTAT", 100_000)
    assert look_at([str(file)])[0].share == 1.0


def test_what_is_no_regular_file_is_left_out(tmp_path: Path, file: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    found = look_at([str(tmp_path / one) for one in ("none", "pipe", "empty", file.name)] + [str(tmp_path)])
    assert [(Path(one.path).name, one.share) for one in found] == [("empty", 1.0), ("weights", 1.0)]


def test_the_share_of_all() -> None:
    assert share_of([FileCache("a", 100, 1.0), FileCache("b", 300, 0.0)]) == 0.25
    assert share_of([FileCache("a", 100, 1.0), FileCache("b", 300, None)]) is None
    assert share_of([FileCache("a", 300, 0.5), FileCache("b", 100, None)]) == 0.5
    assert share_of([]) is None


def test_memory_pressure(tmp_path: Path) -> None:
    pressure = tmp_path / "memory"
    pressure.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=9.00 avg60=0 avg300=0 total=0\n")
    assert not memory_is_short(pressure)
    pressure.write_text("some avg10=12.50 avg60=0.00 avg300=0.00 total=7\n")
    assert memory_is_short(pressure)
    assert budget_bytes(pressure) == 0
    pressure.write_text("junk")
    assert not memory_is_short(pressure)
    assert not memory_is_short(tmp_path / "none")


def test_reading_ahead_stops_at_its_limit(file: Path) -> None:
    assert read_ahead([str(file)], 3 * MIB, threading.Event()) == 3 * MIB


def test_reading_ahead_stops_when_memory_becomes_short(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was enough at its start: what it reads may be what makes it short."""
    monkeypatch.setattr(prefetch, "LOOK_EVERY_BYTES", 4 * MIB)
    short = iter([False, True])
    stop = threading.Event()
    assert read_ahead([str(file), str(file)], 1 << 62, stop, lambda: next(short)) == 4 * MIB
    assert stop.is_set()


def test_reading_ahead_passes_over_what_cannot_be_read(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    files = [str(tmp_path / one) for one in ("none", "pipe")] + [str(tmp_path), str(file)]
    assert read_ahead(files, 1 << 62, threading.Event(), lambda: False) == 8 * MIB
    stop = threading.Event()
    stop.set()
    assert read_ahead(files, 1 << 62, stop, lambda: False) == 0


def test_a_disk_that_hangs_holds_up_nobodys_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that never returns: the call can be given up, and the loop ends without that thread."""
    back = threading.Event()
    monkeypatch.setattr(local, "read_ahead", lambda *_: back.wait(10) and 0)

    async def run() -> None:
        launcher = local.LocalLauncher()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await launcher.prefetch(["/x"], MIB)
        await launcher.close()

    began = time.monotonic()
    asyncio.run(run())
    taken_s = time.monotonic() - began
    back.set()
    assert taken_s < 5.0


def test_what_is_announced_goes_in_pieces_of_a_window(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call reads at most one window: a larger one would be cut without a word (memory.md section B)."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, length, advice: asked.append((offset, length)))
    read_ahead([str(file)], 8 * MIB, threading.Event(), lambda: False)
    assert max(length for _, length in asked) == prefetch.WINDOW_BYTES
    assert sum(length for _, length in asked) == 8 * MIB
