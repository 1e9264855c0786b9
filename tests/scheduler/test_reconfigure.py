"""New configurations in the middle of everything: what stays, what goes, and who waits on."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from juggler.errors import BackendExited, EndpointRemoved
from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.policy import Policy
from juggler.scheduler.state import InstanceSpec
from juggler.scheduler.transitions import Move, Residency
from tests.scheduler.script import A, B, Script, exclusive, kinds
from tests.scheduler.test_state_machine import CAPACITY, GPU0, LOAD_S, NAMES, SERVE_S, SPECS, Asked, Juggling, names


def reconfigure(script: Script, **more: object) -> list[c.Command]:
    return script.post(e.Reconfigured(script.now, script.scheduler.state.policy, **more))  # type: ignore[arg-type]


# -- scripts -----------------------------------------------------------------------------------------------------


def test_one_that_is_not_mentioned_notices_nothing() -> None:
    script = Script(exclusive(A), exclusive(B))
    script.load(A)
    script.arrive(A)
    assert reconfigure(script, replaced=(exclusive(B),)) == [c.InstanceRetired(B, replaced=True)]
    assert script.at(A).residency is Residency.READY
    assert len(script.at(A).running) == 1


def test_a_replaced_one_ends_when_its_requests_have_and_its_queue_goes_to_the_next() -> None:
    script = Script(exclusive(A, slots=1))
    script.load(A)
    assert kinds(script.arrive(A)) == ["Forward"]
    assert script.arrive(A) == []
    assert reconfigure(script, replaced=(exclusive(A, slots=3),)) == []
    assert script.arrive(A) == [], "who comes meanwhile waits for the new one"
    assert script.end(2) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.InstanceRetired(A, replaced=True), c.StartInstance(A, 2)]
    assert kinds(script.ready(A)) == ["Forward", "Forward"]


def test_a_replaced_one_keeps_its_memory_in_the_ledger_until_it_is_gone() -> None:
    script = Script(exclusive(A), exclusive(B))
    script.load(A)
    script.arrive(A)
    reconfigure(script, replaced=(exclusive(A),))
    assert script.arrive(B) == []
    assert script.end(2) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.InstanceRetired(A, replaced=True), c.StartInstance(B, 1)]


def test_a_start_by_old_settings_is_given_up() -> None:
    script = Script(exclusive(A))
    script.arrive(A)
    assert reconfigure(script, replaced=(exclusive(A),)) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.InstanceRetired(A, replaced=True), c.StartInstance(A, 2)]
    assert kinds(script.ready(A)) == ["Forward"]


def test_new_settings_are_tried_at_once_after_a_failure() -> None:
    script = Script(exclusive(A))
    for _ in range(2):
        script.arrive(A)
        script.fail(A)
        script.gone(A)
    assert kinds(script.arrive(A)) == ["Reject"], "it pauses after failures"
    moves: list[Move] = []
    script.scheduler.state.on_move = lambda instance, move, now: moves.append(move)
    reconfigure(script, replaced=(exclusive(A),))
    assert moves == [Move.RETIRE], "whoever shows it hears that the failure is no more"
    assert kinds(script.arrive(A)) == ["StartInstance"]


def test_a_crash_of_the_old_one_does_not_reach_those_who_wait_for_the_new_one() -> None:
    script = Script(exclusive(A, slots=1))
    for _ in range(2):  # the next failure is followed by a pause
        script.arrive(A)
        script.fail(A)
        script.gone(A)
        script.tick(60)
    script.load(A)
    script.arrive(A)
    script.arrive(A)
    script.at(A).failures = 2
    reconfigure(script, replaced=(exclusive(A),))
    error = BackendExited("crash")
    assert script.post(e.ProcessExited(script.now, A, script.at(A).generation, error)) == []
    assert script.gone(A) == [], "the request that was cut is still to be heard of"
    assert kinds(script.end(4)) == ["InstanceRetired", "StartInstance"]


def test_a_removed_one_refuses_its_queue_lets_the_rest_end_and_is_forgotten() -> None:
    script = Script(exclusive(A, slots=1), exclusive(B))
    script.load(A)
    script.arrive(A)
    script.arrive(A)
    refused = reconfigure(script, removed=(A,))
    assert kinds(refused) == ["Reject"]
    assert isinstance(refused[0], c.Reject)
    assert isinstance(refused[0].error, EndpointRemoved)
    late = script.arrive(A)
    assert isinstance(late[0], c.Reject)
    assert isinstance(late[0].error, EndpointRemoved)
    assert script.end(2) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.InstanceRetired(A, replaced=False)]
    assert A not in script.scheduler.state.instances
    assert kinds(script.arrive(A)) == ["Reject"]
    assert kinds(script.arrive(B)) == ["StartInstance"]


def test_a_victim_of_a_swap_may_be_removed_meanwhile() -> None:
    script = Script(exclusive(A), exclusive(B))
    script.load(A)
    assert script.arrive(B) == [c.StopInstance(A, 1)]
    assert reconfigure(script, removed=(A,)) == []
    assert kinds(script.gone(A)) == ["InstanceRetired", "StartInstance"]


def test_one_that_is_removed_and_added_again_comes_back_when_it_has_gone() -> None:
    script = Script(exclusive(A))
    script.load(A)
    script.arrive(A)
    reconfigure(script, removed=(A,))
    reconfigure(script, added=(exclusive(A),))
    assert script.arrive(A) == []
    assert script.end(2) == [c.StopInstance(A, 1)]
    assert kinds(script.gone(A)) == ["InstanceRetired", "StartInstance"]


def test_a_new_one_can_be_used_at_once() -> None:
    script = Script(exclusive(A))
    assert reconfigure(script, added=(exclusive(B),)) == []
    assert kinds(script.arrive(B)) == ["StartInstance"]


def test_waiting_requests_follow_their_endpoint_and_keep_their_order() -> None:
    script = Script(exclusive(A, slots=1), exclusive(B, slots=1))
    script.load(A)
    for name in (A, A, B, A):
        script.arrive(name)
        script.tick(1)
    moved = {RequestId(number): B for number in (2, 3, 5)}
    assert reconfigure(script, removed=(A,), moved=moved) == []
    assert [one.id for one in script.at(B).queue] == [3, 4, 5], "the one that runs stays where it is"
    script.end(2)
    assert kinds(script.gone(A)) == ["InstanceRetired", "StartInstance"]
    assert script.ready(B) == [c.Forward(RequestId(3), B)]


def test_rules_change_in_place() -> None:
    script = Script(exclusive(A, slots=1))
    script.load(A)
    script.arrive(A)
    script.arrive(A)
    assert kinds(reconfigure(script, updated=(exclusive(A, slots=2),))) == ["Forward"]
    reconfigure(script, updated=(exclusive(A, slots=1, queue_limit=0),))
    assert len(script.at(A).running) == 2, "nobody is cut for having come before"
    assert kinds(script.arrive(A)) == ["Reject"]
    reconfigure(script, updated=(exclusive(A, idle_unload_s=5.0),))
    script.end(2)
    script.end(3)
    assert script.tick(6) == [c.StopInstance(A, 1)]


def test_rules_change_also_for_the_one_that_follows() -> None:
    script = Script(exclusive(A))
    script.load(A)
    script.arrive(A)
    reconfigure(script, replaced=(exclusive(A),))
    reconfigure(script, updated=(exclusive(A, slots=7),))
    script.end(2)
    script.gone(A)
    assert script.at(A).spec.slots == 7


def test_smaller_pools_send_nobody_away_and_let_nobody_in_on_top() -> None:
    pool = PoolId("gpu0")
    specs = [InstanceSpec(name, str(name), {pool: 10}) for name in (A, B)]
    script = Script(*specs, capacity={pool: 24})
    script.load(A)
    script.load(B)
    assert reconfigure(script, capacity={pool: 12}) == []
    script.post(e.OrderGiven(script.now, 1, B, e.OrderKind.STOP))
    script.gone(B)
    assert script.arrive(B) == [c.StopInstance(A, 1)]
    assert kinds(script.gone(A)) == ["StartInstance"]
    assert kinds(reconfigure(script, capacity={pool: 24})) == []
    assert kinds(script.arrive(A)) == ["StartInstance"]


def test_what_can_never_fit_any_more_is_refused() -> None:
    pool = PoolId("gpu0")
    specs = [InstanceSpec(name, str(name), {pool: 10}) for name in (A, B)]
    script = Script(*specs, capacity={pool: 12})
    script.load(A)
    script.arrive(A)
    script.arrive(B)
    assert kinds(reconfigure(script, capacity={pool: 8})) == ["Reject"]


def test_the_operators_order_on_a_replaced_one_is_answered() -> None:
    script = Script(exclusive(A))
    script.load(A)
    script.arrive(A)
    script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.UNLOAD))
    reconfigure(script, replaced=(exclusive(A),))
    script.post(e.OrderGiven(script.now, 2, A, e.OrderKind.STOP))
    script.end(2)
    assert script.gone(A) == [c.OrderDone(1, "done"), c.OrderDone(2, "done"), c.InstanceRetired(A, replaced=True)]


def test_an_order_for_one_that_is_gone_is_answered() -> None:
    script = Script(exclusive(A))
    reconfigure(script, removed=(A,))
    order = e.OrderGiven(script.now, 1, A, e.OrderKind.STOP)
    assert script.post(order) == [c.OrderDone(1, "it is configured no longer")]
    assert script.post(e.InstancePinned(script.now, A, True)) == []


def test_an_attached_server_is_let_go_when_its_requests_have_ended() -> None:
    script = Script(exclusive(A, attaches=True, starts=False))
    assert script.arrive(A) == [c.AttachInstance(A, 1)]
    script.post(e.InstanceReady(script.now, A, 1, attached=True))
    assert reconfigure(script, removed=(A,)) == []
    assert script.end(1) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.InstanceRetired(A, replaced=False)]


def test_an_attached_server_that_refuses_its_unload_is_let_go_all_the_same() -> None:
    script = Script(exclusive(A, attaches=True, starts=False, soft_unload=True, idle_unload_s=5.0))
    script.arrive(A)
    script.post(e.InstanceReady(script.now, A, 1, attached=True))
    script.end(1)
    assert script.tick(6) == [c.UnloadInstance(A, 1)]
    assert reconfigure(script, replaced=(exclusive(A),)) == []
    assert script.post(e.UnloadFailed(script.now, A, 1, "it says no")) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.InstanceRetired(A, replaced=True)]


def test_a_lock_does_not_keep_a_new_configuration_out() -> None:
    """It is the operator's own word, as an order by name is."""
    script = Script(exclusive(A))
    script.load(A)
    script.post(e.SwapsLocked(script.now, True))
    assert reconfigure(script, replaced=(exclusive(A),)) == [c.StopInstance(A, 1)]


