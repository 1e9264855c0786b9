"""The scheduler against a naive model, under whatever hypothesis thinks of.

The model knows nothing of the policy. It knows who waits, who runs, which processes there are and how large they are,
and what must never happen: a promise broken, a pinned or working model sent away, memory given out twice, a request
overtaken by a worse one, a request forgotten.
"""

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from juggler.errors import BackendExited, OutOfMemory, StartFailed
from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.core import Scheduler
from juggler.scheduler.invariants import check
from juggler.scheduler.policy import Policy
from juggler.scheduler.queue import Waiting
from juggler.scheduler.state import InstanceSpec
from juggler.units import GIB

GPU0, GPU1 = PoolId("gpu0"), PoolId("gpu1")
CAPACITY = {GPU0: 24, GPU1: 10}
MAX_WAIT_S = 20.0
LOAD_S, END_S, SERVE_S = 2.0, 0.5, 1.0
"""What everything takes once the world behaves."""

SPECS = (
    InstanceSpec(InstanceId("big"), "big", {GPU0: 20}, slots=2),
    InstanceSpec(InstanceId("either"), "either", {GPU0: 8}, placements=({GPU0: 8}, {GPU1: 8}), slots=1),
    InstanceSpec(InstanceId("soft"), "soft", {GPU0: 12}, {GPU0: 1}, soft_unload=True, slots=2),
    InstanceSpec(InstanceId("pinned"), "pinned", {GPU0: 3}, pinned=True),
    InstanceSpec(InstanceId("alone"), "alone", {GPU0: 5}, loads_alone=True, idle_unload_s=9.0),
)
NAMES = [spec.id for spec in SPECS]
names = st.sampled_from(NAMES)


@dataclass
class Asked:
    """A request as its client sees it."""

    instance: InstanceId
    priority: int
    arrived_at: float
    number: int
    due_at: float
    state: str = "waiting"


@dataclass
class Process:
    """What the world has started."""

    generation: int
    doing: str
    """``starting``, ``up``, ``unloading``, ``unloaded``, ``waking`` or ``stopping``."""
    placed: dict[PoolId, int]


