"""The scheduler's whole memory: plain data, changed only by ``core`` and ``decide``."""

import enum
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from juggler.errors import BackendError
from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler.commands import Command, Decision, Mode
from juggler.scheduler.estimates import Estimates
from juggler.scheduler.events import Event, OrderKind
from juggler.scheduler.ledger import NOTHING, Amounts, Ledger, greater, reduced, shortage
from juggler.scheduler.policy import Policy
from juggler.scheduler.queue import Gate, RequestQueue, Total, Waiting
from juggler.scheduler.transitions import GONE, LOADABLE, UP, Move, Residency, next_residency

Told = Event | Waiting | tuple[str, RequestId, float, float | None]
"""What the story is made of: events, and the short way's stand-ins for them, which cost less: what arrived, and
("ended", request, when, when its answer began)."""

STORY_LENGTH = 200
"""Events kept with their commands, to explain an impossible move."""

DECISIONS_KEPT = 256

HOLDS_NOTHING_LONG = GONE | {Residency.ATTACHING, Residency.STOPPING}
"""Holds no memory, or not for long."""

CLIENTS_KEPT = 4096
"""Clients whose return is awaited somewhere; the longest unseen is forgotten."""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What the configuration says of one instance; never changes while it exists."""

    id: InstanceId
    name: str
    """The operator's name, for error texts."""
    footprint: Amounts
    """Bytes held per pool while loaded, as far as known when it is made; what is learned later is the instance's."""
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
    placements: tuple[Amounts, ...] = ()
    """Other ways to place it on the pools; empty: ``footprint`` is the only one."""
    whole: bool = False
    """``footprint`` is a guess: all that its pools have."""
    loads_alone: bool = False
    """Nobody else may load on its pools meanwhile: llama.cpp may fit itself into what is free at its start, vLLM fails
    when others change the memory while it profiles (backends.md 2.5, 7.1)."""
    sure: bool = True
    """``footprint`` was declared or measured; an estimate may be too small."""
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


@dataclass(frozen=True, slots=True)
class Retirement:
    """What becomes of an instance that a new configuration has replaced or removed, once nothing of it runs."""

    successor: InstanceSpec | None
    """Takes its place and its queue; None: it is forgotten."""


@dataclass(slots=True)
class Order:
    """An operator's order that waits for running requests to end. ``ids`` are those to be told when it is done."""

    kind: OrderKind
    ids: list[int]
    retirement: Retirement | None = None
    """It comes from a new configuration, and stands whatever else is ordered."""


