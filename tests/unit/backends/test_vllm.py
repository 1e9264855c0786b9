"""Type ``vllm``: command line, probes, sleep and wake, traffic, hints, without a server."""

from pathlib import Path

import pytest

from juggler.backends.base import Address, HttpCall, LaunchPlan, ProbeResult
from juggler.backends.vllm import VllmBackend
from juggler.errors import BackendError
from juggler.routing.traffic import TrafficClass
from tests.unit.backends.fake_caller import Answer, FakeCaller, answer, settings

HERE = Address("127.0.0.1", 5555)


def planned(tmp_path: Path, *parameters: str, name: str = "vllm", **more: object) -> LaunchPlan:
    binary = tmp_path / name
    binary.touch(mode=0o755)
    return VllmBackend(settings("vllm", *parameters, binary=str(binary), **more)).plan(HERE, {"HOME": "/h"})  # type: ignore[arg-type]


def test_the_command(tmp_path: Path) -> None:
    """``serve`` is added, the address is ours alone, and the server can sleep."""
    words = ("org/model", "--port", "1", "--por=2", "--host=0.0.0.0", "--ssl-keyfile", "k", "--max-model-len", "8192")
    plan = planned(tmp_path, *words)
    assert plan.argv[1:] == (
        "serve", "org/model", "--max-model-len", "8192", "--host", "127.0.0.1", "--port", "5555", "--enable-sleep-mode",
    )  # fmt: skip
    assert plan.env == {"HOME": "/h", "VLLM_SERVER_DEV_MODE": "1"}


def test_serve_is_added_only_where_it_lacks(tmp_path: Path) -> None:
    assert planned(tmp_path, "serve", "m").argv[1:3] == ("serve", "m")
    pushed = planned(tmp_path, "--max-model-len", "8192", "serve", "m")  # by `default_parameters`
    assert pushed.argv[1:5] == ("serve", "--max-model-len", "8192", "m")
    module = planned(tmp_path, "-m", "vllm.entrypoints.openai.api_server", "--model", "m", name="python3")
    assert module.argv[1:3] == ("-m", "vllm.entrypoints.openai.api_server")


def test_without_unloading_nothing_of_sleep_is_added(tmp_path: Path) -> None:
    """For machines on which vLLM cannot sleep; the dev routes stay closed too."""
    plan = planned(tmp_path, "m", model_unloading=False)
    assert "--enable-sleep-mode" not in plan.argv
    assert "VLLM_SERVER_DEV_MODE" not in plan.env
    assert VllmBackend(settings("vllm", model_unloading=False)).capabilities.unload == "none"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (answer(200, text=""), ProbeResult.READY),
        (answer(200, {"status": "ok"}), ProbeResult.WRONG_SERVER),
        (answer(404, text=""), ProbeResult.WRONG_SERVER),
        (answer(503, text=""), ProbeResult.NOT_YET),
        (answer(500, text="x"), ProbeResult.NOT_YET),
        (ConnectionResetError(), ProbeResult.NOT_YET),
        (TimeoutError(), ProbeResult.NOT_YET),
    ],
)
async def test_probe(response: Answer, expected: ProbeResult) -> None:
    """An empty 200; whoever fills it is somebody else."""
    assert await VllmBackend(settings("vllm")).probe(FakeCaller({"GET /health": response})) is expected


async def test_identify() -> None:
    healthy: dict[str, Answer] = {"GET /health": answer(200, text="")}
    backend = VllmBackend(settings("vllm"))
    caller = FakeCaller({**healthy, "GET /version": answer(200, {"version": "0.11.0"})})
    assert await backend.identify(caller) == "vLLM 0.11.0"
    for other in (answer(404, text="x"), answer(200, text="no JSON"), answer(200, ["a list"])):
        assert await backend.identify(FakeCaller({**healthy, "GET /version": other})) is None
    assert await backend.identify(FakeCaller({"GET /health": answer(200, {"status": "ok"})})) is None


ASLEEP, AWAKE = answer(200, {"is_sleeping": True}), answer(200, {"is_sleeping": False})


async def test_unload_is_verified() -> None:
    caller = FakeCaller({"POST /sleep?level=1&mode=wait": answer(200, text=""), "GET /is_sleeping": ASLEEP})
    assert await VllmBackend(settings("vllm")).unload(caller)


