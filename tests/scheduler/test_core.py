"""The scheduler on scripts: each test is a story of events and the commands they cause."""

from collections.abc import Callable
from typing import Any

import pytest

from juggler.errors import BackendExited, InvalidTransition
from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.explain import outlook
from juggler.scheduler.policy import Policy
from juggler.scheduler.state import InstanceSpec
from juggler.scheduler.transitions import CROSSINGS, TABLE, Move, Residency, next_residency
from tests.scheduler.script import A, B, C, Script, exclusive, kinds

GPU = PoolId("gpu0")


@pytest.mark.parametrize("residency", list(Residency))
@pytest.mark.parametrize("move", list(Move))
def test_every_cell_of_the_residency_table(residency: Residency, move: Move) -> None:
    """Listed moves lead where the table says, all others raise; crossings are not moves."""
    if (residency, move) in TABLE:
        assert next_residency(residency, move) is TABLE[residency, move]
        assert (residency, move) not in CROSSINGS
    else:
        with pytest.raises(InvalidTransition):
            next_residency(residency, move)


def test_a_request_starts_its_instance_and_is_forwarded_when_it_is_ready() -> None:
    """The whole way of the first request."""
    script = Script(exclusive(A))
    assert script.arrive(A) == [c.StartInstance(A, 1)]
    assert script.ready(A) == [c.Forward(RequestId(1), A)]
    assert script.end(1) == []
    assert script.arrive(A) == [c.Forward(RequestId(2), A)]


def test_a_swap_waits_for_the_running_request_and_for_the_memory() -> None:
    """B asks while A works: nothing until A is done, then stop, and only when it is gone the start."""
    script = Script(exclusive(A), exclusive(B), policy=Policy(beta=0))
    script.load(A)
    script.arrive(A)
    script.arrive(B, max_wait_s=1.0)
    assert script.tick(5) == []
    assert script.end(2) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.StartInstance(B, 1)]
    assert kinds(script.ready(B)) == ["Forward"]


def test_a_soft_unload_is_preferred_and_woken_again() -> None:
    """The process stays; a failed unload goes on to a stop."""
    script = Script(exclusive(A, soft_unload=True), exclusive(B))
    script.load(A)
    assert script.arrive(B) == [c.UnloadInstance(A, 1)]
    assert script.unloaded(A) == [c.StartInstance(B, 1)]
    script.ready(B)
    script.end(2)
    assert script.arrive(A) == [c.StopInstance(B, 1)]
    assert script.gone(B) == [c.WakeInstance(A, 1)]
    script.ready(A)
    script.end(3)
    assert script.arrive(B) == [c.UnloadInstance(A, 1)]
    assert script.post(e.UnloadFailed(script.now, A, 1)) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.StartInstance(B, 2)]


def test_instances_that_fit_stay_side_by_side_and_only_enough_is_evicted() -> None:
    """24 of memory: 10 + 8 fit; 12 more evicts the least recently used one that is enough."""
    specs = [InstanceSpec(name, str(name), {GPU: size}) for name, size in ((A, 10), (B, 8), (C, 12))]
    script = Script(*specs, capacity={GPU: 24})
    script.load(A)
    script.now = 10
    script.load(B)
    script.now = 20
    assert script.arrive(C) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.StartInstance(C, 1)]


def test_nobody_goes_for_memory_that_comes_free_anyway() -> None:
    """A failed start is still being cleared away when the next request needs its place: the loaded one stays."""
    script = Script(*(InstanceSpec(name, str(name), {GPU: 40}) for name in (A, B, C)), capacity={GPU: 100})
    script.load(A)
    script.arrive(B)
    script.fail(B)
    assert script.arrive(C) == []
    assert script.at(A).residency is Residency.READY
    assert script.gone(B) == [c.StartInstance(C, 1)]


def test_memory_on_its_way_is_promised_once() -> None:
    """Two want the place of one that leaves: the second must take another's."""
    four = (A, B, C, InstanceId("d"))
    script = Script(*(InstanceSpec(name, str(name), {GPU: 40}) for name in four), capacity={GPU: 100})
    script.load(A)
    script.arrive(B)
    script.fail(B)
    assert script.arrive(C) == []
    assert script.arrive(four[3]) == [c.StopInstance(A, 1)]
    assert script.gone(B) == [c.StartInstance(C, 1)]


