"""The keeper, the engine and the scheduler together on a pretend GPU, in virtual time."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from juggler.backends.base import BackendSettings
from juggler.config.resolve import ResolvedInstance
from juggler.engine import EndpointPolicy, Engine
from juggler.errors import JugglerError, MemoryHeld
from juggler.errors import OutOfMemory as OutOfMemoryError
from juggler.ids import ANY_GPU, EndpointId, InstanceId, PoolId
from juggler.keeper import MemoryKeeper, usable
from juggler.lifecycle.launcher import MachineMemory, MemoryPool, PoolUse
from juggler.lifecycle.supervisor import Supervisor
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
        declared=None,
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

    return Kind.WORK, NO_WISHES, "somebody"


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


def test_shares_left_to_the_system() -> None:
    assert usable(PoolId("ram"), 100 * GIB) == 85 * GIB
    assert usable(GPU0, 100 * GIB) == 98 * GIB
    assert usable(GPU0, 4 * GIB) == 4 * GIB - 256 * MIB
