"""The owner of an attached server: real sockets, a scripted backend."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from tests.ports import free_port

from juggler.backends.base import BackendSettings
from juggler.clock import SystemClock
from juggler.errors import AttachFailed, BackendError, InvalidTransition
from juggler.ids import InstanceId
from juggler.lifecycle import attaching
from juggler.lifecycle.supervisor import Supervisor
from juggler.testing.fake_backend import NOT_YET, FakeBackend
from juggler.testing.fake_launcher import FakeLauncher, FakeProgram
from juggler.testing.recorded_reports import RecordedReports
from juggler.testing.scripted import Act


@dataclass
class World:
    """An owner beside a port on which a server can be opened and closed."""

    supervisor: Supervisor
    backend: FakeBackend
    launcher: FakeLauncher
    reports: RecordedReports
    port: int
    server: asyncio.Server

    async def lose_server(self) -> None:
        self.server.close()
        await self.server.wait_closed()


@asynccontextmanager
async def world(
    *programs: FakeProgram, there: bool = True, script: Mapping[str, Iterable[Act]] | None = None
) -> AsyncIterator[World]:
    """At the end nothing may be left but their server."""

    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    port = free_port()
    server = await asyncio.start_server(hang_up, "127.0.0.1", port)
    settings = BackendSettings(InstanceId("S/chat"), "chat", "fake", attach_to=f"http://127.0.0.1:{port}")
    backend, launcher, reports = FakeBackend(settings, script=script), FakeLauncher(*programs), RecordedReports()
    supervisor = Supervisor(settings.instance, backend, launcher, reports, SystemClock(), {})
    made = World(supervisor, backend, launcher, reports, port, server)
    if not there:
        await made.lose_server()
    owner = asyncio.create_task(supervisor.run(), name="owner")
    try:
        async with asyncio.timeout(20):
            yield made
        assert not owner.done(), "the owner ended by itself"
    finally:
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)
        await made.lose_server()
    assert launcher.live == []


async def test_a_whole_life() -> None:
    """Found without an order, attached, unloaded, woken, let go of; nothing was planned or launched."""
    async with world() as it:
        await it.reports.until("attachable", 0)
        it.supervisor.attach(1)
        await it.reports.until("attached")
        assert it.backend.attached
        it.supervisor.unload(1)
        it.supervisor.wake(1)
        it.supervisor.probe_busy(1)
        await it.reports.until("busy_probed")
        it.supervisor.stop(1)
        await it.reports.until("stopped")
        answers = [kind for kind in it.reports.kinds if not kind.startswith("attachable")]
        assert answers == ["attached 1", "unloaded 1", "attached 1", "busy_probed 1", "stopped 1"]
        assert "plan" not in it.backend.calls
        assert it.server.is_serving()


async def test_nothing_there_and_a_start_instead() -> None:
    """One report, and the next generation is an ordinary start."""
    async with world(FakeProgram(), there=False) as it:
        it.supervisor.attach(1)
        report = await it.reports.until("not_attached")
        assert isinstance(report.detail, AttachFailed)
        it.supervisor.start(2)
        await it.reports.until("instance_ready", 2)
        assert not it.backend.attached
        it.supervisor.stop(2)
        await it.reports.until("stopped", 2)
        assert it.reports.kinds == ["not_attached 1", "instance_ready 2", "stopped 2"]


async def test_a_stop_ends_a_long_attach() -> None:
    """``stopped`` is the only word of that generation."""
    async with world(script={"probe": [NOT_YET]}) as it:
        it.supervisor.attach(1)
        while it.backend.calls.count("probe") < 2:
            await asyncio.sleep(0.01)
        it.supervisor.stop(1)
        await it.reports.until("stopped")
        assert it.reports.kinds == ["stopped 1"]


async def test_a_lost_server_is_seen_at_once_when_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """``exited``, then ``stopped``; a suspicion that proves wrong changes nothing."""
    monkeypatch.setattr(attaching, "SECOND_LOOK_S", 0.01)
    async with world() as it:
        it.supervisor.attach(1)
        await it.reports.until("attached")
        it.supervisor.suspect()
        await asyncio.sleep(0.1)
        assert "exited 1" not in it.reports.kinds
        await it.lose_server()
        it.supervisor.suspect()
        report = await it.reports.until("exited")
        assert isinstance(report.detail, BackendError)
        assert "is gone" in report.detail.message
        await it.reports.until("stopped")


async def test_a_wake_that_fails_lets_go() -> None:
    async with world(script={"wake": [Act(error=BackendError("no"))]}) as it:
        it.supervisor.attach(1)
        it.supervisor.unload(1)
        await it.reports.until("unloaded")
        it.supervisor.wake(1)
        await it.reports.until("start_failed")
        await it.reports.until("stopped")
        assert it.server.is_serving()


async def test_a_mistake_in_the_module_is_no_end() -> None:
    """A probe that raises what it should not: told as a failure, also by the watch."""
    async with world(script={"probe": [Act(error=ValueError("a mistake"))]}) as it:
        it.supervisor.attach(1)
        report = await it.reports.until("not_attached")
        assert "a mistake" in str(report.detail)


async def test_impossible_orders() -> None:
    async with world() as it:
        it.supervisor.attach(1)
        with pytest.raises(InvalidTransition):
            it.supervisor.attach(2)
        it.supervisor.stop(1)
    plain = FakeBackend(BackendSettings(InstanceId("S/chat"), "chat", "fake"))
    supervisor = Supervisor(InstanceId("S/chat"), plain, FakeLauncher(), RecordedReports(), SystemClock(), {})
    with pytest.raises(InvalidTransition):
        supervisor.attach(1)
