"""How much of a file is in the page cache. Linux only; elsewhere nobody knows.

``cachestat(2)`` (Linux 6.5) tells in microseconds; before it ``mincore(2)`` on a mapping (38 ms per 4 GiB). Both need
ownership of the file or the right to write it: otherwise the one fails, and the other claims that all is resident
(memory.md section B), hence nothing is believed of such files.
"""

import ctypes
import mmap
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_CACHESTAT = 451
"""The same number on every architecture (``asm-generic/unistd.h``)."""

_MINCORE_BYTES_MAX = 64 * 1024**3
"""Mappings above this take over half a second to look through."""

_LOWEST_BITS = bytes(byte & 1 for byte in range(256))
"""The only bit that ``mincore`` defines."""


@dataclass(frozen=True, slots=True)
class FileCache:
    """One file."""

    path: str
    size_bytes: int
    share: float | None
    """0 to 1; None: not known."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def look_at(files: Sequence[str]) -> list[FileCache]:
    """Every regular file among ``files``; blocking, microseconds each on a new kernel."""
    found = []
    for path in files:
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            continue
        try:
            about = os.fstat(fd)
            if stat.S_ISREG(about.st_mode):
                found.append(FileCache(path, about.st_size, _share(fd, about)))
        except OSError:
            continue
        finally:
            os.close(fd)
    return found


def share_of(files: Sequence[FileCache]) -> float | None:
    """The share of all together, by size; None where it is not known for most of it."""
    known = [file for file in files if file.share is not None]
    total = sum(file.size_bytes for file in files)
    known_bytes = sum(file.size_bytes for file in known)
    if not total or known_bytes * 2 < total:
        return None
    return sum(file.size_bytes * (file.share or 0.0) for file in known) / known_bytes


def _share(fd: int, about: os.stat_result) -> float | None:
    if not sys.platform.startswith("linux"):
        return None
    if about.st_size == 0:
        return 1.0
    libc = ctypes.CDLL(None, use_errno=True)
    counts = _Cachestat()
    whole = _Range(0, 0)
    if libc.syscall(_CACHESTAT, fd, ctypes.byref(whole), ctypes.byref(counts), 0) == 0:
        return min(1.0, int(counts.cached) * mmap.PAGESIZE / about.st_size)
    allowed = os.geteuid() in (0, about.st_uid)
    return _by_mincore(libc, fd, about.st_size) if allowed and about.st_size <= _MINCORE_BYTES_MAX else None


def _by_mincore(libc: ctypes.CDLL, fd: int, size: int) -> float | None:
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    resident = ctypes.create_string_buffer(pages)
    try:
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), resident) != 0:
            return None
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return resident.raw.translate(_LOWEST_BITS).count(1) / pages  # in C: there are millions of pages
