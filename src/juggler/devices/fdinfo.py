"""Who holds memory of which card, through ``/proc/<pid>/fdinfo`` (AMD, Intel). Blocking.

Source: kernel documentation, "DRM client usage stats": ``drm-pdev``, ``drm-client-id``, and per region
``drm-resident-``, ``drm-memory-`` (older amdgpu), ``drm-total-``. A client that several descriptors or
processes share appears with each and is counted once; a buffer that several clients share is counted with each. Other
users' processes are seen only as root.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from juggler.devices.reading import ProcessMemory, sane_size
from juggler.units import GIB, KIB, MIB

_CARD_REGION = re.compile(r"(vram|local)[0-9]*\Z")
"""What amdgpu (``vram``), xe (``vram0``) and i915 (``local0``) call memory of the card."""

_UNITS = {"": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
DESCRIPTORS_MAX = 200_000
"""Looked at; a machine with more is not one that people run models on."""


def read_users(proc: Path, descriptors_max: int = DESCRIPTORS_MAX) -> dict[str, tuple[ProcessMemory, ...]]:
    """Who holds memory of which card, by PCI address.

    Raises:
        OSError: There is no such directory, or there are too many descriptors to tell.
    """
    held: dict[str, dict[int, int]] = {}
    counted: set[tuple[str, str]] = set()
    for pid, text in _fdinfo(proc, descriptors_max):
        fields = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("drm-") and ":" in line)
        slot, client = fields.get("drm-pdev", "").strip(), fields.get("drm-client-id", "").strip()
        key = (slot, client or f"of pid {pid}")
        if not slot or key in counted:
            continue
        counted.add(key)
        size = _card_memory(fields)
        if size:
            sizes = held.setdefault(slot, {})
            sizes[pid] = sizes.get(pid, 0) + size
    names = {pid: _name(pid, proc) for sizes in held.values() for pid in sizes}
    return {
        slot: tuple(ProcessMemory(pid, names[pid], sane_size(size)) for pid, size in sizes.items())
        for slot, sizes in held.items()
    }


def _name(pid: int, proc: Path) -> str:
    """Of its program; empty if it is gone."""
    try:
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _fdinfo(proc: Path, descriptors_max: int) -> Iterator[tuple[int, str]]:
    """Pid and text of each descriptor of a GPU, the oldest processes first: a shared client counts for its opener."""
    looked_at = 0
    for pid in sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()):
        directory = proc / str(pid)
        try:
            descriptors = sorted((directory / "fd").iterdir())
        except OSError:  # ended meanwhile, or another user's
            continue
        looked_at += len(descriptors)
        if looked_at > descriptors_max:
            raise OSError(f"more than {descriptors_max} open descriptors")
        for descriptor in descriptors:
            try:
                if str(descriptor.readlink()).startswith("/dev/dri/"):
                    info = directory / "fdinfo" / descriptor.name
                    yield pid, info.read_text(encoding="ascii", errors="replace")
            except OSError:
                continue


def _card_memory(fields: Mapping[str, str]) -> int:
    """Bytes of the card that one client holds: what is resident, where the driver tells, else what it calls memory."""
    for prefix in ("drm-resident-", "drm-memory-", "drm-total-"):
        sizes = [_size(value) for name, value in fields.items() if _CARD_REGION.match(name.removeprefix(prefix))]
        if sizes:
            return sum(sizes)
    return 0


def _size(text: str) -> int:
    number, _, unit = text.strip().partition(" ")
    return int(number) * _UNITS.get(unit.strip(), 0) if number.isdecimal() and len(number) <= 20 else 0
