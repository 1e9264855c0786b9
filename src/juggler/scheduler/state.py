"""The scheduler's whole memory: plain data, changed only by ``core`` and ``decide``."""

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from juggler.errors import BackendError
from juggler.ids import InstanceId, RequestId
from juggler.scheduler.commands import Command, Decision, Mode
from juggler.scheduler.estimates import Estimates
from juggler.scheduler.events import Event, OrderKind
from juggler.scheduler.ledger import NOTHING, Amounts, Ledger, greater, reduced, shortage
from juggler.scheduler.policy import Policy
from juggler.scheduler.queue import Gate, RequestQueue, Total, Waiting
from juggler.scheduler.transitions import GONE, LOADABLE, UP, Move, Residency, next_residency

STORY_LENGTH = 200
"""Events kept with their commands, to explain an impossible move."""

DECISIONS_KEPT = 256


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What the configuration says of one instance; never changes while it exists."""

    id: InstanceId
    name: str
    """The operator's name, for error texts."""
    footprint: Amounts
    """Bytes held per pool while loaded."""
    footprint_unloaded: Amounts = field(default_factory=dict)
    """Bytes held per pool after a soft unload: small, but the process may keep some."""
    slots: int = 64
    """Requests forwarded at the same time; the rest waits here, where it can still be reordered."""
    queue_limit: int = 512
    """Requests that may wait."""
    soft_unload: bool = False
    attaches: bool = False
    """A server that runs already is used before one is started."""
    starts: bool = True
    """A process can be started for it."""
    footprint_kept: Amounts = field(default_factory=dict)
    """Bytes that an attached server counts for which cannot free any: what was declared, else nothing."""
    pinned: bool = False
    """Never a victim."""
    probes_busy: bool = False
    """The backend must be asked before its memory is taken: work may outlive its request."""
    answers_when_unloaded: bool = False
    idle_unload_s: float | None = None
    """Unload after this long without work; None: never."""


class Probe(enum.Enum):
    """What is known of the backend's own business since the last of our requests ended."""

    UNKNOWN = "unknown"
    ASKED = "asked"
    BUSY = "busy"
    IDLE = "idle"


@dataclass(slots=True)
class Order:
    """An operator's order that waits for running requests to end. ``ids`` are those to be told when it is done."""

    kind: OrderKind
    ids: list[int]


class Instance:
    """One instance as the scheduler sees it."""

    __slots__ = (
        "attach_tried",
        "attached",
        "busy_seen_at",
        "dying",
        "estimates",
        "failure",
        "failures",
        "gate",
        "generation",
        "holds_on",
        "holds_on_until",
        "idle_since",
        "last_used",
        "light",
        "order",
        "order_given_at",
        "probe",
        "probed_at",
        "queue",
        "ready_at",
        "residency",
        "retry_at",
        "running",
        "soft_unload",
        "spec",
    )

    def __init__(self, spec: InstanceSpec, policy: Policy, total: Total) -> None:
        self.spec = spec
        self.residency = Residency.STOPPED
        self.generation = 0
        """Counts starts; reports of an older generation are stale."""
        self.queue = RequestQueue(total)
        self.attached = False
        """The server is somebody else's."""
        self.attach_tried = False
        """For the requests that wait now there was nothing to attach to."""
        self.soft_unload = spec.soft_unload
        """Whether the server that runs now can free its memory and stay."""
        self.holds_on = ""
        """Why an attached server did not free its memory when it was asked last."""
        self.holds_on_until = 0.0
        """It is not asked again before."""
        self.running: dict[RequestId, Waiting] = {}
        """Work in flight. Survives the process by a moment when that dies."""
        self.light: dict[RequestId, Waiting] = {}
        """Light and held-open exchanges in flight; they hold no memory beyond a grace time."""
        self.gate: Gate | None = None
        """Set exactly while draining."""
        self.ready_at = 0.0
        self.idle_since: float | None = None
        """When the last work ended; None while there is work, or while not up."""
        self.last_used = 0.0
        self.probe = Probe.UNKNOWN
        self.probed_at = 0.0
        self.busy_seen_at = 0.0
        """When the backend said last that it works although none of our requests runs."""
        self.order: Order | None = None
        self.order_given_at = 0.0
        """When the start, wake, unload or stop under way was ordered (for learning its time)."""
        self.failures = 0
        """Failed starts and early exits in a row."""
        self.retry_at = 0.0
        """No start before this time."""
        self.dying = False
        """The process under way to ``gone`` failed; it was not stopped by us."""
        self.failure: BackendError | None = None
        """What the last failure was; cleared when the instance is ready again."""
        self.estimates = Estimates(policy)

    @property
    def id(self) -> InstanceId:
        return self.spec.id

    @property
    def up(self) -> bool:
        return self.residency in UP

    @property
    def unused(self) -> bool:
        """Nothing runs and nobody waits."""
        return not self.running and not len(self.queue)

    @property
    def yields(self) -> bool:
        """Whether its memory can be had at all."""
        return self.soft_unload or not self.attached

    @property
    def footprint(self) -> Amounts:
        """Bytes held per pool while loaded."""
        return self.spec.footprint if self.yields else self.spec.footprint_kept

    def need(self) -> Amounts:
        """What a load would add to what is held now."""
        if self.residency is Residency.UNLOADED:
            return reduced(self.spec.footprint, self.spec.footprint_unloaded)
        return self.spec.footprint

    def freed_by(self, mode: Mode) -> Amounts:
        """What giving way in this mode would free."""
        if self.residency in GONE or not self.yields:
            return NOTHING
        if self.residency is Residency.UNLOADED:
            return self.spec.footprint_unloaded
        if mode is Mode.UNLOAD or self.attached:
            return reduced(self.spec.footprint, self.spec.footprint_unloaded)
        return self.spec.footprint

    def load_s(self) -> float:
        """Expected seconds until it could serve, from where it is now."""
        if self.residency is Residency.UNLOADED:
            return self.estimates.wake.value
        return self.estimates.load.value

    def free_s(self) -> float:
        """Expected seconds until its memory is free."""
        return self.estimates.unload.value if self.soft_unload else self.estimates.stop.value

    def reload_s(self) -> float:
        """Expected seconds to bring it back after it gave way."""
        return self.estimates.wake.value if self.soft_unload else self.estimates.load.value


