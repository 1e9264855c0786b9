"""What is learned and measured of memory, and what the scheduler does about it."""

import pytest

from juggler.errors import OutOfMemory
from juggler.ids import InstanceId, PoolId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.policy import Policy
from juggler.scheduler.state import InstanceSpec
from juggler.scheduler.transitions import Residency
from juggler.units import GIB
from tests.scheduler.script import A, B, C, Script, kinds

GPU0, GPU1, RAM = PoolId("gpu0"), PoolId("gpu1"), PoolId("ram")


def sized(name: InstanceId, size: int, **more: object) -> InstanceSpec:
    return InstanceSpec(name, str(name), {GPU0: size}, **more)  # type: ignore[arg-type]


def defer(script: Script, name: InstanceId, foreign: int, users: str = "") -> list[c.Command]:
    generation = script.at(name).generation
    return script.post(e.StartDeferred(script.now, name, generation, {GPU0: foreign}, {GPU0: users}))


def run_out(script: Script, name: InstanceId) -> list[c.Command]:
    error = OutOfMemory("no room", exit_status=1)
    return script.post(e.StartFailed(script.now, name, script.at(name).generation, error))


# -- foreign users -----------------------------------------------------------------------------------------------------


def test_a_start_that_finds_its_memory_taken_evicts_what_helps() -> None:
    """The ledger said that it fits; the measurement says that others hold 4 of 20: a neighbour goes."""
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 20})
    script.load(A)
    assert script.arrive(B) == [c.StartInstance(B, 1)]
    assert defer(script, B, 6, "6 B by pid 4711 blender") == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.StartInstance(B, 2)]
    assert script.ready(B) == [c.Forward(2, B)]  # type: ignore[arg-type]


def test_waiters_are_refused_with_the_name_of_the_foreign_user() -> None:
    script = Script(sized(A, 8 * GIB), sized(B, 18 * GIB), capacity={GPU0: 24 * GIB})
    script.load(A)
    script.arrive(B)
    script.gone(A)
    out = defer(script, B, 7 * GIB, "7 GiB by pid 4711 blender")
    assert kinds(out) == ["Reject"]
    assert isinstance(out[0], c.Reject)
    error = out[0].error
    assert error.code == "memory_held"
    assert "18.0 GiB" in error.message
    assert "24.0 GiB of gpu0" in error.message
    assert "7 GiB by pid 4711 blender" in error.message
    assert error.retry_after_s


def test_old_measurements_are_made_anew_before_anybody_is_refused() -> None:
    """Blender may have ended long ago: ask first, and load if so."""
    script = Script(sized(B, 18), capacity={GPU0: 24})
    script.arrive(B)
    assert kinds(defer(script, B, 7)) == ["Reject"]
    script.tick(60)
    assert script.arrive(B) == [c.MeasurePools()]
    assert script.arrive(B) == [], "asked once"
    assert script.post(e.PoolsMeasured(script.now, {}, {})) == [c.StartInstance(B, 2)]


def test_old_measurements_evict_nobody() -> None:
    script = Script(sized(A, 8), sized(B, 10), capacity={GPU0: 20})
    script.load(A)
    script.post(e.PoolsMeasured(script.now, {GPU0: 6}, {}))
    script.tick(60)
    assert script.arrive(B) == [c.MeasurePools()]
    assert script.at(A).residency is Residency.READY
    assert script.post(e.PoolsMeasured(script.now, {GPU0: 0}, {})) == [c.StartInstance(B, 1)]
    assert script.at(A).residency is Residency.READY


def test_a_deferred_wake_goes_back_to_unloaded() -> None:
    spec = InstanceSpec(A, "a", {GPU0: 10}, {GPU0: 1}, soft_unload=True)
    script = Script(spec, sized(B, 10), capacity={GPU0: 12})
    script.load(A)
    script.arrive(B)
    script.unloaded(A)
    script.ready(B)
    script.end(2)
    assert script.arrive(A) == [c.StopInstance(B, 1)]
    assert script.gone(B) == [c.WakeInstance(A, 1)]
    out = defer(script, A, 4, "4 B by pid 1 init")
    assert kinds(out) == ["Reject"]
    assert script.at(A).residency is Residency.UNLOADED


def test_a_report_that_crosses_a_stop_is_dropped() -> None:
    script = Script(sized(A, 8), capacity={GPU0: 20})
    script.arrive(A)
    script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.STOP))
    assert defer(script, A, 4) == []
    assert script.gone(A) == [c.OrderDone(1, "done")]


# -- out of memory -----------------------------------------------------------------------------------------------------


def test_out_of_memory_raises_the_footprint_evicts_what_helps_and_tries_once_more() -> None:
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 20})
    script.load(A)
    assert script.arrive(B) == [c.StartInstance(B, 1)]
    assert run_out(script, B) == [], "the client goes on waiting"
    assert script.at(B).full == {GPU0: 13}, "a tenth more than the 12 that were free"
    assert script.gone(B) == [c.StopInstance(A, 1)]
    assert script.gone(A) == [c.StartInstance(B, 2)]
    assert script.ready(B) == [c.Forward(2, B)]  # type: ignore[arg-type]
    assert script.at(B).failure is None