def test_a_pin_by_the_operator_outlives_the_process() -> None:
    script = Script(exclusive(A))
    script.post(e.InstancePinned(script.now, A, True))
    reconfigure(script, replaced=(exclusive(A),))
    assert script.at(A).pinned


def test_a_reading_of_files_that_ends_after_its_instance_was_removed_makes_room_for_the_next() -> None:
    script = Script(exclusive(A), exclusive(B), policy=Policy())
    script.scheduler.state.reading = A
    reconfigure(script, removed=(A,))
    script.post(e.FilesSeen(script.now, A, 0.5, finished=True))
    assert script.scheduler.state.reading is None


def test_nothing_is_taken_up_while_the_juggler_goes_down() -> None:
    script = Script(exclusive(A))
    script.load(A)
    script.post(e.ShutdownRequested(script.now, script.now + 10))
    assert reconfigure(script, replaced=(exclusive(A),)) == []
    assert kinds(script.gone(A)) == ["FinishShutdown"]


# -- whatever hypothesis thinks of -------------------------------------------------------------------------------


class Reconfigured(Juggling):
    """The same machine under an operator who cannot leave its configuration alone."""

    def __init__(self) -> None:
        super().__init__()
        self.capacity = dict(CAPACITY)
        self.wanted = {spec.id: spec for spec in SPECS}
        """What the latest configuration says."""
        self.there = dict(self.wanted)
        """What is under way: the one before, until it has retired."""
        self.retiring: set[InstanceId] = set()
        self.first_policy: Policy | None = None

    def slots(self, name: InstanceId) -> int:
        return self.there[name].slots

    def obey(self, command: c.Command) -> None:
        if isinstance(command, c.InstanceRetired):
            name = command.instance
            assert name in self.retiring, "nobody asked for it"
            assert name not in self.processes, "its process runs"
            assert not [one for one in self.requests.values() if one.instance == name and one.state == "running"]
            assert command.replaced == (name in self.wanted)
            self.retiring.discard(name)
            del self.there[name]
            if command.replaced:
                self.there[name] = self.wanted[name]
        elif isinstance(command, c.StartInstance):
            assert command.instance not in self.retiring, "started by settings that are no more"
        super().obey(command)

    def sent_away(self, command: c.UnloadInstance | c.StopInstance) -> None:
        name = command.instance
        if name in self.retiring or not self.there[name].pinned:
            self.failing.discard(name)
            busy = [one for one in self.requests.values() if one.instance == name and one.state == "running"]
            assert not busy, f"{name} was sent away while it worked"
            self.processes[name].doing = "unloading" if isinstance(command, c.UnloadInstance) else "stopping"
        else:
            super().sent_away(command)

    def memory_is_given_out_once(self) -> None:
        """Whoever starts finds room for itself; those before it may have been let in by larger pools."""
        latest = next(reversed(self.processes.values()))
        for pool, size in latest.placed.items():
            held = sum(self._holds(process, pool) for process in self.processes.values())
            assert not size or held <= self.capacity[pool], f"{held} of {self.capacity[pool]} on {pool}"

    def _holds(self, process: object, pool: PoolId) -> int:
        if process.doing == "unloaded" and pool == GPU0:  # type: ignore[attr-defined]
            return 1
        return int(process.placed.get(pool, 0))  # type: ignore[attr-defined]

    @rule(name=names, priority=st.sampled_from([-10, 0, 5]), client=st.sampled_from(["", "a"]), at_once=st.booleans())
    def arrives(self, name: InstanceId, priority: int, client: str, at_once: bool) -> None:
        if name in self.wanted:
            super().arrives(name, priority, client, at_once and name not in self.retiring)
            return
        number = RequestId(len(self.requests) + 1)
        self.requests[number] = Asked(name, priority, self.now, number, self.now)
        self.post(e.RequestArrived(self.now, number, name, e.Kind.WORK, priority))
        assert self.requests[number].state == "refused", "there is no such endpoint"

    @rule(data=st.data(), kappa=st.sampled_from([0.0, 1.5]), smaller=st.sampled_from([0, 0, 3]))
    def is_reconfigured(self, data: st.DataObject, kappa: float, smaller: int) -> None:
        self.first_policy = self.first_policy or self.policy
        added, updated, replaced, removed = [], [], [], []
        for name in NAMES:
            before = self.wanted.get(name)
            spec = self.drawn_spec(data, next(one for one in SPECS if one.id == name))
            change = data.draw(st.sampled_from(["", "", "update", "replace", "remove"]))
            if before is None:
                if change == "update":
                    self.wanted[name] = spec
                    added.append(spec)
                    self.there.setdefault(name, spec)  # or it comes back once the one before has gone
            elif change == "update":
                spec = replace(spec, footprint=before.footprint, placements=before.placements)
                self.wanted[name] = spec
                updated.append(spec)
                if name not in self.retiring:
                    self.there[name] = spec
            elif change == "replace":
                self.wanted[name] = spec
                replaced.append(spec)
                self.retiring.add(name)
            elif change == "remove":
                del self.wanted[name]
                removed.append(name)
                self.retiring.add(name)
        self.policy = Policy(kappa=kappa, beta=self.policy.beta, first_load_s=LOAD_S, first_service_s=SERVE_S)
        self.capacity = {pool: size - smaller for pool, size in CAPACITY.items()}
        moved = self.drawn_moves(data)
        for number, name in moved.items():
            if self.requests[number].state == "waiting":
                self.requests[number].instance = name
        event = e.Reconfigured(
            self.now,
            self.policy,
            tuple(added),
            tuple(updated),
            tuple(replaced),
            tuple(removed),
            moved,
            self.capacity,
        )
        self.post(event)
        for one in self.requests.values():
            assert one.state != "waiting" or one.instance in self.wanted, f"{one} waits for nobody"

    def drawn_spec(self, data: st.DataObject, like: InstanceSpec) -> InstanceSpec:
        slots, pinned = data.draw(st.sampled_from([1, 2])), like.pinned and data.draw(st.booleans())
        less = data.draw(st.sampled_from([0, 2]))
        footprint = {pool: size - less for pool, size in like.footprint.items()}
        ways = tuple({pool: size - less for pool, size in way.items()} for way in like.placements)
        return replace(like, slots=slots, pinned=pinned, footprint=footprint, placements=ways)

    def drawn_moves(self, data: st.DataObject) -> dict[RequestId, InstanceId]:
        """Some endpoints have another instance from now on; requests that run are named as well, and stay."""
        if not self.wanted or not data.draw(st.booleans()):
            return {}
        target = data.draw(st.sampled_from(sorted(self.wanted)))
        source = data.draw(names)
        there = [number for number, one in self.requests.items() if one.state in ("waiting", "running")]
        return {number: target for number in there if self.requests[number].instance == source}

    def replay(self) -> None:
        self.policy = self.first_policy or self.policy
        super().replay()

    def teardown(self) -> None:
        super().teardown()
        if not hasattr(self, "scheduler"):
            return
        for _ in range(20):
            self.behave()
        assert not self.retiring, "it never came to its end"
        assert set(self.scheduler.state.instances) == set(self.wanted)
        assert set(self.processes) <= set(self.wanted), "a process nobody looks after"


