"""The owner task of an instance against fake processes and a scripted backend, in virtual time."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from juggler.backends.base import Address, BackendSettings
from juggler.errors import BackendError, BackendExited, InvalidTransition, ReadyTimeout, StartFailed
from juggler.ids import InstanceId
from juggler.lifecycle.readiness import PortTaken
from juggler.lifecycle.reports import masked_command
from juggler.lifecycle.supervisor import ORDERS_LIMIT, Supervisor
from juggler.testing.fake_backend import NOT_YET, READY, WRONG_SERVER, FakeBackend
from juggler.testing.fake_launcher import FakeHandle, FakeLauncher, FakeProgram
from juggler.testing.recorded_reports import RecordedReports, Report
from juggler.testing.scripted import Act
from juggler.testing.virtual_time import VirtualClock, run_virtual

GOOD = FakeProgram()
HANGS = Act(hangs=True)
FAILS = Act(error=ValueError("a mistake in the module"))
SETTINGS = BackendSettings(InstanceId("main/chat"), endpoint_name="chat", type="fake", start_timeout_s=100.0)


@dataclass
class World:
    """One supervisor with everything around it."""

    supervisor: Supervisor
    launcher: FakeLauncher
    backend: FakeBackend
    reports: RecordedReports
    owner: "asyncio.Task[None]"

    @property
    def handle(self) -> FakeHandle:
        return self.launcher.handles[-1]

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def until_called(self, hook: str) -> None:
        """Wait until a hook of the backend was called."""
        async with asyncio.timeout(3600):
            while hook not in self.backend.calls:
                await asyncio.sleep(0.001)

    async def ready(self, generation: int = 1) -> None:
        self.supervisor.start(generation)
        await self.reports.until("instance_ready", generation)


@asynccontextmanager
async def _world(
    *programs: FakeProgram, backend: FakeBackend | None = None, script: Mapping[str, Iterable[Act]] | None = None
) -> AsyncIterator[World]:
    """At the end the owner is cancelled, and neither a process nor a task may be left."""
    launcher = FakeLauncher(*programs)
    backend = backend or FakeBackend(SETTINGS, script=script)
    reports = RecordedReports()
    supervisor = Supervisor(SETTINGS.instance, backend, launcher, reports, VirtualClock(), {"HOME": "/home/x"})
    owner = asyncio.create_task(supervisor.run(), name="owner")
    try:
        yield World(supervisor, launcher, backend, reports, owner)
        assert not owner.done(), "the owner task ended by itself"
    finally:
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)
    assert owner.cancelled()
    assert launcher.live == []
    # A plan is made in a thread, which is not interrupted; who cancels its start does not wait for it.
    plans = [task for task in asyncio.all_tasks() if task.get_name().endswith(" plan")]
    await asyncio.gather(*plans, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def _error(report: Report) -> BackendError:
    assert isinstance(report.detail, BackendError)
    return report.detail


# -------------------------------------------------------------------- the good paths


def test_a_whole_life() -> None:
    """Start, unload, wake, busy, stop: each order is answered once, and the hooks come in their order."""

    async def scenario() -> None:
        async with _world(script={"busy": [Act(True)]}) as world:
            supervisor, reports = world.supervisor, world.reports
            assert (supervisor.address, supervisor.exit, supervisor.output()) == (None, None, [])
            await world.ready()
            assert world.reports.all[0].detail == supervisor.address == Address("127.0.0.1", 40001)
            assert world.handle.launch_id == "main/chat#1"
            assert supervisor.started_at == pytest.approx(VirtualClock.WALL_START_S)
            supervisor.unload(1)
            supervisor.wake(1)
            supervisor.probe_busy(1)
            supervisor.probe_busy(1)
            await reports.until("busy_probed")
            supervisor.stop(1)
            await reports.until("stopped")
            assert reports.kinds == [
                "instance_ready 1",
                "unloaded 1",
                "instance_ready 1",
                "busy_probed 1",
                "stopped 1",
            ]
            assert reports.all[3].detail is True
            assert world.backend.calls == [
                *("plan", "probe", "after_start"),
                *("before_stop", "unload"),
                *("wake", "probe", "busy", "before_stop"),
            ]
            assert world.handle.received == ["stop", "SIGTERM"]
            assert world.launcher.live == []
            assert supervisor.exit is not None

    run_virtual(scenario())


def test_a_second_generation_starts_after_the_first_has_gone() -> None:
    """Orders queue up: stop and start may be given in one breath, and the reports keep their generations."""

    async def scenario() -> None:
        async with _world(FakeProgram(lingers_s=1.0)) as world:
            await world.ready()
            world.supervisor.stop(1)
            world.supervisor.start(2)
            await world.reports.until("instance_ready", 2)
            assert world.reports.kinds == ["instance_ready 1", "stopped 1", "instance_ready 2"]
            assert [handle.launch_id for handle in world.launcher.handles] == ["main/chat#1", "main/chat#2"]

    run_virtual(scenario())


def test_a_start_ordered_from_within_a_report() -> None:
    """The engine may answer ``stopped`` with the next start in the same call."""

    async def scenario() -> None:
        async with _world() as world:

            def engine(report: Report) -> None:
                if report.kind == "stopped" and report.generation == 1:
                    world.supervisor.start(2)

            world.reports.on_report = engine
            await world.ready()
            world.supervisor.stop(1)
            await world.reports.until("instance_ready", 2)

    run_virtual(scenario())


def test_unsaved_state_is_saved_once() -> None:
    """A stop after an unload has nothing to save; a stop of a ready one has."""

    async def scenario() -> None:
        async with _world() as world:
            await world.ready()
            world.supervisor.unload(1)
            await world.reports.until("unloaded")
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            assert world.backend.calls.count("before_stop") == 1

    run_virtual(scenario())


# -------------------------------------------------------------------- failing starts


@dataclass(frozen=True)
class BadStart:
    name: str
    kind: type[BackendError]
    text: str
    program: FakeProgram = GOOD
    script: tuple[tuple[str, tuple[Act, ...]], ...] = ()
    plan_error: Exception | None = None
    at_s: float = 0.0
    exit_status: int | None = None


BAD_STARTS = [
    BadStart(
        "exits while starting",
        StartFailed,
        "ended with exit status 7 before it was ready: error: no model",
        FakeProgram(exits_after_s=2.0, exit_status=7, last_words=("error: no model",)),
        (("probe", (NOT_YET,)),),
        at_s=2.0,
        exit_status=7,
    ),
    BadStart(
        "exits during a hanging probe",
        StartFailed,
        "ended with exit status 1",
        FakeProgram(exits_after_s=2.0),
        (("probe", (HANGS,)),),
        at_s=2.0,
        exit_status=1,
    ),
    BadStart(
        "exits while state is restored",
        StartFailed,
        "ended with exit status 1",
        FakeProgram(exits_after_s=2.0),
        (("after_start", (HANGS,)),),
        at_s=2.0,
        exit_status=1,
    ),
    BadStart("never ready", ReadyTimeout, "not ready after 100 s", script=(("probe", (NOT_YET,)),), at_s=100.0),
    BadStart("probe raises", StartFailed, "a mistake in the module", script=(("probe", (FAILS,)),)),
    BadStart("plan refuses", StartFailed, "chat: no binary", plan_error=StartFailed("no binary", hint="install it")),
    BadStart("plan raises", StartFailed, "a mistake in the module", plan_error=ValueError("a mistake in the module")),
    BadStart(
        "no such file", StartFailed, "chat: no such program", FakeProgram(start_error=StartFailed("no such program"))
    ),
    BadStart(
        "launcher breaks", StartFailed, "could not be started: too many", FakeProgram(start_error=OSError("too many"))
    ),
    BadStart("spawn hangs", StartFailed, "no process after 60 s", FakeProgram(spawn=HANGS), at_s=60.0),
]


@pytest.mark.parametrize("case", BAD_STARTS, ids=lambda case: case.name)
def test_a_failed_start(case: BadStart) -> None:
    """The failure is reported as soon as it is known, with its reason, then that everything is gone."""

    async def scenario() -> None:
        backend = FakeBackend(SETTINGS, script=dict(case.script), plan_error=case.plan_error)
        async with _world(case.program, FakeProgram(), backend=backend) as world:
            world.supervisor.start(1)
            failed = await world.reports.until("start_failed")
            await world.reports.until("stopped")
            error = _error(failed)
            assert type(error) is case.kind
            assert case.text in error.message
            assert (error.endpoint, error.phase, error.exit_status) == ("chat", "starting", case.exit_status)
            assert failed.at_s == pytest.approx(case.at_s, abs=0.15)
            assert world.reports.kinds == ["start_failed 1", "stopped 1"]
            if case.name != "spawn hangs":  # then only the launcher can know, and ends it by its own bound
                assert world.launcher.live == []
            for handle in world.launcher.live:
                await handle.kill()

    run_virtual(scenario())


def test_a_failed_start_is_reported_before_its_process_is_gone() -> None:
    """Clients get their answer at once, the memory counts as taken until it is free, the next start works."""

    async def scenario() -> None:
        dying = FakeProgram(exits_after_s=1.0, lingers_s=60.0, kill_s=4.0)
        async with _world(dying, FakeProgram(), script={"probe": [NOT_YET] * 30 + [READY]}) as world:
            world.supervisor.start(1)
            failed = await world.reports.until("start_failed")
            world.supervisor.stop(1)  # an anxious engine: must not lead to a second ``stopped``
            stopped = await world.reports.until("stopped")
            assert failed.at_s == pytest.approx(1.0, abs=0.15)
            assert stopped.at_s - failed.at_s == pytest.approx(4.0)
            await world.ready(2)
            assert world.reports.kinds == ["start_failed 1", "stopped 1", "instance_ready 2"]

    run_virtual(scenario())


def test_output_tail_and_hint_reach_the_error_and_the_status_view(caplog: pytest.LogCaptureFixture) -> None:
    """The operator reads why: the module's hint, the last lines in error, log and status view."""

    async def scenario() -> None:
        program = FakeProgram(exits_after_s=1.0, output=("loading",), last_words=("CUDA error: out of memory",))
        backend = FakeBackend(SETTINGS, script={"probe": [NOT_YET]}, hints={"out of memory": "use fewer layers"})
        async with _world(program, backend=backend) as world:
            world.supervisor.start(1)
            error = _error(await world.reports.until("start_failed"))
            assert error.hint == "use fewer layers"
            assert list(error.log_tail) == ["loading", "CUDA error: out of memory"] == world.supervisor.output(5)

    with caplog.at_level(logging.INFO, "juggler.lifecycle"):
        run_virtual(scenario())
    assert "hint: use fewer layers" in caplog.text
    assert "geheim" not in caplog.text
    assert "starting main/chat: fake-server --port 40001 --api-key ***" in caplog.text


