"""Cards and their users from pretend ``/sys`` and ``/proc`` trees, Apple's limits, and main memory."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from juggler.devices import local
from juggler.devices.apple import apple_gpu, working_set_bytes
from juggler.devices.fdinfo import read_users
from juggler.devices.local import LocalDevices
from juggler.devices.nvidia import NvmlHelper
from juggler.devices.reading import Device, Reading
from juggler.devices.sysfs import read_cards
from juggler.units import GIB, KIB, MIB


@pytest.fixture(autouse=True)
def no_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "driver_may_be_there", lambda: False)


def card(drm: Path, number: int, slot: str, vendor: str, **files: object) -> None:
    device = drm.parent / "devices" / slot
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    for name, value in files.items():
        (device / name).write_text(f"{value}\n")
    entry = drm / f"card{number}"
    entry.mkdir(parents=True)
    (entry / "device").symlink_to(device)
    (drm / f"card{number}-DP-1").mkdir()


def user(proc: Path, pid: int, name: str, *clients: str) -> None:
    for folder in ("fd", "fdinfo"):
        (proc / str(pid) / folder).mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    for number, text in enumerate(clients):
        (proc / str(pid) / "fd" / str(number)).symlink_to("/dev/dri/renderD128")
        (proc / str(pid) / "fdinfo" / str(number)).write_text(text)
    (proc / str(pid) / "fd" / "99").symlink_to("/dev/null")
    (proc / str(pid) / "fdinfo" / "99").write_text("pos: 0\n")


def client(slot: str, number: int, **memory: str) -> str:
    sizes = "".join(f"{name.replace('_', '-')}:\t{value}\n" for name, value in memory.items())
    return f"pos:\t0\ndrm-driver:\tamdgpu\ndrm-pdev:\t{slot}\ndrm-client-id:\t{number}\n{sizes}"


def devices_of(tmp_path: Path) -> LocalDevices:
    (tmp_path / "proc").mkdir(exist_ok=True)
    return LocalDevices(drm=tmp_path / "drm", proc=tmp_path / "proc", files_limit_s=10.0)


async def found_and_read(devices: LocalDevices) -> tuple[tuple[Device, ...], Reading | None]:
    try:
        return await devices.find(), await devices.read()
    finally:
        await devices.close()


def test_amd_cards_and_who_uses_them(tmp_path: Path) -> None:
    drm, proc = tmp_path / "drm", tmp_path / "proc"
    card(drm, 1, "0000:0c:00.0", "0x1002", mem_info_vram_total=16 * GIB, mem_info_vram_used=3 * GIB)
    card(drm, 0, "0000:03:00.0", "0x1002", mem_info_vram_total=24 * GIB, mem_info_vram_used=9 * GIB, unique_id="abcd")
    card(drm, 2, "0000:00:02.0", "0x1002", mem_info_vram_total=512 * MIB, mem_info_vram_used=0)
    user(
        proc, 4711, "blender",
        client("0000:03:00.0", 5, drm_resident_vram=f"{6 * GIB // KIB} KiB", drm_total_vram="1 KiB"),
        client("0000:03:00.0", 5, drm_resident_vram=f"{6 * GIB // KIB} KiB"),
        client("0000:03:00.0", 6, drm_memory_vram=f"{GIB // MIB} MiB"),
    )  # fmt: skip
    user(proc, 12, "old", client("0000:0c:00.0", 7, drm_memory_vram=str(GIB)), "drm-pdev\nnonsense:\n")
    found, reading = asyncio.run(found_and_read(devices_of(tmp_path)))
    assert [(one.pool, one.total_bytes, one.placement) for one in found[:-1]] == [
        ("gpu0", 24 * GIB, {"ROCR_VISIBLE_DEVICES": "1", "GGML_VK_VISIBLE_DEVICES": "0", "NODEVICE_SELECT": "1"}),
        ("gpu1", 16 * GIB, {"ROCR_VISIBLE_DEVICES": "2", "GGML_VK_VISIBLE_DEVICES": "1", "NODEVICE_SELECT": "1"}),
    ], "in PCI order, integrated graphics left out but counted"
    assert reading is not None
    first, second = reading.pools[found[0].pool], reading.pools[found[1].pool]
    assert (first.free_bytes, second.free_bytes) == (15 * GIB, 13 * GIB)
    assert [(one.pid, one.name, one.used_bytes) for one in first.processes or ()] == [(4711, "blender", 7 * GIB)]
    assert [(one.pid, one.used_bytes) for one in second.processes or ()] == [(12, GIB)]


def test_a_card_that_does_not_tell_is_a_trouble(tmp_path: Path) -> None:
    card(tmp_path / "drm", 0, "0000:03:00.0", "0x1002", product_name="Radeon Odd")
    devices = devices_of(tmp_path)
    found, reading = asyncio.run(found_and_read(devices))
    assert [one.pool for one in found] == ["ram"]
    assert "Radeon Odd" in devices.troubles[0]
    assert reading is not None


def test_regions_of_other_drivers(tmp_path: Path) -> None:
    user(tmp_path, 7, "xe", client("0000:03:00.0", 1, drm_resident_vram0="5 MiB", drm_resident_gtt="9 MiB"))
    user(tmp_path, 8, "i915", client("0000:03:00.0", 2, drm_resident_local0="7 MiB"))
    user(tmp_path, 9, "odd", client("0000:03:00.0", 3, drm_resident_vram="lots", drm_total_vram="3 parsec"))
    found = sorted(read_users(tmp_path)["0000:03:00.0"], key=lambda one: one.pid)
    assert [(one.pid, one.used_bytes) for one in found] == [(7, 5 * MIB), (8, 7 * MIB)]


def test_without_any_of_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read_cards(tmp_path / "none")
    found, reading = asyncio.run(found_and_read(devices_of(tmp_path)))
    assert [one.pool for one in found] == ["ram"]
    assert reading is not None
    ram = reading.pools[found[0].pool]
    assert 0 < ram.free_bytes <= ram.total_bytes == found[0].total_bytes


def test_a_source_that_hangs_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be ended; there must not be one more of it for every reading."""
    card(tmp_path / "drm", 0, "0000:03:00.0", "0x1002", mem_info_vram_total=16 * GIB, mem_info_vram_used=0)
    release, has_begun, calls = threading.Event(), threading.Event(), 0

    def hangs(_: Path) -> list[object]:
        nonlocal calls
        calls += 1
        has_begun.set()
        release.wait(60)
        return []

    async def run() -> None:
        devices = LocalDevices(drm=tmp_path / "drm", proc=tmp_path, files_limit_s=5.0)
        await devices.find()
        devices._files_limit_s = 0.05
        monkeypatch.setattr(local, "read_cards", hangs)
        for _ in range(5):
            reading = await devices.read()
            assert reading is None or "gpu0" not in reading.pools
        assert has_begun.wait(20)
        assert calls == 1
        release.set()
        await devices.close()

    try:
        asyncio.run(run())
    finally:
        release.set()


def test_apples_limit() -> None:
    assert working_set_bytes(64 * GIB, 0) == 48 * GIB
    assert working_set_bytes(64 * GIB, None) == 48 * GIB
    assert working_set_bytes(16 * GIB, 0) == int(16 * GIB * 0.67)
    assert working_set_bytes(64 * GIB, 57344) == 56 * GIB
    assert working_set_bytes(16 * GIB, 10**9) == 16 * GIB
    if os.uname().sysname == "Linux":
        assert apple_gpu() == []


def test_closing_before_anything_was_asked(tmp_path: Path) -> None:
    async def run() -> None:
        devices = LocalDevices(nvml=NvmlHelper(), drm=tmp_path, proc=tmp_path)
        await devices.close()
        assert await devices._nvml.ask() is None  # type: ignore[union-attr]

    asyncio.run(run())
