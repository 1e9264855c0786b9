"""Reads files ahead of their use, so that the next start finds them in the page cache. Blocking; runs in a thread."""

import os
import stat
import threading
from collections.abc import Sequence

from juggler.units import MIB

CHUNK_BYTES = 4 * MIB
"""Between two looks at the stop event: 2 ms on an NVMe disk, 40 ms on a hard disk."""
AHEAD_BYTES = 32 * MIB
"""Announced to the system ahead of the read, so that the disk does not wait for us."""


def read_ahead(files: Sequence[str], limit_bytes: int, stop: threading.Event) -> int:
    """Read ``files`` in order until ``limit_bytes`` are read or ``stop`` is set; returns the bytes read.

    What does not exist, cannot be read or is not a regular file is left out.
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
                total += _read_file(fd, limit_bytes - total, buffer, stop)
        except OSError:
            continue
        finally:
            os.close(fd)
    return total


def _read_file(fd: int, limit_bytes: int, buffer: bytearray, stop: threading.Event) -> int:
    done = announced = 0
    view = memoryview(buffer)
    while done < limit_bytes and not stop.is_set():
        if hasattr(os, "posix_fadvise") and announced < limit_bytes and announced - done < AHEAD_BYTES:
            length = min(AHEAD_BYTES, limit_bytes - announced)
            os.posix_fadvise(fd, announced, length, os.POSIX_FADV_WILLNEED)
            announced += length
        count = os.readv(fd, [view[: min(CHUNK_BYTES, limit_bytes - done)]])
        if count == 0:
            break
        done += count
    return done