async def test_unload_that_cannot_be(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No route, an error, or no effect: False; why there is no route is said once."""
    monkeypatch.setattr("juggler.backends.vllm.ASLEEP_LIMIT_S", 0.0)
    backend = VllmBackend(settings("vllm"))
    for response in (answer(404, text=""), answer(404, text=""), answer(500, {}), answer(200, text="")):
        caller = FakeCaller({"POST /sleep?level=1&mode=wait": response, "GET /is_sleeping": AWAKE})
        assert not await backend.unload(caller)
    assert caplog.text.count("VLLM_SERVER_DEV_MODE") == 1
    assert not await VllmBackend(settings("vllm", model_unloading=False)).unload(FakeCaller({}))


async def test_a_sleep_that_takes_too_long_is_taken_back() -> None:
    """It would come over an attached server later, when requests are already let in again."""
    caller = FakeCaller({"POST /sleep?level=1&mode=wait": TimeoutError(), "POST /wake_up": answer(200, text="")})
    with pytest.raises(TimeoutError):
        await VllmBackend(settings("vllm")).unload(caller)
    assert caller.calls[-1] == "POST /wake_up"


async def test_level_two_comes_back_in_three_steps() -> None:
    """Room for the weights, the weights, room for the cache."""
    deep = VllmBackend(settings("vllm", unload=HttpCall("POST", "/sleep?level=2")))
    order = "POST /sleep?level=2&mode=wait"
    done = answer(200, text="")
    caller = FakeCaller(
        {
            order: done, "POST /wake_up?tags=weights": done, "POST /collective_rpc": done,
            "POST /wake_up?tags=kv_cache": done, "GET /is_sleeping": ASLEEP,
        }
    )  # fmt: skip
    assert await deep.unload(caller)
    caller.answers["GET /is_sleeping"] = AWAKE
    await deep.wake(caller)
    posts = [call for call in caller.calls if call.startswith("POST")]
    assert posts[1:] == ["POST /wake_up?tags=weights", "POST /collective_rpc", "POST /wake_up?tags=kv_cache"]
    assert b'{"method": "reload_weights"}' in caller.bodies


async def test_a_wake_that_is_refused_or_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("juggler.backends.vllm.ASLEEP_LIMIT_S", 0.0)
    backend = VllmBackend(settings("vllm"))
    with pytest.raises(BackendError, match="status 500"):
        await backend.wake(FakeCaller({"POST /wake_up": answer(500, {})}))
    with pytest.raises(BackendError, match="still sleeps"):
        await backend.wake(FakeCaller({"POST /wake_up": answer(200, text=""), "GET /is_sleeping": ASLEEP}))


async def test_an_attached_server_that_sleeps_is_woken() -> None:
    """Only an attached one: ours has just started."""
    backend = VllmBackend(settings("vllm", attach_to="http://x"))
    states = iter([ASLEEP, ASLEEP, AWAKE])
    caller = FakeCaller({"GET /is_sleeping": lambda _body: next(states), "POST /wake_up": answer(200, text="")})
    await backend.after_start(caller)
    assert caller.calls == []
    backend.attached = True
    await backend.after_start(caller)
    assert "POST /wake_up" in caller.calls


async def test_an_attached_server_without_the_routes_cannot_be_unloaded(caplog: pytest.LogCaptureFixture) -> None:
    """One started by hand mostly has no sleep mode: what cannot be freed is known before somebody waits for it."""
    backend = VllmBackend(settings("vllm", attach_to="http://x"))
    backend.attached = True
    assert backend.capabilities.unload == "sync"
    await backend.after_start(FakeCaller({"GET /is_sleeping": answer(404, {})}))
    assert (backend.capabilities.unload, backend.capabilities.reload) == ("none", "start")
    assert "--enable-sleep-mode" in caplog.text
    await backend.after_start(FakeCaller({"GET /is_sleeping": AWAKE}))
    assert backend.capabilities.unload == "sync"


@pytest.mark.parametrize(
    ("text", "busy"),
    [
        ('vllm:num_requests_running{model_name="m"} 1.0\nvllm:num_requests_waiting{model_name="m"} 0.0', True),
        ('vllm:num_requests_running{model_name="m"} 0.0\nvllm:num_requests_waiting{model_name="m"} 2.0', True),
        ('vllm:num_requests_running{model_name="m"} 0.0\nvllm:num_requests_waiting{model_name="m"} 0.0', False),
        ("vllm:num_requests_running_total 5\n# vllm:num_requests_running 7", False),
        ("vllm:num_requests_running NaN-ish", False),
        ("", False),
    ],
)
async def test_busy(text: str, busy: bool) -> None:
    assert await VllmBackend(settings("vllm")).busy(FakeCaller({"GET /metrics": answer(200, text=text)})) is busy


async def test_busy_without_metrics() -> None:
    assert not await VllmBackend(settings("vllm")).busy(FakeCaller({"GET /metrics": answer(404, text="")}))


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        (b"POST", b"/v1/chat/completions", TrafficClass.WORK),
        (b"POST", b"/sleep", TrafficClass.BLOCKED),
        (b"POST", b"/wake_up", TrafficClass.BLOCKED),
        (b"POST", b"/collective_rpc", TrafficClass.BLOCKED),
        (b"POST", b"/update_weights", TrafficClass.BLOCKED),
        (b"POST", b"//sl%65ep", TrafficClass.BLOCKED),
        (b"GET", b"/server_info", TrafficClass.BLOCKED),
        (b"POST", b"/llm/sleep", TrafficClass.BLOCKED),  # with --root-path, which may be taken off or left on
        (b"GET", b"/v1/models", TrafficClass.LIGHT),
        (b"GET", b"/v1/realtime", TrafficClass.WORK),
        (b"GET", b"/metrics", TrafficClass.LIGHT),
    ],
)
def test_traffic(method: bytes, path: bytes, expected: TrafficClass) -> None:
    assert VllmBackend.traffic.classify(method, path) is expected


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ValueError: Sleep mode is not supported on current platform.", "model_unloading"),
        (
            "ValueError: Free memory on device cuda:0 (3.2/79.1 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 71.2 GiB).",
            "--gpu-memory-utilization",
        ),
        ("vllm: error: unrecognized arguments: --enable-magic", "--enable-magic"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "memory"),
    ],
)
def test_hints(line: str, said: str) -> None:
    lines = ["INFO loading", line, "RuntimeError: Engine core initialization failed"]
    hint = VllmBackend(settings("vllm")).hint_for(lines)
    assert said in (hint or "")
