"""Sizes and durations, as the operator writes them and as we print them. Leaf module.

Inside the program sizes are ``int`` bytes and durations ``float`` seconds, always.
"""

import re

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SECONDS = 1.0
MINUTES = 60 * SECONDS
HOURS = 60 * MINUTES
DAYS = 24 * HOURS

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kib": KIB,
    "kb": 1000,
    "m": MIB,
    "mib": MIB,
    "mb": 1000**2,
    "g": GIB,
    "gib": GIB,
    "gb": 1000**3,
    "t": 1024 * GIB,
    "tib": 1024 * GIB,
    "tb": 1000**4,
}
_DURATION_UNITS = {
    "": SECONDS,
    "ms": SECONDS / 1000,
    "s": SECONDS,
    "sec": SECONDS,
    "m": MINUTES,
    "min": MINUTES,
    "h": HOURS,
    "d": DAYS,
}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*\Z")
_DURATION_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int | float) -> int:
    """Bytes from ``18000000000``, ``"18GiB"``, ``"18 GB"`` or ``"512m"``.

    ``k``, ``m``, ``g``, ``t`` and the ``iB`` forms are powers of 1024; ``kB``, ``MB``, ``GB``, ``TB`` of 1000.

    Raises:
        ValueError: With a sentence that says what is accepted.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if text < 0 or text != text or text in (float("inf"),):
            raise ValueError(f'{text!r} is not a size: give bytes, or text such as "18GiB"')
        return int(text)
    match = _NUMBER_AND_UNIT.match(text) if isinstance(text, str) else None
    unit = _SIZE_UNITS.get(match.group(2).lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f'{text!r} is not a size: give bytes, or text such as "18GiB", "500MB" or "64k"')
    return int(float(match.group(1)) * unit)


def parse_duration(text: str | int | float) -> float:
    """Seconds from ``90``, ``"90s"``, ``"250ms"``, ``"10m"``, ``"1h30m"`` or ``"2d"``.

    Raises:
        ValueError: With a sentence that says what is accepted.
    """
    error = ValueError(f'{text!r} is not a duration: give seconds, or text such as "90s", "10m" or "1h30m"')
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if text < 0 or text != text or text == float("inf"):
            raise error
        return float(text)
    if not isinstance(text, str) or not text.strip():
        raise error
    total, position = 0.0, 0
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        unit = _DURATION_UNITS.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise error
        total += float(match.group(1)) * unit
        position = match.end()
    return total


def format_size(size_bytes: int) -> str:
    """``"17.5 GiB"``, for people."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024 or unit == "GiB":
            return f"{value:.1f} {unit}"
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """``"0.3 s"``, ``"42 s"``, ``"12 min"``, ``"3.5 h"``, for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 2 * MINUTES:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOURS:
        return f"{seconds / MINUTES:.0f} min"
    return f"{seconds / HOURS:.1f} h"