@pytest.mark.parametrize(("thefts", "ready"), [(2, True), (3, True), (4, False)])
def test_a_port_thief(thefts: int, ready: bool) -> None:
    """Another port is tried three times, each time with nothing left of the attempt before."""

    async def scenario() -> None:
        async with _world(script={"probe": [WRONG_SERVER] * thefts + [READY]}) as world:
            world.supervisor.start(1)
            report = await world.reports.until("instance_ready" if ready else "start_failed")
            ports = [handle.address.port for handle in world.launcher.handles]
            assert ports == list(range(40001, 40001 + min(thefts + 1, 4)))
            if ready:
                assert report.detail == Address("127.0.0.1", ports[-1])
                assert world.launcher.live == [world.handle]
            else:
                assert isinstance(report.detail, PortTaken)
                await world.reports.until("stopped")

    run_virtual(scenario())


def test_private_files_of_a_plan_that_never_ran_are_removed(tmp_path: Path) -> None:
    """A launcher removes files of processes only; a key file of a failed start must not stay."""
    file, folder = tmp_path / "key", tmp_path / "folder"
    file.write_text("geheim")
    folder.mkdir()
    (folder / "x").write_text("y")

    async def scenario() -> None:
        backend = FakeBackend(SETTINGS, temp_files=[file, folder, tmp_path / "missing"])
        async with _world(FakeProgram(start_error=StartFailed("no")), backend=backend) as world:
            world.supervisor.start(1)
            await world.reports.until("stopped")
            assert list(tmp_path.iterdir()) == []

    run_virtual(scenario())


