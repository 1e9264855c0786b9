"""Whether a start failed for want of memory, by the program's last words or by the kernel's.

The signs are those of CUDA, HIP, SYCL, Metal and PyTorch allocators, of vLLM's refusal to start, and of the
kernel's killer (memory.md section D). A program that says so and goes on trying has not failed yet: only the end of a
start is looked at.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from juggler.errors import BackendError, OutOfMemory, StartFailed

_SIGNS = re.compile(
    r"out[ _]?of[ _]?(?:device[ _]?|host[ _]?)?memory|cudamalloc failed|hipmalloc failed"
    r"|failed to allocate|allocation failed|unable to allocate|not enough memory|insufficient memory"
    r"|less than desired gpu memory utilization",
    re.IGNORECASE,
)
_NOT_FINAL = re.compile(r"retrying without pipeline parallelism", re.IGNORECASE)
"""llama.cpp says so after a failed allocation that it then does without."""

_KILLED = (-9, 137)


def kernel_kills(events: Path = Path("/sys/fs/cgroup/memory.events"), vmstat: Path = Path("/proc/vmstat")) -> int:
    """How often the kernel's killer has struck so far, in our control group or on the machine; 0 where it is not told.

    ``oom_kill`` of ``memory.events`` (cgroup v2) and of ``/proc/vmstat`` (Linux 4.13).
    """
    counts = 0
    for path in (events, vmstat):
        try:
            lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        numbers = (line.partition(" ")[2].strip() for line in lines if line.startswith("oom_kill "))
        counts += sum(int(number) for number in numbers if number.isdecimal() and len(number) <= 20)
    return counts


def says_out_of_memory(lines: Sequence[str]) -> str | None:
    """The line that says that memory ran out; None if none does, or the program went on without it."""
    found = None
    for line in lines:
        if _NOT_FINAL.search(line):
            found = None
        elif _SIGNS.search(line):
            found = line.strip()
    return found


def as_out_of_memory(error: BackendError, *, killed_by_kernel: bool = False) -> BackendError:
    """The same failure as ``OutOfMemory`` where that is what it was, else unchanged.

    Args:
        killed_by_kernel: The kernel's out-of-memory killer was at work meanwhile.
    """
    if not isinstance(error, StartFailed) or isinstance(error, OutOfMemory):
        return error
    line = says_out_of_memory([*error.log_tail, error.message])
    killed = killed_by_kernel and error.exit_status in _KILLED
    if line is None and not killed:
        return error
    return OutOfMemory(
        error.message if line is not None else f"{error.message}: the kernel ended it, main memory had run out",
        hint=error.hint or "give it a smaller context or fewer layers on the GPU, or declare its `memory`",
        endpoint=error.endpoint,
        phase=error.phase,
        retry_after_s=error.retry_after_s,
        exit_status=error.exit_status,
        log_tail=error.log_tail,
        details=error.details,
    )