TestReconfigured = Reconfigured.TestCase
TestReconfigured.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("by", ["reload", "operator"])
def test_a_swap_under_way_lets_nobody_more_in_to_one_that_has_to_end(by: str) -> None:
    """It drains for another model already, and requests from before that might still pass: now they do not."""
    script = Script(exclusive(A, slots=1), exclusive(B))
    script.load(A)
    script.arrive(A)  # 2
    script.tick(1)
    script.arrive(A)  # 3: waits for the slot
    script.arrive(B, max_wait_s=30.0)
    script.tick(60)
    assert script.at(A).residency is Residency.DRAINING
    if by == "reload":
        reconfigure(script, replaced=(exclusive(A, slots=1),))
    else:
        script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.UNLOAD))
    assert script.end(2) == [c.StopInstance(A, 1)]


def test_each_instance_that_gets_waiting_requests_is_looked_for() -> None:
    """Two whose servers were not there when they were last looked for."""
    attached = {"attaches": True, "starts": False}
    other = InstanceId("d")
    script = Script(exclusive(A, slots=1), exclusive(B, **attached), exclusive(other, **attached))
    for name in (B, other):
        script.arrive(name)
        script.post(e.AttachMissed(script.now, name, script.at(name).generation, BackendExited("nothing is there")))
    script.load(A)
    script.arrive(A)  # works
    asked = [RequestId(script.requests + 1), RequestId(script.requests + 2)]
    for _ in asked:
        script.arrive(A)
    looked_for = reconfigure(script, moved={asked[0]: B, asked[1]: other})
    assert {one.instance for one in looked_for if isinstance(one, c.AttachInstance)} == {B, other}


