"""What launches hold of this machine's memory, with pretend devices and real processes."""

import asyncio
import os
import sys

import pytest

from juggler.devices.reading import Device, PoolReading, ProcessMemory, Reading
from juggler.ids import PoolId
from juggler.lifecycle import local_memory
from juggler.lifecycle.local_memory import RAM, LocalMemory
from juggler.units import GIB, MIB

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /proc")
GPU = PoolId("gpu0")


class Devices:
    """Tells what a test wants."""

    troubles: tuple[str, ...] = ()
    found: tuple[Device, ...] = ()

    def __init__(self, *processes: ProcessMemory) -> None:
        self.processes = processes

    async def find(self) -> tuple[Device, ...]:
        return self.found

    async def read(self) -> Reading:
        gpu = PoolReading(GPU, 24 * GIB, 10 * GIB, self.processes)
        return Reading({GPU: gpu, RAM: PoolReading(RAM, 64 * GIB, 40 * GIB)})


async def child() -> asyncio.subprocess.Process:
    """A process that holds 64 MiB and says so."""
    code = "import sys; held = bytearray(64 << 20); print('held', flush=True); sys.stdin.read()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    return process


async def test_processes_are_told_apart_by_launch() -> None:
    process = await child()
    try:
        devices = Devices(ProcessMemory(process.pid, "model", 9 * GIB), ProcessMemory(1, "init", 5 * GIB))
        memory = LocalMemory(devices, lambda: {"a#1": os.getpid()})  # type: ignore[arg-type]  # all it uses of them
        use = await memory.measure()
        assert use[GPU].launches == {"a#1": 9 * GIB}
        assert use[GPU].others == (("pid 1 init", 5 * GIB),)
        assert (use[RAM].launches or {}).get("a#1", 0) >= 64 * MIB
    finally:
        process.kill()
        await process.wait()


async def test_one_size_that_is_not_told_spoils_all() -> None:
    """Else that process would be taken to need nothing."""
    devices = Devices(ProcessMemory(1, "x", None))
    use = await LocalMemory(devices, dict).measure()  # type: ignore[arg-type]  # all it uses of them
    assert use[GPU].launches is None


async def test_a_walk_over_proc_that_hangs_costs_only_what_it_would_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_memory, "LOOK_LIMIT_S", 0.0)
    use = await LocalMemory(Devices(), lambda: {"a#1": os.getpid()}).measure()  # type: ignore[arg-type]
    assert use[RAM].launches is None
    assert use[GPU].free_bytes == 10 * GIB


async def test_without_a_look_at_proc_nobody_knows_whose_process_is_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a model of ours would be seen to hold nothing, and to be a stranger besides."""
    monkeypatch.setattr(local_memory, "LOOK_LIMIT_S", 0.0)
    process = ProcessMemory(os.getpid(), "model", 9 * GIB)
    use = await LocalMemory(Devices(process), lambda: {"a#1": os.getppid()}).measure()  # type: ignore[arg-type]
    assert use[GPU].launches is None
    assert use[GPU].others == ()


async def test_another_kernel_is_no_other_machine() -> None:
    """It keeps some more pages of main memory for itself: what was learned holds as before. Not so on another GPU."""

    async def keys(ram_bytes: int, uuid: str) -> list[str]:
        devices = Devices()
        main_memory = Device(RAM, "host", 0, "main memory", ram_bytes)
        devices.found = (Device(GPU, "NVIDIA", 0, "x", 24 * GIB, uuid), main_memory)
        return [one.key for one in (await LocalMemory(devices, dict).pools()).pools]  # type: ignore[arg-type]

    first, second = await keys(64 * GIB, "GPU-1"), await keys(64 * GIB - 12 * MIB, "GPU-1")
    assert first == second
    assert (await keys(64 * GIB, "GPU-2"))[0] != first[0]
