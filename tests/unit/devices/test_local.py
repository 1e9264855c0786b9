"""All sources together: what one of them does never costs the others."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from juggler.devices import local
from juggler.devices.local import RAM, LocalDevices
from juggler.devices.nvidia import NvmlHelper
from juggler.devices.reading import PoolReading, ProcessMemory
from juggler.ids import PoolId
from juggler.units import GIB
from tests.e2e.support import processes_marked
from tests.unit.devices.support import (
    AMD_16G,
    LIMIT_S,
    SCRAP,
    FakeNvml,
    card,
    fdinfo,
    gpu,
    machine,
    process,
    recorded,
    scene,
)

GPU0, GPU1 = PoolId("gpu0"), PoolId("gpu1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return machine(tmp_path)


@pytest.fixture(autouse=True)
def no_driver_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(local, "driver_may_be_there", lambda: False)
    monkeypatch.setattr(local, "driver_is_there", lambda: False)


def devices_at(root: Path, nvml: NvmlHelper | None = None, **limits: float) -> LocalDevices:
    """Of a machine made of files, with long limits but for what is said."""
    patient = {"find_limit_s": LIMIT_S, "files_limit_s": LIMIT_S, "read_limit_s": LIMIT_S, **limits}
    return LocalDevices(
        nvml=nvml,
        drm=root / "sys" / "class" / "drm",
        proc=root / "proc",
        meminfo=root / "proc" / "meminfo",
        cgroup=root / "sys" / "fs" / "cgroup",
        **patient,
    )


async def pools_of(devices: LocalDevices) -> dict[PoolId, PoolReading]:
    reading = await devices.read()
    return dict(reading.pools) if reading is not None else {}


async def test_main_memory_alone(root: Path) -> None:
    """No GPU: one pool, its reading, and nothing to complain of."""
    devices = devices_at(root)
    (ram,) = await devices.find()
    assert (ram.pool, ram.vendor, ram.total_bytes, ram.placement) == (RAM, "host", 64 * GIB, {})
    assert await pools_of(devices) == {RAM: PoolReading(RAM, 64 * GIB, 48 * GIB)}
    assert devices.troubles == ()
    (root / "sys" / "fs" / "cgroup" / "memory.max").write_text(f"{8 * GIB}\n")
    (root / "sys" / "fs" / "cgroup" / "memory.current").write_text(f"{3 * GIB}\n")
    assert await pools_of(devices) == {RAM: PoolReading(RAM, 8 * GIB, 5 * GIB)}
    await devices.close()


async def test_more_available_than_there_is(root: Path) -> None:
    """Clamped; and where it is not told there is no reading at all."""
    (root / "proc" / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 200 kB\n")
    devices = devices_at(root)
    assert (await pools_of(devices))[RAM].free_bytes == 100 * 1024
    (root / "proc" / "meminfo").write_text("MemTotal: 100 kB\n")
    assert await devices.read() is None
    await devices.close()


async def test_h100(root: Path) -> None:
    """A load from start to end, as NVML tells it."""
    process(root, 4711, "llama-server")
    fake = FakeNvml(root, recorded("h100", "idle"), root / "proc")
    devices = devices_at(root, fake.helper())
    h100, _ = await devices.find()
    assert (h100.pool, h100.vendor, h100.driver, h100.total_bytes >> 20) == (GPU0, "NVIDIA", "570.86.15", 81559)
    assert h100.placement == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": h100.uuid}
    idle = (await pools_of(devices))[GPU0]
    fake.play(recorded("h100", "holding"))
    holding = (await pools_of(devices))[GPU0]
    assert holding.processes == (ProcessMemory(4711, "llama-server", 4838129664),)
    assert idle.free_bytes - holding.free_bytes == 4849139712
    fake.play(recorded("h100", "ended"))
    assert (await pools_of(devices))[GPU0] == idle
    await devices.close()
    assert processes_marked(fake.marker) == []


async def test_many_who_find_at_once(root: Path) -> None:
    """All get the same, and a trouble is said once: none of them takes the sources from another."""
    card(root, 0, "0x1002", "0000:03:00.0", **AMD_16G)
    card(root, 1, "0x1002", "0000:05:00.0", product_name="Radeon Odd")
    devices = devices_at(root)
    found = await asyncio.gather(*(devices.find() for _ in range(5)), devices.read())
    assert [one.pool for one in found[0]] == [GPU0, RAM]  # type: ignore[union-attr]
    assert all(one is found[0] for one in found[:5])
    assert len(devices.troubles) == 1
    await devices.close()


async def test_the_vendor_with_more_memory(root: Path) -> None:
    """A program computes on one vendor's GPUs: the others are no pools."""
    for number in range(2):
        card(root, number, "0x1002", f"0000:0{number + 3}:00.0", **AMD_16G)
    fake = FakeNvml(root, scene(gpu(total=8 * GIB)))
    devices = devices_at(root, fake.helper())
    assert [(one.pool, one.vendor) for one in await devices.find()] == [(GPU0, "AMD"), (GPU1, "AMD"), (RAM, "host")]
    assert set(await pools_of(devices)) == {GPU0, GPU1, RAM}
    await devices.close()


