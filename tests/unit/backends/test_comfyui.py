"""Type ``comfyui``: command line, probes, traffic and hints, without a server."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from juggler.backends.base import Address, LaunchPlan, ProbeResult, Response, StopStep
from juggler.backends.comfyui import SILENCE_GAP_S, SILENCE_LIMIT_S, ComfyUiBackend
from juggler.errors import BackendError, StartFailed
from juggler.routing.traffic import TrafficClass
from juggler.testing.virtual_time import run_virtual
from tests.unit.backends.fake_caller import Answer, FakeCaller, answer, settings

ADDRESS = Address("127.0.0.1", 9000)
OURS = ["--listen", "127.0.0.1", "--port", "9000", "--disable-auto-launch"]
STATS = "GET /system_stats"
KOBOLD = "GET /api/extra/version"
SYSTEM = {"os": "posix", "comfyui_version": "0.3.64", "python_version": "3.12", "embedded_python": False, "argv": []}
NOT_FOUND = answer(404, text="404: Not Found")


def stats(*, name: str = "cuda:0", system: object = SYSTEM) -> Response:
    return answer(200, {"system": system, "devices": [{"name": name, "type": "cuda", "torch_vram_total": 0}]})


def queue(remaining: object) -> Response:
    return answer(200, {"exec_info": {"queue_remaining": remaining}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ComfyUI's folder with an environment in it."""
    (tmp_path / "main.py").write_text("")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return tmp_path


def words(folder: Path, *parameters: str) -> list[str]:
    """The command line after the script, for these parameters of the operator."""
    backend = ComfyUiBackend(settings("comfyui", "main.py", *parameters, binary=sys.executable, cwd=str(folder)))
    argv = backend.plan(ADDRESS, {}).argv
    assert argv[:2] == (sys.executable, str(folder / "main.py"))
    return list(argv[2:])


# -- start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ("--listen",),
        ("--listen", "0.0.0.0,::"),
        ("--listen=0.0.0.0",),
        ("--li", "0.0.0.0"),
        ("--port", "1"),
        ("--port=1",),
        ("--po", "1"),
        ("--tls-keyfile", "key", "--tls-certfile", "certificate"),
        ("--tls-k=key", "--tls-cert=certificate"),
        ("--auto-launch",),
        ("--auto",),
        ("--disable-auto-launch",),
        ("--windows-standalone-build",),
        ("--win",),
        ("--quick-test-for-ci",),
        ("--q",),
        ("--list-feature-flags",),
    ],
)
def test_what_is_ours_to_say_is_replaced(folder: Path, given: tuple[str, ...]) -> None:
    """Address, TLS, browser and early ends go in each form argparse reads, and nothing beside them does."""
    assert words(folder, "--lowvram", *given, "--preview-size", "256") == ["--lowvram", "--preview-size", "256", *OURS]


def test_other_options_stay(folder: Path) -> None:
    """Options that only look alike, and lists of values, are the operator's."""
    given = ["--preview-method", "auto", "--lowvram", "--log-stdout", "--whitelist-custom-nodes", "a", "b"]
    given += ["--async-offload", "--enable-cors-header", "*", "--disable-all-custom-nodes", "-p"]
    assert words(folder, *given) == [*given, *OURS]


def test_python_with_script(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's own options stay before the script; without ``cwd`` its folder is the working directory."""
    backend = ComfyUiBackend(settings("comfyui", "-s", str(folder / "main.py"), binary=sys.executable))
    plan = backend.plan(ADDRESS, {"PATH": "/bin"})
    assert plan.argv == (sys.executable, "-s", str(folder / "main.py"), *OURS)
    assert plan.cwd == str(folder)
    assert plan.env == {"PATH": "/bin", "PYTHONUNBUFFERED": "1"}
    elsewhere = ComfyUiBackend(settings("comfyui", "../main.py", binary=sys.executable, cwd=str(folder / "venv")))
    plan = elsewhere.plan(ADDRESS, {})
    assert plan.cwd == str(folder / "venv")
    assert Path(plan.argv[1]).samefile(folder / "main.py")
    monkeypatch.chdir(folder)
    relative = ComfyUiBackend(settings("comfyui", "main.py", binary=sys.executable)).plan(ADDRESS, {})
    assert (relative.argv[1], relative.cwd) == (str(folder / "main.py"), str(folder))


def test_script_alone_runs_with_the_python_beside_it(folder: Path) -> None:
    """``main.py`` need not be executable; its environment's Python is called by its own path, not the linked one."""
    backend = ComfyUiBackend(settings("comfyui", "--cpu", binary=str(folder / "main.py")))
    plan = backend.plan(ADDRESS, {"PATH": ""})
    assert plan.argv == (str(folder / "venv" / "bin" / "python"), str(folder / "main.py"), "--cpu", *OURS)
    assert plan.cwd == str(folder)


def test_script_alone_without_environment(tmp_path: Path) -> None:
    """Then the Python on the PATH does, and if there is none, that is said."""
    (tmp_path / "main.py").write_text("")
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "python3").symlink_to(sys.executable)
    backend = ComfyUiBackend(settings("comfyui", binary=str(tmp_path / "main.py")))
    assert backend.plan(ADDRESS, {"PATH": str(bin_dir)}).argv[0] == str(bin_dir / "python3")
    with pytest.raises(StartFailed, match="no Python"):
        backend.plan(ADDRESS, {"PATH": str(tmp_path)})