@dataclass(slots=True)
class Plan:
    """A swap under way: ``victims`` were told to go, or go anyway; ``target`` loads when they are gone."""

    target: InstanceId
    victims: tuple[tuple[InstanceId, Mode], ...]
    made_at: float


class SchedulerState:
    """All instances, the ledger, and the swaps under way."""

    def __init__(self, specs: Iterable[InstanceSpec], capacity: Amounts, policy: Policy) -> None:
        self.policy = policy
        self.total = Total()
        self.instances: dict[InstanceId, Instance] = {spec.id: Instance(spec, policy, self.total) for spec in specs}
        self.ledger = Ledger(capacity)
        self.plans: dict[InstanceId, Plan] = {}
        self.requests: dict[RequestId, Waiting] = {}
        """Every request that is neither answered nor ended."""
        self.timer_at: float | None = None
        """The timer as last set."""
        self.shutting_down = False
        self.drain_until: float | None = None
        self.finished = False
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_KEPT)
        self.story: deque[tuple[int, Event, tuple[Command, ...]]] = deque(maxlen=STORY_LENGTH)
        self.events_handled = 0

    def move(self, instance: Instance, move: Move, now: float) -> None:
        """Make a move of the table and bring the ledger and the derived fields along.

        Raises:
            InvalidTransition: The table has no such move; nothing is changed.
        """
        residency = next_residency(instance.residency, move)
        instance.residency = residency
        if residency in GONE:
            self.ledger.hold(instance.id, NOTHING)
            instance.attached, instance.soft_unload = False, instance.spec.soft_unload
        elif residency is Residency.UNLOADED:
            self.ledger.hold(instance.id, instance.spec.footprint_unloaded)
        elif residency in (Residency.STARTING, Residency.READY):
            self.ledger.hold(instance.id, instance.footprint)
        elif residency in (Residency.UNLOADING, Residency.WAKING):
            self.ledger.hold(instance.id, greater(instance.spec.footprint, instance.spec.footprint_unloaded))
        if residency is not Residency.DRAINING:
            instance.gate = None
        if residency not in UP:
            instance.idle_since = None
            instance.probe = Probe.UNKNOWN
        if move in (Move.START, Move.ATTACH, Move.WAKE, Move.UNLOAD, Move.STOP):
            instance.order_given_at = now

    def residue_fits(self, instance: Instance) -> bool:
        """Whether a soft unload has room for what it moves elsewhere (weights into host memory, say)."""
        growth = reduced(instance.spec.footprint_unloaded, instance.spec.footprint)
        return not shortage({pool: size for pool, size in growth.items() if size}, self.ledger.free())

    def overcommitted(self, instance: Instance) -> bool:
        """Whether a pool of the instance holds more than it has: somebody attached came on top."""
        free = self.ledger.free()
        return any(size and free.get(pool, 0) < 0 for pool, size in instance.footprint.items())

    def on_its_way(self, instance: Instance) -> Amounts:
        """What comes free when an instance that is told to go has gone."""
        held = self.ledger.held(instance.id)
        if instance.residency is Residency.STOPPING:
            return held
        if instance.residency is Residency.UNLOADING:
            return reduced(held, instance.spec.footprint_unloaded)
        return NOTHING

    def claimed(self) -> dict[InstanceId, Amounts]:
        """Free memory that plans under way count on: the target's need, less what its victims still hold."""
        claims: dict[InstanceId, Amounts] = {}
        for plan in self.plans.values():
            target = self.instances[plan.target]
            if target.residency not in LOADABLE:
                continue
            claim = dict(target.need())
            for victim_id, _ in plan.victims:
                claim = reduced(claim, self.on_its_way(self.instances[victim_id]))
            claims[plan.target] = claim
        return claims