def test_stop_while_the_plan_is_made(tmp_path: Path) -> None:
    """A thread cannot be cancelled: the stop is done at once, and the late plan's file is removed."""
    file, go = tmp_path / "key", threading.Event()

    class SlowPlan(FakeBackend):
        def plan(self, address: Address, environ: object) -> "object":  # type: ignore[override]
            assert go.wait(30)
            file.write_text("geheim")
            return super().plan(address, {})

    async def scenario() -> None:
        async with _world(backend=SlowPlan(SETTINGS, temp_files=[file])) as world:
            world.supervisor.start(1)
            for _ in range(20):
                await asyncio.sleep(0)
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            assert world.reports.kinds == ["stopped 1"]
            go.set()
            async with asyncio.timeout(3600):
                while len(asyncio.all_tasks()) > 2 or file.exists():
                    await asyncio.sleep(0.01)
            assert world.backend.calls == ["plan"]
            assert world.launcher.handles == []

    run_virtual(scenario())


@pytest.mark.parametrize("act", [FAILS, HANGS, Act(error=OSError("reset"))], ids=["raises", "hangs", "refused"])
def test_a_failed_restore_only_costs_time(act: Act) -> None:
    """State that cannot be restored does not keep the model from serving."""

    async def scenario() -> None:
        async with _world(script={"after_start": [act]}) as world:
            await world.ready()
            assert world.now <= 30.0

    run_virtual(scenario())


