"""The seam to processes: all the rest knows of operating systems and machines.

Everything above sees only this contract, so that the same can be served on another machine later. Hence: only
plain data crosses, ids are made by the caller, starting a known id returns the same handle, every call has a time
limit, a call may fail or succeed twice, and an instance is addressed by what its handle reports, never by an
assumed ``localhost``. No pid, signal number, ``Popen`` or ``/proc`` appears above it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from juggler.backends.base import Address, LaunchPlan, StopStep
from juggler.ids import PoolId
from juggler.lifecycle.output import Stream, Subscriber
from juggler.lifecycle.page_cache import FileCache

LOCAL_NODE = "local"
"""Memory is keyed by (node, pool); this is the only node so far."""


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a main process ended."""

    status: int
    """Exit status, or minus the signal number."""
    runtime_s: float

    def __str__(self) -> str:
        return f"exit status {self.status}" if self.status >= 0 else f"killed by signal {-self.status}"


@dataclass(frozen=True, slots=True)
class LaunchInfo:
    """What ``describe`` tells about one launch."""

    launch_id: str
    node: str
    address: Address
    alive: bool
    exit: ExitReport | None


@dataclass(frozen=True, slots=True)
class MemoryPool:
    """Memory of a node that processes share: a GPU's, or main memory."""

    pool: PoolId
    name: str
    """For people: ``NVIDIA H100 80GB HBM3``."""
    total_bytes: int
    key: str = ""
    """Tells this device with its driver from others: what was learned on one does not hold for another."""
    placement: Mapping[str, str] = field(default_factory=dict)
    """Environment that makes a program use this device alone; empty: there is none."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """What ``pools`` found."""

    pools: tuple[MemoryPool, ...] = ()
    troubles: tuple[str, ...] = ()
    """Drivers that do not answer and the like, one sentence each."""


@dataclass(frozen=True, slots=True)
class PoolUse:
    """One pool at one moment."""

    total_bytes: int
    free_bytes: int
    launches: Mapping[str, int] | None
    """Bytes per launch, its descendants included; None: this node does not tell per process."""
    others: tuple[tuple[str, int], ...] = ()
    """Programs that were not launched from here, the largest first: ``("pid 4711 blender", bytes)``."""


class LaunchHandle(Protocol):
    """One started process with everything it spawned."""

    @property
    def launch_id(self) -> str: ...

    @property
    def address(self) -> Address: ...

    @property
    def exit(self) -> ExitReport | None:
        """Set as soon as the main process has ended; never blocks."""
        ...

    async def wait(self) -> ExitReport:
        """Until the main process has ended; any number of waiters, cancelling one harms nobody."""
        ...

    async def signal(self, name: str) -> None:
        """Send ``"SIGTERM"`` (or another name) to the whole group; nothing happens if it is gone."""
        ...

    async def stop(self, ladder: Sequence[StopStep] | None = None) -> ExitReport:
        """Walk the ladder (default: the plan's), then SIGKILL group and descendants; returns when none is left.

        Bounded by the sum of the grace times plus 5 s. Idempotent; concurrent callers share one stop.
        """
        ...

    async def kill(self) -> ExitReport:
        """SIGKILL at once, also in the middle of a ``stop``; returns when nothing is left."""
        ...

    def output(self, lines: int = 20) -> list[str]:
        """The last lines of stdout and stderr together, oldest first, decoded, without line ends; bounded."""
        ...

    def subscribe(self, callback: Subscriber, *, replay: bool = False) -> Callable[[], None]:
        """Call ``callback`` with the stream and the text of each complete line from now on; returns the way to end it.

        ``replay`` passes on first what is kept of what came before. Escape sequences are in the text.
        """
        ...

    def begun(self) -> Sequence[tuple[Stream, str]]:
        """Lines whose end has not come yet."""
        ...


class Launcher(Protocol):
    """Starts and keeps processes on one or more nodes."""

    async def reserve(self) -> Address:
        """An address that was free a moment ago (bind-tested on loopback)."""
        ...

    async def start(self, launch_id: str, plan: LaunchPlan, address: Address) -> LaunchHandle:
        """Start the plan; a known ``launch_id`` whose process lives returns the same handle.

        Raises:
            StartFailed: The command cannot be executed (missing, not executable, bad directory).
        """
        ...

    async def describe(self, launch_id: str) -> LaunchInfo | None: ...

    async def memory(self, launch_id: str) -> Mapping[str, int]:
        """Bytes held now by the launch, per kind (``rss``); empty where nothing can be measured."""
        ...

    async def pools(self) -> MachineMemory:
        """The memory there is. Bounded, never raises; the first call may take seconds, later ones do not."""
        ...

    async def measure(self) -> Mapping[PoolId, PoolUse]:
        """What of it is in use now; pools that cannot be measured are left out. Bounded, never raises."""
        ...

    async def cached(self, files: Sequence[str]) -> Sequence[FileCache]:
        """How much of each file is in the page cache; what does not exist is left out."""
        ...

    async def prefetch(self, files: Sequence[str], limit_bytes: int) -> int:
        """Read files into the page cache; returns bytes read. May be a no-op (returns 0)."""
        ...

    async def close(self) -> None:
        """Kill whatever still runs and release every resource."""
        ...
