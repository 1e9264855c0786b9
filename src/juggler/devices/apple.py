"""Apple's GPUs share main memory; the system limits how much of it they may hold at a time. Blocking."""

import subprocess
import sys
from collections.abc import Callable

from juggler.survey.gpu import Gpu
from juggler.units import GIB, MIB, SECONDS

LIMIT_S = 1 * SECONDS
"""For one call; it takes milliseconds."""
SYSCTL = "/usr/sbin/sysctl"
SMALL_BYTES = 36 * GIB
SMALL_SHARE = 0.67
LARGE_SHARE = 0.75
"""What Metal recommends as a working set where nothing else is set: two thirds of memory up to 36 GiB, else three
quarters (memory.md section D)."""


def sysctl(name: str) -> int | None:
    """A number of the system's; None: there is none of that name, or this is no Mac."""
    if sys.platform != "darwin":
        return None
    try:
        run = subprocess.run([SYSCTL, "-n", name], capture_output=True, timeout=LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    text = run.stdout.decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() and len(text) <= 20 else None


def apple_gpu(ask: Callable[[str], int | None] = sysctl) -> list[Gpu]:
    """The GPU of a Mac with Apple's processor; empty elsewhere. ``hw.optional.arm64`` is 1 under Rosetta too."""
    total = ask("hw.memsize") if ask("hw.optional.arm64") == 1 else None
    if not total:
        return []
    return [Gpu("Apple", 0, "Apple GPU", working_set_bytes(total, ask("iogpu.wired_limit_mb")), None)]


def working_set_bytes(total_bytes: int, wired_limit_mb: int | None) -> int:
    """How much the GPU may hold: what ``iogpu.wired_limit_mb`` says, 0 or absent being the system's choice."""
    if wired_limit_mb:
        return min(wired_limit_mb * MIB, total_bytes)
    return int(total_bytes * (SMALL_SHARE if total_bytes <= SMALL_BYTES else LARGE_SHARE))
