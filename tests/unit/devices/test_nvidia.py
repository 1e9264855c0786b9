"""NVML through the real helper process and a pretend library."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from juggler.devices.local import LocalDevices
from juggler.devices.nvidia import HELPER, NvmlHelper, driver_may_be_there
from juggler.devices.reading import PoolReading
from juggler.units import GIB, MIB

FAKE = Path(__file__).parents[2] / "programs" / "fake_nvml"
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-1111",
    "total": 81559 * MIB,
    "free": 70 * GIB,
    "processes": [[os.getpid(), 9 * GIB]],
}
A2000 = {"name": "NVIDIA RTX A2000", "uuid": "GPU-2222", "total": 12 * GIB, "free": 11 * GIB}


class Library:
    """What the pretend library says next."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "nvml.json"
        self.proc = folder / "proc"  # ours would say that this is a container, where it is one
        (self.proc / str(os.getpid())).mkdir(parents=True)
        (self.proc / str(os.getpid()) / "comm").write_text("pytest\n")
        self.says()

    def says(self, *devices: Mapping[str, Any], **more: Any) -> None:
        self.file.write_text(json.dumps({"driver": "580.95.05", "devices": devices or (H100, A2000), **more}))

    def helper(self, *, first_limit_s: float = 20.0, limit_s: float = 20.0, idle_limit_s: float = 30.0) -> NvmlHelper:
        env = {**os.environ, "PYTHONPATH": str(FAKE), "FAKE_NVML": str(self.file)}
        argv = (*HELPER, str(self.proc))
        return NvmlHelper(argv, env, first_limit_s=first_limit_s, limit_s=limit_s, idle_limit_s=idle_limit_s)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path)


def asked(helper: NvmlHelper, work: Callable[[LocalDevices], Awaitable[None]], drm: Path) -> None:
    """Do something with the devices, and see that nothing is left."""

    async def run() -> None:
        devices = LocalDevices(nvml=helper, drm=drm / "no-drm", find_limit_s=20.0, read_limit_s=20.0)
        try:
            await work(devices)
        finally:
            await devices.close()
        assert helper._process is None
        assert not helper._ending

    asyncio.run(run())


def gpu(reading: Any, pool: str = "gpu0") -> PoolReading:
    assert reading is not None
    found = reading.pools[pool]
    assert isinstance(found, PoolReading)
    return found


def test_gpus_with_their_processes(library: Library, tmp_path: Path) -> None:
    async def work(devices: LocalDevices) -> None:
        first, second, ram = await devices.find()
        assert (first.pool, first.vendor, first.name, first.total_bytes) == (
            "gpu0",
            "NVIDIA",
            H100["name"],
            H100["total"],
        )
        assert first.placement == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1111"}
        assert (second.pool, second.uuid, second.driver) == ("gpu1", "GPU-2222", "580.95.05")
        assert ram.pool == "ram"
        reading = await devices.read()
        one = gpu(reading)
        assert (one.total_bytes, one.free_bytes) == (H100["total"], H100["free"])
        assert one.processes is not None
        assert [(process.pid, process.used_bytes) for process in one.processes] == [(os.getpid(), 9 * GIB)]
        assert one.processes[0].name
        assert gpu(reading, "gpu1").processes == ()
        assert devices.troubles == ()

    asked(library.helper(), work, tmp_path)


def test_fields_that_are_not_told(library: Library, tmp_path: Path) -> None:
    """No permission for processes, no version 2 of the memory: what can be had is had."""
    errors = {
        "nvmlDeviceGetMemoryInfo_v2": 13,
        "nvmlDeviceGetComputeRunningProcesses": 4,
        "nvmlDeviceGetGraphicsRunningProcesses": 3,
    }
    library.says({**H100, "errors": errors})

    async def work(devices: LocalDevices) -> None:
        one = gpu(await devices.read())
        assert one.free_bytes == H100["free"]
        assert one.processes is None

    asked(library.helper(), work, tmp_path)


def test_sizes_of_processes_that_are_not_told(library: Library, tmp_path: Path) -> None:
    """WDDM and WSL 2 say None, others all ones."""
    library.says({**H100, "processes": [[1, None], [2, 2**64 - 1]], "graphics": [[3, 5]]})

    async def work(devices: LocalDevices) -> None:
        processes = gpu(await devices.read()).processes
        assert processes is not None
        assert [(one.pid, one.used_bytes) for one in processes] == [(1, None), (2, None), (3, 5)]

    asked(library.helper(), work, tmp_path)


