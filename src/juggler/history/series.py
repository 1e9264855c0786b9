"""Memory, requests, loads and bytes over time: one sample every ten seconds while anything happens.

Where nothing happens nothing is sampled, and nothing has changed: memory is as it was, and the counts are zero. A
sample without pools says that the juggler did not run from then on.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from juggler.units import HOURS, SECONDS

STEP_S = 10 * SECONDS
KEPT_S = 24 * HOURS
SAMPLES_KEPT = int(KEPT_S / STEP_S)
POINTS_MAX = 2000
"""Of one answer; a smaller step is made larger."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample; counts are since the one before."""

    at: float
    """Seconds since 1970."""
    pools: Mapping[str, tuple[int, int]] | None
    """Bytes per pool: what instances count for, and what others hold. None: the juggler ends."""
    loads: int = 0
    requests: int = 0
    bytes_down: int = 0


@dataclass(slots=True)
class Counts:
    """What has been counted since the last sample."""

    loads: int = 0
    requests: int = 0
    bytes_down: int = 0


@dataclass(slots=True)
class Series:
    """The samples of the last day, and what the next one will say."""

    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_KEPT))
    counts: Counts = field(default_factory=Counts)

    def due(self, now: float) -> bool:
        """Whether the next sample is due; ``now`` since 1970. Also after a clock that was set back."""
        return not self.samples or abs(now - self.samples[-1].at) >= STEP_S

    def sample(self, now: float, pools: Mapping[str, tuple[int, int]] | None) -> Sample:
        """Take a sample."""
        counts, self.counts = self.counts, Counts()
        taken = Sample(now, pools, counts.loads, counts.requests, counts.bytes_down)
        self.samples.append(taken)
        return taken


def step_for(from_at: float, to_at: float, step_s: float) -> float:
    """The step that is used: not below that of the samples, nor so small that the answer had too many points."""
    return max(step_s, STEP_S, (to_at - from_at) / POINTS_MAX)


def on_grid(samples: Sequence[Sample], from_at: float, to_at: float, step_s: float) -> dict[str, object]:
    """Samples as JSON data, one point for each step.

    Memory is the last that was known at the end of a step, null where nothing was; counts are sums over the step.

    Args:
        samples: By their time; one before ``from_at`` tells what the memory was then.
    """
    step_s = step_for(from_at, to_at, step_s)
    points = max(1, min(POINTS_MAX, int((to_at - from_at) / step_s) + 1)) if to_at >= from_at else 0
    times = [from_at + step_s * number for number in range(points)]
    sampled_at = [one.at for one in samples]
    names = sorted({pool for one in samples for pool in one.pools or ()})
    last = [bisect_right(sampled_at, at) - 1 for at in times]
    known = [samples[index].pools if index >= 0 else None for index in last]
    loads, requests, bytes_down = [], [], []
    for at in times:
        within = samples[bisect_right(sampled_at, at - step_s) : bisect_right(sampled_at, at)]
        loads.append(sum(one.loads for one in within))
        requests.append(sum(one.requests for one in within))
        bytes_down.append(sum(one.bytes_down for one in within))
    return {
        "at": [round(at, 3) for at in times],
        "step_s": step_s,
        "pools": {
            pool: {
                "used_bytes": [_part(pools, pool, 0) for pools in known],
                "foreign_bytes": [_part(pools, pool, 1) for pools in known],
            }
            for pool in names
        },
        "loads": loads,
        "requests": requests,
        "bytes_down": bytes_down,
    }


def joined(older: Iterable[Sample], newer: Sequence[Sample]) -> list[Sample]:
    """Samples of two sources, those of the second where both have some."""
    kept = list(older)
    if newer:
        del kept[bisect_left([one.at for one in kept], newer[0].at) :]
    return [*kept, *newer]


def _part(pools: Mapping[str, tuple[int, int]] | None, pool: str, part: int) -> int | None:
    return None if pools is None or pool not in pools else pools[pool][part]
