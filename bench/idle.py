"""Start to listening, and what an idle juggler costs. Run: ``python bench/idle.py [--seconds 60]``.

Linux only (reads ``/proc``). Targets: listening within 0.5 s, below 0.1 % of one core, below 60 MiB resident.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.support import exclusive, running, web

CPU_TARGET = 0.001
RESIDENT_TARGET_BYTES = 60 * 2**20
START_TARGET_S = 0.5


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    starts = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as name:
            began = time.perf_counter()
            with running(Path(name), exclusive(a=web(), b=web())):
                starts.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as name, running(Path(name), exclusive(a=web(), b=web())) as juggler:
        assert juggler.ask("POST", "/a/x", {}).status == 200
        time.sleep(2.0)
        before = cpu_seconds(juggler.process.pid)
        time.sleep(seconds)
        cpu = (cpu_seconds(juggler.process.pid) - before) / seconds
        resident = resident_bytes(juggler.process.pid)
    start = sorted(starts)[len(starts) // 2]
    print(f"start to listening   median {start:.3f} s      target <= {START_TARGET_S} s (polled every 10 ms)")
    print(f"idle CPU             {cpu * 100:.3f} %          target <  {CPU_TARGET * 100:.1f} % over {seconds:.0f} s")
    print(f"resident             {resident / 2**20:.1f} MiB        target <  {RESIDENT_TARGET_BYTES / 2**20:.0f} MiB")
    return 0 if start <= START_TARGET_S and cpu < CPU_TARGET and resident < RESIDENT_TARGET_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