# -------------------------------------------------------------------- stopping


@pytest.mark.parametrize("hook", ["probe", "after_start"])
def test_stop_during_start(hook: str) -> None:
    """The start ends at once and politely, and ``stopped`` is all that is heard of it."""

    async def scenario() -> None:
        async with _world(script={hook: [HANGS]}) as world:
            world.supervisor.start(1)
            await world.until_called(hook)
            await asyncio.sleep(1.0)
            asked = world.now
            world.supervisor.stop(1)
            assert (await world.reports.until("stopped")).at_s == asked
            assert world.reports.kinds == ["stopped 1"]
            assert world.handle.received == ["stop", "SIGTERM"]
            assert "before_stop" not in world.backend.calls

    run_virtual(scenario())


def test_stop_while_the_process_is_spawned() -> None:
    """A process that came into being while nobody wanted it any more is found and ended."""

    async def scenario() -> None:
        async with _world(FakeProgram(spawn=Act(after_s=2.0))) as world:
            world.supervisor.start(1)
            while not world.launcher.handles:
                await asyncio.sleep(0.1)
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            assert (world.reports.kinds, world.launcher.live) == (["stopped 1"], [])

    run_virtual(scenario())


def test_stop_before_the_start_has_begun() -> None:
    """Start and stop in one breath start nothing, and are answered."""

    async def scenario() -> None:
        async with _world() as world:
            world.supervisor.start(1)
            world.supervisor.stop(1)
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            assert (world.reports.kinds, world.launcher.handles) == (["stopped 1"], [])

    run_virtual(scenario())


