"""The machine's main memory, and what of it this process may use."""

import os
from dataclasses import dataclass
from pathlib import Path

from juggler.units import KIB

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MainMemory:
    """In bytes."""

    total_bytes: int
    available_bytes: int | None
    """None: not known here."""
    limited: bool = False
    """``total_bytes`` is the limit of a container or unit, less than the machine has."""


def main_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> MainMemory | None:
    """As ``/proc/meminfo`` and the own control group say; elsewhere what ``sysconf`` knows; None: nothing.

    What a group uses includes the page cache of the files that it has read. The kernel drops that by itself, so the
    part of it that was used once counts as available (``inactive_file``; memory.md section B).
    """
    total, available = _meminfo(meminfo)
    if total is None:
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is None or limit >= total:
        return MainMemory(total, available)
    left = None if used is None else min(max(limit - used, 0) + _inactive_files(cgroup / "memory.stat"), limit)
    return MainMemory(limit, left if available is None or left is None else min(left, available), limited=True)


def _meminfo(path: Path) -> tuple[int | None, int | None]:
    """``MemTotal`` and ``MemAvailable`` (``proc_meminfo(5)``); their unit "kB" is 1024 bytes."""
    values: dict[str, int] = {}
    try:
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, rest = line.partition(":")
            number = rest.split()[:1]
            if number and number[0].isdecimal():
                values[name] = int(number[0]) * KIB
    except OSError:
        return None, None
    return values.get("MemTotal"), values.get("MemAvailable")


def _inactive_files(path: Path) -> int:
    """Bytes of ``inactive_file`` (kernel documentation, "Control Group v2"); 0 where it is not told."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    sizes = (line.partition(" ")[2].strip() for line in lines if line.startswith("inactive_file "))
    return sum(int(size) for size in sizes if size.isdecimal() and len(size) <= 20)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max": no limit
