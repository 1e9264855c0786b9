"""What the scheduler wants done. Imperatives; each that takes time has a completion event in ``events``."""

import enum
from dataclasses import dataclass, field

from juggler.errors import JugglerError
from juggler.ids import InstanceId, RequestId
from juggler.scheduler.ledger import Amounts


class Mode(enum.Enum):
    """How a victim gives up its memory; fixed when the plan is made (scheduling.md section 10.2)."""

    UNLOAD = "unload"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Considered:
    """One resident that might have had to go, as it looked when the decision was made."""

    instance: InstanceId
    free_in_s: float | None
    """Seconds until it might be taken; None: not at all."""
    cost: float
    """What taking it costs, in the weighted seconds of those who will want it back; above a million: it is in use."""
    why: str
    """Half a sentence: ``idle``, ``held for a client that may return``, ``pinned`` ..."""


@dataclass(slots=True)
class Decision:
    """Why a swap happened, and what came of it: kept in a bounded ring and logged."""

    number: int
    """Counts up from 1."""
    at: float
    target: InstanceId | None
    """Who gets the memory; None when nobody asked for it (idle unload, operator, shutdown)."""
    victims: tuple[tuple[InstanceId, Mode], ...]
    cause: str
    """``request``, ``operator``, ``idle``, ``reload``, ``shutdown``, ``let go``, ``abandoned``, ``unload failed``,
    ``unload refused``."""
    waiting: int = 0
    """Requests that wait for the target."""
    waited_s: float = 0.0
    """How long the oldest of them has waited."""
    client: str = ""
    """Who made the oldest of them."""
    request: RequestId | None = None
    missing: Amounts = field(default_factory=dict)
    """Bytes per pool that the target needs beyond what was free."""
    considered: tuple[Considered, ...] = ()
    expected_s: float = 0.0
    """How long freeing the memory and loading was expected to take."""
    took_s: float | None = None
    """How long it took; None while it lasts."""
    outcome: str = ""
    """``ready``, or what went wrong; empty while it lasts."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Hand the request to its instance; answered by ``RequestEnded``."""

    request: RequestId
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class Loaded:
    """A ``LOAD`` request got what it wanted."""

    request: RequestId
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer the request with this error."""

    request: RequestId
    error: JugglerError


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Answered by ``InstanceReady`` or ``StartFailed``, in the end by ``InstanceGone``; or only ``StartDeferred``."""

    instance: InstanceId
    generation: int
    placed: Amounts = field(default_factory=dict)
    """Bytes per pool that are kept free for it: where it is to be placed, and what must be seen free before."""


@dataclass(frozen=True, slots=True)
class AttachInstance:
    """Answered by ``InstanceReady`` or ``AttachMissed``; starts nothing and needs no memory."""

    instance: InstanceId
    generation: int


@dataclass(frozen=True, slots=True)
class WakeInstance:
    """Answered by ``InstanceReady``, ``StartFailed`` or ``StartDeferred``."""

    instance: InstanceId
    generation: int
    needed: Amounts = field(default_factory=dict)
    """Bytes per pool beyond what it holds already."""


@dataclass(frozen=True, slots=True)
class UnloadInstance:
    """Answered by ``InstanceUnloaded`` or ``UnloadFailed``."""

    instance: InstanceId
    generation: int


@dataclass(frozen=True, slots=True)
class StopInstance:
    """Answered by ``InstanceGone``."""

    instance: InstanceId
    generation: int


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Read the instance's files into the page cache while others still use the memory; answered by ``FilesSeen``.

    The engine ends it early when a load begins or the cache has no room.
    """

    instance: InstanceId


@dataclass(frozen=True, slots=True)
class MeasurePools:
    """Answered by ``PoolsMeasured``; asked for while somebody cannot be loaded because of foreign users."""


@dataclass(frozen=True, slots=True)
class ProbeBusy:
    """Answered by ``BusyProbed``."""

    instance: InstanceId
    generation: int


@dataclass(frozen=True, slots=True)
class OrderDone:
    """The operator's order is carried out, or can never be (``detail`` says why)."""

    order: int
    detail: str


@dataclass(frozen=True, slots=True)
class InstanceRetired:
    """Nothing runs of what a new configuration replaced or removed: have the next one looked after, or forget it."""

    instance: InstanceId
    replaced: bool


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Post ``TimerFired`` at this time; replaces the timer before it. None: no timer."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """Log this decision: when it is made, and again once its outcome is known."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class FinishShutdown:
    """Everything is gone; the program may end."""


Command = (
    Forward
    | Loaded
    | Reject
    | StartInstance
    | AttachInstance
    | WakeInstance
    | UnloadInstance
    | StopInstance
    | ReadAhead
    | MeasurePools
    | ProbeBusy
    | OrderDone
    | InstanceRetired
    | SetTimer
    | Record
    | FinishShutdown
)
