"""What is known of an instance's need for memory, and where from."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from juggler.ids import PoolId

PoolBytes = Mapping[PoolId, int]
"""Bytes per pool."""


class Origin(enum.Enum):
    """Where a footprint is known from, the most trusted first."""

    DECLARED = "declared"
    """The operator wrote it."""
    MEASURED = "measured"
    """It was seen in this run."""
    LEARNED = "learned"
    """It was seen in earlier runs."""
    ESTIMATED = "estimated"
    """It was computed from the model's files and the options."""
    UNKNOWN = "unknown"
    """Nothing is known: everything there is."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a model will want, by its files and options; see the backend modules for how it is computed."""

    gpu_bytes: int = 0
    """On a GPU, or on all GPUs together where it is spread over them."""
    ram_bytes: int = 0
    """In main memory."""
    gpu_fraction: float | None = None
    """The share of each GPU that the program takes whatever the model (vLLM); then ``gpu_bytes`` means nothing."""
    note: str = ""
    """How it comes about, for people."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one instance needs."""

    placements: tuple[PoolBytes, ...]
    """Bytes per pool while loaded, one entry for each way to place it; at least one."""
    origin: Origin
    unloaded: PoolBytes | None = field(default=None)
    """Bytes per pool after a soft unload; None: nothing is known of it."""
