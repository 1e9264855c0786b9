"""The loads, each a run of the load generator against one contender, and what is taken from it."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.dataplane_parts.contenders import MANY, Contender
from bench.dataplane_parts.processes import Process

CONNECTIONS = (1, 16, 64, 256)
REQUEST_BYTES = 1024
EVENT_STREAMS = {1: 1_000, 50: 5_000, 200: 20_000}
"""Streams at once, and the microseconds between two events of each."""
UPLOAD_BYTES = 20_000_000
DOWNLOAD_BYTES = 200_000_000
FLOODING = 50
"""Clients that take a stream as fast as it comes, and then vanish."""
_FLOOD_S = 0.5
_RUN_LIMIT_S = 120.0

Numbers = dict[str, float]


class LoadFailed(Exception):
    """An answer was missing, cut or wrong."""


@dataclass(frozen=True)
class Extent:
    """How much of everything."""

    rounds: int
    seconds: float
    warm_s: float
    huge_bytes: int
    """Of the transfers during which memory is watched."""
    streams: int
    """Open at once beyond the first ones, while memory is watched."""
    stalled: int


FULL = Extent(rounds=4, seconds=1.5, warm_s=0.25, huge_bytes=2 * 2**30, streams=500, stalled=20)
QUICK = Extent(rounds=1, seconds=0.4, warm_s=0.1, huge_bytes=2**28, streams=200, stalled=5)


class Bench:
    """The load generator with the backend that it loads."""

    def __init__(self, program: Path, backend: Process, extent: Extent, log: Path) -> None:
        self._program = program
        self._backend = backend
        self._log = log
        self.extent = extent
        self.failures: list[tuple[str, str]] = []
        """Contender, and what went wrong: its numbers of that measure are missing."""

    def round(self, contenders: list[Contender], only: str) -> Iterator[tuple[str, str, Numbers]]:
        """Every measure whose name contains ``only``; each for all contenders in turn: measure, contender, numbers."""
        measures = [(f"requests {number}", "requests", number, REQUEST_BYTES) for number in CONNECTIONS]
        measures += [("pinned 64", "requests", 64, REQUEST_BYTES)]
        measures += [(f"events {number}", "events", number, pause_us) for number, pause_us in EVENT_STREAMS.items()]
        measures += [("echo 16", "echo", 16, 0), ("upload", "upload", 1, UPLOAD_BYTES)]
        measures += [("download", "download", 1, DOWNLOAD_BYTES), ("flood", "flood", FLOODING, 0)]
        for measure, mode, peers, size in measures:
            if only not in measure:
                continue
            for contender in contenders:
                if contender.name == MANY and measure != "requests 64":
                    continue
                with contextlib.ExitStack() as stack:
                    if measure.startswith("pinned"):
                        if contender.process is None or len(os.sched_getaffinity(0)) < 2:
                            continue
                        stack.enter_context(self._on_one_cpu(contender.process))
                    try:
                        yield measure, contender.name, self._run(contender, mode, peers, size)
                    except LoadFailed as failure:
                        self.failures.append((contender.name, str(failure)))

    def memory(self, contender: Contender) -> Numbers:
        """What a proxy that has not done much yet takes, and what it takes more; bytes."""
        process, extent = contender.process, self.extent
        assert process is not None
        for _ in range(2):  # whatever is made at first use
            self._held(contender, "hold", 20, 100_000)
        numbers = {"idle": float(process.resident_bytes())}
        few = self._held(contender, "hold", 100, 300_000)
        many = self._held(contender, "hold", 100 + extent.streams, 300_000)
        numbers["per_stream"] = (many - few) / extent.streams
        for mode in ("upload", "download"):
            idle = process.resident_bytes()
            process.reset_peak()
            self._load(contender.port, mode, 1, 0.0, 0.0, extent.huge_bytes)
            numbers[f"huge_{mode}"] = max(0, process.peak_bytes() - idle)
        idle = process.resident_bytes()
        stalled = self._held(contender, "stall", extent.stalled, DOWNLOAD_BYTES)
        numbers["per_stalled"] = max(0, stalled - idle) / extent.stalled
        return numbers

    def _run(self, contender: Contender, mode: str, peers: int, size: int) -> Numbers:
        if mode == "flood":
            return self._after_flood(contender, peers)
        process = contender.process
        before = process.cpu_s() if process is not None else 0.0
        numbers = self._load(contender.port, mode, peers, self.extent.seconds, self.extent.warm_s, size)
        cpu_s = process.cpu_s() - before if process is not None else 0.0
        numbers["per_s"] = numbers["total"] / numbers["seconds"]
        numbers["cpu_us"] = cpu_s / numbers["total"] * 1e6
        if numbers["bytes"]:
            numbers["mb_per_s"] = numbers["bytes"] / numbers["seconds"] / 1e6
            numbers["cpu_s_per_gb"] = cpu_s / numbers["bytes"] * 1e9
        return numbers

    def _after_flood(self, contender: Contender, peers: int) -> Numbers:
        """Of ordinary requests, sent from the moment on in which so many flooding clients vanish."""
        clients = Process([self._program, "flood", str(contender.port), str(peers), "0", "0", "0"], self._log)
        try:
            time.sleep(_FLOOD_S)
            if not clients.runs:
                raise LoadFailed(f"the flood: {clients.said()[-300:]}")
        finally:
            clients.stop()
        return self._load(contender.port, "requests", 64, self.extent.seconds / 3, 0.0, REQUEST_BYTES)

    def _load(self, port: int, mode: str, peers: int, seconds: float, warm_s: float, size: int) -> Numbers:
        words = [mode, str(port), str(peers), str(seconds), str(warm_s), str(size)]
        with self._log.open("ab") as log:
            done = subprocess.run([self._program, *words], stdout=subprocess.PIPE, stderr=log, timeout=_RUN_LIMIT_S)
        if done.returncode:
            raise LoadFailed(f"load {' '.join(words)}: {self._log.read_text(errors='replace')[-300:].strip()}")
        numbers: Numbers = json.loads(done.stdout)
        return numbers

    def _held(self, contender: Contender, mode: str, peers: int, size: int) -> int:
        """Resident bytes of the proxy while so many streams are open, or transfers stalled."""
        assert contender.process is not None
        load = Process([self._program, mode, str(contender.port), str(peers), "0", "0", str(size)], self._log)
        try:
            time.sleep(0.3)
            return contender.process.resident_bytes()
        finally:
            load.stop()
            time.sleep(0.2)

    @contextlib.contextmanager
    def _on_one_cpu(self, process: Process) -> Iterator[None]:
        """The proxy on one CPU, load and backend on the others."""
        cpus = os.sched_getaffinity(0)
        own = {min(cpus)}
        with process.pinned(own), self._backend.pinned(cpus - own):
            os.sched_setaffinity(0, cpus - own)  # the load inherits it
            try:
                yield
            finally:
                os.sched_setaffinity(0, cpus)
