"""Type ``demo``: the simulated image backend."""

import subprocess
import sys
import time

import pytest

from juggler.backends.base import Address, ProbeResult
from juggler.backends.demo import DemoBackend
from juggler.errors import BackendError
from juggler.lifecycle.caller import HttpCaller
from juggler.routing.traffic import TrafficClass
from tests.unit.backends.fake_caller import Answer, FakeCaller, answer, settings


def test_plan_runs_our_own_program_on_our_address() -> None:
    """The operator's parameters stay, an address among them is replaced."""
    backend = DemoBackend(settings("demo", "--port", "1", "--memory", "2GiB", env={"A": "b"}))
    plan = backend.plan(Address("127.0.0.1", 9000), {"PATH": "/bin"})
    assert plan.argv == (
        *(sys.executable, "-m", "juggler.demo.image_server", "--memory", "2GiB"),
        *("--host", "127.0.0.1", "--port", "9000"),
    )
    assert plan.env["A"] == "b"
    assert [step.signal for step in plan.stop_ladder] == ["SIGTERM"]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (answer(200, {"loaded": True}), ProbeResult.READY),
        (answer(503, {"loaded": False}), ProbeResult.NOT_YET),
        (answer(200, {"status": "ok"}), ProbeResult.WRONG_SERVER),
        (answer(200, text="<html>"), ProbeResult.WRONG_SERVER),
        (answer(404, {}), ProbeResult.WRONG_SERVER),
        (ConnectionResetError(), ProbeResult.NOT_YET),
    ],
)
async def test_probe(response: Answer, expected: ProbeResult) -> None:
    """Only our own program's answer counts as ready."""
    assert await DemoBackend(settings("demo")).probe(FakeCaller({"GET /health": response})) is expected


async def test_unload_is_verified() -> None:
    """An answer to the order is not enough: the weights must be gone."""
    backend = DemoBackend(settings("demo"))
    order = "POST /sdapi/v1/unload-checkpoint"
    assert await backend.unload(FakeCaller({order: answer(200), "GET /health": answer(200, {"loaded": False})}))
    assert not await backend.unload(FakeCaller({order: answer(200), "GET /health": answer(200, {"loaded": True})}))
    assert not await backend.unload(FakeCaller({order: answer(500)}))


async def test_switch_and_failed_wake() -> None:
    """``model_unloading: false`` leaves only the stop; a refused reload is an error."""
    backend = DemoBackend(settings("demo", model_unloading=False))
    assert not await backend.unload(FakeCaller({}))
    assert (backend.capabilities.unload, backend.capabilities.reload) == ("none", "start")
    with pytest.raises(BackendError, match="500"):
        await backend.wake(FakeCaller({"POST /sdapi/v1/reload-checkpoint": answer(500)}))


def test_control_routes_are_blocked() -> None:
    """Clients cannot unload behind our back; opening the page starts the backend, polling does not."""
    classify = DemoBackend.traffic.classify
    assert classify(b"POST", b"/sdapi/v1/unload-checkpoint") is TrafficClass.BLOCKED
    assert classify(b"POST", b"/sdapi/v1/txt2img") is TrafficClass.WORK
    assert classify(b"GET", b"/") is TrafficClass.WORK
    assert classify(b"GET", b"/sdapi/v1/progress") is TrafficClass.LIGHT


@pytest.mark.slow
async def test_life_of_a_real_process() -> None:
    """Started by its plan, it becomes ready, is busy while it paints, unloads and wakes."""
    backend = DemoBackend(settings("demo", "--load-seconds", "0.1", "--generate-seconds", "0"))
    program = subprocess.Popen(
        backend.plan(Address("127.0.0.1", 0), {}).argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        assert program.stdout is not None
        caller = HttpCaller(Address("127.0.0.1", int(program.stdout.readline().rpartition(":")[2])))
        deadline = time.monotonic() + 20
        while await backend.probe(caller) is not ProbeResult.READY:
            assert time.monotonic() < deadline
        assert not await backend.busy(caller)
        assert await backend.unload(caller)
        assert await backend.probe(caller) is ProbeResult.READY
        assert (await caller.call("POST", "/sdapi/v1/txt2img", body=b"{}")).status == 500
        await backend.wake(caller)
        assert (await caller.call("POST", "/sdapi/v1/txt2img", body=b"{}")).status == 200
        program.terminate()
        assert program.wait(10) == 0
    finally:
        program.kill()
        program.wait(10)
        assert program.stdout is not None
        program.stdout.close()