def test_what_can_never_fit_is_refused_at_once_with_the_numbers() -> None:
    """Larger than the pool, or than what pinned instances leave."""
    specs = [
        InstanceSpec(A, "a", {GPU: 30}),
        InstanceSpec(B, "b", {GPU: 20}, pinned=True),
        InstanceSpec(C, "c", {GPU: 10}),
    ]
    script = Script(*specs, capacity={GPU: 24})
    (refused,) = script.arrive(A)
    assert isinstance(refused, c.Reject)
    assert refused.error.code == "does_not_fit"
    script.load(B)
    (refused,) = script.arrive(C)
    assert isinstance(refused, c.Reject)
    assert "pinned 'b'" in refused.error.message
    told = "'c' can never be loaded: gpu0 has 24 B, 20 B of it held by the pinned 'b', it needs 10 B"
    assert refused.error.message == told


def test_a_pool_that_does_not_exist_is_named() -> None:
    """A GPU of the configuration that this machine does not have; and what it has instead."""
    script = Script(InstanceSpec(A, "a", {GPU: 30}), capacity={PoolId("ram"): 24})
    (refused,) = script.arrive(A)
    assert isinstance(refused, c.Reject)
    assert refused.error.message == "'a' can never be loaded: there is no pool gpu0 (there is ram)"
    assert "memory.pools" in (refused.error.hint or "")


def test_a_due_request_shuts_the_gate_of_a_busy_endpoint() -> None:
    """New requests for A wait, old ones are served, then A goes; without a due waiter it would stay for ever."""
    script = Script(exclusive(A, slots=1), exclusive(B), policy=Policy(beta=0, first_load_s=1, first_unload_s=1))
    script.load(A)
    script.arrive(A)  # 2 runs
    script.arrive(A)  # 3 waits for the slot
    script.arrive(B, max_wait_s=10)  # 4
    script.tick(11)
    assert script.at(A).residency is Residency.DRAINING
    assert script.arrive(A) == []  # 5 came after the gate was shut
    assert script.end(2) == [c.Forward(RequestId(3), A)]
    assert script.end(3) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.StartInstance(B, 1)]
    assert script.ready(B) == [c.Forward(RequestId(4), B)]
    assert script.end(4) == [c.StopInstance(B, 1)]


def test_a_gate_opens_again_when_nobody_waits_any_more() -> None:
    """The waiter left: A goes on as if nothing had been."""
    script = Script(exclusive(A, slots=1), exclusive(B), policy=Policy(beta=0, first_load_s=1))
    script.load(A)
    script.arrive(A)
    script.arrive(B, max_wait_s=1)
    script.tick(2)
    script.arrive(A)
    assert script.at(A).residency is Residency.DRAINING
    script.leave(3)
    assert script.at(A).residency is Residency.READY
    assert script.end(2) == [c.Forward(RequestId(4), A)]


def test_better_classes_go_first_and_due_requests_are_not_overtaken() -> None:
    """Priority, then arrival; a due batch request precedes a fresh interactive one."""
    script = Script(exclusive(A, slots=1))
    script.arrive(A, priority=-10, max_wait_s=500)  # 1
    script.arrive(A, priority=-10, max_wait_s=50)  # 2
    script.arrive(A)  # 3
    assert script.ready(A) == [c.Forward(RequestId(3), A)]
    script.now = 60
    script.arrive(A, max_wait_s=100)  # 4
    assert script.end(3) == [c.Forward(RequestId(2), A)]
    assert script.end(2) == [c.Forward(RequestId(4), A)]
    assert script.end(4) == [c.Forward(RequestId(1), A)]


