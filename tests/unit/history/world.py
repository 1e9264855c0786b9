"""A whole engine with fake processes in virtual time, and the history of what happens to it."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from juggler.backends.base import BackendSettings, Caller, ProbeResult
from juggler.engine import Engine
from juggler.history.history import Batch, History
from juggler.history.limits import HistoryLimits
from juggler.ids import EndpointId, InstanceId
from juggler.leases import EndpointPolicy
from juggler.lifecycle.supervisor import Supervisor
from juggler.proxy.contract import ExchangeResult, RequestInfo, Route
from juggler.routing.traffic import TrafficClass
from juggler.scheduler.core import Scheduler
from juggler.scheduler.ledger import EXCLUSIVE_POOL
from juggler.scheduler.state import InstanceSpec
from juggler.testing.fake_backend import FakeBackend
from juggler.testing.fake_launcher import FakeLauncher, FakeProgram
from juggler.testing.scripted import Act
from juggler.testing.virtual_time import VirtualClock

GOOD = FakeProgram()
CHAT, IMAGE = InstanceId("main/chat"), InstanceId("main/image")


class LoadingBackend(FakeBackend):
    """Takes its time to load."""

    def __init__(self, settings: BackendSettings, load_s: float) -> None:
        super().__init__(settings, script={"before_stop": [Act(after_s=1.0)]})
        self._load_s = load_s
        self._starts = 0
        self._ready_at = 0.0

    async def probe(self, caller: Caller) -> ProbeResult:
        now = asyncio.get_running_loop().time()
        if self.calls.count("plan") != self._starts:  # the first look at another start
            self._starts, self._ready_at = self.calls.count("plan"), now + self._load_s
        return ProbeResult.READY if now >= self._ready_at else ProbeResult.NOT_YET


class World:
    """See the module. Every endpoint is its own instance, and they exclude each other."""

    def __init__(self, instances: tuple[InstanceId, ...], load_s: float, program: FakeProgram) -> None:
        self.clock = VirtualClock()
        specs = [InstanceSpec(one, one.rpartition("/")[2], {EXCLUSIVE_POOL: 1}, slots=4) for one in instances]
        endpoints = {EndpointId(one): EndpointPolicy(one.rpartition("/")[2], one, 0, 60.0, 1800.0) for one in instances}
        self.engine = Engine(Scheduler(specs, {EXCLUSIVE_POOL: 1}), endpoints, self.clock)
        self.engine.opened.set()
        self.launcher = FakeLauncher(program)
        for one in instances:
            settings = BackendSettings(one, endpoint_name=one.rpartition("/")[2], type="fake")
            backend = LoadingBackend(settings, load_s)
            self.engine.supervisors[one] = Supervisor(one, backend, self.launcher, self.engine, self.clock, {})

    def route(self, instance: InstanceId, traffic: TrafficClass = TrafficClass.WORK) -> Route:
        return Route(EndpointId(instance), instance.rpartition("/")[2], b"/v1/x", traffic)

    async def serve(
        self,
        instance: InstanceId,
        seconds: float = 1.0,
        *,
        status: int = 200,
        error: str | None = None,
        target: bytes = b"/v1/chat",
        traffic: TrafficClass = TrafficClass.WORK,
        client_gone: bool = False,
    ) -> None:
        """One request from its arrival to its end."""
        route, info = self.route(instance, traffic), RequestInfo(b"POST", target, "127.0.0.1")
        lease = self.engine.try_acquire(route, info) or await self.engine.acquire(route, info)
        await asyncio.sleep(seconds)
        lease.release(ExchangeResult(status, client_gone, error, 10, 1000, seconds / 2))

    def wall(self) -> float:
        return self.clock.wall()


@asynccontextmanager
async def engine_world(
    *instances: InstanceId, load_s: float = 10.0, program: FakeProgram = GOOD
) -> AsyncIterator[World]:
    """The engine alone."""
    world = World(instances or (CHAT, IMAGE), load_s, program)
    async with asyncio.TaskGroup() as tasks:
        owners = [tasks.create_task(one.run()) for one in world.engine.supervisors.values()]
        try:
            yield world
        finally:
            for owner in owners:
                owner.cancel()


@asynccontextmanager
async def recorded_world(
    state_dir: Path, limits: HistoryLimits | None = None, load_s: float = 10.0, program: FakeProgram = GOOD
) -> AsyncIterator[tuple[World, History, list[Batch]]]:
    """The engine, its history, and the batches that a listener gets."""
    async with engine_world(load_s=load_s, program=program) as world, asyncio.TaskGroup() as tasks:
        history = History(world.engine, world.clock, state_dir, limits)
        batches: list[Batch] = []
        history.subscribe(batches.append)
        history.start(tasks)
        try:
            yield world, history, batches
        finally:
            await history.stop()


def states(spans: Sequence[Mapping[str, object]], instance: InstanceId) -> list[str]:
    """The words of an instance's spans in order."""
    return [str(one["state"]) for one in spans if one["instance"] == instance]