def test_a_gpu_that_falls_off_the_bus_hides_no_other(library: Library, tmp_path: Path) -> None:
    async def work(devices: LocalDevices) -> None:
        assert len(await devices.find()) == 3
        library.says({**H100, "errors": {"nvmlDeviceGetHandleByIndex": 15}}, A2000)
        reading = await devices.read()
        assert reading is not None
        assert "gpu0" not in reading.pools
        assert gpu(reading, "gpu1").free_bytes == 11 * GIB, "it keeps its name"

    asked(library.helper(), work, tmp_path)


def test_unified_memory_is_a_trouble_not_a_pool(library: Library, tmp_path: Path) -> None:
    unknown = {"nvmlDeviceGetMemoryInfo_v2": 3, "nvmlDeviceGetMemoryInfo": 3}
    library.says({**H100, "name": "NVIDIA GB10", "errors": unknown})

    async def work(devices: LocalDevices) -> None:
        assert [one.pool for one in await devices.find()] == ["ram"]
        assert "GB10 does not tell" in devices.troubles[0]

    asked(library.helper(), work, tmp_path)


def test_lies_are_not_believed(library: Library, tmp_path: Path) -> None:
    async def work(devices: LocalDevices) -> None:
        await devices.find()
        library.says({**H100, "free": 900 * GIB}, {**A2000, "free": -5})
        reading = await devices.read()
        assert gpu(reading).free_bytes == H100["total"], "never more than there is"
        assert reading is not None
        assert "gpu1" not in reading.pools

    asked(library.helper(), work, tmp_path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"hang": "nvmlInit"}, "does not answer"),
        ({"crash": "nvmlInit"}, "its helper ended"),
        ({"init_error": 9}, "Driver Not Loaded"),
    ],
)
def test_a_driver_that_is_broken_costs_its_own_pools_only(
    library: Library, tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    library.says(H100, **more)
    limits = {"first_limit_s": 2.0} if "hang" in more else {}

    async def work(devices: LocalDevices) -> None:
        assert [one.pool for one in await devices.find()] == ["ram"]
        assert words in devices.troubles[0]
        reading = await devices.read()
        assert reading is not None
        assert list(reading.pools) == ["ram"]

    asked(library.helper(**limits), work, tmp_path)


def test_one_that_begins_to_hang_is_killed_and_asked_again_later(library: Library, tmp_path: Path) -> None:
    helper = library.helper()

    async def work(devices: LocalDevices) -> None:
        assert "gpu0" in (await devices.read()).pools  # type: ignore[union-attr]
        hanging = helper._process
        assert hanging is not None
        library.says(H100, A2000, hang="nvmlDeviceGetCount")
        helper._limit_s = 1.0
        assert "gpu0" not in (await devices.read()).pools  # type: ignore[union-attr]
        async with asyncio.timeout(10):
            assert await hanging.wait() == -9
        library.says()
        helper._limit_s = 20.0
        assert "gpu0" not in (await devices.read()).pools, "not at once"  # type: ignore[union-attr]
        helper._not_before = 0.0
        assert "gpu0" in (await devices.read()).pools  # type: ignore[union-attr]

    asked(helper, work, tmp_path)


def test_the_helper_ends_when_nobody_asks(library: Library, tmp_path: Path) -> None:
    """So that the GPU may sleep; the next question starts it again."""
    helper = library.helper()

    async def work(devices: LocalDevices) -> None:
        await devices.read()
        process = helper._process
        assert process is not None
        helper._idle_limit_s = 0.2
        await devices.read()
        helper._idle_limit_s = 30.0
        async with asyncio.timeout(10):
            await process.wait()
        assert "gpu0" in (await devices.read()).pools  # type: ignore[union-attr]

    asked(helper, work, tmp_path)


def test_a_question_that_is_cancelled_leaves_no_answer_behind(library: Library, tmp_path: Path) -> None:
    helper = library.helper()

    async def work(devices: LocalDevices) -> None:
        await devices.find()
        asking = asyncio.create_task(helper.ask())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        library.says(H100)
        answer = await helper.ask()
        assert answer is not None
        assert len(answer["devices"]) == 1

    asked(helper, work, tmp_path)


def test_readers_share_one_question(library: Library, tmp_path: Path) -> None:
    helper = library.helper()
    asked_times = 0
    really_ask = helper.ask

    async def counted() -> Any:
        nonlocal asked_times
        asked_times += 1
        return await really_ask()

    helper.ask = counted  # type: ignore[method-assign]

    async def work(devices: LocalDevices) -> None:
        await devices.find()
        readings = await asyncio.gather(*(devices.read() for _ in range(20)))
        assert all(one is readings[0] for one in readings)
        assert asked_times == 2

    asked(helper, work, tmp_path)


def test_without_a_sign_of_a_driver_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("juggler.devices.nvidia.find_spec", lambda _: object())
    assert not driver_may_be_there((str(tmp_path / "nothing"),)) or sys.platform == "win32"
    assert driver_may_be_there((str(tmp_path),))
