"""After a backend broke a connection, the next request waits for the news instead of being sent to a dead process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from juggler.backends.base import BackendSettings
from juggler.doubts import DOUBT_S, NEWS_LIMIT_S, Doubts
from juggler.engine import Engine
from juggler.ids import EndpointId, InstanceId
from juggler.leases import EndpointPolicy, EngineLease
from juggler.lifecycle.supervisor import Supervisor
from juggler.proxy.contract import ExchangeResult, RequestInfo, Route
from juggler.routing.traffic import TrafficClass
from juggler.scheduler.core import Scheduler
from juggler.scheduler.ledger import EXCLUSIVE_POOL
from juggler.scheduler.state import InstanceSpec
from juggler.testing.fake_backend import FakeBackend
from juggler.testing.fake_launcher import FakeHandle, FakeLauncher
from juggler.testing.virtual_time import VirtualClock, run_virtual

A = InstanceId("a")
BROKEN = ExchangeResult(error="upstream_closed")


@dataclass
class World:
    engine: Engine
    launcher: FakeLauncher

    async def ask(self, traffic: TrafficClass = TrafficClass.WORK) -> EngineLease:
        route = Route(EndpointId("a"), "a", b"/", traffic)
        return await self.engine.acquire(route, RequestInfo(b"POST", b"/", "127.0.0.1"))

    @property
    def process(self) -> FakeHandle:
        return self.launcher.handles[-1]


@asynccontextmanager
async def world(**spec: int) -> AsyncIterator[World]:
    launcher, clock = FakeLauncher(), VirtualClock()
    specs = [InstanceSpec(A, "a", {EXCLUSIVE_POOL: 1}, **spec)]  # type: ignore[arg-type]
    engine = Engine(
        Scheduler(specs, {EXCLUSIVE_POOL: 1}), {EndpointId("a"): EndpointPolicy("a", A, 0, 60.0, 600.0)}, clock
    )
    backend = FakeBackend(BackendSettings(A, endpoint_name="a", type="fake"))
    supervisor = engine.supervisors[A] = Supervisor(A, backend, launcher, engine, clock, {})
    running = asyncio.create_task(supervisor.run())
    engine.opened.set()
    try:
        yield World(engine, launcher)
    finally:
        engine.shut_down(0.0)
        async with asyncio.timeout(100):
            await engine.finished.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("traffic", [TrafficClass.WORK, TrafficClass.LIGHT])
@pytest.mark.parametrize("news_after_s", [0.0, 0.02, 0.1])
def test_the_next_request_goes_to_a_new_process(news_after_s: float, traffic: TrafficClass) -> None:
    """Its connection breaks, the client asks again at once, and only then the end of the process is told."""

    async def scenario() -> None:
        async with world() as it:
            lease = await it.ask()
            dead = it.process
            lease.release(BROKEN)
            asking = asyncio.create_task(it.ask(traffic))
            await asyncio.sleep(news_after_s)
            dead.end(-9)
            if traffic is TrafficClass.LIGHT:
                with pytest.raises(Exception, match="not loaded"):
                    await asking  # as for any light request while nothing runs
            else:
                again = await asking
                assert it.process is not dead
                assert again.upstream.port == it.process.address.port
                again.release(ExchangeResult(status=200))

    run_virtual(scenario())


def test_those_who_waited_for_a_slot_are_not_handed_to_the_dead() -> None:
    """The broken request gives its slot to the next in the queue, before anybody knows that the process is dead."""

    async def scenario() -> None:
        async with world(slots=1) as it:
            lease = await it.ask()
            dead = it.process
            queued = [asyncio.create_task(it.ask()) for _ in range(3)]
            await asyncio.sleep(0.01)
            lease.release(BROKEN)
            await asyncio.sleep(0.05)
            assert not any(one.done() for one in queued)
            queued.pop().cancel()
            dead.end(-9)
            for one in asyncio.as_completed(queued):
                (await one).release(ExchangeResult(status=200))
            assert it.process is not dead
            assert not it.engine.scheduler.state.requests, "who left while in doubt has given up its place"

    run_virtual(scenario())


def test_the_short_way_is_closed_while_there_is_doubt() -> None:
    """A lease at once is for a backend that is ready, has a free slot, and has given no cause for doubt."""

    async def scenario() -> None:
        async with world(slots=1) as it:
            route = Route(EndpointId("a"), "a", b"/", TrafficClass.WORK)
            info = RequestInfo(b"POST", b"/", "127.0.0.1")
            assert it.engine.try_acquire(route, info) is None, "not loaded"
            (await it.ask()).release(ExchangeResult(status=200))
            lease = it.engine.try_acquire(route, info)
            assert lease is not None
            assert lease.upstream.port == it.process.address.port
            assert it.engine.try_acquire(route, info) is None, "no slot"
            lease.release(BROKEN)
            assert it.engine.try_acquire(route, info) is None, "in doubt"
            await asyncio.sleep(DOUBT_S + 0.01)
            again = it.engine.try_acquire(route, info)
            assert again is not None
            again.release(ExchangeResult(status=200, first_byte_s=0.1))
            assert not it.engine.scheduler.state.requests

    run_virtual(scenario())


def test_a_backend_that_lives_costs_a_moment() -> None:
    """It closed a connection for reasons of its own: the next request waits DOUBT_S, those after it do not."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with world() as it:
            (await it.ask()).release(BROKEN)
            before = loop.time()
            (await it.ask()).release(ExchangeResult(status=200))
            assert loop.time() - before == pytest.approx(DOUBT_S)
            before = loop.time()
            (await it.ask()).release(ExchangeResult(status=200))
            assert loop.time() == before
            assert len(it.launcher.handles) == 1

    run_virtual(scenario())


@pytest.mark.parametrize(("ends", "waited_s"), [(False, DOUBT_S), (True, DOUBT_S + NEWS_LIMIT_S)])
def test_news_that_never_come_are_not_waited_for(ends: bool, waited_s: float) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        doubts = Doubts(lambda _: ends)
        doubts.begin(A)
        doubts.begin(A)
        await doubts.cleared(A)
        assert loop.time() == pytest.approx(waited_s)
        doubts.begin(A)
        doubts.end(A)
        doubts.begin(A)  # the timer of the one before does not end it
        before = loop.time()
        await doubts.cleared(A)
        assert loop.time() - before == pytest.approx(waited_s)

    run_virtual(scenario())
