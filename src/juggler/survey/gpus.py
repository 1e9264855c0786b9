"""GPUs and their memory, as far as they can be seen without loading anything onto them.

NVIDIA through ``nvidia-smi``, or through NVML where the module of the package nvidia-ml-py can be imported; AMD and
Intel through ``/sys/class/drm`` (memory.md section D). Both ways to NVIDIA run in a process of their own: a broken
driver can hang whoever asks it.
"""

import asyncio
import csv
import importlib.util
import io
import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from juggler.devices.nvidia import driver_is_there
from juggler.errors import JugglerError
from juggler.survey.brief_run import run_briefly
from juggler.survey.gpu import Gpu
from juggler.survey.nvml import NO_LIBRARY
from juggler.survey.threads import in_thread
from juggler.survey.versions import shortened
from juggler.units import MIB, SECONDS

NVIDIA_LIMIT_S = 10 * SECONDS
"""A sleeping GPU without persistence mode takes 1 to 3 s to answer."""

SYSFS_LIMIT_S = 3 * SECONDS
DRM = Path("/sys/class/drm")

_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
"""PCI vendor ids (pci.ids)."""

_FIELDS = ("index", "name", "memory.total", "memory.used", "driver_version")
_CARD = re.compile(r"card[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class Gpus:
    """What was found."""

    found: tuple[Gpu, ...] = ()
    troubles: tuple[str, ...] = ()
    """Drivers that are there and do not answer, one sentence each."""
    no_driver: bool = False
    """NVML could be asked, and there is nothing of NVIDIA's driver."""


async def find_gpus(environ: Mapping[str, str], drm: Path = DRM) -> Gpus:
    """Every GPU that can be seen, NVIDIA's first; takes ``NVIDIA_LIMIT_S`` at most."""
    nvidia, others = await asyncio.gather(_nvidia(environ), _from_sysfs(drm))
    if nvidia.found or nvidia.troubles:
        others = tuple(gpu for gpu in others if gpu.vendor != "NVIDIA")
    return Gpus((*nvidia.found, *others), nvidia.troubles, nvidia.no_driver)


async def _nvidia(environ: Mapping[str, str]) -> Gpus:
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is not None:
        argv = [program, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
        read = read_nvidia_smi
    elif importlib.util.find_spec("pynvml") is not None:
        argv, read = [sys.executable, "-m", "juggler.survey.nvml"], read_nvml
    else:
        return Gpus()
    try:
        run = await run_briefly(argv, env=environ, limit_s=NVIDIA_LIMIT_S)
    except (JugglerError, OSError) as error:
        return Gpus((), (f"{argv[0]} cannot be run: {error}",))
    if run.status is None:
        return Gpus((), (f"{argv[0]} does not answer within {NVIDIA_LIMIT_S:.0f} s: the driver hangs",))
    if run.status == 0:
        return Gpus(tuple(read(run.output)))
    if run.status == NO_LIBRARY and program is None and not driver_is_there():
        return Gpus(no_driver=True)
    return Gpus((), (shortened(" ".join(run.lines)) or f"{argv[0]} ended with status {run.status}",))


def read_nvidia_smi(text: str) -> list[Gpu]:
    """The table of ``--query-gpu``; what is no row of it is passed over.

    Memory is in MiB, or a word in brackets: ``[N/A]`` on unified memory (DGX Spark), ``[Insufficient Permissions]``
    where a part of a GPU is lent to a container (MIG).
    """
    gpus = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) == len(_FIELDS) and row[0].strip().isdecimal():
            index, name, total, used, driver = (cell.strip() for cell in row)
            gpus.append(Gpu("NVIDIA", int(index), shortened(name), _mib(total), _mib(used), shortened(driver)))
    return gpus


def _mib(text: str) -> int | None:
    return int(text) * MIB if text.isdecimal() else None


def read_nvml(text: str) -> list[Gpu]:
    """What ``juggler.survey.nvml`` prints."""
    rows = json.loads(text.splitlines()[-1])
    return [Gpu("NVIDIA", row["index"], row["name"], row["total"], row["used"], row["driver"]) for row in rows]


async def _from_sysfs(drm: Path) -> tuple[Gpu, ...]:
    try:
        return await in_thread(SYSFS_LIMIT_S, read_sysfs, drm)
    except (OSError, TimeoutError):
        return ()


def read_sysfs(drm: Path) -> tuple[Gpu, ...]:
    """The cards of ``/sys/class/drm`` whose vendor is known, in PCI order.

    amdgpu tells its memory (kernel documentation, "AMDGPU driver information", ``mem_info_vram_total``); a card of
    AMD that does not, and Intel's, are listed without.

    Raises:
        OSError: There is no such directory.
    """
    cards = [card for card in drm.iterdir() if _CARD.match(card.name)]
    cards.sort(key=lambda card: (str((card / "device").resolve()), card.name))
    counts: dict[str, int] = {}
    gpus = []
    for card in cards:
        device = card / "device"
        vendor = _VENDORS.get(_text(device / "vendor") or "")
        if vendor is None:
            continue
        total, used = _number(device / "mem_info_vram_total"), _number(device / "mem_info_vram_used")
        name = _text(device / "product_name") or f"{vendor} GPU {_text(device / 'device') or ''}".strip()
        gpus.append(Gpu(vendor, counts.get(vendor, 0), shortened(name), total, used))
        counts[vendor] = counts.get(vendor, 0) + 1
    return tuple(gpus)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None
