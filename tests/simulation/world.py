"""A seeded world around the scheduler: processes that take random times, fail, crash and stop slowly."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from juggler.errors import AttachFailed, BackendExited
from juggler.errors import StartFailed as StartFailedError
from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.core import Scheduler
from juggler.scheduler.invariants import check
from juggler.scheduler.policy import Policy
from juggler.scheduler.state import InstanceSpec


@dataclass(frozen=True)
class Nature:
    """How this world behaves: seconds as (least, most), chances per occasion."""

    load_s: tuple[float, float] = (0.5, 5.0)
    wake_s: tuple[float, float] = (0.1, 1.0)
    unload_s: tuple[float, float] = (0.1, 1.0)
    stop_s: tuple[float, float] = (0.05, 8.0)
    service_s: tuple[float, float] = (0.1, 4.0)
    start_fails: float = 0.05
    wake_fails: float = 0.05
    unload_fails: float = 0.1
    busy_chance: float = 0.2
    attach_s: tuple[float, float] = (0.001, 1.0)
    there_chance: float = 0.6
    """That a server to attach to is there when somebody looks."""


@dataclass
class Outcome:
    """What became of one request."""

    arrived_at: float
    instance: InstanceId
    kind: e.Kind
    answers: list[str] = field(default_factory=list)
    forwarded_at: float | None = None


class World:
    """Runs a scheduler against random processes; checks the invariants after every event."""

    def __init__(
        self,
        seed: int,
        specs: list[InstanceSpec],
        capacity: dict[PoolId, int],
        nature: Nature | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.nature = nature or Nature()
        self.scheduler = Scheduler(specs, capacity, policy)
        self.now = 0.0
        self.log: list[str] = []
        self.requests: dict[RequestId, Outcome] = {}
        self.orders: dict[int, str | None] = {}
        self.counts: Counter[str] = Counter()
        self.alive: dict[InstanceId, int] = {}
        """Generation of each process that exists, for crossing reports and crashes."""
        self.loads_seen: dict[InstanceId, int] = {}
        self.theirs: set[InstanceId] = set()
        """Attached at the moment: not ours to stop."""
        self._going: set[InstanceId] = set()
        """Processes whose end is on the agenda."""
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()
        self._ids = itertools.count(1)
        self._timer: float | None = None
        self.shut_down = False
        self.foreign: dict[PoolId, int] = {}
        """What other programs really hold."""
        self.on_forward: Callable[[RequestId], None] = lambda request: None
        self.on_answer: Callable[[RequestId], None] = lambda request: None

    # -- driving -----------------------------------------------------------------------------------------------

    def at(self, delay_s: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._agenda, (self.now + delay_s, next(self._sequence), what))

    def run(self, until: float) -> None:
        """Let time pass; the scheduler's timer is one more thing on the agenda."""
        while True:
            next_at = self._agenda[0][0] if self._agenda else float("inf")
            if self._timer is not None and self._timer <= next_at:
                if self._timer > until:
                    break
                self.now, self._timer = max(self.now, self._timer), None
                self.post(e.TimerFired(self.now))
                continue
            if next_at > until:
                break
            self.now, _, what = heapq.heappop(self._agenda)
            what()
        self.now = until

    def post(self, event: e.Event) -> None:
        commands = self.scheduler.handle(event)
        self.log.append(f"{self.now:.6f} {event} -> {commands}")
        check(self.scheduler.state)
        for command in commands:
            getattr(self, f"_do_{type(command).__name__}")(command)

    # -- what clients and operators do -------------------------------------------------------------------------

    def arrive(self, instance: InstanceId, kind: e.Kind = e.Kind.WORK, priority: int = 0, **more: Any) -> RequestId:
        request = RequestId(next(self._ids))
        self.requests[request] = Outcome(self.now, instance, kind)
        self.post(e.RequestArrived(self.now, request, instance, kind, priority, **more))
        return request

    def leave(self, request: RequestId) -> None:
        """The client goes away, if it has no answer yet."""
        outcome = self.requests[request]
        if not outcome.answers:
            self.counts["left"] += 1
            outcome.answers.append("left")
            self.post(e.ClientLeft(self.now, request))

    def order(self, instance: InstanceId, kind: e.OrderKind) -> None:
        order = next(self._ids)
        self.orders[order] = None
        self.post(e.OrderGiven(self.now, order, instance, kind))

    def crash(self, instance: InstanceId) -> None:
        """The process of the instance dies, if it has one that is up."""
        generation = self.alive.get(instance)
        if generation is None or self.loads_seen.get(instance) != generation:
            return
        self.counts["crashed"] += 1
        self._process_gone(instance, generation, self.random.uniform(0, 2))
        error = BackendExited(f"{instance} crashed")
        self.post(e.ProcessExited(self.now, instance, generation, error))
        for request, outcome in list(self.requests.items()):
            if outcome.instance == instance and outcome.forwarded_at is not None and not outcome.answers:
                self._end(request, "cut by crash")

    def offer(self, instance: InstanceId) -> None:
        """The watch finds a server to attach to."""
        if self.scheduler.state.instances[instance].spec.attaches and instance not in self.alive:
            self.counts["offered"] += 1
            self.post(e.AttachOffered(self.now, instance))

    def finish(self) -> None:
        """Shut down, then let everything end."""
        self.post(e.ShutdownRequested(self.now, self.now + 5.0))
        self.run(self.now + 60.0)

    # -- commands ----------------------------------------------------------------------------------------------

    def _do_Forward(self, command: c.Forward) -> None:  # noqa: N802  # named after the command
        outcome = self.requests[command.request]
        assert outcome.forwarded_at is None
        assert not outcome.answers, f"{command.request} forwarded after {outcome.answers}"
        assert command.instance in self.alive, f"forwarded to {command.instance}, which has no process"
        outcome.forwarded_at = self.now
        self.counts["forwarded"] += 1
        self.at(self.random.uniform(*self.nature.service_s), lambda: self._end(command.request, "served"))
        self.on_forward(command.request)

    def _end(self, request: RequestId, how: str) -> None:
        outcome = self.requests[request]
        if not outcome.answers:
            outcome.answers.append(how)
            self.counts[how] += 1
            self.post(e.RequestEnded(self.now, request))
            self.on_answer(request)

    def _do_Loaded(self, command: c.Loaded) -> None:  # noqa: N802
        self.requests[command.request].answers.append("loaded")
        self.counts["loaded"] += 1

    def _do_Reject(self, command: c.Reject) -> None:  # noqa: N802
        self.requests[command.request].answers.append(command.error.code)
        self.counts[command.error.code] += 1
        self.on_answer(command.request)

    def _do_StartInstance(self, command: c.StartInstance) -> None:  # noqa: N802
        instance, generation = command.instance, command.generation
        assert instance not in self.alive, f"{instance} started twice"
        self.alive[instance] = generation
        self.counts["started"] += 1
        if self.random.random() < self.nature.start_fails:
            self.at(self.random.uniform(*self.nature.load_s), lambda: self._fail_start(instance, generation))
        else:
            self.at(self.random.uniform(*self.nature.load_s), lambda: self._become_ready(instance, generation))

    def _do_AttachInstance(self, command: c.AttachInstance) -> None:  # noqa: N802
        instance, generation = command.instance, command.generation
        assert instance not in self.alive, f"{instance} attached while it has a process"
        self.alive[instance] = generation
        self.theirs.add(instance)

        def look() -> None:
            if self.alive.get(instance) != generation or self._stopping(instance):
                return
            if self.random.random() < self.nature.there_chance:
                self.counts["attached"] += 1
                self.loads_seen[instance] = generation
                soft = self.random.choice([None, True, False])
                self.post(e.InstanceReady(self.now, instance, generation, True, soft))
            else:
                self.counts["missed"] += 1
                del self.alive[instance]
                self.theirs.discard(instance)
                self.post(e.AttachMissed(self.now, instance, generation, AttachFailed(f"{instance} is away")))

        self.at(self.random.uniform(*self.nature.attach_s), look)

    def _do_WakeInstance(self, command: c.WakeInstance) -> None:  # noqa: N802
        instance, generation = command.instance, command.generation
        delay = self.random.uniform(*self.nature.wake_s)
        if self.random.random() < self.nature.wake_fails:
            self.at(delay, lambda: self._fail_start(instance, generation))
        else:
            self.at(delay, lambda: self._become_ready(instance, generation))

    def _become_ready(self, instance: InstanceId, generation: int) -> None:
        if self.alive.get(instance) == generation and not self._stopping(instance):
            self.loads_seen[instance] = generation
            self.post(e.InstanceReady(self.now, instance, generation, instance in self.theirs))

    def _fail_start(self, instance: InstanceId, generation: int) -> None:
        if self.alive.get(instance) == generation and not self._stopping(instance):
            self.counts["start failed"] += 1
            self.loads_seen.pop(instance, None)
            self._process_gone(instance, generation, self.random.uniform(0, 0.5))
            self.post(e.StartFailed(self.now, instance, generation, StartFailedError(f"{instance} failed")))

    def _do_UnloadInstance(self, command: c.UnloadInstance) -> None:  # noqa: N802
        instance, generation = command.instance, command.generation
        self._assert_not_serving(instance)
        fails = self.random.random() < self.nature.unload_fails

        def done() -> None:
            if self.alive.get(instance) == generation and instance in self.loads_seen:
                event = e.UnloadFailed if fails else e.InstanceUnloaded
                self.post(event(self.now, instance, generation))

        self.at(self.random.uniform(*self.nature.unload_s), done)

    def _do_StopInstance(self, command: c.StopInstance) -> None:  # noqa: N802
        if not self.shut_down:
            self._assert_not_serving(command.instance)
            ready = command.instance in self.theirs and command.instance in self.loads_seen
            assert not ready, f"{command.instance} is not ours to stop"
        delay = self.random.uniform(*self.nature.stop_s)
        self.loads_seen.pop(command.instance, None)
        self._process_gone(command.instance, command.generation, delay)

    def _do_ReadAhead(self, command: c.ReadAhead) -> None:  # noqa: N802
        self.counts["read ahead"] += 1

        def read() -> None:
            self.post(e.FilesSeen(self.now, command.instance, self.random.random(), 20, finished=True))

        self.at(self.random.uniform(*self.nature.load_s), read)

    def _do_MeasurePools(self, command: c.MeasurePools) -> None:  # noqa: N802
        self.counts["measured"] += 1
        self.at(self.random.uniform(0.01, 1.0), lambda: self.post(e.PoolsMeasured(self.now, dict(self.foreign), {})))

    def _do_ProbeBusy(self, command: c.ProbeBusy) -> None:  # noqa: N802
        busy = self.random.random() < self.nature.busy_chance
        self.counts["probed"] += 1

        def answer() -> None:
            self.post(e.BusyProbed(self.now, command.instance, command.generation, busy))

        self.at(self.random.uniform(0.001, 0.3), answer)

    def _do_OrderDone(self, command: c.OrderDone) -> None:  # noqa: N802
        assert self.orders[command.order] is None, "order answered twice"
        self.orders[command.order] = command.detail

    def _do_SetTimer(self, command: c.SetTimer) -> None:  # noqa: N802
        self._timer = command.at

    def _do_Record(self, command: c.Record) -> None:  # noqa: N802
        self.counts[f"swap: {command.decision.cause}"] += 1

    def _do_FinishShutdown(self, command: c.FinishShutdown) -> None:  # noqa: N802
        self.counts["finished"] += 1

    # -- processes ---------------------------------------------------------------------------------------------

    def _stopping(self, instance: InstanceId) -> bool:
        return instance in self._going

    def _process_gone(self, instance: InstanceId, generation: int, delay_s: float) -> None:
        self.loads_seen.pop(instance, None)
        if instance in self._going:
            return  # the end is already on the agenda
        self._going.add(instance)

        def gone() -> None:
            self._going.discard(instance)
            del self.alive[instance]
            self.theirs.discard(instance)
            self.post(e.InstanceGone(self.now, instance, generation))

        self.at(delay_s, gone)

    def _assert_not_serving(self, instance: InstanceId) -> None:
        """Nothing that serves is ever cut off."""
        running = [
            request
            for request, outcome in self.requests.items()
            if outcome.instance == instance
            and outcome.kind is e.Kind.WORK
            and outcome.forwarded_at is not None
            and not outcome.answers
        ]
        assert not running, f"{instance} taken away while {running} run on it"
