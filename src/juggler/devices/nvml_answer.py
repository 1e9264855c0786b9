"""What the NVML helper answered, checked: drivers lie, and nothing they say may break what adds it up. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from juggler.devices.reading import ProcessMemory, sane_size
from juggler.survey.versions import shortened


@dataclass(frozen=True, slots=True)
class NvmlDevice:
    """One GPU, as far as it tells."""

    index: int
    """In PCI order."""
    name: str
    uuid: str
    """Empty: not told."""
    total_bytes: int | None
    free_bytes: int | None
    """Not above ``total_bytes``."""
    processes: tuple[ProcessMemory, ...] | None
    error: str = ""
    """Why nothing else is known of it."""

    @property
    def key(self) -> str:
        """Tells it from the others of this machine."""
        return self.uuid or f"index {self.index}"


def devices_of(answer: Mapping[str, Any]) -> list[NvmlDevice]:
    """The GPUs in an answer of ``nvml_helper``, in order; what has no number, or one that was there, is left out."""
    plain = answer.get("devices")
    rows = [row for row in plain if isinstance(row, dict)] if isinstance(plain, list) else []
    by_index = {row["index"]: row for row in reversed(rows) if _is_number(row.get("index"))}
    return [_device(by_index[index]) for index in sorted(by_index)]


def driver_of(answer: Mapping[str, Any]) -> str:
    """The driver's version; empty: not told."""
    return _word(answer.get("driver"))


def _device(row: Mapping[str, Any]) -> NvmlDevice:
    total, free, used = (sane_size(row.get(field)) for field in ("total", "free", "used"))
    if total == 0:
        total = None
    if total is None:
        free = None
    elif free is not None:
        free = min(free, total)
    elif used is not None and used <= total:
        free = total - used
    return NvmlDevice(
        row["index"],
        _word(row.get("name")) or "NVIDIA GPU",
        _word(row.get("uuid")),
        total,
        free,
        _processes(row.get("processes"), total),
        _word(row.get("error")),
    )


def _processes(plain: object, total_bytes: int | None) -> tuple[ProcessMemory, ...] | None:
    """None: not told, which is not the same as nobody."""
    if not isinstance(plain, list):
        return None
    found = []
    for row in plain:
        if isinstance(row, list) and len(row) == 3 and _is_number(row[0]) and row[0] > 0:
            used = sane_size(row[1])
            if used is not None and total_bytes is not None and used > total_bytes:
                used = None
            found.append(ProcessMemory(row[0], _word(row[2]), used))
    return tuple(found)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _word(value: object) -> str:
    return shortened(value) if isinstance(value, str) else ""
