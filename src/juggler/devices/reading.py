"""What is told of devices and their memory: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from juggler.ids import PoolId

SIZE_MAX = 1 << 50
"""No memory is larger: a driver that says so lies."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or main memory."""

    pool: PoolId
    """``gpu0``, ``gpu1`` ... or ``ram``."""
    vendor: str
    """``NVIDIA``, ``AMD``, ``Intel``, ``Apple``, or ``host`` for main memory."""
    index: int
    """Its number among those of its vendor, in PCI order."""
    name: str
    total_bytes: int
    uuid: str = ""
    driver: str = ""
    placement: Mapping[str, str] = field(default_factory=dict)
    """Environment that makes a program see this device alone; empty: there is none."""


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """What one process holds of a device."""

    pid: int
    name: str
    """Of its program; empty: not known."""
    used_bytes: int | None
    """None: the driver does not tell (WDDM, WSL 2, missing rights)."""


@dataclass(frozen=True, slots=True)
class PoolReading:
    """One device at one moment."""

    pool: PoolId
    total_bytes: int
    free_bytes: int
    processes: tuple[ProcessMemory, ...] | None = None
    """None: this system does not tell per process."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All devices that could be measured, at one moment."""

    pools: Mapping[PoolId, PoolReading]


def sane_size(value: object) -> int | None:
    """The value if it can be the size of a memory, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= SIZE_MAX else None
