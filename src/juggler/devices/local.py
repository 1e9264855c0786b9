"""All memory of this machine, measured by whatever its drivers offer.

Each source is asked on its own and with a deadline; one that hangs or lies costs its own pools, never an answer, and
is not asked again while an earlier question hangs.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from juggler.devices.apple import apple_gpu
from juggler.devices.fdinfo import read_users
from juggler.devices.nvidia import LIBRARY_NOT_FOUND, NvmlHelper, driver_is_there, driver_may_be_there
from juggler.devices.nvml_answer import devices_of, driver_of
from juggler.devices.placement import Candidate, devices_among
from juggler.devices.reading import Device, PoolReading, ProcessMemory, Reading
from juggler.devices.source import Source
from juggler.devices.sysfs import Card, read_cards
from juggler.ids import PoolId
from juggler.survey.gpu import Gpu
from juggler.survey.memory import CGROUP, MEMINFO, MainMemory, main_memory
from juggler.units import SECONDS

DRM = Path("/sys/class/drm")
PROC = Path("/proc")
RAM = PoolId("ram")
FIND_LIMIT_S = 9 * SECONDS
"""For the slowest source; a second more for all together."""
FILES_LIMIT_S = 2 * SECONDS
READ_LIMIT_S = 3 * SECONDS


class LocalDevices:
    """What this machine has, and what of it is free.

    Bound to the loop it is first used in. ``close`` must be called.

    Args:
        nvml: Asks NVIDIA's driver; None: the real one, if there are signs of a driver.
        drm: Where the kernel lists graphics cards.
        proc: Where it lists processes.
        meminfo: What it says of main memory.
        cgroup: What limits it.
        find_limit_s: For each source, the first time.
        files_limit_s: For a look at files.
        read_limit_s: For a whole reading.
    """

    def __init__(
        self,
        *,
        nvml: NvmlHelper | None = None,
        drm: Path = DRM,
        proc: Path = PROC,
        meminfo: Path = MEMINFO,
        cgroup: Path = CGROUP,
        find_limit_s: float = FIND_LIMIT_S,
        files_limit_s: float = FILES_LIMIT_S,
        read_limit_s: float = READ_LIMIT_S,
    ) -> None:
        self._nvml = nvml
        self._drm = drm
        self._proc = proc
        self._meminfo = meminfo
        self._cgroup = cgroup
        self._find_limit_s = find_limit_s
        self._files_limit_s = files_limit_s
        self._read_limit_s = read_limit_s
        self._found: tuple[Device, ...] | None = None
        self._slots: dict[PoolId, str] = {}
        """PCI address of each pool that sysfs tells of."""
        self._closed = False
        self._finding = Source("devices", self._find)
        self._reading = Source("memory", self._read)
        self._answers = Source("NVML", self._ask_nvml)
        self._cards = Source.of_files("graphics cards", self._read_cards)
        self._users = Source.of_files("users of graphics cards", self._read_users)
        self._memory = Source.of_files("main memory", self._read_memory)
        self._apple = Source.of_files("Apple's GPU", apple_gpu)
        self.troubles: tuple[str, ...] = ()
        """Drivers that are there and do not tell, one sentence each; known after ``find``."""

    async def find(self) -> tuple[Device, ...]:
        """GPUs as ``gpu0``, ``gpu1`` ..., then main memory. The first call takes up to 10 s, later ones nothing.

        GPUs of one vendor only, the one with more memory: a program computes on one vendor's. Never raises.
        """
        if self._found is None and not self._closed:
            await self._finding.answer(self._find_limit_s + 1 * SECONDS)
        return self._found or ()

    async def read(self) -> Reading | None:
        """What is free now and who holds the rest; None if nothing could be measured.

        Takes ``read_limit_s`` at most; a source that takes longer is left out, and not waited for by later readings
        as long as it does not answer. All who ask at the same time share one reading. Never raises.
        """
        return None if self._closed else await self._reading.answer(self._read_limit_s + 1 * SECONDS)

    async def _read(self) -> Reading | None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._read_limit_s
        if self._found is None:
            await self._finding.answer(self._read_limit_s)
        if self._found is None:
            return None
        left_s = end - loop.time()
        vendors = {one.vendor for one in self._found}
        parts = await asyncio.gather(
            self._nvidia_readings(left_s) if "NVIDIA" in vendors else _nothing(),
            self._card_readings(left_s) if self._slots else _nothing(),
            self._memory_readings(left_s),
        )
        pools = {pool: one for part in parts for pool, one in part.items()}
        return Reading(pools) if pools else None

    async def close(self) -> None:
        """End what was started, in a few seconds; a thread that hangs in a file stays, and keeps nobody."""
        self._closed = True
        sources = (self._finding, self._reading, self._answers, self._cards, self._users, self._memory, self._apple)
        await asyncio.gather(*(source.close() for source in sources))
        if self._nvml is not None:
            await self._nvml.close()

    # -- finding -----------------------------------------------------------------------------------------------

    async def _find(self) -> None:
        limit_s, files_s = self._find_limit_s, self._files_limit_s
        answer, cards, memory, apple = await asyncio.gather(
            self._answers.answer(limit_s),
            self._cards.answer(files_s),
            self._memory.answer(files_s),
            self._apple.answer(files_s),
        )
        troubles: list[str] = []
        candidates = [*self._from_nvml(answer, troubles), *_from_cards(cards or [], troubles)]
        candidates += [Candidate(gpu) for gpu in apple or []]
        chosen = devices_among(candidates)
        # NVIDIA's GPUs are read by NVML alone.
        self._slots = {pool: one.slot for pool, (_, one) in chosen.items() if one.gpu.vendor in {"AMD", "Intel"}}
        ram = () if memory is None else (Device(RAM, "host", 0, "main memory", memory.total_bytes),)
        self.troubles = tuple(troubles)
        self._found = (*(device for device, _ in chosen.values()), *ram)

    def _from_nvml(self, answer: Mapping[str, Any] | None, troubles: list[str]) -> list[Candidate]:
        if answer is None:
            # Without a sign of a driver it was worth a try only (WSL 2, Windows): then there is just no NVIDIA here.
            in_vain = self._nvml is None or (self._nvml.code == LIBRARY_NOT_FOUND and not driver_is_there())
            if self._nvml is not None and not in_vain:
                trouble = self._nvml.trouble or "the NVIDIA driver does not answer"
                troubles.append(f"{trouble}: only declared sizes are known of NVIDIA's GPUs")
            return []
        driver = driver_of(answer)
        candidates = []
        for one in devices_of(answer):
            if one.error:
                troubles.append(f"NVIDIA GPU {one.index} does not answer ({one.error}): it is left out")
            elif one.total_bytes is None:
                troubles.append(f"{one.name} does not tell how much memory it has (unified memory, or a part of a GPU)")
            candidates.append(Candidate(Gpu("NVIDIA", one.index, one.name, one.total_bytes, None, driver), one.uuid))
        return candidates

    # -- reading -----------------------------------------------------------------------------------------------

    async def _nvidia_readings(self, left_s: float) -> dict[PoolId, PoolReading]:
        answer = await self._answers.answer(left_s)
        pools = {one.uuid or f"index {one.index}": one.pool for one in self._found or () if one.vendor == "NVIDIA"}
        return {
            pools[one.key]: PoolReading(pools[one.key], one.total_bytes, one.free_bytes, one.processes)
            for one in devices_of(answer or {})
            if one.key in pools and one.total_bytes is not None and one.free_bytes is not None
        }

    async def _card_readings(self, left_s: float) -> dict[PoolId, PoolReading]:
        limit_s = min(left_s, self._files_limit_s)
        cards, users = await asyncio.gather(self._cards.answer(limit_s), self._users.answer(limit_s))
        by_slot = {card.slot: card for card in cards or []}
        readings = {}
        for pool, slot in self._slots.items():
            processes = users.get(slot, ()) if users is not None else None
            reading = _card_reading(pool, by_slot.get(slot), processes)
            if reading is not None:
                readings[pool] = reading
        return readings

    async def _memory_readings(self, left_s: float) -> dict[PoolId, PoolReading]:
        memory = await self._memory.answer(min(left_s, self._files_limit_s))
        if memory is None or memory.available_bytes is None:
            return {}
        return {RAM: PoolReading(RAM, memory.total_bytes, min(memory.available_bytes, memory.total_bytes))}

    # -- sources -----------------------------------------------------------------------------------------------

    async def _ask_nvml(self) -> Mapping[str, Any] | None:
        if self._nvml is None:
            worth_it = Source.of_files("NVIDIA's driver", driver_may_be_there)
            if not await worth_it.answer(self._files_limit_s):
                return None
            self._nvml = NvmlHelper()
        return await self._nvml.ask()

    def _read_cards(self) -> list[Card]:
        return read_cards(self._drm)

    def _read_users(self) -> dict[str, tuple[ProcessMemory, ...]]:
        return read_users(self._proc)

    def _read_memory(self) -> MainMemory | None:
        return main_memory(self._meminfo, self._cgroup)


def _from_cards(cards: list[Card], troubles: list[str]) -> list[Candidate]:
    for card in cards:
        if card.vendor == "AMD" and card.total_bytes is None:
            troubles.append(f"{card.name} ({card.slot}) does not tell how much memory it has")
    return [
        Candidate(
            Gpu(card.vendor, card.index, card.name, card.total_bytes, None, card.driver), card.unique_id, card.slot
        )
        for card in cards
    ]


def _card_reading(pool: PoolId, card: Card | None, processes: tuple[ProcessMemory, ...] | None) -> PoolReading | None:
    """None: not told.

    Intel's drivers tell what is in use per process only; what other users' processes hold is missed then.
    """
    if card is None or card.total_bytes is None:
        return None
    used = card.used_bytes
    if used is None and card.vendor == "Intel" and processes is not None:
        used = sum(one.used_bytes or 0 for one in processes)
    if used is None:
        return None
    return PoolReading(pool, card.total_bytes, max(card.total_bytes - used, 0), processes)


async def _nothing() -> dict[PoolId, PoolReading]:
    return {}
