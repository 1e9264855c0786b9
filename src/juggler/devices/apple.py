"""Apple's GPUs share main memory; the system limits how much of it they may hold at a time. Blocking."""

import subprocess
import sys

from juggler.devices.reading import Device
from juggler.ids import PoolId
from juggler.units import GIB, MIB, SECONDS

LIMIT_S = 2 * SECONDS
SMALL_BYTES = 36 * GIB
SMALL_SHARE = 0.67
LARGE_SHARE = 0.75
"""What Metal recommends as a working set where nothing else is set: two thirds of memory up to 36 GiB, else three
quarters (memory.md section D)."""


def apple_gpu() -> list[Device]:
    """The GPU of this Mac as one pool; empty elsewhere."""
    if sys.platform != "darwin":
        return []
    total = _sysctl("hw.memsize")
    if total is None:
        return []
    return [Device(PoolId("gpu0"), "Apple", 0, "Apple GPU", working_set_bytes(total, _sysctl("iogpu.wired_limit_mb")))]


def working_set_bytes(total_bytes: int, wired_limit_mb: int | None) -> int:
    """How much the GPU may hold: what ``iogpu.wired_limit_mb`` says, 0 or absent being the system's choice."""
    if wired_limit_mb:
        return min(wired_limit_mb * MIB, total_bytes)
    return int(total_bytes * (SMALL_SHARE if total_bytes <= SMALL_BYTES else LARGE_SHARE))


def _sysctl(name: str) -> int | None:
    try:
        run = subprocess.run(["sysctl", "-n", name], capture_output=True, timeout=LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    text = run.stdout.decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() else None
