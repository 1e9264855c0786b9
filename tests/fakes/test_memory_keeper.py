"""The keeper, the engine and the scheduler together on a pretend GPU, in virtual time."""

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from juggler.backends.base import BackendSettings, Capabilities
from juggler.config.resolve import ResolvedInstance
from juggler.engine import Engine
from juggler.errors import JugglerError, MemoryHeld
from juggler.errors import OutOfMemory as OutOfMemoryError
from juggler.ids import ANY_GPU, EndpointId, InstanceId, PoolId
from juggler.keeper import MemoryKeeper, usable
from juggler.known import Known
from juggler.leases import EndpointPolicy
from juggler.lifecycle.launcher import MachineMemory, MemoryPool, PoolUse
from juggler.lifecycle.supervisor import Supervisor
from juggler.memory.choose import RAM
from juggler.memory.footprint import MemoryEstimate, Origin
from juggler.memory.store import LearnedStore
from juggler.scheduler.core import Scheduler
from juggler.scheduler.events import OrderKind
from juggler.scheduler.ledger import EXCLUSIVE_POOL
from juggler.scheduler.state import InstanceSpec
from juggler.scheduler.transitions import Residency
from juggler.testing.fake_backend import FakeBackend
from juggler.testing.fake_launcher import FakeHandle, FakeLauncher, FakeProgram
from juggler.testing.virtual_time import VirtualClock, run_virtual
from juggler.units import GIB, MIB

GPU0, GPU1 = PoolId("gpu0"), PoolId("gpu1")
TOTAL = 24 * GIB


class Modelled(FakeBackend):
    """A backend that knows about its files."""

    files: tuple[Path, ...] = ()
    estimate: MemoryEstimate | None = None
    lazy = False

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, reload="lazy" if self.lazy else "explicit")

    def model_files(self) -> tuple[Path, ...]:
        return self.files

    def memory_estimate(self) -> MemoryEstimate | None:
        return self.estimate


@dataclass
class Gpu:
    """What programs hold of one pretend GPU."""

    launcher: FakeLauncher
    sizes: dict[str, int]
    """Bytes that a process of each instance holds."""
    returns_after_s: float = 0.0
    """How long after its end the driver gives its memory back."""
    foreign: dict[str, int] = field(default_factory=dict)
    tells_processes: bool = True
    _ended: dict[str, float] = field(default_factory=dict)

    def use(self) -> Mapping[PoolId, PoolUse]:
        now = asyncio.get_running_loop().time()
        held: dict[str, int] = {}
        for handle in self.launcher.handles:
            name = handle.launch_id.partition("#")[0]
            if handle.empty.is_set():
                ended = self._ended.setdefault(handle.launch_id, now)
                if now >= ended + self.returns_after_s:
                    continue
            held[handle.launch_id] = self.sizes[name]
        free = max(0, TOTAL - sum(held.values()) - sum(self.foreign.values()))
        others = tuple(sorted(self.foreign.items(), key=lambda one: -one[1]))
        return {GPU0: PoolUse(TOTAL, free, held if self.tells_processes else None, others)}


@dataclass
class Machine:
    """Everything, running."""

    engine: Engine
    keeper: MemoryKeeper
    launcher: FakeLauncher
    gpu: Gpu

    async def load(self, name: str) -> None:
        await self.engine.load(EndpointId(name))

    async def unload(self, name: str, kind: OrderKind = OrderKind.UNLOAD) -> str:
        return await self.engine.order(InstanceId(name), kind)

    def residency(self, name: str) -> Residency:
        return self.engine.scheduler.state.instances[InstanceId(name)].residency

    def full(self, name: str) -> Mapping[PoolId, int]:
        return self.engine.scheduler.state.instances[InstanceId(name)].full

    def handle(self, name: str) -> FakeHandle:
        return next(one for one in reversed(self.launcher.handles) if one.launch_id.startswith(f"{name}#"))

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()


def instance(name: str, memory: int | None = None, **more: Any) -> ResolvedInstance:
    settings = BackendSettings(InstanceId(name), endpoint_name=name, type="fake", parameters=("-m", name))
    declared = {ANY_GPU: memory} if memory is not None else None
    return ResolvedInstance(InstanceId(name), name, settings, declared, {}, None, 512, None, False, **more)