@pytest.mark.parametrize("hook", ["before_stop", "unload", "wake", "busy"])
@pytest.mark.parametrize("act", [HANGS, Act(stubborn=True)], ids=["obedient", "stubborn"])
def test_stop_during_another_order(hook: str, act: Act) -> None:
    """Whatever runs is given up at once, even if it ignores its cancellation; only ``stopped`` follows."""

    async def scenario() -> None:
        async with _world(script={hook: [act, Act()]}) as world:
            await world.ready()
            if hook == "wake":
                world.supervisor.unload(1)
                await world.reports.until("unloaded")
            before = len(world.reports.all)
            order = {"wake": world.supervisor.wake, "busy": world.supervisor.probe_busy}
            order.get(hook, world.supervisor.unload)(1)
            world.supervisor.probe_busy(1)  # void together with the first
            await world.until_called(hook)
            asked = world.now
            world.supervisor.stop(1)
            stopped = await world.reports.until("stopped")
            assert stopped.at_s - asked <= 1.0
            assert world.reports.kinds[before:] == ["stopped 1"]
            assert world.backend.calls.count("busy") == (1 if hook == "busy" else 0)
            await asyncio.sleep(61)  # the stubborn hook ends in the end

    run_virtual(scenario())


def test_a_hanging_save_is_given_up() -> None:
    """Saving has 30 s as the last resort, then the stop goes on."""

    async def scenario() -> None:
        async with _world(script={"before_stop": [HANGS]}) as world:
            await world.ready()
            world.supervisor.stop(1)
            assert (await world.reports.until("stopped")).at_s == pytest.approx(30.0)

    run_virtual(scenario())


def test_a_failing_save_does_not_keep_the_process() -> None:
    """A mistake in a module's save costs the state, nothing else."""

    async def scenario() -> None:
        async with _world(script={"before_stop": [FAILS]}) as world:
            await world.ready()
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            assert world.reports.kinds == ["instance_ready 1", "stopped 1"]

    run_virtual(scenario())


def test_hurry_skips_saving_and_kills() -> None:
    """In a hurry a stop is one SIGKILL."""

    async def scenario() -> None:
        async with _world() as world:
            await world.ready()
            world.supervisor.hurry()
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            assert world.handle.received == ["kill"]
            assert "before_stop" not in world.backend.calls

    run_virtual(scenario())


@pytest.mark.parametrize("phase", ["save", "ladder"])
def test_hurry_during_a_stop(phase: str) -> None:
    """A polite stop that is under way, saving or waiting, turns into a SIGKILL at once."""

    async def scenario() -> None:
        save = HANGS if phase == "save" else Act()
        async with _world(FakeProgram(ends_on=None), script={"before_stop": [save]}) as world:
            await world.ready()
            world.supervisor.stop(1)
            await world.until_called("before_stop")
            await asyncio.sleep(0.5)
            asked = world.now
            world.supervisor.hurry()
            assert (await world.reports.until("stopped")).at_s == asked
            assert world.handle.received[-1] == "kill"

    run_virtual(scenario())


@pytest.mark.parametrize(
    "program", [FakeProgram(ends_on=None, kill_s=35.0), FakeProgram(kill_failures=3, ends_on=None, kill_s=60.0)]
)
def test_stopped_is_never_said_too_early(program: FakeProgram) -> None:
    """A process that survives SIGKILL for a while is killed again; its memory is not reported free before."""

    async def scenario() -> None:
        async with _world(program) as world:
            await world.ready()
            world.supervisor.stop(1)
            await asyncio.sleep(20)
            assert world.launcher.live
            assert world.reports.kinds == ["instance_ready 1"]
            world.handle.end(-9)  # the driver lets go of it
            world.handle.empty.set()
            await world.reports.until("stopped")

    run_virtual(scenario())


# -------------------------------------------------------------------- unload, wake, busy