class Juggling(RuleBasedStateMachine):
    """One machine, its clients and its processes."""

    @initialize(kappa=st.sampled_from([0.0, 0.5, 1.5, 3.0]), beta=st.sampled_from([0.0, 3.0]))
    def begin(self, kappa: float, beta: float) -> None:
        self.policy = Policy(kappa=kappa, beta=beta, first_load_s=LOAD_S, first_service_s=SERVE_S)
        self.scheduler = Scheduler(SPECS, CAPACITY, self.policy)
        self.now = 0.0
        self.timer: float | None = None
        self.requests: dict[RequestId, Asked] = {}
        self.processes: dict[InstanceId, Process] = {}
        self.failing: set[InstanceId] = set()
        self.asked_pools = 0
        self.reading: set[InstanceId] = set()
        self.foreign: dict[PoolId, int] = {}
        self.log: list[str] = []

    # -- the world's side of the commands ------------------------------------------------------------------------

    def post(self, event: e.Event) -> None:
        self.carry_out(event, self.scheduler.handle(event))

    def carry_out(self, what: object, commands: list[c.Command]) -> None:
        self.log.append(f"{what} -> {commands}")
        check(self.scheduler.state)
        for command in commands:
            self.obey(command)

    def obey(self, command: c.Command) -> None:
        if isinstance(command, c.Forward):
            self.forwarded(command)
        elif isinstance(command, c.Reject):
            self.requests[command.request].state = "refused"
        elif isinstance(command, c.StartInstance):
            assert command.instance not in self.processes, "started twice"
            assert command.placed, "a start is told where"
            self.processes[command.instance] = Process(command.generation, "starting", dict(command.placed))
            self.memory_is_given_out_once()
        elif isinstance(command, c.WakeInstance):
            assert self.processes[command.instance].doing == "unloaded"
            self.processes[command.instance].doing = "waking"
            self.memory_is_given_out_once()
        elif isinstance(command, c.UnloadInstance | c.StopInstance):
            self.sent_away(command)
        elif isinstance(command, c.SetTimer):
            self.timer = command.at
        elif isinstance(command, c.ReadAhead):
            assert not self.reading, "one read at a time"
            self.reading.add(command.instance)
        elif isinstance(command, c.MeasurePools):
            self.asked_pools += 1

    def forwarded(self, command: c.Forward) -> None:
        mine = self.requests[command.request]
        assert mine.state == "waiting"
        assert self.processes[command.instance].doing == "up", "forwarded to nobody"
        mine.state = "running"
        running = [one for one in self.requests.values() if one.instance == mine.instance and one.state == "running"]
        assert len(running) <= self.slots(mine.instance)
        for other in self.requests.values():
            if other.instance == mine.instance and other.state == "waiting":
                assert not self.overtaken(other, mine), f"{mine} overtook {other}"

    def slots(self, name: InstanceId) -> int:
        """Requests that it may work on at a time."""
        return next(spec.slots for spec in SPECS if spec.id == name)

    def overtaken(self, other: Asked, mine: Asked) -> bool:
        """Whether ``other`` should have come first: due ones by due time, then by class, then by arrival."""
        mine_due, other_due = mine.due_at <= self.now, other.due_at <= self.now
        if other_due and not mine_due:
            return not self.gated(mine.instance)
        if other_due or mine_due:
            return False  # equal due times are possible; the order among due ones is tested below
        if other.priority != mine.priority:
            return other.priority > mine.priority
        return other.number < mine.number

    def gated(self, name: InstanceId) -> bool:
        """A shut gate lets only those pass that came before it was shut; who is due may have come later."""
        return self.scheduler.state.instances[name].gate is not None

    def sent_away(self, command: c.UnloadInstance | c.StopInstance) -> None:
        name = command.instance
        assert self.processes[name].generation == command.generation
        if name in self.failing:
            self.failing.discard(name)
        else:
            unwanted = self.processes[name].doing == "starting"  # nobody waits for it any more
            assert name != "pinned" or unwanted, "pinned, and sent away"
            busy = [one for one in self.requests.values() if one.instance == name and one.state == "running"]
            assert not busy, f"{name} was sent away while it worked"
        self.processes[name].doing = "unloading" if isinstance(command, c.UnloadInstance) else "stopping"

    def memory_is_given_out_once(self) -> None:
        for pool, capacity in CAPACITY.items():
            held = 0
            for process in self.processes.values():
                held += 1 if process.doing == "unloaded" and pool == GPU0 else process.placed.get(pool, 0)
            assert held <= capacity, f"{held} of {capacity} on {pool}"

    # -- what happens --------------------------------------------------------------------------------------------

    @rule(
        name=names,
        priority=st.sampled_from([-10, 0, 0, 5]),
        client=st.sampled_from(["", "anna", "bert"]),
        at_once=st.booleans(),
    )
    def arrives(self, name: InstanceId, priority: int, client: str, at_once: bool) -> None:
        number = RequestId(len(self.requests) + 1)
        due_at = self.now + MAX_WAIT_S
        self.requests[number] = Asked(name, priority, self.now, number, due_at)
        if at_once and self.scheduler.forward_at_once(self.now, number, name, e.Kind.WORK, priority, client):
            check(self.scheduler.state)
            self.log.append(f"{number} at once to {name}")
            self.forwarded(c.Forward(number, name))
            return
        self.post(
            e.RequestArrived(self.now, number, name, e.Kind.WORK, priority, MAX_WAIT_S, timeout_s=1e6, client=client)
        )

    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        there = [number for number, one in self.requests.items() if one.state in ("waiting", "running")]
        if there:
            number = data.draw(st.sampled_from(there))
            self.requests[number].state = "left"
            self.post(e.ClientLeft(self.now, number))

    @rule(data=st.data())
    def is_answered(self, data: st.DataObject) -> None:
        running = [number for number, one in self.requests.items() if one.state == "running"]
        if running:
            number = data.draw(st.sampled_from(running))
            if number % 2:  # the short way
                self.requests[number].state = "answered"
                self.carry_out(f"{number} done", self.scheduler.request_done(self.now, number, self.now))
                return
            self.post(e.FirstByte(self.now, number))
            self.requests[number].state = "answered"
            self.post(e.RequestEnded(self.now, number))

    @rule(data=st.data())
    def process_gets_on(self, data: st.DataObject) -> None:
        moving = [name for name, one in self.processes.items() if one.doing not in ("up", "unloaded")]
        if moving:
            self.get_on(data.draw(st.sampled_from(moving)))

    def get_on(self, name: InstanceId) -> None:
        """What a process is doing succeeds."""
        process = self.processes[name]
        if process.doing in ("starting", "waking"):
            process.doing = "up"
            self.post(e.InstanceReady(self.now, name, process.generation))
        elif process.doing == "unloading":
            process.doing = "unloaded"
            self.post(e.InstanceUnloaded(self.now, name, process.generation))
        elif process.doing == "stopping":
            del self.processes[name]
            self.post(e.InstanceGone(self.now, name, process.generation))

    @rule(data=st.data(), how=st.sampled_from(["fails", "runs out of memory", "is deferred"]))
    def start_goes_wrong(self, data: st.DataObject, how: str) -> None:
        starting = [name for name, one in self.processes.items() if one.doing == "starting"]
        if not starting:
            return
        name = data.draw(st.sampled_from(starting))
        process = self.processes[name]
        if how == "is deferred":
            del self.processes[name]
            pool = next(iter(process.placed))
            self.foreign = {pool: 2}
            self.post(e.StartDeferred(self.now, name, process.generation, {pool: 2}, {pool: "2 B by pid 1 init"}))
            return
        error = OutOfMemory("no room") if how == "runs out of memory" else StartFailed("no luck")
        process.doing = "stopping"
        self.post(e.StartFailed(self.now, name, process.generation, error))

    @rule(data=st.data())
    def process_crashes(self, data: st.DataObject) -> None:
        up = [name for name, one in self.processes.items() if one.doing == "up"]
        if not up:
            return
        name = data.draw(st.sampled_from(up))
        process = self.processes[name]
        process.doing = "stopping"
        self.post(e.ProcessExited(self.now, name, process.generation, BackendExited("crash")))
        for number, one in self.requests.items():
            if one.instance == name and one.state == "running":
                one.state = "answered"
                self.post(e.RequestEnded(self.now, number))

    @rule(data=st.data())
    def unload_fails(self, data: st.DataObject) -> None:
        unloading = [name for name, one in self.processes.items() if one.doing == "unloading"]
        if unloading:
            name = data.draw(st.sampled_from(unloading))
            self.failing.add(name)
            self.post(e.UnloadFailed(self.now, name, self.processes[name].generation, "it says no"))

    @rule(share=st.floats(0, 1))
    def file_is_read(self, share: float) -> None:
        for name in list(self.reading):
            self.reading.discard(name)
            self.post(e.FilesSeen(self.now, name, share, 10 * GIB, finished=True))

    @precondition(lambda self: self.asked_pools)
    @rule(foreign=st.sampled_from([0, 2, 9]))
    def pools_are_measured(self, foreign: int) -> None:
        self.asked_pools = 0
        self.foreign = {GPU0: foreign}
        self.post(e.PoolsMeasured(self.now, self.foreign, {}))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.until(self.now + seconds)

    def until(self, end: float) -> None:
        while self.timer is not None and self.timer <= end:
            assert self.timer >= self.now - 1e-6 or self.timer <= self.now
            self.now, self.timer = max(self.now, self.timer), None
            self.post(e.TimerFired(self.now))
        self.now = end

    # -- the end -------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Once the world behaves, everybody is served, within the bound; and equal events give equal commands."""
        if not hasattr(self, "scheduler"):
            return
        waiting = [one for one in self.requests.values() if one.state == "waiting"]
        began = self.now
        turn_s = LOAD_S + 4 * (LOAD_S + END_S) * (self.policy.beta + self.policy.hard) + SERVE_S + END_S
        bound_s = MAX_WAIT_S + (len(SPECS) + len(waiting) + 1) * turn_s + self.policy.back_off_limit_s
        while any(one.state in ("waiting", "running") for one in self.requests.values()):
            assert self.now - began < bound_s, f"still waiting: {[o for o in waiting if o.state == 'waiting']}"
            self.behave()
        assert not self.scheduler.state.requests, "a request was forgotten"
        self.replay()

    def behave(self) -> None:
        """Half a second in which everything goes well."""
        self.file_is_read(1.0)
        if self.asked_pools:
            self.pools_are_measured(0)
        for name in list(self.processes):
            if self.processes[name].doing not in ("up", "unloaded"):
                self.get_on(name)
        for number, one in list(self.requests.items()):
            if one.state == "running":
                one.state = "answered"
                self.post(e.RequestEnded(self.now, number))
        self.until(self.now + END_S)

    def replay(self) -> None:
        again = Scheduler(SPECS, CAPACITY, self.policy)
        story = self.scheduler.state.story
        if story and story[0][0] == 1:  # nothing of it was forgotten yet
            for _, event, commands in story:
                if isinstance(event, Waiting):
                    now = event.arrived_at
                    assert again.forward_at_once(
                        now, event.id, event.instance, event.kind, event.priority, event.client
                    )
                    continue
                if isinstance(event, tuple):
                    _, request, ended_at, first_byte_at = event
                    done = again.request_done(ended_at, request, first_byte_at)
                    assert str(_without_decisions(done)) == str(_without_decisions(commands))
                    continue
                assert str(_without_decisions(again.handle(event))) == str(_without_decisions(commands))


def _without_decisions(commands: "list[c.Command] | tuple[c.Command, ...]") -> list[c.Command]:
    """Decisions go on changing after they were made: they say what became of them."""
    return [command for command in commands if not isinstance(command, c.Record)]


TestJuggling = Juggling.TestCase
TestJuggling.settings = settings(
    max_examples=120,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