def test_launchers_pass_options_on(folder: Path) -> None:
    """A script of the folder runs there; what stands behind a launcher's ``--`` is cleaned as well."""
    script = folder / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    backend = ComfyUiBackend(settings("comfyui", "launch", "--", "--port", "1", "--lowvram", binary=str(script)))
    plan = backend.plan(ADDRESS, {})
    assert plan.argv == (str(script), "launch", "--", "--lowvram", *OURS)
    assert plan.cwd == str(folder)


@pytest.mark.parametrize(
    ("binary", "parameters", "said", "hint"),
    [
        (None, ("main.py",), "no program", "binary"),
        (sys.executable, ("--lowvram",), "no script", "main.py"),
        (sys.executable, ("main.py",), "does not exist", "cwd"),
        ("main.py", (), "does not exist|PATH", "binary"),
        ("/no/such/python", ("main.py",), "does not exist", "binary"),
    ],
)
def test_what_cannot_work_is_told(
    tmp_path: Path, binary: str | None, parameters: tuple[str, ...], said: str, hint: str
) -> None:
    """Interpreter, script and folder belong together (bug 19 of the prototype); what is missing is named."""
    backend = ComfyUiBackend(settings("comfyui", *parameters, binary=binary, cwd=str(tmp_path)))
    with pytest.raises(StartFailed, match=said) as caught:
        backend.plan(ADDRESS, {"PATH": str(tmp_path)})
    assert hint in (caught.value.hint or "")


def test_operator_decides_over_buffering_and_signal(folder: Path) -> None:
    """``env`` wins; ``stop_signal`` is the first step; together the steps take ``stop_timeout``."""

    def planned(env: dict[str, str] | None = None, signal: str | None = None, timeout_s: float = 10.0) -> LaunchPlan:
        given = settings("comfyui", "main.py", binary=sys.executable, cwd=str(folder), env=env, stop_signal=signal)
        return ComfyUiBackend(replace(given, stop_timeout_s=timeout_s)).plan(ADDRESS, {})

    assert planned(env={"PYTHONUNBUFFERED": ""}).env["PYTHONUNBUFFERED"] == ""
    assert planned().stop_ladder == (StopStep("SIGINT", 3.0), StopStep("SIGTERM", 7.0))
    assert planned(signal="SIGHUP", timeout_s=1.0).stop_ladder == (StopStep("SIGHUP", 0.5), StopStep("SIGTERM", 0.5))


# -- probes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (stats(), ProbeResult.READY),
        (stats(system={"os": "posix", "python_version": "3.10"}), ProbeResult.READY),
        (stats(name="koboldcpp"), ProbeResult.WRONG_SERVER),
        (stats(system={"os": "posix"}), ProbeResult.WRONG_SERVER),
        (answer(200, {"system": SYSTEM}), ProbeResult.WRONG_SERVER),
        (answer(200, []), ProbeResult.WRONG_SERVER),
        (answer(200, text="<html>"), ProbeResult.WRONG_SERVER),
        (NOT_FOUND, ProbeResult.WRONG_SERVER),
        (answer(401, text="who are you"), ProbeResult.NOT_YET),
        (answer(502, text="oops"), ProbeResult.NOT_YET),
        (ConnectionRefusedError(), ProbeResult.NOT_YET),
        (TimeoutError(), ProbeResult.NOT_YET),
    ],
)
async def test_probe(response: Answer, expected: ProbeResult) -> None:
    """Ready is ComfyUI's own answer; what may be something in front of it is not taken for another program."""
    backend = ComfyUiBackend(settings("comfyui"))
    assert await backend.probe(FakeCaller({STATS: response, KOBOLD: NOT_FOUND})) is expected