@pytest.mark.parametrize(
    ("act", "detail", "at_s"),
    [
        (Act(False), "did not confirm", 0.0),
        (HANGS, "not done after 60 s", 60.0),
        (FAILS, "a mistake in the module", 0.0),
        (Act(error=ConnectionResetError("reset")), "reset", 0.0),
        (Act(error=BackendError("no")), "no", 0.0),
    ],
    ids=["unverified", "hangs", "raises", "reset", "refuses"],
)
def test_a_failed_unload(act: Act, detail: str, at_s: float) -> None:
    """The process stays, the reason is reported, and a stop works afterwards without saving again."""

    async def scenario() -> None:
        async with _world(script={"unload": [act]}) as world:
            await world.ready()
            world.supervisor.unload(1)
            report = await world.reports.until("unload_failed")
            assert detail in str(report.detail)
            assert report.at_s == pytest.approx(at_s)
            assert world.launcher.live == [world.handle]
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            assert world.backend.calls.count("before_stop") == 1

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("script", "kind", "at_s"),
    [
        ({"wake": [Act(error=BackendError("gone"))]}, BackendError, 0.0),
        ({"wake": [FAILS]}, StartFailed, 0.0),
        ({"wake": [Act(error=OSError("refused"))]}, StartFailed, 0.0),
        ({"wake": [HANGS]}, ReadyTimeout, 100.0),
        ({"probe": [READY, NOT_YET]}, ReadyTimeout, 100.0),
        ({"probe": [READY, WRONG_SERVER]}, PortTaken, 0.0),
    ],
    ids=["refuses", "raises", "reset", "hangs", "never ready", "wrong server"],
)
def test_a_failed_wake(script: dict[str, list[Act]], kind: type[BackendError], at_s: float) -> None:
    """A process that does not come back is reported as a failed start and removed."""

    async def scenario() -> None:
        async with _world(script=script) as world:
            await world.ready()
            world.supervisor.unload(1)
            world.supervisor.wake(1)
            failed = await world.reports.until("start_failed")
            assert type(failed.detail) is kind
            assert failed.at_s == pytest.approx(at_s, abs=0.1)
            await world.reports.until("stopped")
            assert world.reports.kinds[1:] == ["unloaded 1", "start_failed 1", "stopped 1"]
            assert len(world.launcher.handles) == 1

    run_virtual(scenario())


@pytest.mark.parametrize("act", [FAILS, Act(error=OSError("x"))], ids=["raises", "refused"])
def test_a_failed_busy_probe_counts_as_idle(act: Act) -> None:
    """A backend that cannot be asked does not hold its memory for ever."""

    async def scenario() -> None:
        async with _world(script={"busy": [act]}) as world:
            await world.ready()
            world.supervisor.probe_busy(1)
            report = await world.reports.until("busy_probed")
            assert report.detail is False
            assert report.at_s == pytest.approx(0.0)

    run_virtual(scenario())


def test_silence_counts_as_busy_for_a_while() -> None:
    """A backend may be too busy to say so; one that hangs does not hold its memory for ever."""
    silent, answered, failed = HANGS, Act(False), Act(error=OSError("x"))
    answers = [silent, silent, answered, silent, silent, Act(error=TimeoutError("x")), silent, failed, silent, silent]

    async def scenario() -> None:
        async with _world(script={"busy": list(answers)}) as world:
            await world.ready()
            for _ in answers:
                world.supervisor.probe_busy(1)
                await asyncio.sleep(10.0)
            said = [(one.detail, round(one.at_s)) for one in world.reports.all if one.kind == "busy_probed"]
            assert said == [
                *((True, 5), (True, 15), (False, 20)),
                *((True, 35), (True, 45), (False, 50)),
                *((True, 65), (False, 70), (True, 85), (True, 95)),
            ]

    run_virtual(scenario())


# -------------------------------------------------------------------- unexpected ends


