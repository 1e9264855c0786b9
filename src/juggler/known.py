"""What is known of the memory of one instance, and what its files tell of it."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.backends.base import Backend
from juggler.config.resolve import ResolvedInstance
from juggler.ids import PoolId
from juggler.memory.footprint import MemoryEstimate, Origin
from juggler.memory.learning import FootprintLearner, Phase
from juggler.memory.store import key_of
from juggler.scheduler.ledger import Amounts
from juggler.scheduler.state import Instance
from juggler.scheduler.transitions import LOADING, UP, Residency
from juggler.survey.threads import in_thread
from juggler.units import MIB, SECONDS

LOOK_LIMIT_S = 10 * SECONDS
"""For reading the heads of model files; what is not known by then is taken as unknown."""

FREED_SHARE = 0.75
"""Of the memory that an unload should free, this much must be seen to come back."""

UNLOADED_LEAST = 256 * MIB
"""An unload that should free less than this is not worth verifying: other programs move more."""

_log = logging.getLogger("juggler.memory")


@dataclass(slots=True)
class Known:
    """What is known of one instance."""

    backend: Backend
    config: ResolvedInstance
    key: str = ""
    """Of what is remembered of it; empty: its files could not be looked at in time, and nothing is remembered."""
    files: tuple[str, ...] = ()
    origin: Origin = Origin.UNKNOWN
    estimate: MemoryEstimate | None = None
    learner: FootprintLearner | None = None
    generation: int = 0
    """Whose samples the learner has."""
    warned: bool = False
    """It was said that it holds more than was declared."""
    outdated: bool = False
    """Its declared memory was changed while it was loaded: what it needs is decided anew when it has gone."""

    @property
    def shown(self) -> bool:
        """Whether what was seen is what it needs: not so before the first request of one that loads with it."""
        lazy = self.backend.capabilities.reload == "lazy"
        return self.learner is not None and (self.learner.worked or not lazy)

    async def look_at_files(self, devices: Sequence[str]) -> None:
        """Find its files, what they tell, and by which key it is remembered.

        Args:
            devices: Keys of the machine's pools: what was learned on another device does not count here.

        Raises:
            TimeoutError: It takes longer than ``LOOK_LIMIT_S``.
        """
        files, estimate = await in_thread(LOOK_LIMIT_S, _files_and_estimate, self.backend)
        self.files, self.estimate = tuple(str(file) for file in files), estimate
        self.key = await in_thread(LOOK_LIMIT_S, self._key, devices)

    def _key(self, devices: Sequence[str]) -> str:
        settings = self.config.settings
        argv = [settings.type, settings.binary or "", settings.attach_to or "", *settings.parameters]
        argv += [f"{name}={value}" for name, value in sorted(settings.env.items())]
        about = []
        for file in self.files:
            with contextlib.suppress(OSError):
                status = Path(file).stat()
                about.append((file, status.st_size, status.st_mtime_ns))
        return key_of(argv, about, devices)


def _files_and_estimate(backend: Backend) -> tuple[Sequence[Path], MemoryEstimate | None]:
    try:
        return backend.model_files(), backend.memory_estimate()
    except Exception:
        _log.exception("%s: the %s module failed to look at its files", backend.settings.instance, backend.type_name)
        return (), None


def phase_of(instance: Instance) -> Phase | None:
    """What samples of an instance tell of now; None: nothing."""
    if instance.residency in LOADING:
        return Phase.LOADING
    if instance.residency in UP:
        return Phase.RUNNING if instance.running else Phase.READY
    return Phase.UNLOADED if instance.residency is Residency.UNLOADED else None


def not_freed(before: Amounts, held: Mapping[PoolId, int], residue: Amounts) -> tuple[PoolId, int] | None:
    """The pool, and what is still held there, of which an unload has freed too little."""
    for pool, size in before.items():
        should = size - residue.get(pool, 0)
        if should < UNLOADED_LEAST or pool not in held:
            continue
        if size - held[pool] < FREED_SHARE * should:
            return pool, held[pool]
    return None