@pytest.mark.parametrize(
    ("version", "name", "expected"),
    [
        (answer(200, {"result": "KoboldCpp", "version": "1.116"}), None, ProbeResult.WRONG_SERVER),
        (answer(200, text="<html>"), "ComfyUI 0.3.64", ProbeResult.READY),
        (answer(200, ["?"]), "ComfyUI 0.3.64", ProbeResult.READY),
    ],
)
async def test_koboldcpp_is_asked_for_by_name(version: Response, name: str | None, expected: ProbeResult) -> None:
    """It imitates ComfyUI's routes down to the version (backends.md 4.6), but admits who it is."""
    backend = ComfyUiBackend(settings("comfyui"))
    caller = FakeCaller({STATS: stats(), KOBOLD: version})
    assert await backend.probe(caller) is expected
    assert await backend.identify(caller) == name


async def test_identify() -> None:
    """By its own version, without one by name, and not at all if it is another program."""
    backend = ComfyUiBackend(settings("comfyui"))
    for version, expected in (("v0.35.1", "ComfyUI 0.35.1"), (None, "ComfyUI")):
        system = {**SYSTEM, "comfyui_version": version}
        assert await backend.identify(FakeCaller({STATS: stats(system=system), KOBOLD: NOT_FOUND})) == expected
    assert await backend.identify(FakeCaller({STATS: NOT_FOUND})) is None
    with pytest.raises(ConnectionRefusedError):
        await backend.identify(FakeCaller({}))


async def test_busy_is_the_length_of_the_queue() -> None:
    """Running or waiting prompts both count."""
    backend = ComfyUiBackend(settings("comfyui"))
    assert await backend.busy(FakeCaller({"GET /prompt": queue(2)}))
    assert not await backend.busy(FakeCaller({"GET /prompt": queue(0)}))


@pytest.mark.parametrize("response", [queue("many"), answer(200, text="<html>"), answer(500, text=""), answer(200, [])])
async def test_busy_without_a_usable_answer(response: Response) -> None:
    """That is told, not taken for idle in silence."""
    with pytest.raises(BackendError, match="GET /prompt"):
        await ComfyUiBackend(settings("comfyui")).busy(FakeCaller({"GET /prompt": response}))
    with pytest.raises(ConnectionRefusedError):
        await ComfyUiBackend(settings("comfyui")).busy(FakeCaller({}))


def test_silence_is_work_for_a_while() -> None:
    """A loader may hold up the event loop: a job must not be cut for that, and a hung process not kept for ever."""

    async def scenario() -> None:
        backend = ComfyUiBackend(settings("comfyui"))
        silent = FakeCaller({"GET /prompt": TimeoutError("no answer")})
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - began < SILENCE_LIMIT_S:
            assert await backend.busy(silent)
            await asyncio.sleep(6)
        with pytest.raises(TimeoutError):
            await backend.busy(silent)
        # Silent once more after a long time of no questions: that is a new silence.
        await asyncio.sleep(SILENCE_GAP_S + 1)
        assert await backend.busy(silent)
        assert not await backend.busy(FakeCaller({"GET /prompt": queue(0)}))
        assert backend.capabilities.work_outlives_request

    run_virtual(scenario())


def test_capabilities_follow_the_settings() -> None:
    """``model_unloading: false`` leaves the stop; results are fetched although the models are gone."""
    unloads = ComfyUiBackend(settings("comfyui", binary="python")).capabilities
    assert (unloads.unload, unloads.reload, unloads.answers_when_unloaded) == ("async", "lazy", True)
    assert unloads.can_attach
    assert unloads.can_start
    only_stops = ComfyUiBackend(settings("comfyui", model_unloading=False)).capabilities
    assert (only_stops.unload, only_stops.reload, only_stops.answers_when_unloaded) == ("none", "start", False)
    assert not ComfyUiBackend(settings("comfyui", attach_to="http://localhost:8188")).capabilities.can_start


async def test_unloading_switched_off() -> None:
    """Then nothing is asked."""
    caller = FakeCaller({})
    assert not await ComfyUiBackend(settings("comfyui", model_unloading=False)).unload(caller)
    assert caller.calls == []