@pytest.mark.parametrize("hook", ["idle", "before_stop", "unload", "wake", "busy"])
def test_an_unexpected_end(hook: str) -> None:
    """Reported at once with its reason, in the middle of anything, then ``stopped`` when the rest is gone."""

    async def scenario() -> None:
        program = FakeProgram(lingers_s=60.0, kill_s=3.0, last_words=("segmentation fault",))
        async with _world(program, script={hook: [HANGS]}) as world:
            await world.ready()
            if hook == "wake":
                world.supervisor.unload(1)
                world.supervisor.wake(1)
            elif hook == "busy":
                world.supervisor.probe_busy(1)
            elif hook != "idle":
                world.supervisor.unload(1)
            if hook != "idle":
                await world.until_called(hook)
                world.supervisor.unload(1)  # waits behind it and becomes void
            await asyncio.sleep(1.0)
            died = world.now
            world.handle.end(-11)
            report = await world.reports.until("start_failed" if hook == "wake" else "exited")
            error = _error(report)
            assert isinstance(error, StartFailed if hook == "wake" else BackendExited)
            assert "signal 11" in error.message
            assert "segmentation fault" in error.message
            assert error.exit_status == -11
            assert report.at_s - died <= 0.1
            stopped = await world.reports.until("stopped")
            assert stopped.at_s - report.at_s == pytest.approx(3.0)
            assert world.reports.all[-1] is stopped
            assert world.backend.calls.count("unload") <= 1
            await world.ready(2)

    run_virtual(scenario())


def test_an_end_while_state_is_saved_for_a_stop() -> None:
    """It was to be stopped anyway: ``stopped`` is enough."""

    async def scenario() -> None:
        async with _world(script={"before_stop": [HANGS]}) as world:
            await world.ready()
            world.supervisor.stop(1)
            await world.until_called("before_stop")
            world.handle.end(1)
            await world.reports.until("stopped")
            assert world.reports.kinds == ["instance_ready 1", "stopped 1"]

    run_virtual(scenario())


def test_a_stop_that_crosses_an_end() -> None:
    """The process ends and is ordered to stop in the same moment: exactly one ``stopped``, nothing else."""

    async def scenario() -> None:
        async with _world() as world:
            await world.ready()
            world.handle.end(1)
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            world.supervisor.stop(1)
            world.supervisor.unload(1)
            await asyncio.sleep(1)
            assert world.reports.kinds == ["instance_ready 1", "stopped 1"]

    run_virtual(scenario())


def test_a_stop_while_the_last_lines_of_an_end_are_read() -> None:
    """A stop ordered after the end but before its report makes the report pointless."""

    async def scenario() -> None:
        async with _world() as world:
            await world.ready()
            world.handle.end(1)
            await asyncio.sleep(0.005)
            assert world.reports.kinds == ["instance_ready 1"]
            world.supervisor.stop(1)
            await world.reports.until("stopped")
            assert world.reports.kinds == ["instance_ready 1", "stopped 1"]

    run_virtual(scenario())


# -------------------------------------------------------------------- mistakes and the end of the owner


def test_impossible_starts_are_refused() -> None:
    """A start of an old generation or over a running one is a bug of the caller and changes nothing."""

    async def scenario() -> None:
        async with _world() as world:
            await world.ready(3)
            with pytest.raises(InvalidTransition):
                world.supervisor.start(4)
            world.supervisor.stop(3)
            await world.reports.until("stopped", 3)
            with pytest.raises(InvalidTransition):
                world.supervisor.start(3)
            world.supervisor.unload(9)
            await world.ready(4)

    run_virtual(scenario())


def test_orders_are_bounded() -> None:
    """A scheduler gone mad fills a bounded queue, not the memory."""

    async def scenario() -> None:
        async with _world() as world:
            for _ in range(ORDERS_LIMIT):
                world.supervisor.unload(1)
            with pytest.raises(InvalidTransition):
                world.supervisor.unload(1)

    run_virtual(scenario())


