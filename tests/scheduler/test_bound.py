"""Nobody waits for ever: gates stay shut until who they were shut for is in, and what is due precedes the rest."""

import itertools

from juggler.errors import MemoryHeld
from juggler.ids import InstanceId, PoolId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.policy import Policy
from juggler.scheduler.queue import RequestQueue, Total, Waiting
from juggler.scheduler.state import InstanceSpec
from juggler.scheduler.transitions import Residency
from tests.scheduler.script import A, B, C, Script, kinds

GPU, GPU1, RAM = PoolId("gpu0"), PoolId("gpu1"), PoolId("ram")
D, E, F = InstanceId("d"), InstanceId("e"), InstanceId("f")
QUICK = Policy(beta=0, first_load_s=1, first_unload_s=1)


def sized(name: InstanceId, size: int, **more: object) -> InstanceSpec:
    return InstanceSpec(name, str(name), {GPU: size}, **more)  # type: ignore[arg-type]


def starts(commands: list[c.Command]) -> list[InstanceId]:
    return [one.instance for one in commands if isinstance(one, c.StartInstance)]


def stops(commands: list[c.Command]) -> list[InstanceId]:
    return [one.instance for one in commands if isinstance(one, c.StopInstance)]


def test_a_gate_stays_shut_while_foreign_memory_is_measured() -> None:
    """1. B is due and A drains. 2. The foreign memory is measured anew. 3. Whoever came to A since does not get in."""
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU: 10}, policy=QUICK)
    script.load(A)
    script.post(e.PoolsMeasured(script.now, {GPU: 1}, {}))
    script.arrive(A)  # 2
    script.arrive(B, max_wait_s=1)  # 3
    script.post(e.PoolsMeasured(script.now, {GPU: 1}, {}))
    script.tick(1.5)
    script.post(e.PoolsMeasured(script.now, {GPU: 1}, {}))
    assert script.at(A).residency is Residency.DRAINING
    script.tick(10)
    assert script.arrive(A) == [c.MeasurePools()], "nobody passes"
    assert script.at(A).residency is Residency.DRAINING
    assert kinds(script.end(2)) == []
    assert stops(script.post(e.PoolsMeasured(script.now, {GPU: 1}, {}))) == [A]


def test_one_of_two_busy_victims_is_waited_for_to_the_end() -> None:
    """New requests queue before the shut gate; that does not make the other victim the better choice."""
    script = Script(sized(A, 10), sized(B, 10), sized(C, 10), capacity={GPU: 20}, policy=QUICK)
    script.load(A)
    script.load(B)
    script.arrive(A)  # 3
    script.arrive(B)  # 4
    script.arrive(C, max_wait_s=1)  # 5
    script.tick(2)
    (draining,) = [one for one in (A, B) if script.at(one).residency is Residency.DRAINING]
    for _ in range(5):
        script.arrive(draining)
        assert script.at(draining).residency is Residency.DRAINING
    assert stops(script.end(3 if draining == A else 4)) == [draining]


def test_one_that_becomes_idle_is_taken_instead_of_one_that_might_have_been_taken_before() -> None:
    """Both have been in use since C was due, and within their residence; B is through first."""
    script = Script(sized(A, 10), sized(B, 10), sized(C, 10), capacity={GPU: 20}, policy=QUICK)
    script.load(A)
    script.load(B)
    script.arrive(A)  # 3
    script.arrive(B)  # 4
    script.arrive(C, max_wait_s=1)  # 5
    script.tick(2)
    (draining,) = [one for one in (A, B) if script.at(one).residency is Residency.DRAINING]
    script.tick(1)
    other, request = (B, 4) if draining == A else (A, 3)
    assert stops(script.end(request)) == [other]
    assert script.at(draining).residency is Residency.READY