def test_memory_declared_anew_for_an_attached_server_that_keeps_it() -> None:
    """Counted when it is found, and at once if it is there; no longer once it is not declared."""
    bare = InstanceSpec(A, "a", {GPU0: 10}, attaches=True, starts=False)
    declared = replace(bare, footprint={GPU0: 4}, footprint_kept={GPU0: 4}, placements=({GPU0: 4},))
    script = Script(bare, capacity={GPU0: 10})
    reconfigure(script, updated=(declared,))
    script.arrive(A)
    script.post(e.InstanceReady(script.now, A, 1, attached=True))
    held = script.scheduler.state.ledger
    assert held.held(A) == {GPU0: 4}
    larger = replace(declared, footprint={GPU0: 6}, footprint_kept={GPU0: 6}, placements=({GPU0: 6},))
    reconfigure(script, updated=(larger,))
    assert held.held(A) == {GPU0: 6}
    reconfigure(script, updated=(replace(bare, placements=({GPU0: 10},)),))
    assert held.held(A) == {}


def test_pools_and_what_needs_them_change_together() -> None:
    """Whoever waits for a model that fits the new pool as it is declared anew is not refused in between."""
    script = Script(InstanceSpec(A, "a", {GPU0: 20}), InstanceSpec(B, "b", {GPU0: 10}), capacity={GPU0: 24})
    script.load(B)
    script.arrive(B)
    script.arrive(A)
    smaller = InstanceSpec(A, "a", {GPU0: 10}, placements=({GPU0: 10},))
    out = reconfigure(script, updated=(smaller,), capacity={GPU0: 12})
    assert not [one for one in out if isinstance(one, c.Reject)]
    assert script.at(A).need() == {GPU0: 10}


def test_who_comes_while_the_old_one_is_cleared_away_waits_for_the_new_one() -> None:
    """Whatever the old one failed of, and however much it needed."""
    script = Script(InstanceSpec(A, "a", {GPU0: 10}), InstanceSpec(B, "b", {GPU0: 10}), capacity={GPU0: 12})
    script.load(A)
    script.post(e.ProcessExited(script.now, A, 1, BackendExited("killed")))
    assert script.at(A).failure is not None
    reconfigure(script, replaced=(InstanceSpec(A, "a", {GPU0: 5}),), capacity={GPU0: 6})
    assert script.arrive(A) == []
    assert kinds(script.gone(A)) == ["InstanceRetired", "StartInstance"]
