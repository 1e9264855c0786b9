"""Type ``command``: any HTTP server."""

import sys

import pytest

from juggler.backends.base import Address, HttpCall, ProbeResult, StopStep
from juggler.backends.command import CommandBackend
from juggler.errors import BackendError, StartFailed
from tests.unit.backends.fake_caller import FakeCaller, answer, settings

ADDRESS = Address("127.0.0.1", 9000)


def test_plan_places_the_address() -> None:
    """{host} and {port} are replaced in parameters and environment; other braces stay."""
    backend = CommandBackend(
        settings(
            "command",
            *("-u", "serve.py", "--listen={host}:{port}", '{"port": 1}', "{other}"),
            binary=sys.executable,
            env={"BIND": "http://{host}:{port}", "HOME": "/h"},
            cwd="/tmp",
        )
    )
    plan = backend.plan(ADDRESS, {"PATH": "/bin", "HOME": "/root"})
    assert plan.argv == (sys.executable, "-u", "serve.py", "--listen=127.0.0.1:9000", '{"port": 1}', "{other}")
    assert plan.env == {"PATH": "/bin", "HOME": "/h", "BIND": "http://127.0.0.1:9000"}
    assert plan.cwd == "/tmp"
    assert plan.stop_ladder == (StopStep("SIGTERM", 10.0),)


def test_stop_signal_is_the_operators() -> None:
    """A configured signal replaces SIGTERM, the time is ``stop_timeout``."""
    backend = CommandBackend(settings("command", binary=sys.executable, stop_signal="SIGINT", stop_timeout_s=3.0))
    assert backend.plan(ADDRESS, {}).stop_ladder == (StopStep("SIGINT", 3.0),)


def test_without_program() -> None:
    """There is no default program to run."""
    with pytest.raises(StartFailed, match="no program is configured"):
        CommandBackend(settings("command")).plan(ADDRESS, {})


@pytest.mark.parametrize(
    ("ready_path", "status", "expected"),
    [
        (None, 200, ProbeResult.READY),
        (None, 404, ProbeResult.READY),
        (None, 500, ProbeResult.NOT_YET),
        (None, 503, ProbeResult.NOT_YET),
        ("/ready?deep=1", 204, ProbeResult.READY),
        ("/ready?deep=1", 302, ProbeResult.NOT_YET),
        ("/ready?deep=1", 404, ProbeResult.NOT_YET),
    ],
)
async def test_probe(ready_path: str | None, status: int, expected: ProbeResult) -> None:
    """Without a path any answer below 500 counts, with one only a 2xx."""
    backend = CommandBackend(settings("command", ready_path=ready_path))
    caller = FakeCaller({f"GET {ready_path or '/'}": answer(status)})
    assert await backend.probe(caller) is expected


@pytest.mark.parametrize("error", [ConnectionRefusedError(), TimeoutError()])
async def test_probe_without_answer(error: Exception) -> None:
    """Nobody there is not an error during a start."""
    assert await CommandBackend(settings("command")).probe(FakeCaller({"GET /": error})) is ProbeResult.NOT_YET


async def test_unload_and_wake_calls() -> None:
    """The configured calls are made as written, and the accepted statuses decide."""
    backend = CommandBackend(
        settings(
            "command",
            unload=HttpCall("POST", "/free", '{"all": true}'),
            wake=HttpCall("PUT", "/load", "now", expect=(202,)),
        )
    )
    assert (backend.capabilities.unload, backend.capabilities.reload) == ("sync", "explicit")
    caller = FakeCaller({"POST /free": answer(204), "PUT /load": answer(202)})
    assert await backend.unload(caller)
    await backend.wake(caller)
    assert caller.calls == ["POST /free", "PUT /load"]
    assert caller.bodies == [b'{"all": true}', b"now"]
    assert [headers["Content-Type"].split(";")[0] for headers in caller.headers] == ["application/json", "text/plain"]

    refused = FakeCaller({"POST /free": answer(500), "PUT /load": answer(200)})
    assert not await backend.unload(refused)
    with pytest.raises(BackendError, match="status 200"):
        await backend.wake(refused)


async def test_unload_respects_the_switch() -> None:
    """``model_unloading: false`` makes a configured unload count for nothing."""
    backend = CommandBackend(settings("command", unload=HttpCall("POST", "/free"), model_unloading=False))
    caller = FakeCaller({"POST /free": answer(200)})
    assert not await backend.unload(caller)
    assert caller.calls == []
    assert (backend.capabilities.unload, backend.capabilities.reload) == ("none", "start")


@pytest.mark.parametrize(
    ("condition", "response", "expected"),
    [
        ("queue > 0", answer(200, {"queue": 1}), True),
        ("queue > 0", answer(200, {"queue": 0}), False),
        ("queue > 0", answer(200, text="not JSON"), False),
        ("queue > 0", answer(500, {"queue": 1}), False),
        (None, answer(200), True),
        (None, answer(404), False),
    ],
)
async def test_busy(condition: str | None, response: object, expected: bool) -> None:
    """With a condition the JSON decides; without one an accepted status means busy."""
    backend = CommandBackend(settings("command", busy=HttpCall("GET", "/queue", busy_when=condition)))
    assert backend.capabilities.work_outlives_request
    caller = FakeCaller({"GET /queue": response})  # type: ignore[dict-item]
    assert await backend.busy(caller) is expected


async def test_plain_command_has_no_hooks() -> None:
    """Without configuration nothing is called and nothing promised."""
    backend = CommandBackend(settings("command"))
    caller = FakeCaller({})
    assert not await backend.busy(caller)
    assert not await backend.unload(caller)
    await backend.wake(caller)
    assert caller.calls == []
    assert not backend.capabilities.work_outlives_request


def test_bad_condition_is_found_at_once() -> None:
    """A condition that cannot be read fails when the backend is made, not when memory is wanted."""
    with pytest.raises(ValueError, match="condition"):
        CommandBackend(settings("command", busy=HttpCall("GET", "/q", busy_when="> 0")))
