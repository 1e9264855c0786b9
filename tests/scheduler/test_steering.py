"""What an operator wishes: lock, pin, restart, cancel, move to the front."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from juggler.errors import Cancelled
from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.state import InstanceSpec
from tests.scheduler.script import A, B, Script, exclusive, kinds
from tests.scheduler.test_state_machine import GPU0, NAMES, Asked, Juggling


def lock(script: Script, locked: bool = True) -> list[c.Command]:
    return script.post(e.SwapsLocked(script.now, locked))


def pin(script: Script, name: InstanceId, pinned: bool = True) -> list[c.Command]:
    return script.post(e.InstancePinned(script.now, name, pinned))


def test_a_lock_keeps_what_is_loaded_until_it_is_undone() -> None:
    script = Script(exclusive(A), exclusive(B))
    script.load(A)
    assert lock(script) == []
    assert script.arrive(B) == []
    assert script.tick(300) == [], "not even for one that is overdue"
    assert lock(script, False) == [c.StopInstance(A, 1)]


def test_a_lock_lets_load_what_needs_no_room() -> None:
    script = Script(exclusive(A), exclusive(B))
    lock(script)
    assert kinds(script.arrive(A)) == ["StartInstance"]
    assert kinds(script.ready(A)) == ["Forward"]


def test_a_lock_stops_idle_unloads_and_abandoned_loads() -> None:
    script = Script(exclusive(A, idle_unload_s=60.0), exclusive(B))
    script.arrive(A)
    lock(script)
    script.leave(1)
    assert script.tick(600) == []
    script.ready(A)
    assert script.tick(600) == []
    assert lock(script, False) == [c.StopInstance(A, 1)]


def test_a_lock_lets_a_load_finish_that_nobody_waits_for_any_more() -> None:
    pool = PoolId("gpu0")
    specs = [InstanceSpec(name, str(name), {pool: 5}, loads_alone=True) for name in (A, B)]
    script = Script(*specs, capacity={pool: 24})
    script.arrive(A)
    lock(script)
    script.leave(1)
    assert script.arrive(B) == []
    assert script.ready(A) == [c.StartInstance(B, 1)]


def test_the_operators_own_orders_are_carried_out_under_a_lock() -> None:
    script = Script(exclusive(A), exclusive(B))
    script.load(A)
    lock(script)
    script.arrive(B)
    assert script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.STOP)) == [c.StopInstance(A, 1)]
    assert kinds(script.gone(A)) == ["OrderDone", "StartInstance"]


def test_a_lock_while_the_victim_drains_opens_its_gate() -> None:
    script = Script(exclusive(A, slots=2), exclusive(B))
    script.load(A)
    script.arrive(A)
    script.arrive(B)
    script.tick(120)
    assert script.at(A).gate is not None
    lock(script)
    assert script.at(A).gate is None
    assert kinds(script.arrive(A)) == ["Forward"]


def test_a_pin_by_the_operator_comes_before_the_configuration() -> None:
    script = Script(exclusive(A), exclusive(B, pinned=True))
    script.load(A)
    pin(script, A)
    assert kinds(script.arrive(B)) == ["Reject"], "it can never be loaded beside one that is never sent away"
    pin(script, A, False)
    assert script.arrive(B) == [c.StopInstance(A, 1)]
    script.gone(A)
    script.ready(B)
    script.end(3)
    pin(script, B, False)
    assert script.arrive(A) == [c.StopInstance(B, 1)]


def test_a_restart_lets_work_end_and_keeps_who_waits() -> None:
    script = Script(exclusive(A, slots=1))
    script.load(A)
    script.arrive(A)
    script.arrive(A)
    assert script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.RESTART)) == []
    assert script.end(2) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.OrderDone(1, "done"), c.StartInstance(A, 2)]
    assert script.ready(A) == [c.Forward(RequestId(3), A)]


def test_a_stop_is_stronger_than_a_restart_and_that_than_an_unload() -> None:
    script = Script(exclusive(A, soft_unload=True, slots=1))
    script.load(A)
    script.arrive(A)
    for number, kind in enumerate((e.OrderKind.UNLOAD, e.OrderKind.RESTART, e.OrderKind.UNLOAD)):
        script.post(e.OrderGiven(script.now, number, A, kind))
    assert script.end(2) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.OrderDone(number, "done") for number in range(3)]


def test_a_cancelled_request_is_answered_and_forgotten() -> None:
    script = Script(exclusive(A, slots=1))
    script.load(A)
    script.arrive(A)
    script.arrive(A)
    (rejected,) = script.post(e.RequestCancelled(script.now, RequestId(3)))
    assert isinstance(rejected, c.Reject)
    assert isinstance(rejected.error, Cancelled)
    assert not rejected.error.repeatable
    assert script.post(e.RequestCancelled(script.now, RequestId(3))) == []
    assert script.post(e.RequestCancelled(script.now, RequestId(2))) == [], "it runs"
    assert script.end(2) == []


def test_a_promoted_request_is_served_next() -> None:
    script = Script(exclusive(A, slots=1))
    script.load(A)
    script.arrive(A)
    script.arrive(A, max_wait_s=1.0)
    script.arrive(A)
    script.arrive(A, priority=-10)
    script.tick(5)  # the third is overdue
    for _ in range(200):
        script.post(e.RequestPromoted(script.now, RequestId(4)))
    script.post(e.RequestPromoted(script.now, RequestId(5)))
    assert script.end(2) == [c.Forward(RequestId(5), A)]
    assert script.end(5) == [c.Forward(RequestId(4), A)]
    assert script.end(4) == [c.Forward(RequestId(3), A)]
    assert script.post(e.RequestPromoted(script.now, RequestId(99))) == []


def test_a_promoted_request_is_urgent_beside_other_instances() -> None:
    """Somebody who waits for another model would have got the memory."""
    script = Script(exclusive(A), exclusive(B), exclusive(InstanceId("c")))
    script.load(A)
    script.arrive(A)
    script.arrive(B)
    script.tick(1)
    script.arrive(InstanceId("c"))
    script.post(e.RequestPromoted(script.now, RequestId(4)))
    script.end(2)
    script.tick(300)
    script.gone(A)
    assert script.at(InstanceId("c")).residency.value == "starting"


class Steered(Juggling):
    """The naive model again, and an operator who does whatever comes to mind."""

    def __init__(self) -> None:
        super().__init__()
        self.ordered: set[InstanceId] = set()
        self.promoted: set[int] = set()

    def obey(self, command: c.Command) -> None:
        if isinstance(command, c.OrderDone):
            self.ordered.discard(NAMES[command.order])
        super().obey(command)

    def sent_away(self, command: c.UnloadInstance | c.StopInstance) -> None:
        name = command.instance
        told = name in self.ordered or name in self.failing
        assert told or not self.scheduler.state.locked, "sent away under a lock"
        if self.processes[name].doing == "unloaded":
            self.processes[name].placed = {GPU0: 1}  # what it ends with
        super().sent_away(command)

    def overtaken(self, other: Asked, mine: Asked) -> bool:
        return mine.number not in self.promoted and super().overtaken(other, mine)

    @rule(locked=st.booleans())
    def locks(self, locked: bool) -> None:
        self.post(e.SwapsLocked(self.now, locked))

    @rule(name=st.sampled_from([name for name in NAMES if name != "pinned"]), kind=st.sampled_from(e.OrderKind))
    def orders(self, name: InstanceId, kind: e.OrderKind) -> None:
        self.ordered.add(name)
        self.post(e.OrderGiven(self.now, NAMES.index(name), name, kind))

    @rule(data=st.data(), cancels=st.booleans())
    def steers_a_request(self, data: st.DataObject, cancels: bool) -> None:
        waiting = [number for number, one in self.requests.items() if one.state == "waiting"]
        if not waiting:
            return
        number = data.draw(st.sampled_from(waiting))
        if cancels:
            self.post(e.RequestCancelled(self.now, number))
            assert self.requests[number].state == "refused"
        else:
            self.promoted.add(number)
            self.post(e.RequestPromoted(self.now, number))

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            self.post(e.SwapsLocked(self.now, False))
        super().teardown()


TestSteered = Steered.TestCase
TestSteered.settings = settings(
    max_examples=120,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
