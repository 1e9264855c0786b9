"""Waiting until a started process is ready, in virtual time."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from juggler.backends.base import Address, BackendSettings
from juggler.errors import BackendError, ReadyTimeout, StartFailed
from juggler.ids import InstanceId
from juggler.lifecycle.caller import HttpCaller
from juggler.lifecycle.launcher import ExitReport
from juggler.lifecycle.readiness import (
    PortTaken,
    address_in_use,
    hint_of,
    last_meaningful_line,
    unexpected_end,
    wait_until_ready,
)
from juggler.testing.fake_backend import NOT_YET, READY, WRONG_SERVER, FakeBackend
from juggler.testing.fake_launcher import FakeHandle, FakeLauncher, FakeProgram
from juggler.testing.scripted import Act
from juggler.testing.virtual_time import VirtualClock, run_virtual

SETTINGS = BackendSettings(InstanceId("main/chat"), endpoint_name="chat", type="fake")
GOOD = FakeProgram()


async def _started(program: FakeProgram) -> FakeHandle:
    plan = FakeBackend().plan(Address("127.0.0.1", 1), {})
    return await FakeLauncher(program).start("x#1", plan, Address("127.0.0.1", 40001))


async def _wait(
    *probes: Act, program: FakeProgram = GOOD, timeout_s: float = 600.0, hints: dict[str, str] | None = None
) -> tuple[float, BaseException | None, FakeBackend]:
    """Seconds it took, what it raised, and the backend."""
    backend = FakeBackend(SETTINGS, script={"probe": probes}, hints=hints)
    handle = await _started(program)
    began = asyncio.get_running_loop().time()
    error: BaseException | None = None
    try:
        await wait_until_ready(backend, HttpCaller(handle.address), handle, timeout_s=timeout_s, clock=VirtualClock())
    except Exception as raised:
        error = raised
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    return asyncio.get_running_loop().time() - began, error, backend


def _run(work: Coroutine[Any, Any, tuple[float, BaseException | None, FakeBackend]]) -> Any:
    return run_virtual(work)


def test_a_ready_server_is_seen_at_once() -> None:
    """The first probe comes without a pause."""
    assert _run(_wait(READY))[:2] == (0.0, None)


def test_pauses_grow_from_10_to_250_ms() -> None:
    """A quick server is seen within 10 ms, a slow one is asked four times a second."""
    took_s, error, _ = _run(_wait(*[NOT_YET] * 20, READY))
    assert error is None
    growing = [0.010 * 1.5**i for i in range(8)]
    assert took_s == pytest.approx(sum(growing) + 12 * 0.250)


def test_a_silent_probe_is_cut_after_three_seconds() -> None:
    """A server that accepts and says nothing while it loads does not block the next probe."""
    took_s, error, backend = _run(_wait(Act(hangs=True), READY))
    assert (took_s, error, backend.calls.count("probe")) == (pytest.approx(3.010), None, 2)


@pytest.mark.parametrize("failure", [ConnectionRefusedError(), TimeoutError(), OSError("x")])
def test_a_failed_call_means_not_yet(failure: Exception) -> None:
    """A module that lets a failed call through is not punished for it."""
    assert _run(_wait(Act(error=failure), READY))[1] is None


def test_an_unexpected_exception_comes_through() -> None:
    """A mistake in a module is not taken for slowness."""
    assert isinstance(_run(_wait(Act(error=KeyError("status"))))[1], KeyError)


def test_never_ready_ends_at_the_deadline() -> None:
    """The error names the endpoint, the time and the engine's last line; the process still runs."""
    took_s, error, _ = _run(_wait(NOT_YET, timeout_s=90, program=FakeProgram(output=("loading tensors", "...."))))
    assert took_s == pytest.approx(90)
    assert isinstance(error, ReadyTimeout)
    assert error.message == "chat: its fake server was not ready after 90 s: loading tensors"
    assert "start_timeout" in (error.hint or "")
    assert (error.endpoint, error.phase, error.log_tail) == ("chat", "starting", ("loading tensors", "...."))


@pytest.mark.parametrize("probe", [NOT_YET, Act(hangs=True)], ids=["between probes", "during a probe"])
def test_an_exit_is_noticed_at_once(probe: Act) -> None:
    """No client waits for a time-out of a process that has ended."""
    program = FakeProgram(
        exits_after_s=0.5,
        exit_status=3,
        output=tuple(f"line {i}" for i in range(30)),
        last_words=("error: model file not found", "bye"),
    )
    took_s, error, _ = _run(_wait(probe, program=program, hints={"not found": "check -m"}))
    assert took_s < 0.65
    assert type(error) is StartFailed
    assert error.message == (
        "chat: its fake server ended with exit status 3 before it was ready: error: model file not found"
    )
    assert (error.exit_status, error.hint, error.endpoint, error.phase) == (3, "check -m", "chat", "starting")
    assert len(error.log_tail) == 20
    assert error.log_tail[-1] == "bye"