# -- traffic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/prompt", TrafficClass.WORK),
        ("POST", "/free", TrafficClass.BLOCKED),
        ("GET", "/ws", TrafficClass.HELD_OPEN),
        ("POST", "/upload/image", TrafficClass.START),
        ("POST", "/upload/mask", TrafficClass.START),
        ("POST", "/assets", TrafficClass.START),
        ("GET", "/history/0-1", TrafficClass.LIGHT),
        ("GET", "/view", TrafficClass.LIGHT),
        ("GET", "/object_info", TrafficClass.LIGHT),
        ("GET", "/system_stats", TrafficClass.LIGHT),
        ("POST", "/queue", TrafficClass.LIGHT),
        ("POST", "/interrupt", TrafficClass.LIGHT),
        ("POST", "/history", TrafficClass.LIGHT),
        ("POST", "/userdata/workflows%2Fa.json", TrafficClass.LIGHT),
        ("DELETE", "/userdata/a", TrafficClass.LIGHT),
        ("POST", "/settings/Comfy.Locale", TrafficClass.LIGHT),
        ("POST", "/settings", TrafficClass.LIGHT),
        ("PATCH", "/internal/logs/subscribe", TrafficClass.LIGHT),
        ("PUT", "/assets/1", TrafficClass.LIGHT),
        ("POST", "/jobs/cancel", TrafficClass.LIGHT),
        ("OPTIONS", "/prompt", TrafficClass.LIGHT),
        ("POST", "/unknown/of/a/custom/node", TrafficClass.WORK),
    ],
)
def test_traffic(prefix: str, method: str, path: str, expected: TrafficClass) -> None:
    """Prompts load and results do not; what an open page does by itself wakes nothing; with and without ``/api``."""
    assert ComfyUiBackend.traffic.classify(method.encode(), (prefix + path).encode()) is expected


def test_the_page_starts_the_backend_and_its_assets_do_not() -> None:
    """Else the UI could never be opened; ``/api/`` is no page."""
    classify = ComfyUiBackend.traffic.classify
    assert ComfyUiBackend.has_ui
    assert classify(b"GET", b"/") is TrafficClass.START
    assert classify(b"HEAD", b"/") is TrafficClass.LIGHT
    assert classify(b"GET", b"/api/") is TrafficClass.LIGHT
    assert classify(b"GET", b"/assets/index.js") is TrafficClass.LIGHT


def test_answers_about_this_moment_are_never_repeated() -> None:
    """Queue and history are volatile; what clients ask to see whether ComfyUI is there, and pictures, are not."""
    decide = ComfyUiBackend.traffic.decide
    for path in (
        b"/prompt",
        b"/queue",
        b"/history",
        b"/history/1",
        b"/api/jobs",
        b"/api/jobs/1",
        b"/internal/logs/raw",
    ):
        assert decide(b"GET", path).volatile, path
    for path in (b"/system_stats", b"/api/object_info", b"/view", b"/assets/index.js"):
        assert not decide(b"GET", path).volatile, path


# -- hints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("ASSETS_STARTUP_FAILED: in_use", "--disable-assets"),
        ("RuntimeError: Could not acquire lock on database", "--database-url"),
        ("ASSETS_STARTUP_FAILED: corrupt", "(corrupt"),
        ("ASSETS_STARTUP_FAILED: missing_packages", "requirements.txt"),
        ("Port 8188 is already in use on address 127.0.0.1. Please close the other application", "port"),
        ("OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8188)", "port"),
        ("ModuleNotFoundError: No module named 'torch'", "Python of ComfyUI's own environment"),
        ("ModuleNotFoundError: No module named 'torchsde'", "torchsde"),
        ("AssertionError: Torch not compiled with CUDA enabled", "--cpu"),
        ("RuntimeError: Found no NVIDIA driver on your system. Please check", "driver"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "build of PyTorch"),
        ("WARNING: this card most likely does not support cuda-malloc, if you get", "--disable-cuda-malloc"),
        ("main.py: error: unrecognized arguments: --disable-assets", "--disable-assets; `main.py --help`"),
        ("main.py: error: argument --port: invalid int value: 'x'", "argument --port: invalid int"),
        ("main.py: error: ambiguous option: --disable could match", "ambiguous option: --disable"),
        ("python: can't open file '/comfy/main.py': [Errno 2] No such file", "/comfy/main.py does not exist"),
        ("Error: No such option: --listen", "comfy-cli"),
        ("comfyui-frontend-package is not installed.", "requirements.txt"),
        ("Cannot import /c/custom_nodes/x module for custom nodes: No module named 'cv2'", "/c/custom_nodes/x"),
        ("torch.OutOfMemoryError: Allocation on device 0 would exceed allowed memory. (out of memory)", "memory"),
    ],
)
def test_hints(line: str, part: str) -> None:
    """Known ends of a start each get a sentence that says what to do."""
    output = ["Import times for custom nodes:", line, "Exiting"]
    assert part in (ComfyUiBackend(settings("comfyui")).hint_for(output) or "")


def test_the_cause_comes_before_the_noise() -> None:
    """A custom node that cannot be imported is an everyday warning; a locked database is why it ended."""
    output = ["Cannot import /c/x module for custom nodes: No module named 'cv2'", "ASSETS_STARTUP_FAILED: locked"]
    assert "--disable-assets" in (ComfyUiBackend(settings("comfyui")).hint_for(output) or "")
    assert ComfyUiBackend(settings("comfyui")).hint_for(["Starting server", "got prompt"]) is None
