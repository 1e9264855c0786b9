"""What the scheduler wants done. Imperatives; each that takes time has a completion event in ``events``."""

import enum
from dataclasses import dataclass

from juggler.errors import JugglerError
from juggler.ids import InstanceId, RequestId


class Mode(enum.Enum):
    """How a victim gives up its memory; fixed when the plan is made (scheduling.md section 10.2)."""

    UNLOAD = "unload"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a swap happened: kept in a bounded ring and logged."""

    at: float
    target: InstanceId | None
    """Who gets the memory; None when nobody asked for it (idle unload, operator, shutdown)."""
    victims: tuple[tuple[InstanceId, Mode], ...]
    cause: str
    """``request``, ``load``, ``operator``, ``idle``, ``shutdown``, ``unload failed``, ``unload refused``."""
    waiting: int = 0
    """Requests that wait for the target."""
    waited_s: float = 0.0
    """How long the oldest of them has waited."""


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
    """Answered by ``InstanceReady`` or ``StartFailed``, in the end by ``InstanceGone``."""

    instance: InstanceId
    generation: int


@dataclass(frozen=True, slots=True)
class AttachInstance:
    """Answered by ``InstanceReady`` or ``AttachMissed``; starts nothing and needs no memory."""

    instance: InstanceId
    generation: int


@dataclass(frozen=True, slots=True)
class WakeInstance:
    """Answered by ``InstanceReady`` or ``StartFailed``."""

    instance: InstanceId
    generation: int


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
class SetTimer:
    """Post ``TimerFired`` at this time; replaces the timer before it. None: no timer."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """Log this decision."""

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
    | ProbeBusy
    | OrderDone
    | SetTimer
    | Record
    | FinishShutdown
)