def test_a_process_that_is_gone_already_is_not_probed() -> None:
    """An end before the first probe is an end."""

    async def scenario() -> tuple[BaseException, list[str]]:
        handle = await _started(FakeProgram())
        handle.end(-11)
        backend = FakeBackend(SETTINGS)
        with pytest.raises(StartFailed) as caught:
            await wait_until_ready(backend, HttpCaller(handle.address), handle, timeout_s=10, clock=VirtualClock())
        return caught.value, backend.calls

    error, calls = run_virtual(scenario())
    assert (str(error), calls) == ("chat: its fake server ended with signal 11 before it was ready", [])


def test_a_foreign_server_on_the_port_is_its_own_error() -> None:
    """The supervisor can tell that another port may do."""
    error = _run(_wait(NOT_YET, WRONG_SERVER))[1]
    assert isinstance(error, PortTaken)
    assert "another program answers on 127.0.0.1:40001" in error.message


def test_an_end_that_complains_about_the_address_is_its_own_error() -> None:
    """Also with exit status 0, which some servers give when they cannot bind."""
    program = FakeProgram(exits_after_s=0.01, exit_status=0, last_words=("bind: Address already in use",))
    assert isinstance(_run(_wait(NOT_YET, program=program))[1], PortTaken)


def test_cancelling_cancels_the_probe() -> None:
    """Nothing of the wait is left when its owner gives up."""

    async def scenario() -> None:
        handle = await _started(FakeProgram())
        backend = FakeBackend(SETTINGS, script={"probe": [Act(hangs=True)]})
        wait = asyncio.create_task(
            wait_until_ready(backend, HttpCaller(handle.address), handle, timeout_s=99, clock=VirtualClock())
        )
        await asyncio.sleep(1)
        wait.cancel()
        await asyncio.gather(wait, return_exceptions=True)
        assert wait.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (
            "ERROR: [Errno 98] error while attempting to bind on address ('::1', 8188): address already in use",
            True,
        ),
        ("couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080", True),
        ("Error: listen tcp 127.0.0.1:11434: bind: address already in use", True),
        ("OSError: Cannot find empty port in range: 7860-7860", True),
        ("[WinError 10048] Only one usage of each socket address is normally permitted", True),
        ("listening on 127.0.0.1", False),
        ("model.bind_weights()", False),
    ],
)
def test_complaints_about_the_address(line: str, taken: bool) -> None:
    """The texts of real servers are known, ordinary lines are not mistaken for them."""
    assert address_in_use(["x", line, "y"]) is taken


@pytest.mark.parametrize(
    ("lines", "chosen"),
    [
        ([], None),
        (["", "  ", "-----"], None),
        (["loading", "done loading"], "done loading"),
        (["Traceback", "ValueError: bad shape", "", "====="], "ValueError: bad shape"),
        (["error: no such file", "goodbye"], "error: no such file"),
        (["\x1b[31mfatal: oops\x1b[0m\r"], "fatal: oops"),
        (["error " + "x" * 400], "error " + "x" * 293 + "…"),
    ],
)
def test_the_last_meaningful_line(lines: list[str], chosen: str | None) -> None:
    """A person gets the complaint, not the decoration after it."""
    assert last_meaningful_line(lines) == chosen


def test_a_module_that_fails_to_hint_costs_only_the_hint() -> None:
    """The report of a failed start does not depend on the module's guess at its cause."""

    class Hopeless(FakeBackend):
        def hint_for(self, output: Sequence[str]) -> str | None:
            raise IndexError("list index out of range")

    assert hint_of(Hopeless(SETTINGS), ["x"]) is None


PRINTED = "error: --api-key qwertz42 and HF is inherited-1234, asked https://me:hidden@host/x, mine is own-secret"
SHOWN = "error: --api-key *** and HF is ***, asked https://***@host/x, mine is ***"


@pytest.mark.parametrize("how", ["timeout", "other server", "ended", "ended later"])
def test_secrets_are_masked_as_in_the_log(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend's, those of our environment, and what looks like one; in the message and in the lines."""
    monkeypatch.setenv("HF_TOKEN", "inherited-1234")
    settings = replace(SETTINGS, parameters=("--password", "own-secret"))

    async def scenario() -> BackendError:
        exits_after_s = 1.0 if how.startswith("ended") else None
        handle = await _started(FakeProgram(output=(PRINTED,), exits_after_s=exits_after_s, exit_status=1))
        backend = FakeBackend(settings, script={"probe": [WRONG_SERVER if how == "other server" else NOT_YET]})
        if how == "ended later":
            return await unexpected_end(backend, handle, ExitReport(1, 1.0))
        with pytest.raises(BackendError) as caught:
            await wait_until_ready(backend, HttpCaller(handle.address), handle, timeout_s=10, clock=VirtualClock())
        return caught.value

    error = run_virtual(scenario())
    assert error.log_tail == (SHOWN,)
    if how != "other server":
        assert error.message.endswith(SHOWN)
