"""What the keeper of memory makes of a new configuration; real supervisors, virtual time."""

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.fakes.test_memory_keeper import GPU0, Gpu, Machine, Modelled, instance, machine, virtually

from juggler.config.resolve import ResolvedInstance
from juggler.ids import ANY_GPU, InstanceId
from juggler.memory.footprint import Origin
from juggler.scheduler import events
from juggler.scheduler.ledger import EXCLUSIVE_POOL
from juggler.scheduler.state import InstanceSpec
from juggler.units import GIB

A = InstanceId("a")


def declared(one: ResolvedInstance, size: int | None) -> ResolvedInstance:
    return replace(one, memory=None if size is None else {ANY_GPU: size})


def held(it: Machine) -> int:
    return it.engine.scheduler.state.ledger.used(GPU0)


@virtually
async def test_a_memory_declared_anew_counts_at_once_for_a_loaded_model(tmp_path: Path) -> None:
    """And it is what the next start counts with."""
    one = instance("a", 5 * GIB)
    async with machine(tmp_path, one, sizes={"a": 4 * GIB}) as it:
        await it.load("a")
        assert held(it) == 5 * GIB
        it.keeper.change(A, declared(one, 9 * GIB))
        assert held(it) == 9 * GIB
        await it.unload("a")
        assert it.full("a") == {GPU0: 9 * GIB}


@virtually
async def test_a_memory_that_is_declared_no_longer_is_decided_anew_when_the_model_has_gone(tmp_path: Path) -> None:
    """Until then it was let in with what was declared."""
    one = instance("a", 5 * GIB)
    async with machine(tmp_path, one, sizes={"a": 4 * GIB}) as it:
        await it.load("a")
        await asyncio.sleep(15)
        it.keeper.change(A, declared(one, None))
        assert held(it) == 5 * GIB
        await it.unload("a")
        assert it.keeper.origin(A) is Origin.LEARNED
        assert it.full("a")[GPU0] < 5 * GIB


@virtually
async def test_a_memory_declared_anew_for_a_stopped_model(tmp_path: Path) -> None:
    one = instance("a", 5 * GIB)
    async with machine(tmp_path, one, sizes={"a": 4 * GIB}) as it:
        it.keeper.change(A, declared(one, 9 * GIB))
        assert it.full("a") == {GPU0: 9 * GIB}
        it.keeper.change(A, replace(declared(one, 9 * GIB), pinned=True))
        assert it.full("a") == {GPU0: 9 * GIB}, "nothing of it has changed"


@virtually
async def test_other_sizes_of_pools_are_counted_with(tmp_path: Path) -> None:
    """What nobody knows takes all there is, also of the new size."""
    async with machine(tmp_path, instance("a"), sizes={"a": GIB}, declared={GPU0: 24 * GIB}) as it:
        assert it.full("a") == {GPU0: 24 * GIB}
        policy = it.engine.scheduler.state.policy
        it.engine.post(events.Reconfigured(it.engine.now(), policy, capacity={GPU0: 12 * GIB}))
        it.keeper.resize({GPU0: 12 * GIB})
        it.keeper.resized()
        assert it.full("a") == {GPU0: 12 * GIB}


@virtually
async def test_one_that_comes_is_known_from_earlier_runs_and_one_that_goes_is_not_forgotten(tmp_path: Path) -> None:
    """What was learned belongs to program and files, not to a configuration."""
    one = instance("a")
    async with machine(tmp_path, one, sizes={"a": 4 * GIB}) as it:
        await it.load("a")
        await asyncio.sleep(15)
    async with machine(tmp_path, instance("b"), sizes={"a": 4 * GIB, "b": GIB}) as it:
        backend = Modelled(one.settings)
        known = await it.keeper.look(one, backend)
        spec = it.keeper.informed(InstanceSpec(A, "a", {EXCLUSIVE_POOL: 1}), known)
        assert 4 * GIB <= spec.footprint[GPU0] < 5 * GIB
        assert spec.sure
        policy = it.engine.scheduler.state.policy
        it.engine.post(events.Reconfigured(it.engine.now(), policy, added=(spec,)))
        it.keeper.take(A, known)
        assert it.keeper.origin(A) is Origin.LEARNED
        assert it.engine.scheduler.state.instances[A].estimates.exported()
        it.engine.post(events.Reconfigured(it.engine.now(), policy, removed=(A,)))
        it.keeper.forget(A)
        await it.keeper.save()
    async with machine(tmp_path, one, sizes={"a": 4 * GIB}) as it:
        assert it.keeper.origin(A) is Origin.LEARNED


