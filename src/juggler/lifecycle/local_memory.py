"""The memory of this machine as launches see it: device readings with their processes told apart by launch.

Main memory of a launch is what is resident of its processes, mapped model files included: a model that computes on the
CPU from a mapping is slow beyond use once its pages are dropped (``proc_pid_status(5)``).
"""

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from juggler.devices.local import LocalDevices
from juggler.devices.reading import Device, PoolReading
from juggler.ids import PoolId
from juggler.lifecycle.guardian import Process, read_processes
from juggler.lifecycle.launcher import MachineMemory, MemoryPool, PoolUse
from juggler.survey.threads import in_thread
from juggler.units import KIB, SECONDS

RAM = PoolId("ram")
LOOK_LIMIT_S = 2 * SECONDS
"""For walking ``/proc``: milliseconds, seconds on a machine that swaps."""

_FIELDS = ("RssAnon:", "RssFile:", "RssShmem:")


class LocalMemory:
    """Pools of this machine, and what launches hold of them.

    Args:
        devices: What measures.
        guardians: The pid of each live launch's guardian, by launch id.
    """

    def __init__(self, devices: LocalDevices, guardians: Callable[[], Mapping[str, int]]) -> None:
        self._devices = devices
        self._guardians = guardians

    async def pools(self) -> MachineMemory:
        """See ``Launcher.pools``."""
        found = await self._devices.find()
        return MachineMemory(tuple(_pool(one) for one in found), tuple(self._devices.troubles))

    async def measure(self) -> Mapping[PoolId, PoolUse]:
        """See ``Launcher.measure``."""
        reading = await self._devices.read()
        if reading is None:
            return {}
        guardians = dict(self._guardians())
        owners: dict[int, str] | None = None
        in_main_memory: dict[str, int] | None = None
        if sys.platform.startswith("linux"):
            with contextlib.suppress(TimeoutError, OSError):
                owners, in_main_memory = await in_thread(LOOK_LIMIT_S, _look_at, guardians)
        return {
            pool: _main_memory_use(one, in_main_memory) if pool == RAM else _device_use(one, owners, guardians)
            for pool, one in reading.pools.items()
        }

    async def close(self) -> None:
        """End what measures."""
        await self._devices.close()


def _pool(device: Device) -> MemoryPool:
    key = f"{device.vendor} {device.uuid or device.name} {device.total_bytes} {device.driver}"
    if device.pool == RAM:
        key = device.name  # how much there is changes by some pages with each kernel, and says nothing of the need
    return MemoryPool(device.pool, device.name, device.total_bytes, key, device.placement)


def _device_use(reading: PoolReading, owners: Mapping[int, str] | None, guardians: Mapping[str, int]) -> PoolUse:
    """``owners`` is None where nobody knows whose process is whose: then ours would pass for strangers."""
    if owners is None or reading.processes is None or any(one.used_bytes is None for one in reading.processes):
        # Some cannot be told apart: what is not seen must not count as nothing.
        return PoolUse(reading.total_bytes, reading.free_bytes, None)
    launches = dict.fromkeys(guardians, 0)
    others = []
    for one in reading.processes:
        size = one.used_bytes or 0
        launch = owners.get(one.pid)
        if launch is not None:
            launches[launch] += size
        elif size:
            others.append((f"pid {one.pid} {one.name}".rstrip(), size))
    others.sort(key=lambda other: -other[1])
    return PoolUse(reading.total_bytes, reading.free_bytes, launches, tuple(others))


def _main_memory_use(reading: PoolReading, launches: Mapping[str, int] | None) -> PoolUse:
    return PoolUse(reading.total_bytes, reading.free_bytes, launches)


def _look_at(guardians: Mapping[str, int]) -> tuple[dict[int, str], dict[str, int]]:
    """The launch of every process below a guardian, and the main memory that is resident for each launch."""
    owners: dict[int, str] = {}
    held: dict[str, int] = {}
    children: dict[int, list[Process]] = {}
    for process in read_processes().values() if guardians else ():  # once for all: it is most of the work
        children.setdefault(process.parent, []).append(process)
    for launch, guardian in guardians.items():
        held[launch] = 0
        parents = [guardian]
        while parents:
            for process in children.pop(parents.pop(), ()):
                parents.append(process.pid)
                owners[process.pid] = launch
                held[launch] += _resident(process.pid)
    return owners, held


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    sizes = (line.split()[1] for line in lines if line.startswith(_FIELDS))
    return sum(int(size) * KIB for size in sizes if size.isdecimal())