@pytest.mark.parametrize("hook", ["probe", "after_start", "before_stop", "unload", "wake", "busy"])
@pytest.mark.parametrize("program", [FakeProgram(ends_on=None), FakeProgram(spawn=Act(after_s=1.0), kill_s=2.0)])
@pytest.mark.parametrize("turns", range(0, 120, 3))
def test_cancelling_the_owner_at_any_step_leaves_no_process(hook: str, program: FakeProgram, turns: int) -> None:
    """Cancelled after so many loop turns of a whole life in which one hook is slow; ``_world`` looks for remains."""

    async def scenario() -> None:
        slow = {hook: [Act({"probe": READY.value, "unload": True}.get(hook), after_s=0.01)]}
        async with _world(program, script=slow) as world:
            world.supervisor.start(1)
            world.supervisor.unload(1)
            world.supervisor.wake(1)
            world.supervisor.probe_busy(1)

            def engine(report: Report) -> None:
                if report.kind == "busy_probed":
                    world.supervisor.stop(1)

            world.reports.on_report = engine
            for _ in range(turns):
                await asyncio.sleep(0)

    run_virtual(scenario())


def test_a_second_cancellation_does_not_save_the_process() -> None:
    """An impatient shutdown cancels twice; the last kill is still carried through."""

    async def scenario() -> None:
        launcher, reports = FakeLauncher(FakeProgram(kill_s=3.0)), RecordedReports()
        supervisor = Supervisor(SETTINGS.instance, FakeBackend(SETTINGS), launcher, reports, VirtualClock(), {})
        owner = asyncio.create_task(supervisor.run())
        supervisor.start(1)
        await reports.until("instance_ready")
        for _ in range(2):
            owner.cancel()
            await asyncio.sleep(1)
        await asyncio.wait((owner,))
        assert (launcher.live, owner.cancelled()) == ([], True)
        assert asyncio.get_running_loop().time() == pytest.approx(3.0)

    run_virtual(scenario())


def test_the_last_kill_is_bounded() -> None:
    """A process that cannot be killed does not keep the juggler from ending."""

    async def scenario() -> None:
        launcher = FakeLauncher(FakeProgram(ends_on=None, kill_s=1000.0))
        reports = RecordedReports()
        supervisor = Supervisor(SETTINGS.instance, FakeBackend(SETTINGS), launcher, reports, VirtualClock(), {})
        owner = asyncio.create_task(supervisor.run())
        supervisor.start(1)
        await reports.until("instance_ready")
        owner.cancel()
        await asyncio.wait((owner,))
        assert owner.cancelled()
        assert asyncio.get_running_loop().time() == pytest.approx(10.0)

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["llama-server", "--api-key", "s3", "--port", "1"], "llama-server --api-key *** --port 1"),
        (["x", "--api-key=s3", "-hft", "hf_x", "--tokenizer", "a b"], "x --api-key=*** -hft *** --tokenizer 'a b'"),
        (["x", "HF_TOKEN=abc", "--password", "p"], "x HF_TOKEN=*** --password ***"),
        (["x", "--cache-type-k", "q8_0", "key"], "x --cache-type-k q8_0 key"),
    ],
)
def test_secrets_are_masked_in_the_log(argv: list[str], shown: str) -> None:
    """A log that is shown to others holds no keys."""
    assert masked_command(argv) == shown


def test_secrets_reach_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the last lines of the process, nor by what a module makes of the server's answer."""
    monkeypatch.setenv("HF_TOKEN", "inherited-1234")
    printed = "refused: --api-key qwertz42 for inherited-1234"
    shown = "refused: --api-key *** for ***"

    async def scenario() -> None:
        script = {"unload": [Act(error=OSError(printed)), Act(True)], "wake": [Act(error=ValueError(printed))]}
        async with _world(FakeProgram(output=(printed,)), script=script) as world:
            await world.ready()
            world.supervisor.unload(1)
            assert (await world.reports.until("unload_failed", 1)).detail == shown
            world.supervisor.unload(1)
            world.supervisor.wake(1)
            error = _error(await world.reports.until("start_failed", 1))
            assert error.message.endswith(shown)
            assert error.log_tail == (shown,)
            assert world.supervisor.output() == [shown]
            await world.reports.until("stopped", 1)

    run_virtual(scenario())