def test_a_load_that_needs_the_pool_for_itself_is_not_overtaken_for_ever() -> None:
    """Known loads go side by side, but not past an earlier one that waits until it can load alone."""
    script = Script(sized(A, 4), sized(B, 4), sized(C, 4), sized(D, 4, sure=False), capacity={GPU: 20})
    script.arrive(A)
    assert script.arrive(D) == []
    assert script.arrive(B) == [], "after D"
    assert starts(script.ready(A)) == [D]
    assert starts(script.ready(D)) == [B]


def test_a_sleeper_with_a_queue_gives_up_its_residue() -> None:
    """Two that take turns sleep with a queue all the time: one as large as the card would wait for ever."""
    specs = [InstanceSpec(one, str(one), {GPU: 13}, {GPU: 1}, soft_unload=True, slots=1) for one in (A, B)]
    script = Script(*specs, sized(C, 24), capacity={GPU: 24}, policy=QUICK)
    script.load(A)
    script.arrive(B)  # 2
    script.unloaded(A)
    script.ready(B)
    script.arrive(C, max_wait_s=1)  # 3
    script.arrive(A)  # 4: waits while it sleeps
    script.tick(3)
    assert script.at(A).residency is Residency.UNLOADED
    assert script.at(B).residency is Residency.DRAINING
    assert sorted(stops(script.end(2))) == [A, B]


def test_what_sleeps_and_is_more_urgent_keeps_its_residue() -> None:
    specs = [InstanceSpec(one, str(one), {GPU: 13}, {GPU: 1}, soft_unload=True, slots=1) for one in (A, B)]
    script = Script(*specs, sized(C, 24), capacity={GPU: 24}, policy=QUICK)
    script.load(A)
    script.arrive(B)  # 2
    script.unloaded(A)
    script.ready(B)
    script.arrive(A, max_wait_s=1)  # 3
    script.arrive(C, max_wait_s=2)  # 4
    script.tick(3)
    assert kinds(script.end(2)) == ["UnloadInstance"]
    assert kinds(script.unloaded(B)) == ["WakeInstance"]


def test_an_overdue_one_is_not_passed_by_because_somebody_always_loads() -> None:
    """Four small ones change places all the time, two at once: one as large as the card gets its turn."""
    small = (A, B, D, E)
    script = Script(*(sized(one, 10) for one in small), sized(C, 20), capacity={GPU: 20}, policy=QUICK)
    script.load(A)
    script.load(B)
    script.arrive(D)  # one of A, B goes
    (first,) = [one for one in (A, B) if script.at(one).residency is Residency.STOPPING]
    script.gone(first)
    assert script.at(D).residency is Residency.STARTING
    script.arrive(C, max_wait_s=0.5)
    script.tick(1)  # C is due; D loads, somebody waits for it
    assert script.arrive(E) == [], "E would take the place of the one that is idle"
    script.ready(D)
    script.tick(5)
    out = script.end(3)
    assert C in script.scheduler.state.plans
    assert set(stops(out)) <= {A, B, D}


def test_who_can_wait_for_others_is_not_refused_for_the_sake_of_one_that_holds_on() -> None:
    """The attached A keeps its half; the other half changes hands, and D gets it in its turn."""
    attached = sized(A, 10, attaches=True, starts=False, soft_unload=True)
    script = Script(attached, sized(B, 10), sized(C, 10), sized(D, 10), capacity={GPU: 20})
    script.post(e.AttachOffered(script.now, A))
    script.post(e.InstanceReady(script.now, A, 1, True))
    script.load(B)
    script.at(A).last_used = -1.0
    script.arrive(C)
    script.post(e.UnloadFailed(script.now, A, 1, "it said no"))
    assert script.at(B).residency is Residency.STOPPING
    assert script.arrive(D) == [], "C loads in the place of B; then it is the turn of D"
    script.gone(B)
    script.ready(C)
    out = script.end(2)
    assert not any(isinstance(one, c.Reject) and isinstance(one.error, MemoryHeld) for one in out)
    assert stops(out) == [C]