@asynccontextmanager
async def machine(
    state: Path,
    *instances: ResolvedInstance,
    sizes: Mapping[str, int],
    programs: tuple[FakeProgram, ...] = (),
    prepare: Callable[[Gpu, dict[str, Modelled]], None] | None = None,
    found: MachineMemory | None = None,
    soft: bool = False,
    declared: Mapping[PoolId, int] | None = None,
    **gpu: Any,
) -> AsyncIterator[Machine]:
    """The machine, opened; everything is ended afterwards and what was learned is kept."""
    launcher, clock = FakeLauncher(*programs), VirtualClock()
    launcher.machine = found or MachineMemory((MemoryPool(GPU0, "pretend GPU", TOTAL, "key"),))
    pretend = Gpu(launcher, dict(sizes), **gpu)
    launcher.use = pretend.use
    specs = [InstanceSpec(one.id, one.name, {EXCLUSIVE_POOL: 1}, soft_unload=soft) for one in instances]
    policies = {EndpointId(one.id): EndpointPolicy(one.name, one.id, 0, 60.0, 600.0) for one in instances}
    engine = Engine(Scheduler(specs, {EXCLUSIVE_POOL: 1}), policies, clock)
    backends = {one.name: Modelled(one.settings) for one in instances}
    if prepare is not None:
        prepare(pretend, backends)
    keeper = MemoryKeeper(
        engine.scheduler,
        {one.id: (one, backends[one.name]) for one in instances},
        launcher,
        LearnedStore(state / "learned.json"),
        clock,
        engine.post,
        declared=declared,
        automatic=True,
    )
    engine.keeper = keeper
    for one in instances:
        engine.supervisors[one.id] = Supervisor(one.id, backends[one.name], launcher, engine, clock, {})
    tasks = [asyncio.create_task(one.run()) for one in engine.supervisors.values()]
    await keeper.open()
    engine.opened.set()
    tasks.append(asyncio.create_task(keeper.run()))
    try:
        yield Machine(engine, keeper, launcher, pretend)
    finally:
        engine.shut_down(0.0)
        async with asyncio.timeout(100):
            await engine.finished.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await keeper.save()