async def test_nvidia_beside_graphics_of_a_processor(root: Path) -> None:
    """Readings of pools come from NVML alone, whatever else there is."""
    card(root, 0, "0x1002", "0000:0c:00.0", **SCRAP)
    fake = FakeNvml(root, scene(gpu(0), gpu(1, total=2 * GIB)))
    devices = devices_at(root, fake.helper())
    assert [one.name for one in await devices.find()] == ["NVIDIA Test 0", "main memory"]
    pools = await pools_of(devices)
    assert pools[GPU0] == PoolReading(GPU0, 24 * GIB, 23 * GIB, ())
    assert set(pools) == {GPU0, RAM}
    await devices.close()


async def test_gpus_without_uuid(root: Path) -> None:
    """Not told: then they are known by their numbers, and not taken for one."""
    no_uuid: dict[str, Any] = {"errors": {"nvmlDeviceGetUUID": 3}}
    fake = FakeNvml(root, scene(gpu(0, **no_uuid), gpu(1, used=5 * GIB, **no_uuid)))
    devices = devices_at(root, fake.helper())
    found = await devices.find()
    assert [one.placement.get("CUDA_VISIBLE_DEVICES") for one in found] == ["0", "1", None]
    pools = await pools_of(devices)
    assert (pools[GPU0].free_bytes, pools[GPU1].free_bytes) == (23 * GIB, 19 * GIB)
    await devices.close()


async def test_a_gpu_that_is_lost_from_the_start(root: Path) -> None:
    """The others are pools, and it is named."""
    fake = FakeNvml(root, scene(gpu(0, errors={"nvmlDeviceGetHandleByIndex": 15}), gpu(1)))
    devices = devices_at(root, fake.helper())
    assert [one.uuid for one in await devices.find()] == ["GPU-1", ""]
    assert devices.troubles == ("NVIDIA GPU 0 does not answer (GPU is lost): it is left out",)
    await devices.close()


@pytest.mark.parametrize(("there", "told"), [(False, 0), (True, 1)])
async def test_without_the_library(root: Path, monkeypatch: pytest.MonkeyPatch, there: bool, told: int) -> None:
    """Under Windows and WSL 2 asking is a try: only where the kernel shows a driver is it a trouble."""
    monkeypatch.setattr(local, "driver_is_there", lambda: there)
    devices = devices_at(root, FakeNvml(root, scene(init_error=12)).helper())
    assert [one.pool for one in await devices.find()] == [RAM]
    assert len(devices.troubles) == told
    await devices.close()


async def test_a_driver_that_hangs_when_it_is_looked_for(root: Path) -> None:
    """Finding ends in time, tells so, and the helper is gone in the end."""
    fake = FakeNvml(root, scene(gpu(), hang="nvmlInit"))
    devices = devices_at(root, fake.helper(), find_limit_s=4.0)  # for the files beside it, too
    assert [one.pool for one in await devices.find()] == [RAM]
    assert devices.troubles == ("the NVIDIA driver does not answer: only declared sizes are known of NVIDIA's GPUs",)
    assert set(await pools_of(devices)) == {RAM}
    await devices.close()
    assert processes_marked(fake.marker) == []