# -- who goes, and who is asked ----------------------------------------------------------------------------------------


def test_a_backend_that_works_by_its_own_word_is_not_preferred_to_an_idle_one() -> None:
    """Nobody has asked for A, so that it would be the cheaper one to bring back; but its job may take an hour."""
    script = Script(sized(A, 10, probes_busy=True), sized(B, 10), sized(C, 10), capacity={GPU: 20})
    script.load(A)
    script.arrive(B)  # 2
    script.tick(10)
    script.ready(B)
    script.tick(1)
    script.end(2)
    script.tick(1)
    assert script.arrive(C) == [c.ProbeBusy(A, 1)]
    assert script.post(e.BusyProbed(script.now, A, 1, True)) == [c.StopInstance(B, 1)]


def test_one_that_was_busy_is_asked_again_while_somebody_waits_for_another() -> None:
    """The job of A ends long before the request that runs on B."""
    script = Script(sized(A, 10, probes_busy=True), sized(B, 10), sized(C, 10), capacity={GPU: 20}, policy=QUICK)
    script.load(A)
    script.load(B)
    script.arrive(B)
    script.arrive(C, max_wait_s=1)
    script.post(e.BusyProbed(script.now, A, 1, True))
    for _ in range(4):
        assert c.ProbeBusy(A, 1) in script.tick(2.5)
        assert script.at(B).residency in (Residency.READY, Residency.DRAINING)
        last = script.post(e.BusyProbed(script.now, A, 1, True))
        assert last == []
    script.tick(2.5)
    assert script.post(e.BusyProbed(script.now, A, 1, False)) == [c.StopInstance(A, 1)]


def test_an_old_word_is_not_believed() -> None:
    """It was idle when somebody asked a while ago; it may have been given work by others since."""
    script = Script(sized(A, 10, probes_busy=True), sized(B, 10), capacity={GPU: 10})
    script.load(A)
    assert script.arrive(B) == [c.ProbeBusy(A, 1)]
    script.leave(2)
    script.post(e.BusyProbed(script.now, A, 1, False))
    script.tick(600)
    assert script.arrive(B) == [c.ProbeBusy(A, 1)]
    assert script.post(e.BusyProbed(script.now, A, 1, False)) == [c.StopInstance(A, 1)]


def test_a_long_job_is_not_cut_when_nobody_wants_the_memory() -> None:
    script = Script(sized(A, 10, probes_busy=True, idle_unload_s=600.0), capacity={GPU: 10})
    script.load(A)
    for _ in range(30):
        assert script.tick(600) == [c.ProbeBusy(A, 1)]
        script.post(e.BusyProbed(script.now, A, 1, True))
    assert script.at(A).residency is Residency.READY


def test_a_swap_waits_for_the_backends_own_work_for_an_hour_at_most() -> None:
    """Counted from the moment at which it took no new requests, however long it has worked before."""
    script = Script(sized(A, 10, probes_busy=True), sized(B, 10), capacity={GPU: 10}, policy=Policy(busy_limit_s=9))
    script.load(A)
    script.tick(600)
    script.arrive(B)
    out: list[c.Command] = []
    for _ in range(3):
        script.post(e.BusyProbed(script.now, A, 1, True))
        assert stops(out) == []
        out = script.tick(2.5)
    script.post(e.BusyProbed(script.now, A, 1, True))
    assert stops(script.tick(2)) == [A]


def test_an_idle_one_is_stopped_rather_than_a_busy_one_taken_as_well() -> None:
    """Its soft unload frees too little by itself: that is no reason to take another that works."""
    soft = InstanceSpec(A, "a", {GPU: 12}, {GPU: 2}, soft_unload=True)
    script = Script(soft, sized(B, 8), sized(C, 12), capacity={GPU: 20})
    script.load(A)
    script.load(B)
    script.arrive(B)
    assert script.arrive(C) == [c.StopInstance(A, 1)]


