"""AMD's and Intel's GPUs through ``/sys/class/drm``. Blocking.

Sources: kernel documentation, "AMDGPU driver information" (``mem_info_vram_total``, ``mem_info_vram_used``,
``unique_id``); Linux ``drivers/gpu/drm/xe/xe_tile_sysfs.c`` (``physical_vram_size_bytes``). Intel's i915 does not tell
how much memory a card has, and neither driver of Intel how much of it is in use.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from juggler.devices.reading import sane_size
from juggler.survey.versions import shortened

_CARD = re.compile(r"card[0-9]+\Z")
_VENDORS = {"0x1002": "AMD", "0x8086": "Intel"}
"""PCI vendor ids (pci.ids)."""


@dataclass(frozen=True, slots=True)
class Card:
    """One card as sysfs tells of it."""

    vendor: str
    index: int
    """Its number among those of its vendor, in PCI order."""
    slot: str
    """PCI address: ``0000:03:00.0``."""
    name: str
    total_bytes: int | None
    used_bytes: int | None
    unique_id: str = ""
    driver: str = ""
    """Name, and version if it has one of its own."""


def read_cards(drm: Path) -> list[Card]:
    """AMD's and Intel's cards, in the order of ``survey.gpus.read_sysfs``.

    Raises:
        OSError: There is no such directory.
    """
    entries = [entry for entry in drm.iterdir() if _CARD.match(entry.name)]
    entries.sort(key=lambda entry: (str((entry / "device").resolve()), entry.name))
    counts: dict[str, int] = {}
    cards = []
    for entry in entries:
        device = entry / "device"
        vendor = _VENDORS.get(_text(device / "vendor"))
        if vendor is None:
            continue
        index = counts.get(vendor, 0)
        counts[vendor] = index + 1
        name = _text(device / "product_name") or f"{vendor} GPU {_text(device / 'device')}".strip()
        cards.append(
            Card(
                vendor,
                index,
                device.resolve().name,
                shortened(name),
                _number(device / "mem_info_vram_total") or _tiles(device),
                _number(device / "mem_info_vram_used"),
                shortened(_text(device / "unique_id")),
                _driver(device / "driver"),
            )
        )
    return cards


def _tiles(device: Path) -> int | None:
    """The memory of all tiles of a card of Intel's; None: not told."""
    sizes = [_number(file) for file in sorted(device.glob("tile[0-9]*/physical_vram_size_bytes"))]
    return sane_size(sum(size or 0 for size in sizes)) or None


def _driver(link: Path) -> str:
    if not link.exists():
        return ""
    return shortened(f"{link.resolve().name} {_text(link / 'module' / 'version')}".strip())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return sane_size(int(text)) if text.isdecimal() and len(text) <= 20 else None