class Instance:
    """One instance as the scheduler sees it."""

    __slots__ = (
        "attach_tried",
        "attached",
        "busy_seen_at",
        "cached",
        "cached_at_start",
        "carried",
        "dying",
        "estimates",
        "failure",
        "failures",
        "full",
        "gate",
        "generation",
        "grown",
        "holds_on",
        "holds_on_until",
        "idle_since",
        "kept",
        "last_used",
        "light",
        "load_began_at",
        "loaded_at",
        "order",
        "order_given_at",
        "out_of_memory",
        "pin",
        "placements",
        "probe",
        "probed_at",
        "queue",
        "read_ahead",
        "read_whole",
        "ready_at",
        "residency",
        "residue",
        "retry_at",
        "running",
        "soft_unload",
        "spec",
        "sure",
        "swap",
        "unwanted_since",
        "whole",
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
        self.loaded_at = 0.0
        """When its model came into memory last: conversations older than that are processed anew."""
        self.load_began_at = 0.0
        """When that load was ordered."""
        self.grown = False
        """Seen to hold more than it was let in with."""
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
        self.full: Amounts = spec.footprint
        """Bytes per pool while loaded, where it is or would be placed; the best that is known."""
        self.kept: Amounts = spec.footprint_kept
        """What it counts for as an attached server that cannot free anything."""
        self.residue: Amounts = spec.footprint_unloaded
        """Bytes per pool after a soft unload."""
        self.placements: tuple[Amounts, ...] = spec.placements or (spec.footprint,)
        """The ways in which it can be placed."""
        self.sure = spec.sure
        """Its footprint can be relied on."""
        self.whole = spec.whole
        """Its footprint is not known: it takes what its pools have and others do not use."""
        self.cached: float | None = None
        """Share of its files in the page cache, as seen last."""
        self.cached_at_start: float | None = None
        self.read_ahead = False
        """Its files were asked to be read, and their share in the page cache has not changed since."""
        self.read_whole = False
        """A reading ahead was carried through since it was loaded last."""
        self.out_of_memory = 0
        """Starts in a row that ran out of memory."""
        self.unwanted_since: float | None = None
        """Since when nobody waits for the start under way."""
        self.carried = (0, 0)
        """How many ran and waited when a new configuration lowered the limits, or brought more here than they allow."""
        self.pin: bool | None = None
        """The operator's word on ``pinned``; None: as the configuration says."""
        self.swap: Decision | None = None
        """The decision that its start under way came from."""

    @property
    def id(self) -> InstanceId:
        return self.spec.id

    @property
    def up(self) -> bool:
        return self.residency in UP

    @property
    def retirement(self) -> Retirement | None:
        """Set once a new configuration has replaced or removed it."""
        return self.order.retirement if self.order is not None else None

    @property
    def pinned(self) -> bool:
        """It is never a victim."""
        return self.spec.pinned if self.pin is None else self.pin

    @property
    def loads_alone(self) -> bool:
        """Whether loads on its pools must wait for its own, and it for theirs."""
        return self.spec.loads_alone or not self.sure

    @property
    def unused(self) -> bool:
        """Nothing runs and nobody waits."""
        return not self.running and not len(self.queue)

    @property
    def yields(self) -> bool:
        """Whether its memory can be had at all."""
        return self.soft_unload or not self.attached

    @property
    def works_by_its_own_word(self) -> bool:
        """The backend said last that it works although none of our requests runs; that holds while it is asked anew."""
        if self.probe is Probe.ASKED:
            return self.idle_since is not None and self.busy_seen_at > self.idle_since
        return self.probe is Probe.BUSY

    @property
    def footprint(self) -> Amounts:
        """Bytes held per pool while loaded."""
        return self.full if self.yields else self.kept

    def need(self) -> Amounts:
        """What a load would add to what is held now."""
        return reduced(self.full, self.residue) if self.residency is Residency.UNLOADED else self.full

    def stays(self) -> Amounts:
        """What it goes on holding, whoever wants it: nothing, unless it is pinned or somebody else's."""
        if self.residency in HOLDS_NOTHING_LONG or not (self.pinned or self.attached):
            return NOTHING
        asleep = self.residency in (Residency.UNLOADING, Residency.UNLOADED)
        return self.residue if self.yields and (asleep or not self.pinned) else self.footprint

    def ways_to_load(self) -> tuple[Amounts, ...]:
        """The placements that a load can choose from."""
        return (self.full,) if self.residency is Residency.UNLOADED else self.placements

    def freed_by(self, mode: Mode) -> Amounts:
        """What giving way in this mode would free."""
        if self.residency in GONE or not self.yields:
            return NOTHING
        if self.residency is Residency.UNLOADED:
            return self.residue
        if mode is Mode.UNLOAD or self.attached:
            return reduced(self.full, self.residue)
        return self.full

    def load_s(self) -> float:
        """Expected seconds until it could serve, from where it is now."""
        if self.residency is Residency.UNLOADED:
            return self.estimates.wake.value
        return self.estimates.load_s(self.cached)

    def free_s(self) -> float:
        """Expected seconds until its memory is free."""
        return self.estimates.unload.value if self.soft_unload else self.estimates.stop.value

    def reload_s(self) -> float:
        """Expected seconds to bring it back after it gave way."""
        return self.estimates.wake.value if self.soft_unload else self.estimates.reload_s(self.cached)


@dataclass(slots=True)
class Plan:
    """A swap under way: ``victims`` were told to go, or go anyway; ``target`` loads when they are gone."""

    target: InstanceId
    victims: tuple[tuple[InstanceId, Mode], ...]
    made_at: float
    decision: Decision | None = None
    """What was recorded of it."""


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
        self.locked = False
        """Nothing that is loaded or loading gives way, unless the operator orders it by name."""
        self.drain_until: float | None = None
        self.finished = False
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_KEPT)
        self.decisions_made = 0
        self.users: dict[PoolId, str] = {}
        """Who holds the foreign memory, in words."""
        self.measured_at = -math.inf
        """When the foreign memory was measured last."""
        self.measuring = False
        """An answer to ``MeasurePools`` is awaited."""
        self.reading: InstanceId | None = None
        """Whose files are being read ahead."""
        self._may_return: OrderedDict[str, set[InstanceId]] = OrderedDict()
        self.story: deque[tuple[int, Told, tuple[Command, ...]]] = deque(maxlen=STORY_LENGTH)
        self.events_handled = 0
        self.on_move: Callable[[Instance, Move, float], None] | None = None
        """Told of every move, after it was made; must be quick, and never raise."""

    def add(self, spec: InstanceSpec) -> None:
        """One more instance."""
        self.instances[spec.id] = Instance(spec, self.policy, self.total)

    def replace(self, instance: Instance, spec: InstanceSpec) -> None:
        """Another instance by the same name, which takes over the queue. Nothing of the one before runs."""
        fresh = Instance(spec, self.policy, self.total)
        fresh.generation, fresh.queue = instance.generation, instance.queue
        fresh.pin, fresh.carried = instance.pin, (0, max(len(instance.queue), instance.carried[1]))
        self.instances[spec.id] = fresh
        self.fit_the_unknown(fresh)

    def forget(self, instance: Instance) -> None:
        """An instance is no more. Nothing of it runs, and nobody waits for it."""
        del self.instances[instance.id]
        for plan in self.plans.values():
            plan.victims = tuple(one for one in plan.victims if one[0] != instance.id)
        for awaited in self._may_return.values():
            awaited.discard(instance.id)

    def move(self, instance: Instance, move: Move, now: float) -> None:
        """Make a move of the table and bring the ledger and the derived fields along.

        Raises:
            InvalidTransition: The table has no such move; nothing is changed.
        """
        residency = next_residency(instance.residency, move)
        instance.residency = residency
        if residency in GONE:
            self.ledger.hold(instance.id, NOTHING)
            instance.grown = False
            instance.attached, instance.soft_unload = False, instance.spec.soft_unload
        elif residency is Residency.UNLOADED:
            self.ledger.hold(instance.id, instance.residue)
        elif residency in (Residency.STARTING, Residency.READY):
            self.ledger.hold(instance.id, instance.footprint)
        elif residency in (Residency.UNLOADING, Residency.WAKING):
            self.ledger.hold(instance.id, greater(instance.full, instance.residue))
        if residency is not Residency.DRAINING:
            instance.gate = None
        if residency not in UP:
            instance.idle_since = None
            instance.probe = Probe.UNKNOWN
        if move in (Move.START, Move.ATTACH, Move.WAKE, Move.UNLOAD, Move.STOP):
            instance.order_given_at = now
        if self.on_move is not None:
            self.on_move(instance, move, now)

    def decided(
        self,
        at: float,
        target: InstanceId | None,
        victims: tuple[tuple[InstanceId, Mode], ...],
        cause: str,
        **more: Any,
    ) -> Decision:
        """A new decision, kept in the ring; ``more`` are further fields of it."""
        self.decisions_made += 1
        decision = Decision(self.decisions_made, at, target, victims, cause, **more)
        self.decisions.append(decision)
        return decision

    def client_asked(self, client: str, instance: Instance, now: float) -> None:
        """A client's next request: learn how long it thought."""
        if client:
            instance.estimates.think.asked(client, now)
            awaited = self._may_return.get(client)
            if awaited is not None:
                awaited.discard(instance.id)

    def client_answered(self, waiting: Waiting, now: float) -> None:
        """An answer: the client may come back here, and did not come back where it was answered before it asked."""
        client = waiting.client
        if not client:
            return
        awaited = self._may_return.get(client)
        if awaited is None:
            awaited = self._may_return[client] = set()
        else:
            self._may_return.move_to_end(client)
        for elsewhere in [one for one in awaited if one != waiting.instance] if awaited else ():
            if self.instances[elsewhere].estimates.think.answered_elsewhere(client, waiting.arrived_at):
                awaited.discard(elsewhere)
        awaited.add(waiting.instance)
        self.instances[waiting.instance].estimates.think.answered(client, now)
        while len(self._may_return) > CLIENTS_KEPT:
            self._may_return.popitem(last=False)

    def expect(
        self, instance: Instance, placements: tuple[Amounts, ...], residue: Amounts | None, *, whole: bool, sure: bool
    ) -> None:
        """What a stopped instance will need."""
        instance.placements, instance.full = placements, placements[0]
        instance.whole, instance.sure = whole, sure
        instance.kept = instance.full if instance.spec.footprint_kept else NOTHING
        if residue is not None:
            instance.residue = residue
        self.fit_the_unknown(instance)

    def fit_the_unknown(self, instance: Instance) -> None:
        """One of which nothing is known gets along with what others leave of its pools."""
        if not instance.whole or instance.residency not in GONE:
            return
        capacity, foreign = self.ledger.capacity, self.ledger.foreign
        instance.placements = tuple(
            {pool: max(0, capacity.get(pool, 0) - foreign.get(pool, 0)) for pool in way} for way in instance.placements
        )
        instance.full = instance.placements[0]

    def measure(self, instance: Instance, footprint: Amounts, residue: Amounts | None) -> None:
        """What the instance was seen to hold replaces what was believed, in the ledger too; never above a pool."""
        capacity = self.ledger.capacity
        seen = {pool: min(size, capacity[pool]) for pool, size in footprint.items() if pool in capacity}
        if residue is not None:
            instance.residue = {pool: min(size, capacity[pool]) for pool, size in residue.items() if pool in capacity}
        if seen:
            instance.whole, instance.sure = False, True
            instance.grown = instance.grown or bool(shortage(seen, self.ledger.held(instance.id)))
            place = set(instance.full)
            if any(size for pool, size in seen.items() if pool not in place):
                instance.placements = (seen,)  # it does not keep to its place
            instance.placements = tuple(_as_seen(way, seen) for way in instance.placements)
            instance.full = next((way for way in instance.placements if set(way) == place), seen)
        self._hold_anew(instance)

    def keep(self, instance: Instance, kept: Amounts) -> None:
        """What one that is up counts for if it turns out to be somebody else's, and cannot free anything."""
        instance.kept = kept
        if not instance.yields:
            instance.grown = instance.grown or bool(shortage(kept, self.ledger.held(instance.id)))
            self._hold_anew(instance)

    def _hold_anew(self, instance: Instance) -> None:
        if instance.residency is Residency.UNLOADED:
            self.ledger.hold(instance.id, instance.residue)
        elif instance.residency in (Residency.STARTING, Residency.READY, Residency.DRAINING):
            self.ledger.hold(instance.id, instance.footprint)
        elif instance.residency in (Residency.UNLOADING, Residency.WAKING):
            self.ledger.hold(instance.id, greater(instance.full, instance.residue))

    def residue_fits(self, instance: Instance) -> bool:
        """Whether a soft unload has room for what it moves elsewhere (weights into host memory, say)."""
        growth = reduced(instance.residue, instance.full)
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
            return reduced(held, instance.residue)
        return NOTHING

    def lasting(self, besides: Instance | None = None) -> Amounts:
        """What can be had of the pools at all, however long one waits."""
        left = self.ledger.capacity
        for other in self.instances.values():
            if other is not besides and (stays := other.stays()):
                left = reduced(left, stays)
        return left

    def claimed(self) -> dict[InstanceId, Amounts]:
        """Free memory that plans under way count on: the target's need, less what its victims still hold."""
        claims: dict[InstanceId, Amounts] = {}
        for plan in self.plans.values():
            target = self.instances[plan.target]
            if target.residency not in LOADABLE:
                continue
            claim = {pool: size for pool, size in target.need().items() if size}
            for victim_id, _ in plan.victims:
                claim = reduced(claim, self.on_its_way(self.instances[victim_id]))
            claims[plan.target] = claim
        return claims


def _as_seen(way: Amounts, seen: Amounts) -> Amounts:
    """A placement with the sizes that were seen, perhaps at another placement (the same on another GPU)."""
    here = [pool for pool in way if pool not in seen]
    there = [pool for pool in seen if pool not in way]
    if not here:
        return {**dict.fromkeys(way, 0), **seen} if not there else way
    if len(here) == len(there) == 1:
        return {pool: seen[there[0]] if pool == here[0] else seen[pool] for pool in way}
    return way