def test_memory_beyond_the_pool_is_made_good_first() -> None:
    """A has grown: 3 more are held than there are. Taking B alone would free too little for C; A alone is enough."""
    script = Script(sized(A, 8), sized(B, 8), sized(C, 8), capacity={GPU: 20})
    script.load(B)
    script.tick(1)
    script.load(A)
    script.post(e.FootprintMeasured(script.now, A, {GPU: 15}))
    assert script.arrive(C) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.StartInstance(C, 1)]


def test_a_wake_that_needs_nothing_of_a_crowded_pool_goes_on() -> None:
    """More of the main memory is taken than there is; A holds its share of it already."""
    soft = InstanceSpec(A, "a", {GPU: 8, RAM: 4}, {RAM: 4}, soft_unload=True)
    script = Script(soft, sized(B, 8), capacity={GPU: 10, RAM: 8})
    script.load(A)
    script.arrive(B)
    script.unloaded(A)
    script.ready(B)
    script.end(2)
    script.post(e.PoolsMeasured(script.now, {RAM: 6}, {}))
    script.arrive(A)
    out = script.gone(B)
    assert kinds(out) == ["WakeInstance"]


def test_pinned_ones_that_are_going_or_asleep_keep_nobody_out() -> None:
    """What an operator unloads makes room, also where nobody else could have taken it."""
    script = Script(sized(A, 8, pinned=True), sized(B, 8), capacity={GPU: 10})
    script.load(A)
    assert script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.STOP)) == [c.StopInstance(A, 1)]
    assert script.arrive(B) == []
    assert starts(script.gone(A)) == [B]
    soft = InstanceSpec(A, "a", {GPU: 8}, {GPU: 1}, soft_unload=True, pinned=True)
    script = Script(soft, sized(B, 8), capacity={GPU: 10})
    script.load(A)
    script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.UNLOAD))
    assert script.arrive(B) == []
    assert starts(script.unloaded(A)) == [B]


def test_who_sleeps_where_it_can_never_wake_is_placed_elsewhere() -> None:
    """Somebody was pinned to its card meanwhile; a server of somebody else's cannot be placed, and is refused."""
    ways = ({GPU: 8}, {GPU1: 8})
    for attached in (False, True):
        either = InstanceSpec(A, "a", {GPU: 8}, soft_unload=True, attaches=attached, placements=ways)
        script = Script(either, sized(B, 8, pinned=True), capacity={GPU: 10, GPU1: 10})
        script.arrive(A, e.Kind.LOAD)
        script.post(e.InstanceReady(script.now, A, 1, attached))
        script.post(e.FootprintMeasured(script.now, A, {GPU: 8}))
        assert kinds(script.arrive(B)) == ["UnloadInstance"]
        assert starts(script.unloaded(A)) == [B]
        script.ready(B)
        if attached:
            (refused,) = script.arrive(A)
            assert isinstance(refused, c.Reject)
            assert "pinned 'b'" in refused.error.message
        else:
            assert script.arrive(A) == [c.StopInstance(A, 1)]
            assert starts(script.gone(A)) == [A]
            assert script.placed[A] == {GPU1: 8}


def test_who_leaves_is_forgotten() -> None:
    """One waits; thousands come and go behind it."""
    queue = RequestQueue(Total())
    numbers = itertools.count(1)

    def one(due_at: float) -> Waiting:
        return Waiting(next(numbers), A, e.Kind.WORK, 0, 0.0, due_at, due_at + 1, 1.0)  # type: ignore[arg-type]

    first = one(1.0)
    queue.add(first)
    for number in range(5000):
        waiting = one(2.0 + number)
        queue.add(waiting)
        queue.remove(waiting.id)
    assert len(queue._due) < 200
    assert len(queue._timeouts) < 200
    assert queue.earliest_due() == 1.0
    assert queue.next_timeout(0.0) is first