def test_a_second_time_is_an_error_that_evicts_nobody() -> None:
    script = Script(sized(A, 4), sized(B, 4), sized(C, 6), capacity={GPU0: 20})
    script.load(A)
    script.load(C)
    script.arrive(B)
    run_out(script, B)
    script.gone(B)
    script.gone(A)
    script.gone(C) if script.at(C).residency is Residency.STOPPING else None
    assert script.at(B).residency is Residency.STARTING
    out = run_out(script, B)
    assert kinds(out) == ["Reject"]
    assert isinstance(out[0], c.Reject)
    assert out[0].error.code == "backend_out_of_memory"
    assert not any(isinstance(one, c.StopInstance) for one in script.gone(B))


def test_running_out_of_memory_alone_is_an_error_at_once() -> None:
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 20})
    script.arrive(A)
    assert kinds(run_out(script, A)) == ["Reject"]


def test_any_other_failure_evicts_nobody() -> None:
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 20})
    script.load(A)
    script.arrive(B)
    assert kinds(script.fail(B)) == ["Reject"]
    assert script.gone(B) == []
    assert script.at(A).residency is Residency.READY


# -- what is measured --------------------------------------------------------------------------------------------------


def test_a_measured_footprint_replaces_what_was_believed() -> None:
    """Believed to need the whole pool, seen to hold 6 of 20: the next one loads beside it."""
    script = Script(sized(A, 20), sized(B, 8), capacity={GPU0: 20})
    script.load(A)
    assert script.post(e.FootprintMeasured(script.now, A, {GPU0: 6})) == []
    assert script.arrive(B) == [c.StartInstance(B, 1)]
    assert script.at(A).residency is Residency.READY


def test_growth_evicts_nobody_by_itself() -> None:
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 20})
    script.load(A)
    script.load(B)
    assert script.post(e.FootprintMeasured(script.now, A, {GPU0: 15})) == []
    assert script.scheduler.state.ledger.free() == {GPU0: -3}
    assert script.arrive(B) == [c.Forward(3, B)]  # type: ignore[arg-type]


def test_what_is_measured_never_exceeds_the_pool() -> None:
    script = Script(sized(A, 8), capacity={GPU0: 20})
    script.post(e.FootprintMeasured(script.now, A, {GPU0: 99, RAM: 5}, {GPU0: 2, RAM: 1}))
    assert script.at(A).full == {GPU0: 20}
    assert script.at(A).residue == {GPU0: 2}
    assert script.arrive(A) == [c.StartInstance(A, 1)]


# -- placement ---------------------------------------------------------------------------------------------------------


def either(name: InstanceId, size: int, **more: object) -> InstanceSpec:
    return InstanceSpec(
        name,
        str(name),
        {GPU0: size},
        placements=({GPU0: size}, {GPU1: size}),
        **more,  # type: ignore[arg-type]
    )


def test_each_goes_where_it_fits_best() -> None:
    """The small one takes the small card and leaves the large one whole for the large one."""
    script = Script(either(A, 6), either(B, 20), capacity={GPU0: 24, GPU1: 8})
    script.arrive(A)
    assert script.placed[A] == {GPU1: 6}
    script.ready(A)
    script.arrive(B)
    assert script.placed[B] == {GPU0: 20}


def test_the_cheapest_victim_decides_on_the_card() -> None:
    """Both cards are full; the one whose resident is not in use is taken."""
    script = Script(either(A, 8), either(B, 8), either(C, 8), capacity={GPU0: 10, GPU1: 10})
    script.load(A)
    script.load(B)
    script.arrive(A)
    assert script.arrive(C) == [c.StopInstance(B, 1)]
    script.gone(B)
    assert script.placed[C] == script.at(B).full


def test_a_size_seen_on_one_card_holds_for_the_others() -> None:
    script = Script(either(A, 8), capacity={GPU0: 10, GPU1: 10})
    script.load(A)
    place = next(iter(script.placed[A]))
    script.post(e.FootprintMeasured(script.now, A, {place: 5}))
    assert script.at(A).placements == ({GPU0: 5}, {GPU1: 5})
    assert script.at(A).full == {place: 5}


def test_pinned_to_a_card_it_waits_for_that_card() -> None:
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 10, GPU1: 10})
    script.load(A)
    assert script.arrive(B) == [c.StopInstance(A, 1)]


def test_too_large_for_every_card_is_refused_with_the_numbers() -> None:
    script = Script(either(A, 30 * GIB), capacity={GPU0: 24 * GIB, GPU1: 8 * GIB})
    out = script.arrive(A)
    assert isinstance(out[0], c.Reject)
    assert out[0].error.code == "does_not_fit"
    assert "24.0 GiB" in out[0].error.message
    assert "30.0 GiB" in out[0].error.message


# -- abandoned loads, read-ahead ---------------------------------------------------------------------------------------