async def test_a_driver_that_hangs_later(root: Path) -> None:
    """1. a reading waits for it, in vain 2. later ones do not, and tell of the rest 3. closing ends it."""
    fake = FakeNvml(root, scene(gpu()))
    devices = devices_at(root, fake.helper(), read_limit_s=0.5)
    await devices.find()
    fake.play(scene(gpu(), hang="nvmlDeviceGetCount"))
    assert set(await pools_of(devices)) <= {RAM}
    async with asyncio.timeout(LIMIT_S):
        for _ in range(100):  # each would take half a second
            await devices.read()
    await devices.close()
    assert processes_marked(fake.marker) == []


async def test_intel(root: Path) -> None:
    """What is in use is what processes hold; where those cannot be seen nothing is known."""
    device = card(root, 0, "0x8086", "0000:03:00.0")
    (device / "tile0").mkdir()
    (device / "tile0" / "physical_vram_size_bytes").write_text(f"{16 * GIB}\n")
    process(root, 100, "llama-server", fdinfo(1, "0000:03:00.0", resident_vram0="3 GiB"))
    devices = devices_at(root)
    assert [(one.pool, one.placement) for one in await devices.find()] == [(GPU0, {}), (RAM, {})]
    reading = (await pools_of(devices))[GPU0]
    assert reading == PoolReading(GPU0, 16 * GIB, 13 * GIB, (ProcessMemory(100, "llama-server", 3 * GIB),))
    await devices.close()


async def test_processes_that_cannot_be_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AMD's cards tell what is in use all the same; who holds it is not told then, which is not nobody."""

    def fails(_: Path) -> dict[str, Any]:
        raise OSError("too many")

    monkeypatch.setattr(local, "read_users", fails)
    card(root, 0, "0x1002", "0000:03:00.0", **AMD_16G)
    devices = devices_at(root)
    assert (await pools_of(devices))[GPU0] == PoolReading(GPU0, 16 * GIB, 14 * GIB, None)
    await devices.close()


async def test_a_card_that_vanishes_or_lies(root: Path) -> None:
    """More in use than there is: nothing is free. Gone: no reading of it, and the rest goes on."""
    device = card(root, 0, "0x1002", "0000:03:00.0", **AMD_16G)
    devices = devices_at(root)
    await devices.find()
    (device / "mem_info_vram_used").write_text(f"{20 * GIB}\n")
    assert (await pools_of(devices))[GPU0].free_bytes == 0
    (device / "mem_info_vram_used").unlink()
    assert set(await pools_of(devices)) == {RAM}
    (root / "sys" / "class" / "drm" / "card0" / "device").unlink()
    assert set(await pools_of(devices)) == {RAM}
    await devices.close()


async def test_files_that_hang(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding and reading end in time; the thread is daemonic and keeps nobody at the end."""
    release = threading.Event()

    def hangs(_: Path) -> list[Any]:
        release.wait(LIMIT_S)
        return []

    monkeypatch.setattr(local, "read_cards", hangs)
    devices = devices_at(root, files_limit_s=0.1)
    try:
        found = await devices.find()
        assert {one.pool for one in found} <= {RAM}
        await devices.close()
    finally:
        release.set()


async def test_closed(root: Path) -> None:
    """Nothing is found or read any more, nor does it hurt to ask."""
    devices = devices_at(root)
    await devices.close()
    assert await devices.find() == ()
    assert await devices.read() is None
    await devices.close()


async def test_closing_under_a_question(root: Path) -> None:
    """1. somebody reads 2. the driver hangs 3. closing: who reads gets an answer, and nothing is left."""
    fake = FakeNvml(root, scene(gpu()))
    devices = devices_at(root, fake.helper())
    await devices.find()
    fake.play(scene(gpu(), hang="nvmlDeviceGetCount"))
    reading = asyncio.create_task(devices.read())
    for _ in range(10):
        await asyncio.sleep(0)
    await devices.close()
    assert await asyncio.wait_for(reading, LIMIT_S) is None
    assert processes_marked(fake.marker) == []


async def test_this_machine() -> None:
    """Whatever it has, with the limits of everyday: an answer, and no error."""
    devices = LocalDevices()
    found = await devices.find()
    reading = await devices.read()
    await devices.close()
    assert {one.pool for one in found} >= set(reading.pools if reading is not None else ())