def test_a_client_that_leaves_in_each_phase() -> None:
    """While queued, while loading, and at the very moment of the grant; the ledger forgets nobody."""
    script = Script(exclusive(A), exclusive(B))
    script.arrive(A)
    assert script.leave(1) == []
    assert script.arrive(B) == [c.StopInstance(A, 1)], "a load that nobody waits for gives way"
    script.gone(A)
    assert script.ready(B) == [c.Forward(RequestId(2), B)]
    assert script.leave(2) == []
    assert script.leave(2) == []
    assert not script.scheduler.state.requests


def test_a_start_failure_goes_to_all_waiters_and_backs_off() -> None:
    """The first retry is immediate, then 1, 2 ... s; within the pause the failure is told again at once."""
    script = Script(exclusive(A))
    script.arrive(A)
    script.arrive(A)
    out = script.fail(A)
    assert kinds(out) == ["Reject", "Reject"]
    script.gone(A)
    assert script.at(A).residency is Residency.FAILED
    assert script.arrive(A) == [c.StartInstance(A, 2)]
    script.fail(A)
    script.gone(A)
    (refused,) = script.arrive(A)
    assert isinstance(refused, c.Reject)
    assert refused.error.retry_after_s == 1.0
    assert refused.error.exit_status == 3
    assert refused.error.message == "'a' failed, and is started again in 1.0 s: boom"
    assert refused.error.hint == "`juggler load` starts it at once"
    script.now = 1.5
    assert script.arrive(A) == [c.StartInstance(A, 3)]


def test_waiters_survive_a_first_crash() -> None:
    """The queue of a process that died is served by its successor."""
    script = Script(exclusive(A, slots=1))
    script.load(A)
    script.arrive(A)
    script.arrive(A)
    script.post(e.ProcessExited(script.now, A, 1, BackendExited("died")))
    script.end(2)
    assert script.gone(A) == [c.StartInstance(A, 2)]
    assert script.ready(A) == [c.Forward(RequestId(3), A)]


def test_light_requests_wake_nothing_and_hold_only_for_a_grace_time() -> None:
    """Forwarded while it is up, refused with Retry-After else; a stuck one delays a swap by ten seconds at most."""
    script = Script(exclusive(A), exclusive(B))
    (refused,) = script.arrive(A, e.Kind.LIGHT)
    assert isinstance(refused, c.Reject)
    assert refused.error.code == "not_ready"
    script.load(A)
    assert script.arrive(A, e.Kind.LIGHT) == [c.Forward(RequestId(3), A)]
    assert script.arrive(A, e.Kind.HELD_OPEN) == [c.Forward(RequestId(4), A)]
    assert script.arrive(B) == []
    assert script.tick(11) == [c.StopInstance(A, 1)]


def test_a_backend_that_says_it_is_busy_is_asked_again_before_it_is_taken() -> None:
    """Work may outlive its request; the probe is asked only because somebody wants the memory."""
    script = Script(exclusive(A, probes_busy=True), exclusive(B))
    script.load(A)
    assert script.arrive(B) == [c.ProbeBusy(A, 1)]
    script.tick(0.1)
    assert script.post(e.BusyProbed(script.now, A, 1, True)) == []
    at_work = "a: at work, as the backend itself says"
    assert outlook(script.scheduler.state, script.at(B), script.now).why == at_work
    assert script.tick(3) == [c.ProbeBusy(A, 1)]
    assert outlook(script.scheduler.state, script.at(B), script.now).why == at_work
    assert script.post(e.BusyProbed(script.now, A, 1, False)) == [c.StopInstance(A, 1)]


def test_queue_bounds() -> None:
    """One more than ``queue_limit`` is 429; a request that waited ``queue_timeout`` is 503."""
    script = Script(exclusive(A, queue_limit=1))
    script.arrive(A, timeout_s=30)
    (refused,) = script.arrive(A)
    assert isinstance(refused, c.Reject)
    assert (refused.error.code, refused.error.status) == ("queue_full", 429)
    (late,) = script.tick(31)
    assert isinstance(late, c.Reject)
    assert late.error.code == "queue_timeout"


