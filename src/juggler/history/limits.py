"""Bounds of the history's file. Leaf module."""

from dataclasses import dataclass

from juggler.units import MIB


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """What the file may hold; the oldest goes first."""

    rows: int = 100_000
    """Requests; of the timeline's spans half as many."""
    bytes: int = 64 * MIB
