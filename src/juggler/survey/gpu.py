"""A GPU, and which of several count."""

from collections.abc import Sequence
from dataclasses import dataclass

from juggler.units import GIB

POOL_BYTES_LEAST = 3 * GIB
"""Integrated graphics report 0.5 to 2 GiB of their own; no model of interest fits below this."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    vendor: str
    """``NVIDIA``, ``AMD`` or ``Intel``."""
    index: int
    """Its number among those of its vendor, in PCI order."""
    name: str
    memory_bytes: int | None
    """None: it does not tell, or it shares the memory of the machine."""
    used_bytes: int | None
    driver: str | None = None


def pooled(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs whose memory a budget can be kept for, in the order in which they are ``gpu0``, ``gpu1`` ...

    Those of one vendor, because one program computes on one vendor's: the one with more memory. Graphics that share
    the machine's memory and own a scrap of it do not count.
    """
    large = [gpu for gpu in gpus if (gpu.memory_bytes or 0) >= POOL_BYTES_LEAST]
    totals = {gpu.vendor: 0 for gpu in large}
    for gpu in large:
        totals[gpu.vendor] += gpu.memory_bytes or 0
    vendor = max(totals, key=lambda name: totals[name], default=None)
    return [gpu for gpu in large if gpu.vendor == vendor]