def test_operator_orders() -> None:
    """An unload drains first and keeps waiters; a stop refuses them; both are answered when done."""
    script = Script(exclusive(A, soft_unload=True))
    script.load(A)
    script.arrive(A)
    assert script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.UNLOAD)) == []
    script.arrive(A)
    assert script.end(2) == [c.UnloadInstance(A, 1)]
    assert script.unloaded(A) == [c.OrderDone(1, "done"), c.WakeInstance(A, 1)]
    out = script.post(e.OrderGiven(script.now, 2, A, e.OrderKind.STOP))
    assert kinds(out) == ["Reject", "StopInstance"]
    assert script.gone(A) == [c.OrderDone(2, "done")]
    assert script.post(e.OrderGiven(script.now, 3, A, e.OrderKind.STOP)) == [c.OrderDone(3, "done")]


def test_idle_unload() -> None:
    """After the configured silence, not before, and not while work runs."""
    script = Script(exclusive(A, idle_unload_s=60.0))
    script.load(A)
    script.arrive(A)
    assert script.tick(100) == []
    script.end(2)
    assert script.tick(59) == []
    assert script.tick(2) == [c.StopInstance(A, 1)]


def test_shutdown_refuses_drains_and_finishes() -> None:
    """Waiters are refused, the running request may end, at the end of the drain everything goes."""
    script = Script(exclusive(A, slots=1), exclusive(B))
    script.load(A)
    script.arrive(A)
    script.arrive(B)
    out = script.post(e.ShutdownRequested(script.now, script.now + 30))
    assert kinds(out) == ["Reject"]
    assert kinds(script.arrive(A)) == ["Reject"]
    assert script.tick(31) == [c.StopInstance(A, 1)]
    script.end(2)
    assert script.gone(A) == [c.FinishShutdown()]


def test_impossible_events_raise_with_the_story() -> None:
    """A bug elsewhere is told with the last events, and changes nothing."""
    script = Script(exclusive(A))
    script.arrive(A)
    with pytest.raises(InvalidTransition, match="RequestArrived"):
        script.post(e.RequestEnded(script.now, RequestId(1)))
    with pytest.raises(InvalidTransition, match="never ordered"):
        script.post(e.InstanceReady(script.now, A, 7))
    assert script.at(A).residency is Residency.STARTING


def test_reports_that_cross_with_a_stop_are_dropped() -> None:
    """ "Ready" arrives while the stop is under way; the end of the process is what counts."""
    script = Script(exclusive(A))
    script.arrive(A)
    script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.STOP))
    assert script.ready(A) == []
    assert script.gone(A) == [c.OrderDone(1, "done")]


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
@pytest.mark.parametrize("why", ["loads_alone", "sure"])
def test_loads_that_need_the_pool_for_themselves_follow_one_another(why: str, first: bool, second: bool) -> None:
    """Backends that measure free memory while they start would mislead each other; and an estimate may be too small."""
    names = [InstanceId("x"), InstanceId("y")]
    alone: list[dict[str, Any]] = [{why: one if why == "loads_alone" else not one} for one in (first, second)]
    specs = [InstanceSpec(name, str(name), {GPU: 5}, **more) for name, more in zip(names, alone, strict=True)]
    script = Script(*specs, capacity={GPU: 24})
    assert script.arrive(names[0]) == [c.StartInstance(names[0], 1)]
    assert script.arrive(names[1]) == []
    assert kinds(script.ready(names[0])) == ["Forward", "StartInstance"]


def test_loads_whose_needs_are_known_go_side_by_side() -> None:
    names = [InstanceId("x"), InstanceId("y")]
    script = Script(*(InstanceSpec(name, str(name), {GPU: 5}) for name in names), capacity={GPU: 24})
    assert script.arrive(names[0]) == [c.StartInstance(names[0], 1)]
    assert script.arrive(names[1]) == [c.StartInstance(names[1], 1)]


def test_a_job_that_outlives_its_request_keeps_the_model_awake() -> None:
    """Idle time counts from the backend's last word that it works, and so does being used last."""
    script = Script(exclusive(A, idle_unload_s=5.0, probes_busy=True))
    script.load(A)
    assert script.tick(5) == [c.ProbeBusy(A, 1)]
    script.post(e.BusyProbed(script.now, A, 1, True))
    assert script.at(A).last_used == 5
    assert script.tick(4.9) == []
    assert script.tick(0.2) == [c.ProbeBusy(A, 1)]
    assert script.post(e.BusyProbed(script.now, A, 1, False)) == [c.StopInstance(A, 1)]


