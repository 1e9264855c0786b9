"""AMD's and Intel's GPUs through ``/sys/class/drm``, and who uses them through ``/proc/<pid>/fdinfo``. Blocking.

Sources: kernel documentation, "AMDGPU driver information" (``mem_info_vram_total``, ``mem_info_vram_used``) and "DRM
client usage stats" (``drm-driver``, ``drm-pdev``, ``drm-client-id``, ``drm-resident-<region>``; older amdgpu:
``drm-memory-vram``). A buffer that several clients share is listed by each; a client that several processes or
descriptors share is counted once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from juggler.devices.reading import ProcessMemory
from juggler.units import KIB, MIB

_CARD = re.compile(r"card[0-9]+\Z")
_VENDORS = {"0x1002": "AMD", "0x8086": "Intel"}
"""PCI vendor ids (pci.ids)."""

_VRAM = frozenset({"vram", "vram0", "local0"})
"""What amdgpu, xe and i915 call memory of the card."""

_UNITS = {"": 1, "KiB": KIB, "MiB": MIB}
FDINFO_MOST = 20_000
"""Descriptors looked at; a machine with more is not one that people run models on."""


@dataclass(frozen=True, slots=True)
class Card:
    """One card as sysfs tells of it."""

    vendor: str
    slot: str
    """PCI address: ``0000:03:00.0``."""
    name: str
    total_bytes: int | None
    used_bytes: int | None
    unique_id: str = ""


def read_cards(drm: Path) -> list[Card]:
    """AMD's and Intel's cards in PCI order.

    Raises:
        OSError: There is no such directory.
    """
    cards = []
    for entry in drm.iterdir():
        if not _CARD.match(entry.name):
            continue
        device = entry / "device"
        vendor = _VENDORS.get(_text(device / "vendor"))
        if vendor is None:
            continue
        total, used = _number(device / "mem_info_vram_total"), _number(device / "mem_info_vram_used")
        name = _text(device / "product_name") or f"{vendor} GPU"
        slot = device.resolve().name
        cards.append(Card(vendor, slot, name, total, used, _text(device / "unique_id")))
    return sorted(cards, key=lambda card: card.slot)


def read_users(proc: Path) -> dict[str, tuple[ProcessMemory, ...]]:
    """Who holds memory of which card, by PCI address; other users' processes are seen only as root."""
    held: dict[str, dict[int, int]] = {}
    names: dict[int, str] = {}
    counted: set[tuple[str, str]] = set()
    for pid, text in _fdinfo(proc):
        fields = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("drm-") and ":" in line)
        slot, client = fields.get("drm-pdev", "").strip(), fields.get("drm-client-id", "").strip()
        if not slot or (slot, client) in counted:
            continue
        counted.add((slot, client))
        size = _card_memory(fields)
        if size:
            sizes = held.setdefault(slot, {})
            sizes[pid] = sizes.get(pid, 0) + size
            names.setdefault(pid, process_name(pid, proc))
    return {
        slot: tuple(ProcessMemory(pid, names[pid], size) for pid, size in sizes.items()) for slot, sizes in held.items()
    }


def process_name(pid: int, proc: Path = Path("/proc")) -> str:
    """The name of a process's program; empty if it is gone."""
    return _text(proc / str(pid) / "comm")


def _fdinfo(proc: Path) -> Iterator[tuple[int, str]]:
    looked_at = 0
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            descriptors = [one.name for one in (entry / "fd").iterdir()]
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                target = str((entry / "fd" / descriptor).readlink())
            except OSError:
                continue
            if not target.startswith("/dev/dri/"):
                continue
            looked_at += 1
            if looked_at > FDINFO_MOST:
                return
            try:
                yield int(entry.name), (entry / "fdinfo" / descriptor).read_text(encoding="ascii", errors="replace")
            except OSError:
                continue


def _card_memory(fields: dict[str, str]) -> int:
    """Bytes of the card that one client holds: what is resident, where the driver tells, else what it calls memory."""
    for prefix in ("drm-resident-", "drm-memory-", "drm-total-"):
        sizes = [_size(value) for name, value in fields.items() if name.removeprefix(prefix) in _VRAM]
        if sizes:
            return sum(sizes)
    return 0


def _size(text: str) -> int:
    number, _, unit = text.strip().partition(" ")
    return int(number) * _UNITS.get(unit.strip(), 0) if number.isdecimal() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None
