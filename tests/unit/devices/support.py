"""Machines made of files: sysfs, proc, and an NVML that replays a scene."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from juggler.devices.nvidia import HELPER, NvmlHelper
from juggler.units import GIB, KIB, MIB

FAKE_NVML = Path(__file__).parents[2] / "programs" / "fake_nvml"
FIXTURES = Path(__file__).parent / "fixtures"
LIMIT_S = 20.0
"""For what should succeed, on a machine however busy."""

MEMINFO = f"MemTotal: {64 * GIB // KIB} kB\nMemFree: 1 kB\nMemAvailable: {48 * GIB // KIB} kB\n"


def gpu(number: int = 0, *, total: int = 24 * GIB, used: int = GIB, **more: Any) -> dict[str, Any]:
    """One device of a scene."""
    return {"name": f"NVIDIA Test {number}", "uuid": f"GPU-{number}", "total": total, "free": total - used, **more}


def scene(*devices: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the fake NVML replays."""
    return {"driver": "570.1", "devices": list(devices), **more}


def recorded(name: str, part: str) -> dict[str, Any]:
    """One scene of a fixture."""
    found: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())["scenes"][part]
    return found


def machine(root: Path, *, pid_namespace: int = 4026531836) -> Path:
    """A root without a graphics card; by default not of a container."""
    (root / "sys" / "class" / "drm").mkdir(parents=True)
    (root / "sys" / "fs" / "cgroup").mkdir(parents=True)
    (root / "proc" / "self" / "ns").mkdir(parents=True)
    (root / "proc" / "self" / "ns" / "pid").symlink_to(f"pid:[{pid_namespace}]")
    (root / "proc" / "meminfo").write_text(MEMINFO)
    return root


def card(root: Path, number: int, vendor: str, slot: str, **files: str | int) -> Path:
    """A card at a PCI address, linked as the kernel links it; returns its device directory."""
    device = root / "sys" / "devices" / "pci0000:00" / slot
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    for file, text in files.items():
        (device / file).write_text(f"{text}\n")
    entry = root / "sys" / "class" / "drm" / f"card{number}"
    entry.mkdir()
    (entry / "device").symlink_to(device)
    return device


def process(root: Path, pid: int, name: str, *descriptors: str, target: str = "/dev/dri/renderD128") -> None:
    """A process with descriptors of a GPU, given as the text of their fdinfo."""
    directory = root / "proc" / str(pid)
    for part in ("fd", "fdinfo"):
        (directory / part).mkdir(parents=True)
    (directory / "comm").write_text(f"{name}\n")
    (directory / "fd" / "0").symlink_to("/dev/null")
    for number, text in enumerate(descriptors, 3):
        (directory / "fd" / str(number)).symlink_to(target)
        (directory / "fdinfo" / str(number)).write_text(text)


def fdinfo(client: int, slot: str, **regions: str) -> str:
    """The text of one descriptor: ``resident_vram="5 MiB"``."""
    lines = [f"drm-{name.replace('_', '-')}:\t{size}" for name, size in regions.items()]
    return "\n".join(["pos:\t0", "drm-driver:\tx", f"drm-client-id:\t{client}", f"drm-pdev:\t{slot}", *lines, ""])


class FakeNvml:
    """The helper with a fake NVML, whose scene can be changed while it runs."""

    def __init__(self, directory: Path, first: dict[str, Any], proc: Path = Path("/nonexistent")) -> None:
        self._file = directory / "scene.json"
        self.marker = f"nvml-{uuid.uuid4()}"
        self.argv: tuple[str, ...] = (*HELPER, str(proc))
        self.env = {
            **os.environ,
            "PYTHONPATH": str(FAKE_NVML),
            "FAKE_NVML": str(self._file),
            "JUGGLER_TEST_MARKER": self.marker,
        }
        self.play(first)

    def play(self, now: dict[str, Any]) -> None:
        """From the next call on."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(now))
        new.replace(self._file)

    def helper(self, argv: tuple[str, ...] | None = None, **limits: float) -> NvmlHelper:
        """One with long limits, no pause after a failure, and what else is said."""
        patient = {"first_limit_s": LIMIT_S, "limit_s": LIMIT_S, "back_off_s": 0.0, **limits}
        return NvmlHelper(argv or self.argv, self.env, **patient)


AMD_16G: dict[str, str | int] = {"mem_info_vram_total": 16 * GIB, "mem_info_vram_used": 2 * GIB, "device": "0x744c"}
SCRAP: dict[str, str | int] = {"mem_info_vram_total": 512 * MIB, "mem_info_vram_used": 100 * MIB}
