"""What one run was like, in numbers, and how runs of equal workloads compare."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from bench.schedsim.world import World


@dataclass(frozen=True, slots=True)
class Waits:
    """Times to first byte in seconds, of the requests that were answered; 0 where there are none."""

    mean: float
    p95: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Measures:
    """One run of one policy."""

    overall: Waits
    interactive: Waits
    makespan: float
    """Seconds until the last answer was complete."""
    swaps: int
    swap_s: float
    served: float
    """Part of the makespan in which some backend was at work."""
    requests: int
    refused: int

    def numbers(self) -> dict[str, float]:
        """Flat, by the names that tables use: those of the interactive class begin with ``i.``."""
        flat = {one.name: float(getattr(self.overall, one.name)) for one in fields(Waits)}
        flat |= {f"i.{one.name}": float(getattr(self.interactive, one.name)) for one in fields(Waits)}
        flat |= {name: float(getattr(self, name)) for name in ("makespan", "swaps", "swap_s", "served")}
        flat["refused"] = self.refused / max(self.requests, 1)
        return flat


def measure(world: World) -> Measures:
    """Of a world that has run."""
    answered = [one for one in world.requests if one.first_byte_at is not None]
    waits = [(one.first_byte_at or 0.0) - one.arrived_at for one in answered]
    interactive = [wait for one, wait in zip(answered, waits, strict=True) if not one.client.batch]
    makespan = max((one.ended_at or 0.0 for one in world.requests), default=0.0)
    return Measures(
        overall=_waits(waits),
        interactive=_waits(interactive),
        makespan=makespan,
        swaps=world.swaps,
        swap_s=world.swap_s,
        served=world.served_s / makespan if makespan else 0.0,
        requests=len(world.requests),
        refused=sum(one.refused for one in world.requests),
    )


def _waits(waits: Sequence[float]) -> Waits:
    if not waits:
        return Waits(0.0, 0.0, 0.0, 0.0)
    ranked = sorted(waits)
    return Waits(statistics.fmean(ranked), quantile(ranked, 0.95), quantile(ranked, 0.99), ranked[-1])


def quantile(ranked: Sequence[float], part: float) -> float:
    """Of sorted numbers, straight between two of them."""
    place = part * (len(ranked) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


def ratio(mine: float, theirs: float) -> float:
    """Of two numbers that may both be zero."""
    if theirs <= 0.0:
        return 1.0 if mine <= 0.0 else math.inf
    return mine / theirs


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    logs = [math.log(max(value, 1e-9)) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan
