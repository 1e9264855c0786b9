"""What the scheduler is told. Past participles; ``now`` is monotonic seconds."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from juggler.errors import BackendError
from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler.ledger import Amounts
from juggler.scheduler.policy import Policy

if TYPE_CHECKING:
    from juggler.scheduler.state import InstanceSpec


class Kind(enum.Enum):
    """What a request wants from an instance."""

    __hash__ = object.__hash__  # as for ``Residency``

    WORK = "work"
    """Be forwarded; load the instance if need be; count as in use until it ends."""

    LIGHT = "light"
    """Be forwarded if the instance answers now; wake nothing. In use only for a grace time."""

    HELD_OPEN = "held-open"
    """As LIGHT, and never in use."""

    LOAD = "load"
    """Have the instance loaded, as a warm-up or an operator does; nothing is forwarded."""


class OrderKind(enum.Enum):
    """What an operator may order."""

    UNLOAD = "unload"
    """Free the memory (softly where the backend can); requests that wait bring it back."""

    STOP = "stop"
    """End the process; requests that wait for it are refused."""

    RESTART = "restart"
    """End the process; requests that wait for it start it anew."""


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """Ends with exactly one of: ``Reject``, ``Loaded``, ``ClientLeft`` or, after ``Forward``, ``RequestEnded``."""

    now: float
    request: RequestId
    instance: InstanceId
    kind: Kind = Kind.WORK
    priority: int = 0
    """Larger is more urgent; negative is batch work."""
    max_wait_s: float = 60.0
    """From then on the request is due: it precedes whatever is not."""
    timeout_s: float = 1800.0
    """After this much waiting the request is refused."""
    client: str = ""
    """Who asks, as far as can be told: think times are learned per client and instance. Empty: nobody in particular."""
    own_limit: bool | None = None
    """``timeout_s`` is the request's own wish, not the operator's limit; None: not known."""


@dataclass(frozen=True, slots=True)
class ClientLeft:
    """The client went away: while queued, while loading, or at the very moment of the grant."""

    now: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class FirstByte:
    """The answer to a forwarded request has begun."""

    now: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A forwarded request is over, well or not."""

    now: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class StartDeferred:
    """A start or a wake was not begun: its memory is measured to be taken. The last word of a start's generation."""

    now: float
    instance: InstanceId
    generation: int
    foreign: Amounts
    """Bytes per pool that are taken and that no instance is known to hold; they count as taken from now on."""
    users: Mapping[PoolId, str]
    """Who holds them, in words: ``6 GiB by pid 4711 blender``."""


@dataclass(frozen=True, slots=True)
class PoolsMeasured:
    """What is taken of the pools by others, as measured; replaces what was known."""

    now: float
    foreign: Amounts
    users: Mapping[PoolId, str]


@dataclass(frozen=True, slots=True)
class PoolsFound:
    """The memory there is to share; before the first load only."""

    now: float
    capacity: Amounts
    """Bytes per pool."""


@dataclass(frozen=True, slots=True)
class FootprintExpected:
    """What an instance will need, as declared, learned in earlier runs, or estimated; before it is loaded."""

    now: float
    instance: InstanceId
    placements: tuple[Amounts, ...]
    """Bytes per pool while loaded, one entry for each way to place it; at least one."""
    unloaded: Amounts | None = None
    """Bytes per pool after a soft unload; None: nothing new."""
    whole: bool = False
    """Nothing is known: it takes whatever its pools have that others do not use."""
    sure: bool = True
    """Declared, or seen before; an estimate may be too small."""


@dataclass(frozen=True, slots=True)
class FootprintMeasured:
    """What an instance was seen to hold."""

    now: float
    instance: InstanceId
    footprint: Amounts
    """Bytes per pool while loaded."""
    unloaded: Amounts | None = None
    """Bytes per pool after a soft unload; None: nothing new."""


@dataclass(frozen=True, slots=True)
class FilesSeen:
    """How much of an instance's files is in the page cache; also the answer to ``ReadAhead``."""

    now: float
    instance: InstanceId
    share: float
    """0 to 1, by size."""
    size_bytes: int = 0
    """Of all its files; 0: not known."""
    finished: bool = False
    """A read-ahead is over, well or not."""


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """A start, an attach or a wake succeeded."""

    now: float
    instance: InstanceId
    generation: int
    attached: bool = False
    """Somebody else runs the server: it is never stopped."""
    soft_unload: bool | None = None
    """Whether it can free its memory and stay, where that is only known now; None: as the configuration says."""


