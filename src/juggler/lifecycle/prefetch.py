"""Reads files ahead of their use, so that the next start finds them in the page cache. Blocking; runs in a thread."""

import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from juggler.survey.memory import main_memory
from juggler.units import GIB, KIB, MIB

CHUNK_BYTES = 4 * MIB
"""Between two looks at the stop event: 2 ms on an NVMe disk, 40 ms on a hard disk."""
LEFT_BYTES = 2 * GIB
"""Of available memory this much, or a tenth of all, is left to whatever comes next (memory.md section B)."""
PRESSURE = Path("/proc/pressure/memory")
PRESSURE_MOST = 5.0
"""Per cent of the time in which some task waited for memory; above it reading ahead would make it worse."""
WINDOW_BYTES = 128 * KIB
"""The usual ``read_ahead_kb`` of a block device: larger requests are cut to it."""
AHEAD_BYTES = 32 * MIB
"""Announced to the system ahead of the read, so that the disk does not wait for us."""
LOOK_EVERY_BYTES = 256 * MIB
"""Between two looks at whether memory has become short: some of them in the ten seconds that its figure covers."""


def memory_is_short(pressure: Path = PRESSURE) -> bool:
    """Whether tasks have been waiting for memory: ``some avg10`` of pressure stall information (Linux 4.20)."""
    try:
        first = pressure.read_text(encoding="ascii", errors="replace").split("\n", 1)[0]
    except OSError:
        return False
    fields = dict(field.split("=", 1) for field in first.split()[1:] if "=" in field)
    try:
        return float(fields.get("avg10", "0")) > PRESSURE_MOST
    except ValueError:
        return False


def read_ahead(
    files: Sequence[str],
    limit_bytes: int,
    stop: threading.Event,
    short: Callable[[], bool] = memory_is_short,
) -> int:
    """Read ``files`` in order until ``limit_bytes`` are read or ``stop`` is set; returns the bytes read.

    What does not exist, cannot be read or is not a regular file is left out. Sets ``stop`` itself when memory is short.
    """
    total = 0
    buffer = bytearray(CHUNK_BYTES)
    for file in files:
        if stop.is_set() or total >= limit_bytes:
            break
        try:
            # Without blocking: the name may be that of a pipe by now.
            fd = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError:
            continue
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                total += _read_file(fd, limit_bytes - total, buffer, stop, short)
        except OSError:
            continue
        finally:
            os.close(fd)
    return total


def budget_bytes(pressure: Path = PRESSURE) -> int:
    """How much may be read without driving anything else out of memory; 0 while memory is short."""
    if memory_is_short(pressure):
        return 0
    memory = main_memory()
    if memory is None or memory.available_bytes is None:
        return 0
    return max(0, memory.available_bytes - max(LEFT_BYTES, memory.total_bytes // 10))


def _announce(fd: int, begin: int, end: int) -> int:
    """Have the system read ``begin`` to ``end`` in the background; returns the end.

    In pieces: one call reads at most one read-ahead window, however much it asks for (memory.md section B).
    """
    while begin < end:
        length = min(WINDOW_BYTES, end - begin)
        os.posix_fadvise(fd, begin, length, os.POSIX_FADV_WILLNEED)
        begin += length
    return begin


def _read_file(fd: int, limit_bytes: int, buffer: bytearray, stop: threading.Event, short: Callable[[], bool]) -> int:
    done = announced = look_at = 0
    view = memoryview(buffer)
    while done < limit_bytes and not stop.is_set():
        if done >= look_at:
            look_at += LOOK_EVERY_BYTES
            if short():
                stop.set()
                break
        if hasattr(os, "posix_fadvise") and announced < limit_bytes and announced - done < AHEAD_BYTES:
            announced = _announce(fd, announced, min(announced + AHEAD_BYTES, limit_bytes))
        count = os.readv(fd, [view[: min(CHUNK_BYTES, limit_bytes - done)]])
        if count == 0:
            break
        done += count
    return done