def virtually(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Run the test in virtual time."""

    def run(tmp_path: Path) -> None:
        run_virtual(test(tmp_path))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@virtually
async def test_small_models_stay_side_by_side_once_they_were_seen(tmp_path: Path) -> None:
    """Nothing is known at first: the second takes the first one's place. Seen once, both stay."""
    sizes = {"a": 5 * GIB, "b": 6 * GIB}
    async with machine(tmp_path, instance("a"), instance("b"), sizes=sizes) as it:
        assert it.keeper.origin(InstanceId("a")) is Origin.UNKNOWN
        await it.load("a")
        await asyncio.sleep(15)
        assert it.keeper.origin(InstanceId("a")) is Origin.MEASURED
        assert it.full("a")[GPU0] == pytest.approx(5.25 * GIB, abs=0.1 * GIB)
        await it.load("b")
        assert it.residency("a") is not Residency.READY, "of b nothing is known: it gets everything"
        await asyncio.sleep(15)
        await it.load("a")
        assert it.residency("a") is it.residency("b") is Residency.READY
    async with machine(tmp_path, instance("a"), instance("b"), sizes=sizes) as it:
        assert it.keeper.origin(InstanceId("a")) is Origin.LEARNED, "after a restart"
        await it.load("a")
        await it.load("b")
        assert it.residency("a") is it.residency("b") is Residency.READY


@virtually
async def test_estimates_do_without_a_first_look(tmp_path: Path) -> None:
    def estimate(_: Gpu, backends: dict[str, Modelled]) -> None:
        for backend in backends.values():
            backend.estimate = MemoryEstimate(gpu_bytes=7 * GIB)

    names = ("a", "b", "c", "d")
    sizes = dict.fromkeys(names, 6 * GIB)
    async with machine(tmp_path, *map(instance, names), sizes=sizes, prepare=estimate) as it:
        assert it.keeper.origin(InstanceId("a")) is Origin.ESTIMATED
        for name in names[:3]:
            await it.load(name)
        assert [it.residency(name) for name in names[:3]] == [Residency.READY] * 3


@virtually
async def test_a_load_waits_until_the_memory_is_seen_free(tmp_path: Path) -> None:
    """The process is gone, its memory comes back 1.5 s later: only then the next one starts."""
    sizes = {"a": 18 * GIB, "b": 18 * GIB}
    both = (instance("a", 18 * GIB), instance("b", 18 * GIB))
    async with machine(tmp_path, *both, sizes=sizes, returns_after_s=1.5) as it:
        await it.load("a")
        await asyncio.sleep(20)
        loading = asyncio.create_task(it.load("b"))
        await asyncio.sleep(1.4)
        assert [one.launch_id for one in it.launcher.handles] == ["a#1"]
        await loading
        assert it.handle("b").launch_id == "b#1", "started once, not deferred and started again"


@virtually
async def test_memory_that_does_not_come_back_is_not_loaded_into(tmp_path: Path) -> None:
    """A driver that keeps it: said within the 5 s that it may take."""
    sizes = {"a": 18 * GIB, "b": 18 * GIB}
    both = (instance("a", 18 * GIB), instance("b", 18 * GIB))
    async with machine(tmp_path, *both, sizes=sizes, returns_after_s=60.0) as it:
        await it.load("a")
        began = it.now
        with pytest.raises(MemoryHeld):
            await it.load("b")
        assert it.now - began < 12.0
        await asyncio.sleep(60)
        await it.load("b")


@virtually
async def test_foreign_users_are_named(tmp_path: Path) -> None:
    async with machine(tmp_path, instance("a", 20 * GIB), sizes={"a": 20 * GIB}) as it:
        it.gpu.foreign["pid 4711 blender"] = 6 * GIB
        began = it.now
        with pytest.raises(MemoryHeld, match=r"6\.0 GiB by pid 4711 blender"):
            await it.load("a")
        assert it.now - began < 1.0, "waiting would not help: nothing of ours has just ended"
        assert not it.launcher.handles
        it.gpu.foreign.clear()
        await asyncio.sleep(10)
        await it.load("a")


@virtually
async def test_others_go_where_foreign_users_leave_too_little(tmp_path: Path) -> None:
    sizes = {"a": 8 * GIB, "b": 10 * GIB}
    async with machine(tmp_path, instance("a", 8 * GIB), instance("b", 10 * GIB), soft=True, sizes=sizes) as it:
        await it.load("a")
        it.gpu.foreign["pid 4711 blender"] = 10 * GIB
        await it.load("b")
        assert it.residency("b") is Residency.READY
        assert it.residency("a") is not Residency.READY


@virtually
async def test_one_of_which_nothing_is_known_gets_along_with_what_is_left(tmp_path: Path) -> None:
    async with machine(tmp_path, instance("a"), sizes={"a": 8 * GIB}) as it:
        it.gpu.foreign["pid 1 desktop"] = 9 * GIB
        await it.load("a")


@virtually
async def test_an_unload_that_frees_nothing_becomes_a_stop(tmp_path: Path) -> None:
    """The backend says that it is done; its process holds on to the memory."""
    sizes = {"a": 18 * GIB, "b": 18 * GIB}
    async with machine(tmp_path, instance("a", 18 * GIB), instance("b", 18 * GIB), soft=True, sizes=sizes) as it:
        await it.load("a")
        await asyncio.sleep(15)
        await it.load("b")
        assert it.residency("a") is Residency.STOPPED
        causes = [one.cause for one in it.engine.scheduler.state.decisions]
        assert "unload failed" in causes


@virtually
async def test_an_unload_that_frees_is_believed_and_its_residue_remembered(tmp_path: Path) -> None:
    sizes = {"a": 18 * GIB, "b": 18 * GIB}
    async with machine(tmp_path, instance("a"), instance("b", 18 * GIB), soft=True, sizes=sizes) as it:
        await it.load("a")
        await asyncio.sleep(15)
        unloading = asyncio.create_task(it.unload("a"))
        await asyncio.sleep(1.0)
        it.gpu.sizes["a"] = GIB
        assert await unloading == "done"
        assert it.residency("a") is Residency.UNLOADED
    learned = json.loads((tmp_path / "learned.json").read_text())
    assert any(one["unloaded"] == {"gpu0": GIB} for one in learned["records"].values())


@virtually
async def test_a_stop_while_the_memory_is_looked_for_leaves_nothing(tmp_path: Path) -> None:
    sizes = {"a": 18 * GIB, "b": 18 * GIB}
    both = (instance("a", 18 * GIB), instance("b", 18 * GIB))
    async with machine(tmp_path, *both, sizes=sizes, returns_after_s=4.0) as it:
        await it.load("a")
        loading = asyncio.create_task(it.load("b"))
        await asyncio.sleep(2.0)
        assert it.residency("b") is Residency.STARTING
        assert await it.unload("b", OrderKind.STOP) == "done"
        with pytest.raises(JugglerError):
            await loading
        assert it.residency("b") is Residency.STOPPED
        assert [one.launch_id for one in it.launcher.handles] == ["a#1"]


@virtually
async def test_out_of_memory_at_load_is_tried_once_more_with_more_room(tmp_path: Path) -> None:
    """b was thought to need 10; it says that this is not enough, a goes, and the client never notices."""
    dies = FakeProgram(exits_after_s=0.5, output=("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed",))
    sizes = {"a": 8 * GIB, "b": 12 * GIB}
    both = (instance("a", 8 * GIB), instance("b", 10 * GIB))
    async with machine(tmp_path, *both, sizes=sizes, programs=(FakeProgram(), dies, FakeProgram())) as it:
        for backend in it.engine.supervisors.values():
            assert backend is not None
        await it.load("a")
        slow(it, "b")
        await it.load("b")
        assert it.residency("b") is Residency.READY
        assert it.residency("a") is not Residency.READY
        assert it.full("b")[GPU0] > 10 * GIB


@virtually
async def test_out_of_memory_alone_is_told_at_once(tmp_path: Path) -> None:
    dies = FakeProgram(exits_after_s=0.5, output=("CUDA error: out of memory",))
    async with machine(tmp_path, instance("a", 8 * GIB), sizes={"a": 0}, programs=(dies,)) as it:
        slow(it, "a")
        with pytest.raises(OutOfMemoryError, match="out of memory"):
            await it.load("a")
        assert len(it.launcher.handles) == 1


def slow(it: Machine, name: str) -> None:
    """Its server answers no sooner than a second after its start."""
    backend = it.keeper._known[InstanceId(name)].backend
    assert isinstance(backend, FakeBackend)
    backend.ready_after(1.0)


@virtually
async def test_a_declaration_that_is_too_small_is_raised_and_said(tmp_path: Path) -> None:
    async with machine(tmp_path, instance("a", 4 * GIB), sizes={"a": 9 * GIB}) as it:
        await it.load("a")
        await asyncio.sleep(20)
        assert it.full("a")[GPU0] > 9 * GIB
        assert it.keeper.origin(InstanceId("a")) is Origin.DECLARED


@virtually
async def test_a_declaration_that_is_too_large_is_the_operators_business(tmp_path: Path) -> None:
    async with machine(tmp_path, instance("a", 9 * GIB), sizes={"a": 2 * GIB}) as it:
        await it.load("a")
        await asyncio.sleep(20)
        assert it.full("a") == {GPU0: 9 * GIB}


@virtually
async def test_without_figures_per_process_the_declared_ones_stay(tmp_path: Path) -> None:
    async with machine(tmp_path, instance("a", 9 * GIB), soft=True, sizes={"a": 9 * GIB}, tells_processes=False) as it:
        await it.load("a")
        await asyncio.sleep(20)
        assert it.full("a") == {GPU0: 9 * GIB}
        assert await it.unload("a") == "done"


@virtually
async def test_nothing_is_measured_while_nothing_happens(tmp_path: Path) -> None:
    """No GPU is kept awake."""
    async with machine(tmp_path, instance("a"), sizes={"a": 9 * GIB}) as it:
        await it.load("a")
        await asyncio.sleep(60)
        before = it.launcher.measured
        await asyncio.sleep(3600)
        assert it.launcher.measured == before


@virtually
async def test_two_gpus_get_one_model_each(tmp_path: Path) -> None:
    """Each process sees its own GPU only, by the environment."""
    pools = tuple(
        MemoryPool(PoolId(f"gpu{index}"), "pretend", TOTAL, "", {"CUDA_VISIBLE_DEVICES": f"GPU-{index}"})
        for index in range(2)
    )
    both = (instance("a", 18 * GIB), instance("b", 18 * GIB))
    async with machine(tmp_path, *both, sizes={"a": 0, "b": 0}, found=MachineMemory(pools)) as it:
        await it.load("a")
        await it.load("b")
        assert it.residency("a") is it.residency("b") is Residency.READY
        seen = {it.handle(name).plan.env["CUDA_VISIBLE_DEVICES"] for name in "ab"}
        assert seen == {"GPU-0", "GPU-1"}
        assert {*it.full("a"), *it.full("b")} == {GPU0, GPU1}


@virtually
async def test_pinned_to_a_gpu(tmp_path: Path) -> None:
    pools = tuple(MemoryPool(PoolId(f"gpu{index}"), "pretend", TOTAL) for index in range(2))
    both = (instance("a", 18 * GIB, pool=GPU1), instance("b", 18 * GIB, pool=GPU1))
    async with machine(tmp_path, *both, sizes={"a": 0, "b": 0}, found=MachineMemory(pools)) as it:
        await it.load("a")
        await it.load("b")
        assert it.residency("a") is not Residency.READY
        assert set(it.full("b")) == {GPU1}


@virtually
async def test_a_machine_that_tells_nothing_loads_one_at_a_time(tmp_path: Path) -> None:
    both = (instance("a", GIB), instance("b", GIB))
    for found in (MachineMemory((), ()), MachineMemory((MemoryPool(GPU0, "x", TOTAL),), ("the driver hangs",))):
        async with machine(tmp_path, *both, sizes={"a": 0, "b": 0}, found=found) as it:
            await it.load("a")
            await it.load("b")
            assert it.residency("a") is not Residency.READY


@virtually
async def test_files_of_one_that_waits_are_read_ahead(tmp_path: Path) -> None:
    def files(gpu: Gpu, backends: dict[str, Modelled]) -> None:
        for name, backend in backends.items():
            backend.files = (Path(f"/models/{name}"),)
            gpu.launcher.files[f"/models/{name}"] = (4 * 10**9, 0.0)

    both = (instance("a", 18 * GIB), instance("b", 18 * GIB))
    async with machine(tmp_path, *both, sizes={"a": 0, "b": 0}, prepare=files) as it:
        await it.load("a")
        assert it.launcher.prefetched == [], "nobody waits"
        request, _ = await it.engine._ask(EndpointId("a"), *busy())
        loading = asyncio.create_task(it.load("b"))
        await asyncio.sleep(10)
        assert it.launcher.prefetched == ["/models/b"]
        assert it.engine.scheduler.state.instances[InstanceId("b")].cached == 1.0
        it.engine.ended(request)
        await loading


def busy() -> tuple[Any, ...]:
    from juggler.proxy.wishes import NO_WISHES
    from juggler.scheduler.events import Kind

    return Kind.WORK, None, NO_WISHES, "somebody"


@virtually
async def test_times_are_learned_over_a_restart(tmp_path: Path) -> None:
    async with machine(tmp_path, instance("a", GIB), sizes={"a": 0}) as it:
        slow(it, "a")
        await it.load("a")
    async with machine(tmp_path, instance("a", GIB), sizes={"a": 0}) as it:
        estimate = it.engine.scheduler.state.instances[InstanceId("a")].load_s()
        assert 0.9 < estimate < 2.0


def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "learned.json").write_text('{"version": 1, "records": [')

    async def run() -> None:
        async with machine(tmp_path, instance("a", GIB), sizes={"a": 0}) as it:
            await it.load("a")

    with caplog.at_level(logging.WARNING):
        run_virtual(run())
    assert "learned.json.damaged" in caplog.text
    assert (tmp_path / "learned.json.damaged").exists()
    assert (tmp_path / "learned.json").exists()