def test_a_shutdown_lets_a_job_end_within_its_drain() -> None:
    """The backend is asked before it is stopped; at the end of the drain it is stopped whatever it says."""
    script = Script(exclusive(A, probes_busy=True))
    script.load(A)
    assert script.post(e.ShutdownRequested(script.now, script.now + 30)) == [c.ProbeBusy(A, 1)]
    assert script.post(e.BusyProbed(script.now, A, 1, True)) == []
    assert script.tick(2.5) == [c.ProbeBusy(A, 1)]
    assert script.post(e.BusyProbed(script.now, A, 1, False)) == [c.StopInstance(A, 1)]
    script = Script(exclusive(A, probes_busy=True))
    script.load(A)
    script.post(e.ShutdownRequested(script.now, script.now + 30))
    assert script.tick(30) == [c.StopInstance(A, 1)]


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (lambda script: (script.leave(1), script.tick(10.0)), "given up: nobody waits for it any more"),
        (
            lambda script: script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.STOP)),
            "given up: by order of the operator",
        ),
        (
            lambda script: script.post(e.ShutdownRequested(script.now, script.now)),
            "given up: the juggler shuts down",
        ),
        (
            lambda script: (script.leave(1), script.arrive(B)),
            "given up: nobody waited for it any more, and somebody else needs the memory",
        ),
    ],
)
def test_every_decision_has_an_outcome_in_the_end(end: Callable[[Script], object], outcome: str) -> None:
    """A start that is ended before it was through is not "under way" for ever."""
    script = Script(exclusive(A), exclusive(B))
    script.arrive(A)
    first = script.scheduler.state.decisions[0]
    assert first.outcome == ""
    end(script)
    assert first.outcome == outcome
    assert first.took_s is not None


def test_a_plan_that_nobody_needs_any_more_has_an_outcome() -> None:
    script = Script(exclusive(A), exclusive(B))
    script.load(A)
    script.arrive(B)  # A is told to stop
    decision = script.scheduler.state.decisions[-1]
    out = script.scheduler.handle(e.ClientLeft(script.now, RequestId(script.requests)))
    out += script.scheduler.handle(e.InstanceGone(script.now, A, 1))
    assert decision.outcome == "nobody waits for it any more"
    assert c.Record(decision) in out


def test_who_gives_up_waiting_is_told_how_the_queue_stands() -> None:
    """And when to come back, from what is known of load and service times."""
    script = Script(exclusive(A), exclusive(B))
    script.arrive(A)
    script.ready(A)
    script.arrive(B, timeout_s=5.0)
    script.arrive(B)
    (reject,) = script.tick(5.0)
    assert isinstance(reject, c.Reject)
    queue = reject.error.details["queue"]
    assert isinstance(queue, dict)
    assert queue["waiting"] == 1
    assert queue["expected_wait_s"] > 10.0
    assert "a: in use" in queue["why"]
    assert reject.error.retry_after_s == pytest.approx(queue["expected_wait_s"], abs=0.1)


@pytest.mark.parametrize(
    ("own_limit", "whose"),
    [
        (True, "its own X-Juggler-Max-Wait"),
        (False, "queue_timeout"),
        (None, "queue_timeout or its own X-Juggler-Max-Wait"),
    ],
)
def test_whose_limit_it_was(own_limit: bool | None, whose: str) -> None:
    script = Script(exclusive(A))
    (refused,) = [one for one in script.arrive(A, timeout_s=0.0, own_limit=own_limit) if isinstance(one, c.Reject)]
    assert refused.error.message == f"the request waited 0.0 s for 'a', as long as {whose} allows"


def test_one_slot_is_not_all_of_them() -> None:
    script = Script(exclusive(A, slots=1))
    script.load(A)
    script.arrive(A)
    script.arrive(A)
    assert outlook(script.scheduler.state, script.at(A), script.now).why == "its only slot is in use"
