"""What the owner of an instance can be told to do."""

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What is to be done."""

    START = "start"
    ATTACH = "attach"
    WAKE = "wake"
    UNLOAD = "unload"
    STOP = "stop"
    PROBE_BUSY = "probe_busy"


@dataclass(frozen=True, slots=True)
class Order:
    """One order for one generation; equal ones are the same order."""

    kind: Kind
    generation: int
