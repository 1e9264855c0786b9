"""The helper program itself: questions in, answers out, and how it ends."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from juggler.units import GIB
from tests.e2e.support import eventually
from tests.unit.devices.support import LIMIT_S, FakeNvml, gpu, machine, process, recorded, scene


class Running:
    """One helper process."""

    def __init__(self, fake: FakeNvml) -> None:
        self.process = subprocess.Popen(
            fake.argv, env=fake.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> tuple[int, bytes]:
        """Its status and last words after its input has ended."""
        _, errors = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, errors


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path, scene(gpu(0), gpu(1)), machine(tmp_path) / "proc")


@pytest.fixture
def running(fake: FakeNvml) -> Iterator[Running]:
    one = Running(fake)
    yield one
    one.process.kill()
    one.process.communicate()


def test_what_is_told(fake: FakeNvml, running: Running, tmp_path: Path) -> None:
    """Sizes without what the driver reserves, processes with their names; each question is answered anew."""
    process(tmp_path, 4711, "llama-server")
    fake.play(recorded("h100", "holding"))
    found = running.ask()
    assert found["driver"] == "570.86.15"
    assert found["devices"] == [
        {
            "index": 0,
            "name": "NVIDIA H100 80GB HBM3",
            "uuid": "GPU-00000000-1111-2222-3333-444444444444",
            "total": 85520809984,
            "free": 80077651968,
            "used": 4849139712,
            "processes": [[4711, 4838129664, "llama-server"]],
        }
    ]
    fake.play(recorded("h100", "ended"))
    assert running.ask()["devices"][0]["processes"] == []
    assert running.end() == (0, b"")


def test_older_drivers(fake: FakeNvml, running: Running) -> None:
    """Without version 2 what is reserved counts as used; what is free is the same."""
    row = {**recorded("h100", "idle")["devices"][0], "errors": {"nvmlDeviceGetMemoryInfo_v2": 13}}
    fake.play(scene(row))
    found = running.ask()["devices"][0]
    assert (found["free"], found["used"]) == (84926791680, 594018304)


def test_a_process_in_both_lists(fake: FakeNvml, running: Running) -> None:
    """It computes and draws: listed once, with the larger size, unknown if either is."""
    fake.play(scene(gpu(processes=[[1, GIB], [2, GIB], [3, None]], graphics=[[1, 7], [2, 2 * GIB], [3, 1], [4, 5]])))
    found = {pid: size for pid, size, _ in running.ask()["devices"][0]["processes"]}
    assert found == {1: GIB, 2: 2 * GIB, 3: None, 4: 5}


def test_in_a_container_processes_are_not_believed(tmp_path: Path) -> None:
    """Pids there are the host's, or sizes 0."""
    proc = machine(tmp_path, pid_namespace=4026532000) / "proc"
    one = Running(FakeNvml(tmp_path, scene(gpu(processes=[[1, 0]])), proc))
    found = one.ask()["devices"][0]
    one.end()
    assert found["processes"] is None
    assert found["free"] == 23 * GIB


@pytest.mark.parametrize("call", ["nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetComputeRunningProcesses"])
@pytest.mark.parametrize("plan", ["errors", "raise"])
def test_a_field_that_fails_costs_itself(fake: FakeNvml, running: Running, call: str, plan: str) -> None:
    """By an NVML error, or by one in Python."""
    misbehaviour: dict[str, Any] = {plan: {call: 999} if plan == "errors" else call}
    fake.play(scene(gpu(0, **misbehaviour), gpu(1)))
    first, second = running.ask()["devices"]
    assert (first["free"], second["uuid"]) == (23 * GIB, "GPU-1")


def test_a_lost_gpu(fake: FakeNvml, running: Running) -> None:
    """It is named, with the reason; the others stay."""
    fake.play(scene(gpu(0, errors={"nvmlDeviceGetHandleByIndex": 15}), gpu(1)))
    first, second = running.ask()["devices"]
    assert first == {"index": 0, "error": "GPU is lost"}
    assert second["uuid"] == "GPU-1"


def test_a_question_that_fails_can_be_repeated(fake: FakeNvml, running: Running) -> None:
    """The helper goes on; whoever asks decides."""
    fake.play(scene(errors={"nvmlDeviceGetCount": 999}))
    assert running.ask() == {"error": "Unknown Error", "code": 999}
    fake.play(scene(gpu()))
    assert len(running.ask()["devices"]) == 1


@pytest.mark.parametrize(("code", "words"), [(9, "Driver Not Loaded"), (12, "NVML Shared Library Not Found")])
def test_without_a_driver(tmp_path: Path, code: int, words: str) -> None:
    """One sentence with the code, status 1, no traceback."""
    one = Running(FakeNvml(tmp_path, scene(init_error=code)))
    assert one.process.stdout is not None
    assert json.loads(one.process.stdout.readline()) == {"error": words, "code": code}
    status = one.process.wait(LIMIT_S)
    assert (status, one.end()[1]) == (1, b"")


def test_a_module_that_cannot_be_imported(tmp_path: Path) -> None:
    """As without a driver, whatever it raises."""
    fake = FakeNvml(tmp_path, scene())
    (tmp_path / "pynvml.py").write_text("raise RuntimeError('no such symbol')\n")
    fake.env["PYTHONPATH"] = str(tmp_path)
    one = Running(fake)
    assert one.process.stdout is not None
    assert json.loads(one.process.stdout.readline()) == {"error": "no such symbol", "code": None}
    assert one.process.wait(LIMIT_S) == 1
    one.end()


def test_a_library_that_prints(fake: FakeNvml, running: Running) -> None:
    """What it says goes elsewhere, not between the answers."""
    fake.play(scene(gpu(), garbage="nvmlDeviceGetCount"))
    assert len(running.ask()["devices"]) == 1
    assert len(running.ask()["devices"]) == 1


def test_a_stray_module_in_the_working_directory(tmp_path: Path) -> None:
    """It is not imported: people keep files named ``json.py`` where they start programs."""
    fake = FakeNvml(tmp_path, scene(gpu()))
    work = tmp_path / "work"
    work.mkdir()
    for name in ("json", "signal", "threading", "pathlib"):
        (work / f"{name}.py").write_text("raise SystemExit(7)\n")
    done = subprocess.run(fake.argv, env=fake.env, cwd=work, input=b"", capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount"])
def test_it_ends_with_its_input_even_when_the_driver_hangs(tmp_path: Path, call: str) -> None:
    """Its parent was killed: nothing may be left that waits for a driver for ever."""
    fake = FakeNvml(tmp_path, scene(gpu(), hang=call))
    one = Running(fake)
    assert one.process.stdin is not None
    one.process.stdin.write(b"\n")
    status, _ = one.end()
    assert status == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_is_not_meant_for_it(running: Running) -> None:
    """It goes on: who asks ends it."""
    running.ask()
    running.process.send_signal(signal.SIGINT)
    assert running.ask()["driver"] == "570.1"


def test_it_runs_as_a_module_too(tmp_path: Path) -> None:
    """For people who want to see what it says."""
    fake = FakeNvml(tmp_path, scene(gpu()))
    fake.argv = (sys.executable, "-m", "juggler.devices.nvml_helper")
    one = Running(fake)
    assert one.ask()["devices"][0]["uuid"] == "GPU-0"
    assert one.end()[0] == 0
    eventually(lambda: one.process.poll() is not None, "ended")