@dataclass(frozen=True, slots=True)
class AttachOffered:
    """The server that the instance would attach to answers, and nobody asked for it yet."""

    now: float
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class AttachMissed:
    """There was nothing to attach to; the last word of its generation."""

    now: float
    instance: InstanceId
    generation: int
    error: BackendError


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A start or a wake failed; ``InstanceGone`` follows when the rest of the process is gone."""

    now: float
    instance: InstanceId
    generation: int
    error: BackendError


@dataclass(frozen=True, slots=True)
class InstanceUnloaded:
    """A soft unload was verified."""

    now: float
    instance: InstanceId
    generation: int


@dataclass(frozen=True, slots=True)
class UnloadFailed:
    """A soft unload did not happen; the ladder goes on to a stop, or names the attached server that holds on."""

    now: float
    instance: InstanceId
    generation: int
    detail: str = ""
    """Half a sentence: why."""


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The main process ended by itself; ``InstanceGone`` follows."""

    now: float
    instance: InstanceId
    generation: int
    error: BackendError


@dataclass(frozen=True, slots=True)
class InstanceGone:
    """Nothing is left of this generation: no process, no memory. Exactly one per ``StartInstance``."""

    now: float
    instance: InstanceId
    generation: int


@dataclass(frozen=True, slots=True)
class BusyProbed:
    """The backend's own word on whether it works on something that none of our requests shows."""

    now: float
    instance: InstanceId
    generation: int
    busy: bool


@dataclass(frozen=True, slots=True)
class OrderGiven:
    """The operator wants an instance unloaded or stopped; answered by ``OrderDone``."""

    now: float
    order: int
    instance: InstanceId
    kind: OrderKind


@dataclass(frozen=True, slots=True)
class InstancePinned:
    """The operator wants an instance never to be a victim, or no longer so; replaces what the configuration says."""

    now: float
    instance: InstanceId
    pinned: bool


@dataclass(frozen=True, slots=True)
class SwapsLocked:
    """The operator wants nothing that is loaded or loading to give way by itself, or that no longer."""

    now: float
    locked: bool


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The operator takes a waiting request out of its queue; nothing happens to one that runs or is over."""

    now: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class RequestPromoted:
    """The operator wants a waiting request served next, before all others."""

    now: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The configuration has changed. Instances that are not named stay as they are, and so do their requests."""

    now: float
    policy: Policy
    added: tuple["InstanceSpec", ...] = ()
    """New ones; one that is just on its way out because it was removed comes back when it has gone."""
    updated: tuple["InstanceSpec", ...] = ()
    """The same process under other rules, from now on."""
    replaced: tuple["InstanceSpec", ...] = ()
    """The process there is ends when its requests have; what waits, or comes meanwhile, is for the one that follows."""
    removed: tuple[InstanceId, ...] = ()
    """As ``replaced``, and nothing follows."""
    moved: Mapping[RequestId, InstanceId] = field(default_factory=dict)
    """Requests whose endpoint has another instance from now on; those of them that wait, wait there."""
    capacity: Amounts | None = None
    """Bytes per pool; None: as before."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time last asked for by ``SetTimer`` has come."""

    now: float


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """Take no more work, let running requests end until ``drain_until``, then stop everything."""

    now: float
    drain_until: float


Event = (
    RequestArrived
    | ClientLeft
    | FirstByte
    | RequestEnded
    | StartDeferred
    | PoolsMeasured
    | PoolsFound
    | FootprintExpected
    | FootprintMeasured
    | FilesSeen
    | InstanceReady
    | AttachOffered
    | AttachMissed
    | StartFailed
    | InstanceUnloaded
    | UnloadFailed
    | ProcessExited
    | InstanceGone
    | BusyProbed
    | OrderGiven
    | InstancePinned
    | SwapsLocked
    | RequestCancelled
    | RequestPromoted
    | Reconfigured
    | TimerFired
    | ShutdownRequested
)
