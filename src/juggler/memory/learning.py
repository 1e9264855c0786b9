"""What an instance needs, from samples of what it holds. Pure.

Three figures per pool: the peak while it loads (a loader may stage more than it keeps), the steady state (the median
of the first seconds after it is ready), and the peak while it works (KV caches and buffers grow). The need is the
largest of them and a margin (memory.md section D).
"""

import enum
import statistics
from dataclasses import dataclass, field

from juggler.ids import PoolId
from juggler.memory.footprint import PoolBytes
from juggler.units import MIB, SECONDS

STEADY_WITHIN_S = 10 * SECONDS
NOISE_BYTES = 16 * MIB
"""Less than a device context takes: such a process does not use the pool."""
MARGIN_BYTES = 256 * MIB
MARGIN_SHARE = 0.03
PEAK_DECAY = 0.98
"""Per run: a peak that does not come again is forgotten in the end."""
SAMPLES_KEPT = 64


class Phase(enum.Enum):
    """What the instance was doing when the sample was taken."""

    LOADING = "loading"
    READY = "ready"
    RUNNING = "running"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class FootprintRecord:
    """What was seen of one instance, in bytes per pool."""

    peak_load: PoolBytes = field(default_factory=dict)
    steady: PoolBytes = field(default_factory=dict)
    peak_run: PoolBytes = field(default_factory=dict)
    unloaded: PoolBytes | None = None
    """After a soft unload; None: never seen."""
    seen: int = 0
    """Runs that it comes from."""

    def most(self) -> dict[PoolId, int]:
        """The most that it was seen to hold; empty if it was never seen ready."""
        if not self.seen:
            return {}
        pools = dict.fromkeys([*self.peak_load, *self.steady, *self.peak_run])
        sizes = {pool: max(one.get(pool, 0) for one in (self.peak_load, self.steady, self.peak_run)) for pool in pools}
        return {pool: size for pool, size in sizes.items() if size >= NOISE_BYTES}

    def need(self) -> dict[PoolId, int]:
        """What must be free for it; empty if it was never seen ready."""
        return {pool: size + margin_bytes(size) for pool, size in self.most().items()}


def margin_bytes(size: int) -> int:
    """What may come on top of what was seen."""
    return max(MARGIN_BYTES, int(size * MARGIN_SHARE))


class FootprintLearner:
    """Takes the samples of one run."""

    def __init__(self) -> None:
        self._ready_at: float | None = None
        self._peak_load: dict[PoolId, int] = {}
        self._peak_run: dict[PoolId, int] = {}
        self._steady: dict[PoolId, list[int]] = {}
        self._unloaded: dict[PoolId, int] | None = None
        self._last: dict[PoolId, int] = {}
        self.worked = False
        """It was seen with a request: what loads only then has shown itself."""

    def sample(self, at: float, phase: Phase, held: PoolBytes) -> None:
        """Take what was held at ``at`` (monotonic seconds)."""
        if phase is Phase.LOADING:
            _raise(self._peak_load, held)
        elif phase is Phase.UNLOADED:
            self._unloaded = dict(held)
        else:
            self._last = dict(held)
            self.worked = self.worked or phase is Phase.RUNNING
            if self._ready_at is None:
                self._ready_at = at
            if at <= self._ready_at + STEADY_WITHIN_S:
                for pool, size in held.items():
                    kept = self._steady.setdefault(pool, [])
                    if len(kept) < SAMPLES_KEPT:
                        kept.append(size)
            if phase is Phase.RUNNING or at > self._ready_at + STEADY_WITHIN_S:
                _raise(self._peak_run, held)

    def steady(self) -> dict[PoolId, int]:
        """What it holds when it is ready and does nothing; empty before it was seen so."""
        return {pool: int(statistics.median(sizes)) for pool, sizes in self._steady.items()}

    def loaded(self) -> dict[PoolId, int]:
        """What it has to give back: as seen last, but no less than in its steady state; empty before that was seen."""
        steady = self.steady()
        return {pool: max(size, self._last.get(pool, 0)) for pool, size in steady.items()}

    def record(self, before: FootprintRecord | None = None) -> FootprintRecord:
        """What is known with this run added to those before."""
        before = before or FootprintRecord()
        if not self._steady:
            return before
        faded = {pool: int(size * PEAK_DECAY) for pool, size in before.peak_run.items()}
        _raise(faded, self._peak_run)
        return FootprintRecord(
            peak_load=dict(self._peak_load),
            steady=self.steady(),
            peak_run=faded,
            unloaded=self._unloaded if self._unloaded is not None else before.unloaded,
            seen=before.seen + 1,
        )


def _raise(peaks: dict[PoolId, int], held: PoolBytes) -> None:
    for pool, size in held.items():
        peaks[pool] = max(size, peaks.get(pool, 0))