@virtually
async def test_times_are_learned_where_no_memory_can_be_seen(tmp_path: Path) -> None:
    for _ in range(2):
        async with machine(tmp_path, instance("a"), sizes={"a": 0}, found=MachineMemory((), ())) as it:
            known = it.engine.scheduler.state.instances[InstanceId("a")].load_s()
            slow(it, "a")
            await it.load("a")
    assert 0.9 < known < 2.0


def test_what_could_not_be_looked_at_in_time_shares_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A dead disk: what is learned of the one instance is not believed of the other, whose files were not seen."""

    async def hangs(*_: Any) -> None:
        await asyncio.sleep(3600)

    async def run() -> None:
        monkeypatch.setattr(Known, "look_at_files", hangs)
        sizes = {"a": 3 * GIB, "b": 20 * GIB}
        async with machine(tmp_path, instance("a"), sizes=sizes) as it:
            await it.load("a")
            await asyncio.sleep(15)
            await it.unload("a", OrderKind.STOP)
        async with machine(tmp_path, instance("b"), sizes=sizes) as it:
            assert it.keeper.origin(InstanceId("b")) is Origin.UNKNOWN

    with caplog.at_level(logging.WARNING):
        run_virtual(run())
    assert caplog.text.count("not all of the machine and the models could be looked at within 10 s") == 2


@virtually
async def test_a_load_that_begins_while_something_is_saved_is_watched(tmp_path: Path) -> None:
    """1. Nothing happens, and the keeper saves. 2. A load begins. 3. The save ends: the keeper must not fall asleep."""
    async with machine(tmp_path, instance("a", GIB), sizes={"a": GIB}) as it:
        saving, saved = asyncio.Event(), asyncio.Event()

        async def slow_save() -> None:
            saving.set()
            await saved.wait()

        it.keeper._save_when_due = slow_save  # type: ignore[method-assign]
        it.keeper.wake()
        await saving.wait()
        slow(it, "a")
        loading = asyncio.create_task(it.load("a"))
        await asyncio.sleep(0.5)
        measured = it.launcher.measured
        saved.set()
        await asyncio.sleep(0.4)
        assert it.launcher.measured > measured
        await loading


@virtually
async def test_a_short_load_is_watched_beside_one_that_runs(tmp_path: Path) -> None:
    """Samples of what runs are 5 s apart: a load of 2 s would come and go between two of them."""
    both = (instance("a", 4 * GIB), instance("b"))

    def estimate(_: Gpu, backends: dict[str, Modelled]) -> None:
        backends["b"].estimate = MemoryEstimate(gpu_bytes=5 * GIB)
        backends["b"].ready_after(2.0)

    async with machine(tmp_path, *both, sizes={"a": 4 * GIB, "b": 9 * GIB}, prepare=estimate) as it:
        request, _ = await it.engine._ask(EndpointId("a"), *busy())
        await asyncio.sleep(60.5)
        loading = asyncio.create_task(it.load("b"))
        await asyncio.sleep(1.5)
        it.gpu.sizes["b"] = 3 * GIB
        await loading
        learner = it.keeper._known[InstanceId("b")].learner
        assert learner is not None
        assert learner._peak_load == {GPU0: 9 * GIB}
        it.engine.ended(request)


@virtually
async def test_a_mistake_while_sampling_ends_nothing(tmp_path: Path) -> None:
    """Said once; the next sample is taken as if nothing had been."""
    async with machine(tmp_path, instance("a"), sizes={"a": 5 * GIB}) as it:
        real, left = it.launcher.use, [3]

        def broken() -> Mapping[PoolId, PoolUse]:
            if left[0] and it.residency("a") is Residency.READY:
                left[0] -= 1
                raise ZeroDivisionError
            assert real is not None
            return real()

        it.launcher.use = broken
        await it.load("a")
        await asyncio.sleep(20)
        assert left == [0]
        assert it.keeper.origin(InstanceId("a")) is Origin.MEASURED


@virtually
async def test_main_memory_beside_a_gpu_keeps_nobody_out(tmp_path: Path) -> None:
    """A footprint per pool names main memory as well, of which this machine tells nothing."""
    one = instance("a")
    one = dataclasses.replace(one, memory={GPU0: 8 * GIB, PoolId("ram"): 4 * GIB})
    async with machine(tmp_path, one, sizes={"a": 8 * GIB}) as it:
        await it.load("a")
        assert it.full("a") == {GPU0: 8 * GIB}


@virtually
async def test_declared_pools_do_not_wait_for_a_driver_that_hangs(tmp_path: Path) -> None:
    """Decisions go on with what is declared; nothing is measured, and nobody is asked again."""

    def hanging(gpu: Gpu, _: dict[str, Modelled]) -> None:
        async def pools() -> MachineMemory:
            await asyncio.sleep(3600)
            raise AssertionError

        gpu.launcher.pools = pools  # type: ignore[method-assign]

    both = [instance(name, 10 * GIB) for name in ("a", "b")]
    async with machine(
        tmp_path, *both, instance("c", 20 * GIB), sizes={}, prepare=hanging, declared={GPU0: 24 * GIB}
    ) as it:
        assert it.now <= 3.0
        await it.load("a")
        await it.load("b")
        assert it.residency("a") is it.residency("b") is Residency.READY
        await it.load("c")
        assert {it.residency("a"), it.residency("b")} <= {Residency.STOPPED, Residency.UNLOADED}
        assert it.launcher.measured == 0


@virtually
async def test_one_that_takes_everything_is_loaded_again_after_a_restart(tmp_path: Path) -> None:
    """What it was seen to hold, and a margin, is more than is shared out: still it fits, for it did."""
    for expected in (Origin.UNKNOWN, Origin.LEARNED):
        async with machine(tmp_path, instance("a"), sizes={"a": int(23.3 * GIB)}) as it:
            assert it.keeper.origin(InstanceId("a")) is expected
            await it.load("a")
            await asyncio.sleep(15)


@virtually
async def test_files_read_in_part_are_not_said_to_be_there(tmp_path: Path) -> None:
    """Where the page cache cannot be looked at, what was read of them counts."""

    def files(gpu: Gpu, backends: dict[str, Modelled]) -> None:
        backends["a"].files = (Path("/models/a"),)
        gpu.launcher.files["/models/a"] = (4 * 10**9, None)

    async with machine(tmp_path, instance("a", GIB), sizes={"a": 0}, prepare=files) as it:

        async def a_quarter(_: Any, limit_bytes: int) -> int:
            return 10**9

        it.launcher.prefetch = a_quarter  # type: ignore[assignment,method-assign]
        it.keeper.files.read_ahead(InstanceId("a"))
        await asyncio.sleep(1)
        assert it.engine.scheduler.state.instances[InstanceId("a")].cached == 0.25


@virtually
async def test_what_another_load_has_yet_to_take_is_not_free(tmp_path: Path) -> None:
    """1. A stranger takes 6 of 24. 2. a begins to load, and has taken nothing yet. 3. b would fit into what is free."""
    both = (instance("a", 10 * GIB), instance("b", 10 * GIB))
    async with machine(tmp_path, *both, sizes={"a": 0, "b": 0}) as it:
        it.gpu.foreign["pid 4711 blender"] = 6 * GIB
        slow(it, "a")
        loading = asyncio.create_task(it.load("a"))
        await asyncio.sleep(0.5)
        other = asyncio.create_task(it.load("b"))
        await asyncio.sleep(0.1)
        assert [one.launch_id for one in it.launcher.handles] == ["a#1"], "8 GiB are left for b"
        it.gpu.sizes["a"] = 10 * GIB
        await loading
        await other
        assert it.residency("a") is not Residency.READY, "b came after it, not beside it"
        assert it.engine.scheduler.state.ledger.foreign[GPU0] == pytest.approx(6 * GIB, abs=GIB)


@virtually
async def test_memory_on_its_way_back_is_no_strangers(tmp_path: Path) -> None:
    """1. A stranger keeps b out, and ends. 2. a is stopped; the driver needs a while. 3. b is asked for at once."""
    both = (instance("a", 10 * GIB), instance("b", 16 * GIB))
    async with machine(tmp_path, *both, sizes={"a": 10 * GIB, "b": 16 * GIB}, returns_after_s=1.5) as it:
        await it.load("a")
        it.gpu.foreign["pid 4711 blender"] = 10 * GIB
        with pytest.raises(MemoryHeld):
            await it.load("b")
        it.gpu.foreign.clear()
        await asyncio.sleep(60)
        await it.unload("a", OrderKind.STOP)
        await it.load("b")
        assert it.residency("b") is Residency.READY


@virtually
async def test_one_that_loads_with_its_first_request_is_not_known_before_it(tmp_path: Path) -> None:
    """ComfyUI and its kin hold nothing while nobody has asked: what was seen then is no need."""

    def lazy(_: Gpu, backends: dict[str, Modelled]) -> None:
        backends["a"].lazy = True

    both = (instance("a"), instance("b", 20 * GIB))
    sizes = {"a": GIB // 2, "b": 20 * GIB}
    async with machine(tmp_path, *both, sizes=sizes, prepare=lazy) as it:
        await it.load("a")
        await asyncio.sleep(30)
        assert it.keeper.origin(InstanceId("a")) is Origin.UNKNOWN
        await it.load("b")
        assert it.residency("a") is not Residency.READY, "it will want more than the 3 GiB beside b"
    sizes["a"] = 12 * GIB
    async with machine(tmp_path, *both, sizes=sizes, prepare=lazy) as it:
        assert it.keeper.origin(InstanceId("a")) is Origin.UNKNOWN, "nor was it remembered"
        request, _ = await it.engine._ask(EndpointId("a"), *busy())
        await asyncio.sleep(30)
        it.engine.ended(request)
        assert it.keeper.origin(InstanceId("a")) is Origin.MEASURED
        assert it.full("a")[GPU0] > 12 * GIB


@virtually
async def test_an_unload_is_measured_by_what_was_loaded_with_a_request(tmp_path: Path) -> None:
    """It holds little when it is ready, 12 GiB with its first request, and little again: that is an unload."""

    def lazy(_: Gpu, backends: dict[str, Modelled]) -> None:
        backends["a"].lazy = True

    for left, how in ((700 * MIB, Residency.UNLOADED), (12 * GIB, Residency.STOPPED)):
        async with machine(tmp_path, instance("a", 13 * GIB), sizes={"a": GIB // 2}, prepare=lazy, soft=True) as it:
            await it.load("a")
            await asyncio.sleep(15)
            request, _ = await it.engine._ask(EndpointId("a"), *busy())
            it.gpu.sizes["a"] = 12 * GIB
            await asyncio.sleep(15)
            it.engine.ended(request)
            unloading = asyncio.create_task(it.unload("a"))
            await asyncio.sleep(1.0)
            it.gpu.sizes["a"] = left
            await unloading
            assert it.residency("a") is how


@virtually
async def test_some_of_several_gpus(tmp_path: Path) -> None:
    """A program that is placed on two of three sees these two; on all of them it sees what there is."""
    pools = tuple(
        MemoryPool(
            PoolId(f"gpu{one}"), "", TOTAL, "", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": uuid}
        )
        for one, uuid in enumerate(("GPU-a", "GPU-b", "GPU-c"))
    )
    chosen = instance("b", GIB)
    chosen = dataclasses.replace(
        chosen, settings=dataclasses.replace(chosen.settings, env={"CUDA_VISIBLE_DEVICES": "1"})
    )
    a, b, gpu2 = InstanceId("a"), InstanceId("b"), PoolId("gpu2")
    async with machine(tmp_path, instance("a", GIB), chosen, sizes={"a": 0}, found=MachineMemory(pools)) as it:
        two = it.keeper.environment(a, {GPU0: GIB, GPU1: 0, gpu2: GIB})
        assert two == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-c"}
        assert it.keeper.environment(a, {GPU1: GIB})["CUDA_VISIBLE_DEVICES"] == "GPU-b"
        assert it.keeper.environment(a, dict.fromkeys((GPU0, GPU1, gpu2), GIB)) == {}
        assert it.keeper.environment(a, {GPU1: 0}) == {}
        assert it.keeper.environment(b, {GPU1: GIB}) == {}, "its `env` says so itself, in its own order"


@virtually
async def test_main_memory_beside_a_gpu_is_shared_out_by_what_is_declared(tmp_path: Path) -> None:
    """Two models with their experts on the processor fit on the card together, and not into main memory."""
    found = MachineMemory((MemoryPool(GPU0, "", TOTAL, "k"), MemoryPool(RAM, "", 100 * GIB, "m")))
    both = [dataclasses.replace(instance(name), memory={GPU0: 8 * GIB, RAM: 50 * GIB}) for name in ("a", "b")]
    small = dataclasses.replace(instance("c"), memory={GPU0: 2 * GIB, RAM: 20 * GIB})
    async with machine(
        tmp_path, *both, small, sizes={"a": 8 * GIB, "b": 8 * GIB, "c": 2 * GIB}, found=found, foreign={"x": 0}
    ) as it:
        await it.load("a")
        await it.load("c")
        await asyncio.sleep(15)
        assert it.full("a")[RAM] == 50 * GIB, "measuring its GPU memory does not make it forget"
        await it.load("b")
        assert it.residency("a") is Residency.STOPPED
        assert it.residency("b") is it.residency("c") is Residency.READY


@virtually
async def test_a_declaration_that_is_true_is_not_raised(tmp_path: Path) -> None:
    """A margin belongs to what was measured, not to what the operator knows; two that fit exactly stay together."""
    both = [instance(name, 11 * GIB) for name in ("a", "b")]
    async with machine(tmp_path, *both, sizes={"a": 11 * GIB, "b": 11 * GIB - 8 * MIB}) as it:
        await it.load("a")
        await it.load("b")
        await asyncio.sleep(20)
        assert it.full("a")[GPU0] == it.full("b")[GPU0] == 11 * GIB
        assert it.residency("a") is it.residency("b") is Residency.READY


@virtually
async def test_what_was_seen_for_a_moment_is_known_in_this_run_too(tmp_path: Path) -> None:
    """It was sent away before it was watched for long: the next load reckons with that, not with the whole card."""
    async with machine(tmp_path, instance("a"), instance("b", 15 * GIB), sizes={"a": 6 * GIB, "b": 15 * GIB}) as it:
        await it.load("a")
        await asyncio.sleep(3)
        await it.unload("a", OrderKind.STOP)
        assert it.full("a")[GPU0] == pytest.approx(6.25 * GIB, abs=0.1 * GIB)
        assert it.keeper.origin(InstanceId("a")) is Origin.MEASURED
        await it.load("b")
        await it.load("a")
        assert it.residency("a") is it.residency("b") is Residency.READY


def test_shares_left_to_the_system() -> None:
    assert usable(PoolId("ram"), 100 * GIB) == 85 * GIB
    assert usable(GPU0, 100 * GIB) == 98 * GIB
    assert usable(GPU0, 4 * GIB) == 4 * GIB - 256 * MIB