@virtually
async def test_a_model_that_is_to_come_is_sized_for_the_pools_to_come(tmp_path: Path) -> None:
    async with machine(tmp_path, instance("a"), sizes={"a": GIB}, declared={GPU0: 24 * GIB}) as it:
        one = declared(instance("a"), 30 * GIB)
        it.keeper.resize({GPU0: 48 * GIB})
        spec = it.keeper.updated(InstanceSpec(A, "a", {GPU0: GIB}), one)
        assert spec.placements == ({GPU0: 30 * GIB},)
        assert it.keeper.updated(InstanceSpec(A, "a", {GPU0: GIB}), instance("a")).placements == (), "nothing new"


@virtually
async def test_times_are_remembered_where_no_memory_is_measured(tmp_path: Path) -> None:
    """Of one that was removed, too, should it come back."""
    one = instance("a", 5 * GIB)
    async with machine(tmp_path, one, sizes={}) as it:
        await it.load("a")
        await it.unload("a")
        known = it.keeper._known[A]
        it.keeper.gave_back(A)
        remembered = it.keeper._remembered(known)
        assert remembered is not None
        assert remembered.times


@virtually
async def test_a_reading_for_the_model_before_says_nothing_of_the_next(tmp_path: Path) -> None:
    def files(gpu: Gpu, backends: dict[str, Modelled]) -> None:
        backends["a"].files = (Path("/models/a"),)
        gpu.launcher.files["/models/a"] = (4 * 10**9, 0.5)

    async with machine(tmp_path, instance("a", GIB), sizes={"a": 0}, prepare=files) as it:
        it.keeper.files.read_ahead(A)
        await asyncio.sleep(0)
        known = replace(it.keeper._known[A], files=("/models/other",))
        it.keeper.take(A, known)
        await asyncio.sleep(5)
        assert it.engine.scheduler.state.instances[A].cached in (None, 0.0)
        assert it.launcher.prefetched == []


def _files(gpu: Gpu, backends: dict[str, Modelled]) -> None:
    for file in ("/models/a", "/models/other"):
        gpu.launcher.files[file] = (4 * 10**9, 0.5)
    backends["a"].files = (Path("/models/a"),)


@virtually
async def test_a_reading_that_is_ordered_before_a_model_is_taken_up_is_of_its_files(tmp_path: Path) -> None:
    """In the same turn, so it has not begun."""
    async with machine(tmp_path, instance("a", GIB), sizes={"a": 0}, prepare=_files) as it:
        it.engine.scheduler.state.reading = A
        it.keeper.files.read_ahead(A)
        it.keeper.take(A, replace(it.keeper._known[A], files=("/models/other",)))
        await asyncio.sleep(5)
        assert it.launcher.prefetched == ["/models/other"]
        assert it.engine.scheduler.state.reading is None


@virtually
async def test_a_reading_that_is_stopped_before_it_begins_is_not_waited_for(tmp_path: Path) -> None:
    async with machine(tmp_path, instance("a", GIB), sizes={"a": 0}, prepare=_files) as it:
        it.engine.scheduler.state.reading = A
        it.keeper.files.read_ahead(A)
        it.keeper.files.stop()
        await asyncio.sleep(5)
        assert it.launcher.prefetched == []
        assert it.engine.scheduler.state.reading is None
