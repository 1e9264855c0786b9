"""All memory of this machine, measured by whatever its drivers offer.

Each source is asked on its own and with a deadline; one that hangs or lies costs its own pools, never an answer. A
thread that hangs in a driver's file cannot be ended: as long as it does, its source is not asked again.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from juggler.devices.apple import apple_gpu
from juggler.devices.nvidia import NvmlHelper, driver_may_be_there
from juggler.devices.reading import Device, PoolReading, ProcessMemory, Reading
from juggler.devices.sysfs import Card, process_name, read_cards, read_users
from juggler.ids import PoolId
from juggler.survey.gpus import POOL_BYTES_LEAST
from juggler.survey.memory import main_memory
from juggler.survey.threads import in_thread
from juggler.units import SECONDS

DRM = Path("/sys/class/drm")
PROC = Path("/proc")
RAM = PoolId("ram")
FILES_LIMIT_S = 2 * SECONDS
SIZE_MAX = 1 << 50
"""No memory is larger: a driver that says so lies."""

_T = TypeVar("_T")


class LocalDevices:
    """See the module.

    Args:
        nvml: Asks NVIDIA's driver; None: whatever is found out about it.
    """

    def __init__(
        self,
        *,
        nvml: NvmlHelper | None = None,
        drm: Path = DRM,
        proc: Path = PROC,
        files_limit_s: float = FILES_LIMIT_S,
    ) -> None:
        self._nvml = nvml
        self._drm = drm
        self._proc = proc
        self._files_limit_s = files_limit_s
        self._found: tuple[Device, ...] | None = None
        self._slots: dict[PoolId, str] = {}
        """PCI address of each pool that sysfs tells of."""
        self._hanging: set[str] = set()
        self._under_way: asyncio.Task[Reading | None] | None = None
        """The reading being taken; all who ask meanwhile share it."""
        self.troubles: tuple[str, ...] = ()
        """Drivers that are there and do not tell, one sentence each; known after ``find``."""

    async def find(self) -> tuple[Device, ...]:
        """GPUs as ``gpu0``, ``gpu1`` ..., then main memory. The first call takes up to 10 s, later ones nothing.

        GPUs of one vendor only, the one with more memory: a program computes on one vendor's.
        """
        if self._found is None:
            nvidia, cards = await asyncio.gather(self._find_nvidia(), self._cards())
            others = self._from_cards(cards)
            gpus = max((nvidia, others), key=lambda devices: sum(one.total_bytes for one in devices))
            if not gpus and not self.troubles:
                gpus = await self._in_thread("apple", apple_gpu) or []
            self._found = (*gpus, *await self._main_memory())
        return self._found

    async def read(self) -> Reading | None:
        """What is free now and who holds the rest; None if nothing could be measured. A few seconds at most."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.get_running_loop().create_task(self._read(), name="read memory")
        return await asyncio.shield(self._under_way)

    async def _read(self) -> Reading | None:
        found = await self.find()
        vendors = {one.vendor for one in found}
        parts = await asyncio.gather(
            self._read_nvidia(found) if "NVIDIA" in vendors else _nothing(),
            self._read_cards() if vendors & {"AMD", "Intel"} else _nothing(),
            self._read_main_memory(),
        )
        pools = {pool: one for part in parts for pool, one in part.items()}
        return Reading(pools) if pools else None

    async def close(self) -> None:
        """End what was started."""
        if self._under_way is not None:
            self._under_way.cancel()
        if self._nvml is not None:
            await self._nvml.close()

    # -- NVIDIA ------------------------------------------------------------------------------------------------

    async def _find_nvidia(self) -> list[Device]:
        if self._nvml is None:
            if not await self._in_thread("driver", driver_may_be_there):
                return []
            self._nvml = NvmlHelper()
        answer = await self._nvml.ask()
        if answer is None:
            self.troubles = (*self.troubles, f"{self._nvml.trouble}: only declared sizes are known of NVIDIA's GPUs")
            return []
        driver = str(answer.get("driver", ""))
        devices: list[Device] = []
        for plain in _devices(answer):
            total = _size(plain.get("total"))
            if total is None:
                trouble = f"{plain.get('name')} does not tell how much memory it has (unified memory, or a part of it)"
                self.troubles = (*self.troubles, trouble)
            elif total >= POOL_BYTES_LEAST:
                devices.append(_nvidia_device(len(devices), plain, total, driver))
        return devices

    async def _read_nvidia(self, found: tuple[Device, ...]) -> dict[PoolId, PoolReading]:
        answer = await self._nvml.ask() if self._nvml is not None else None
        if answer is None:
            return {}
        pools = {one.uuid: one.pool for one in found if one.vendor == "NVIDIA"}
        read = {}
        for plain in _devices(answer):
            pool, total, free = pools.get(str(plain.get("uuid"))), _size(plain.get("total")), _size(plain.get("free"))
            if pool is not None and total is not None and free is not None:
                read[pool] = PoolReading(pool, total, min(free, total), self._processes(plain.get("processes")))
        return read

    def _processes(self, plain: object) -> tuple[ProcessMemory, ...] | None:
        if not isinstance(plain, list):
            return None
        pairs = [one for one in plain if isinstance(one, list) and len(one) == 2 and isinstance(one[0], int)]
        return tuple(ProcessMemory(pid, process_name(pid, self._proc), _size(used)) for pid, used in pairs)

    # -- AMD, Intel --------------------------------------------------------------------------------------------

    async def _cards(self) -> list[Card]:
        return await self._in_thread("drm", read_cards, self._drm) or []

    def _from_cards(self, cards: list[Card]) -> list[Device]:
        devices: list[Device] = []
        numbers: dict[str, int] = {}
        for card in cards:
            index = numbers.get(card.vendor, 0)
            numbers[card.vendor] = index + 1
            total = _size(card.total_bytes)
            if total is None and card.vendor == "AMD":
                self.troubles = (*self.troubles, f"{card.name} ({card.slot}) does not tell how much memory it has")
            elif total is not None and total >= POOL_BYTES_LEAST:
                pool = PoolId(f"gpu{len(devices)}")
                self._slots[pool] = card.slot
                placement = {"ROCR_VISIBLE_DEVICES": str(index)} if card.vendor == "AMD" else {}
                uuid = card.unique_id or card.slot
                devices.append(Device(pool, card.vendor, index, card.name, total, uuid, "", placement))
        return devices

    async def _read_cards(self) -> dict[PoolId, PoolReading]:
        cards, users = await asyncio.gather(self._cards(), self._in_thread("fdinfo", read_users, self._proc))
        by_slot = {card.slot: card for card in cards}
        read = {}
        for pool, slot in self._slots.items():
            card = by_slot.get(slot)
            total, used = (_size(card.total_bytes), _size(card.used_bytes)) if card is not None else (None, None)
            if total is not None and used is not None:
                processes = users.get(slot, ()) if users is not None else None
                read[pool] = PoolReading(pool, total, max(0, total - used), processes)
        return read

    # -- main memory -------------------------------------------------------------------------------------------

    async def _main_memory(self) -> list[Device]:
        memory = await self._in_thread("main memory", main_memory)
        return [] if memory is None else [Device(RAM, "host", 0, "main memory", memory.total_bytes)]

    async def _read_main_memory(self) -> dict[PoolId, PoolReading]:
        memory = await self._in_thread("main memory", main_memory)
        if memory is None or memory.available_bytes is None:
            return {}
        return {RAM: PoolReading(RAM, memory.total_bytes, min(memory.available_bytes, memory.total_bytes))}

    async def _in_thread(self, source: str, work: Callable[..., _T], *arguments: Any) -> _T | None:
        """The result; None if it fails, takes too long, or hangs since an earlier call."""
        if source in self._hanging:
            return None
        self._hanging.add(source)

        def done() -> _T:
            try:
                return work(*arguments)
            finally:
                self._hanging.discard(source)

        try:
            return await in_thread(self._files_limit_s, done)
        except (OSError, TimeoutError):
            return None


async def _nothing() -> dict[PoolId, PoolReading]:
    return {}


def _devices(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    devices = answer.get("devices")
    return [one for one in devices if isinstance(one, dict)] if isinstance(devices, list) else []


def _nvidia_device(number: int, plain: Mapping[str, Any], total: int, driver: str) -> Device:
    index, uuid = plain.get("index"), str(plain.get("uuid") or "")
    visible = uuid or str(index)
    return Device(
        PoolId(f"gpu{number}"),
        "NVIDIA",
        index if isinstance(index, int) else number,
        str(plain.get("name") or "NVIDIA GPU"),
        total,
        uuid,
        driver,
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible},
    )


def _size(value: object) -> int | None:
    """A size that can be one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= SIZE_MAX else None


if sys.platform == "win32":  # neither sysfs nor /proc: NVML and main memory remain
    DRM = PROC = Path("NUL")