def test_a_start_that_nobody_waits_for_is_given_up_after_a_while() -> None:
    script = Script(sized(A, 8), capacity={GPU0: 10})
    script.arrive(A)
    assert script.leave(1) == []
    assert script.tick(4.0) == []
    assert script.tick(2.0) == [c.StopInstance(A, 1)]
    decision = script.scheduler.state.decisions[-1]
    assert decision.cause == "abandoned"


def test_who_comes_back_in_time_keeps_the_start() -> None:
    script = Script(sized(A, 8), capacity={GPU0: 10})
    script.arrive(A)
    script.leave(1)
    script.tick(4.0)
    script.arrive(A)
    assert script.tick(20.0) == []
    assert script.ready(A) == [c.Forward(2, A)]  # type: ignore[arg-type]


def test_abandoned_starts_can_be_kept() -> None:
    script = Script(sized(A, 8), capacity={GPU0: 10}, policy=Policy(abandon_after_s=None))
    script.arrive(A)
    script.leave(1)
    assert script.tick(100.0) == []
    assert script.ready(A) == []


def reads(script: Script, event: e.Event) -> list[InstanceId]:
    return [one.instance for one in script.scheduler.handle(event) if isinstance(one, c.ReadAhead)]


def test_the_files_of_one_that_waits_are_read_while_the_other_works() -> None:
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 10})
    script.load(A)
    script.arrive(A)
    assert reads(script, e.RequestArrived(script.now, 77, B)) == [B]  # type: ignore[arg-type]
    assert reads(script, e.RequestArrived(script.now, 78, B)) == [], "once per wait"  # type: ignore[arg-type]


def test_nothing_is_read_that_is_cached_or_loads_at_once() -> None:
    script = Script(sized(A, 8), sized(B, 8), sized(C, 2), capacity={GPU0: 10})
    script.load(A)
    script.arrive(A)
    script.post(e.FilesSeen(script.now, B, 0.95))
    assert reads(script, e.RequestArrived(script.now, 77, B)) == []  # type: ignore[arg-type]
    assert reads(script, e.RequestArrived(script.now, 78, C)) == []  # type: ignore[arg-type]


def test_one_read_at_a_time() -> None:
    script = Script(sized(A, 8), sized(B, 8), sized(C, 8), capacity={GPU0: 10})
    script.load(A)
    script.arrive(A)
    assert reads(script, e.RequestArrived(script.now, 77, B)) == [B]  # type: ignore[arg-type]
    assert reads(script, e.RequestArrived(script.now, 78, C)) == []  # type: ignore[arg-type]
    done = e.FilesSeen(script.now, B, 1.0, finished=True)
    assert reads(script, done) == [C]


def seen(script: Script, name: InstanceId, share: float, *, finished: bool = False) -> list[InstanceId]:
    return reads(script, e.FilesSeen(script.now, name, share, finished=finished))


def test_a_reading_that_a_load_cut_short_is_taken_up_again() -> None:
    """As long as it gets on; and again where the load pushed out what had been read."""
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 10})
    script.load(A)
    script.arrive(A)
    assert reads(script, e.RequestArrived(script.now, 77, B)) == [B]  # type: ignore[arg-type]
    assert seen(script, B, 0.4, finished=True) == [B]
    assert seen(script, B, 0.4, finished=True) == [], "it does not get on"
    assert seen(script, B, 0.35, finished=True) == [], "nor where others push it out meanwhile"
    assert seen(script, B, 0.35) == []
    assert seen(script, B, 0.1) == [B], "a load of somebody else's pushed it out"
    assert seen(script, B, 0.95, finished=True) == []


def test_at_leisure_each_is_read_once() -> None:
    """Where the page cache is too small for all they would push out one another for ever."""
    script = Script(sized(A, 8), sized(B, 8), capacity={GPU0: 10})
    assert kinds(script.arrive(B)) == ["StartInstance"]
    script.ready(B)
    script.end(1)
    script.arrive(A)
    seen(script, A, 1.0, finished=True)
    assert kinds(script.gone(B)) == ["StartInstance"]
    script.ready(A)
    script.end(2)
    seen(script, B, 0.2)
    assert reads(script, e.TimerFired(script.now)) == [B]
    assert seen(script, B, 1.0, finished=True) == []
    assert seen(script, B, 0.2) == []
    assert reads(script, e.TimerFired(script.now)) == []
    script.arrive(A)
    assert reads(script, e.RequestArrived(script.now, 99, B)) == [B], "one who waits is worth it"  # type: ignore[arg-type]


def test_a_pause_of_a_few_gaps_does_not_make_it_the_victim() -> None:
    """Requests come by chance: a gap of twice the mean says nothing yet, one of ten times does."""
    script = Script(sized(A, 4), capacity={GPU0: 10})
    estimates = script.at(A).estimates
    for number in range(10):
        estimates.arrived(10.0 * number)
    assert estimates.rate(110.0) == pytest.approx(10 / 110)
    assert estimates.rate(190.0) == pytest.approx(0.03)
