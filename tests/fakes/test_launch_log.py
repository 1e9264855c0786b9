"""What an owner writes into the log of its instance, in virtual time."""

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from juggler.backends.base import BackendSettings
from juggler.ids import InstanceId
from juggler.lifecycle.supervisor import Supervisor
from juggler.logs.book import Logs
from juggler.testing.fake_backend import NOT_YET, READY, WRONG_SERVER, FakeBackend
from juggler.testing.fake_launcher import FakeLauncher, FakeProgram
from juggler.testing.recorded_reports import RecordedReports
from juggler.testing.scripted import Act
from juggler.testing.virtual_time import VirtualClock, run_virtual

CHAT = InstanceId("main/chat")
SETTINGS = BackendSettings(CHAT, "chat", "fake", parameters=("--api-key", "hunter2"), start_timeout_s=5.0)


def life(
    orders: Iterable[str], *programs: FakeProgram, script: Mapping[str, Iterable[Act]] | None = None
) -> tuple[list[str], list[dict[str, object]]]:
    """Carry out orders, each when the one before has been answered; the lines, and which logs there are."""

    async def scenario() -> tuple[list[str], list[dict[str, object]]]:
        clock, logs, reports = VirtualClock(), Logs(lambda: 0.0), RecordedReports()
        backend, launcher = FakeBackend(SETTINGS, script=script), FakeLauncher(*programs)
        supervisor = Supervisor(CHAT, backend, launcher, reports, clock, {}, logs.of(CHAT, backend))
        owner = asyncio.create_task(supervisor.run())
        for order in orders:
            name, answer = order.split()
            getattr(supervisor, name)(1)
            await reports.until(answer)
            await asyncio.sleep(1.0)
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)
        lines = logs.read(CHAT)["lines"]
        assert isinstance(lines, list)
        return [f"{line['stream']}: {line['text']}" for line in lines], logs.listing()

    return run_virtual(scenario())


def test_a_whole_life() -> None:
    """Lines of ours around what the process prints, without what must not be seen."""
    program = FakeProgram(output=("hello", "my key is hunter2"))
    lines, logs = life(
        ["start instance_ready", "unload unloaded", "wake instance_ready", "stop stopped"],
        program,
        script={"unload": [Act(True, after_s=2.0)]},
    )
    assert lines[0].startswith("juggler: started: ")
    assert "hunter2" not in lines[0]
    assert lines[1:] == [
        "stdout: hello",
        "stdout: my key is ***",
        "juggler: ready after 0.0 s",
        "juggler: unloaded after 2.0 s",
        "juggler: awake after 0.0 s",
        "juggler: is being stopped",
        "juggler: exited with status 0",
    ]
    assert logs[1] == {"log": "main/chat", "lines": len(lines), "last": len(lines), "running": False}


def test_a_start_that_fails() -> None:
    """Why, and how the process ended; its last words come before that."""
    program = FakeProgram(exits_after_s=1.0, exit_status=3, last_words=("no memory left",))
    lines, _ = life(["start stopped"], program, script={"probe": [NOT_YET]})
    assert lines[1] == "stdout: no memory left"
    assert "exit status 3" in lines[2]
    assert lines[3:] == ["juggler: exited with status 3"]


def test_a_port_that_was_taken() -> None:
    """Each attempt is a start of its own."""
    lines, _ = life(["start instance_ready"], FakeProgram(), script={"probe": [WRONG_SERVER, READY]})
    kinds = [line.removeprefix("juggler: ").partition(":")[0] for line in lines]
    assert kinds == ["started", "was ended by signal 9", "started", "ready after 0.0 s"]


@pytest.mark.parametrize("status", [0, -9])
def test_an_end_that_nobody_ordered(status: int) -> None:
    lines, _ = life(["start instance_ready", "probe_busy stopped"], FakeProgram(exits_after_s=9.0, exit_status=status))
    assert lines[-1] == ("juggler: exited with status 0" if status == 0 else "juggler: was ended by signal 9")
