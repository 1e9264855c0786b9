"""Type ``sdwebui``: command lines, environments, probes, memory and traffic, without a server."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from juggler.backends import sdwebui, sdwebui_launch, sdwebui_shim
from juggler.backends.argparse_line import Option, without_options
from juggler.backends.base import Address, BackendSettings, LaunchPlan, ProbeResult, StopStep
from juggler.backends.sdwebui import SdWebuiBackend
from juggler.errors import BackendError, StartFailed
from juggler.routing.traffic import TrafficClass
from tests.unit.backends.fake_caller import Answer, FakeCaller, answer, settings

ADDRESS = Address("127.0.0.1", 9000)
OWN = ["--port", "9000", "--api"]
GIB = 1024**3
MEMORY = "GET /sdapi/v1/memory"
PROGRESS = "GET /sdapi/v1/progress?skip_current_image=true"
UNLOAD = "POST /sdapi/v1/unload-checkpoint"
RELOAD = "POST /sdapi/v1/reload-checkpoint"
MODULES = "GET /sdapi/v1/sd-modules"
FLAGS = "GET /sdapi/v1/cmd-flags"
PING = "GET /internal/ping"
PENDING = "GET /internal/pending-tasks"
QUEUE = "GET /queue/status"
FOOTER = '<div>version: <a href="https://github.com/AUTOMATIC1111/stable-diffusion-webui/commit/c8a5322d">v1.7.0</a>'
NOT_FOUND = answer(404, {"detail": "Not Found"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A web UI's folder, seen by somebody who is not root."""
    for name in ("webui.sh", "launch.py", "venv/bin/python", "other/venv/bin/python"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    monkeypatch.setattr(sdwebui_launch, "_is_root", lambda: False)
    return tmp_path


def given_settings(folder: Path, *parameters: str, binary: str = "webui.sh", **more: Any) -> BackendSettings:
    binary = str(folder / binary) if not binary.startswith("/") else binary
    prefix = more.pop("ui_prefix", "")
    return replace(settings("sdwebui", *parameters, binary=binary, **more), ui_prefix=prefix)


def plan(folder: Path, *parameters: str, address: Address = ADDRESS, **more: Any) -> LaunchPlan:
    environ = more.pop("environ", {"PATH": str(folder / "none")})
    return SdWebuiBackend(given_settings(folder, *parameters, **more)).plan(address, environ)


def arguments(folder: Path, *parameters: str, **more: Any) -> list[str]:
    """What follows the script."""
    return list(plan(folder, *parameters, **more).argv[1:])


# -- command line --------------------------------------------------------------------------------------------------


def test_the_address_is_ours_and_the_rest_is_kept(folder: Path) -> None:
    """Address, scheme, tunnels and browser windows go in every form argparse knows; all other words stay in order."""
    theirs = ["--po", "1", "--port=2", "--listen", "--server-n", "0.0.0.0", "--share", "--ngrok", "token"]
    theirs += ["--ngrok-r", "us", "--ngrok-options", "{}", "--tls-keyfile", "k", "--tls-cert=c", "--autol", "--exit"]
    kept = ["--medvram", "--ckpt-dir", "/models with space", "--show-negative-prompt", "--use-cpu", "all"]
    assert arguments(folder, *theirs, *kept) == [*kept, *OWN]
    assert arguments(folder, *kept, *theirs) == [*kept, *OWN]


def test_the_api_is_on_and_another_host_is_named(folder: Path) -> None:
    """--api stands there once; --server-name only where it is needed, for it costs the installation of extensions."""
    assert arguments(folder, "--api", "--api-log") == ["--api-log", *OWN]
    assert arguments(folder, address=Address("10.0.0.1", 9000)) == [*OWN, "--server-name", "10.0.0.1"]


@pytest.mark.parametrize("word", ["--nowebui", "--noweb", "--now"])
def test_without_ui_it_is_bound_to_one_address(folder: Path, word: str) -> None:
    """Bug 20: that mode would listen everywhere; and the program knows the option only when it is written out."""
    assert arguments(folder, word, "--api") == ["--port", "9000", "--nowebui", "--server-name", "127.0.0.1"]


def test_pages_are_told_their_prefix(folder: Path) -> None:
    """A stripped prefix becomes --subpath, unless the operator has one or there are no pages."""
    assert arguments(folder, ui_prefix="/sd") == [*OWN, "--subpath", "sd"]
    assert arguments(folder, ui_prefix="/a/sd/") == [*OWN, "--subpath", "a/sd"]
    assert arguments(folder, "--subp=x", ui_prefix="/sd") == ["--subp=x", *OWN]
    assert "--subpath" not in arguments(folder, "--nowebui", ui_prefix="/sd")


def test_root_says_so_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """webui.sh looks at its first argument only; launch.py has no need of it."""
    assert arguments(folder, "--medvram", "-f") == ["-f", "--medvram", *OWN]
    monkeypatch.setattr(sdwebui_launch, "_is_root", lambda: True)
    assert arguments(folder, "--medvram", "-f") == ["-f", "--medvram", *OWN]
    assert arguments(folder) == ["-f", *OWN]
    assert "-f" not in arguments(folder, binary="launch.py")


def test_commandline_args_are_moved_into_the_command_line(folder: Path) -> None:
    """Words of the variable would come after ours and win (bug 10): they come before, cleaned, and it is empty."""
    found = plan(
        folder,
        "--medvram",
        env={"COMMANDLINE_ARGS": "--port 1 --xformers --ckpt-dir '/my models' --listen"},
        environ={"COMMANDLINE_ARGS": "--share"},
    )
    assert list(found.argv[1:]) == ["--medvram", "--xformers", "--ckpt-dir", "/my models", *OWN]
    assert found.env["COMMANDLINE_ARGS"] == ""
    only_variable = plan(folder, env={"COMMANDLINE_ARGS": "--nowebui"})
    assert list(only_variable.argv[1:]) == ["--port", "9000", "--nowebui", "--server-name", "127.0.0.1"]
    with pytest.raises(StartFailed, match="COMMANDLINE_ARGS") as caught:
        plan(folder, env={"COMMANDLINE_ARGS": "--ckpt-dir 'x"})
    assert "quotes" in (caught.value.hint or "")


def test_the_ways_to_name_the_program(folder: Path) -> None:
    """webui.sh, launch.py, and an interpreter with either: each runs in the web UI's folder."""
    shell, script, python = str(folder / "webui.sh"), str(folder / "launch.py"), str(folder / "venv/bin/python")

    def start(*parameters: str, **more: Any) -> tuple[Sequence[str], str | None]:
        found = plan(folder, *parameters, **more)
        return found.argv[: -len(OWN)], found.cwd

    here = str(folder)
    assert start() == ((shell,), here)
    assert start(cwd="/tmp") == ((shell,), "/tmp")
    assert start(binary="launch.py") == ((python, script), here)
    assert start("-u", "launch.py", "--xformers", binary=python) == ((python, "-u", script, "--xformers"), here)
    assert start("launch.py", binary="other/venv/bin/python", cwd=here)[0] == (
        str(folder / "other/venv/bin/python"),
        script,
    )
    assert start(shell, "-f", binary="/bin/bash") == (("/bin/bash", shell, "-f"), here)


def test_a_bare_name_is_found_where_the_operator_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``"binary": "webui.sh", "cwd": ...`` is what people write first."""
    for name in ("webui.sh", "launch.py"):
        given = settings("sdwebui", binary=name, cwd=str(folder))
        assert str(folder / name) in SdWebuiBackend(given).plan(ADDRESS, {"PATH": ""}).argv


def test_other_launchers_get_the_options(folder: Path) -> None:
    """A program that is neither is trusted to pass them on."""
    (folder / "start-sd").write_text("#!/bin/sh\n")
    (folder / "start-sd").chmod(0o755)
    found = plan(folder, "run", binary="start-sd")
    assert found.argv == (str(folder / "start-sd"), "run", *OWN)
    assert found.cwd == str(folder)
    (folder / "launch.py").unlink()
    assert plan(folder, binary="start-sd").cwd is None


@pytest.mark.parametrize(
    ("binary", "parameters", "said", "hint"),
    [
        (None, (), "no program is configured", "webui.sh"),
        ("/no/such/webui.sh", (), "does not exist", "binary"),
        ("/bin/bash", (), "no script", "launch.py"),
        ("/bin/bash", ("launch.py",), "does not exist", "cwd"),
    ],
)
def test_what_cannot_start_is_explained(
    tmp_path: Path, binary: str | None, parameters: tuple[str, ...], said: str, hint: str
) -> None:
    """Each mistake has its sentence, and one that says what to do."""
    backend = SdWebuiBackend(settings("sdwebui", *parameters, binary=binary))
    with pytest.raises(StartFailed, match=said) as caught:
        backend.plan(ADDRESS, {})
    assert hint in (caught.value.hint or "")


def test_launch_py_without_any_python(folder: Path) -> None:
    """Without an environment beside it the PATH is searched, and an empty one is told."""
    (folder / "venv/bin/python").unlink()
    with pytest.raises(StartFailed, match="no Python"):
        plan(folder, binary="launch.py")
    python = folder / "bin/python3"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    assert plan(folder, binary="launch.py", environ={"PATH": str(python.parent)}).argv[0] == str(python)


def test_stop_ladder(folder: Path) -> None:
    """SIGTERM, then the SIGINT that makes a draining uvicorn leave; together no longer than allowed."""
    assert plan(folder).stop_ladder == (StopStep("SIGTERM", 5.0), StopStep("SIGINT", 5.0))
    assert plan(folder, stop_signal="SIGHUP").stop_ladder[0] == StopStep("SIGHUP", 5.0)


# -- environment ---------------------------------------------------------------------------------------------------


def test_environment(folder: Path) -> None:
    """No browser, no detour over a proxy, nothing that moves gradio; the operator's own wins elsewhere."""
    theirs = dict.fromkeys(sdwebui_shim.VARIABLES, "0.0.0.0")
    found = plan(
        folder,
        env={"HSA_OVERRIDE_GFX_VERSION": "10.3.0", "no_proxy": "lan", "GRADIO_SHARE": "1"},
        environ={**theirs, "NO_PROXY": "corp,localhost", "CUDA_VISIBLE_DEVICES": "1"},
    ).env
    assert not set(found) & set(sdwebui_shim.VARIABLES)
    assert found["SD_WEBUI_RESTARTING"] == "1"
    assert found["NO_PROXY"] == found["no_proxy"] == "lan,corp,localhost,127.0.0.1"
    assert (found["HSA_OVERRIDE_GFX_VERSION"], found["CUDA_VISIBLE_DEVICES"]) == ("10.3.0", "1")
    assert Path(found["LAUNCH_SCRIPT"]) == Path(sdwebui_shim.__file__)
    assert plan(folder, env={"LAUNCH_SCRIPT": "mine.py"}).env["LAUNCH_SCRIPT"] == "mine.py"


def test_our_own_environment_is_left(folder: Path) -> None:
    """With the juggler's environment active webui.sh would install into it; any other one is the operator's choice."""
    ours = {"VIRTUAL_ENV": sys.prefix, "PATH": os.pathsep.join([f"{sys.prefix}/bin", "/bin"])}
    found = plan(folder, environ=ours).env
    assert "VIRTUAL_ENV" not in found
    assert found["PATH"] == "/bin"
    other = {"VIRTUAL_ENV": "/other", "PATH": "/other/bin"}
    assert plan(folder, environ=other).env.items() >= other.items()
    assert plan(folder, environ=ours, env={"VIRTUAL_ENV": sys.prefix}).env["VIRTUAL_ENV"] == sys.prefix


WORDS = st.sampled_from(
    [
        *("--port", "--port=1", "--po", "--listen", "--li", "--server-name", "--ngrok", "--ngrok-r", "--tls-k=x"),
        *("--exit", "--share", "--show", "--api", "--ckpt-dir", "--autolaunch", "--skip-load-model-at-start", "-f"),
        *("7860", "word"),
    ]
)


@given(st.lists(WORDS, max_size=8))
def test_the_shim_reads_as_we_do(words: list[str]) -> None:
    """The stand-alone script drops exactly what the juggler drops from a command line."""
    options = [Option(*row) for row in sdwebui_shim.REMOVED]
    assert sdwebui_shim.remaining(words) == without_options(words, options)


def test_the_shim_becomes_launch_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are cleaned before the script sees them, which runs as ``__main__`` with its own folder first."""
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    (tmp_path / "launch.py").write_text(
        "import os, sys, beside\n"
        "assert __name__ == '__main__' and beside.VALUE == 1\n"
        "with open('seen', 'w') as seen:\n"
        "    seen.write(os.environ['COMMANDLINE_ARGS'] + '|' + sys.argv[0] + '|' + sys.path[0])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shim", "--port", "9000", "--api"])
    monkeypatch.setattr(sys, "path", ["/shim/folder", *sys.path])
    monkeypatch.setenv("COMMANDLINE_ARGS", shlex.join(["--port", "1", "--listen", "--ckpt-dir", "/my models"]))
    for name in (*sdwebui_shim.VARIABLES, "SD_WEBUI_RESTARTING"):
        monkeypatch.setenv(name, "7860")
    sdwebui_shim.main()
    assert (tmp_path / "seen").read_text() == f"--ckpt-dir '/my models'|{tmp_path}/launch.py|{tmp_path}"
    assert not set(os.environ) & set(sdwebui_shim.VARIABLES)
    assert os.environ["SD_WEBUI_RESTARTING"] == "1"
    sys.modules.pop("beside", None)

    monkeypatch.setenv("COMMANDLINE_ARGS", "--nowebui")
    (tmp_path / "launch.py").write_text("")
    sdwebui_shim.main()
    assert os.environ["COMMANDLINE_ARGS"] == "--nowebui --server-name 127.0.0.1"
    monkeypatch.setenv("COMMANDLINE_ARGS", "'open")
    sdwebui_shim.main()
    assert os.environ["COMMANDLINE_ARGS"] == "'open"


# -- probes --------------------------------------------------------------------------------------------------------


def memory(reserved_bytes: int | None) -> Answer:
    cuda: dict[str, Any] = {"error": "unavailable"}
    if reserved_bytes is not None:
        cuda = {"reserved": {"current": reserved_bytes, "peak": reserved_bytes}}
    return answer(200, {"ram": {"free": 1.5, "used": 1, "total": 2.5}, "cuda": cuda})


def progress(*, job: str | None = "", count: int = 0, timestamp: str = "20260101000000") -> Answer:
    state = {"job": job, "job_count": count, "job_timestamp": timestamp, "sampling_step": 3}
    return answer(200, {"progress": 0, "eta_relative": 0, "state": state, "current_image": None})


def in_turn(*answers: Answer) -> Answer:
    """Each call gets the next one, the last for ever."""
    left = list(answers)

    def next_one(_body: bytes | None) -> Any:
        chosen = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(chosen, BaseException):
            raise chosen
        return chosen

    return next_one


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (memory(1), ProbeResult.READY),
        (memory(None), ProbeResult.READY),
        (NOT_FOUND, ProbeResult.NOT_YET),
        (answer(404, {"error": "HTTPException", "detail": "Not Found", "errors": ""}), ProbeResult.NOT_YET),
        (answer(401, {"detail": "Not authenticated"}), ProbeResult.READY),
        (answer(401, text="<html>401 Authorization Required</html>"), ProbeResult.NOT_YET),
        (answer(302, text=""), ProbeResult.NOT_YET),
        (answer(502, text="<html>"), ProbeResult.NOT_YET),
        (answer(500, {"error": "RuntimeError"}), ProbeResult.NOT_YET),
        (answer(404, text="404 page not found"), ProbeResult.WRONG_SERVER),
        (answer(404, {"error": {"code": 404, "message": "File Not Found"}}), ProbeResult.WRONG_SERVER),
        (answer(200, text="<html>"), ProbeResult.WRONG_SERVER),
        (answer(200, {"hello": 1}), ProbeResult.WRONG_SERVER),
        (ConnectionRefusedError(), ProbeResult.NOT_YET),
        (TimeoutError(), ProbeResult.NOT_YET),
    ],
)
async def test_probe(response: Answer, expected: ProbeResult) -> None:
    """Ready is the API's own answer; 404 is a moment of the start; other programs' words are recognised."""
    assert await SdWebuiBackend(settings("sdwebui")).probe(FakeCaller({MEMORY: response})) is expected


async def test_an_attached_ui_without_api_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """It would wait for ever, and nothing else says why."""
    backend = SdWebuiBackend(settings("sdwebui", attach_to="http://127.0.0.1:7860"))
    caller = FakeCaller({MEMORY: NOT_FOUND, PING: answer(200, {})})
    assert await backend.probe(caller) is ProbeResult.NOT_YET
    assert caplog.text == ""
    backend.attached = True
    for _ in range(2):
        assert await backend.probe(caller) is ProbeResult.NOT_YET
    assert caplog.text.count("--api") == 1


@pytest.mark.parametrize(
    ("parameters", "env", "header"),
    [
        (("--api-auth", "me:secret,you:x"), {}, "Basic bWU6c2VjcmV0"),
        (("--api-a=me:secret",), {}, "Basic bWU6c2VjcmV0"),
        ((), {"COMMANDLINE_ARGS": "--api-auth me:secret"}, "Basic bWU6c2VjcmV0"),
        (("--api-log",), {}, None),
    ],
)
async def test_the_api_password_is_used(parameters: tuple[str, ...], env: dict[str, str], header: str | None) -> None:
    """Every call carries it, also to an attached server, which never goes through ``plan``."""
    caller = FakeCaller({MEMORY: memory(0), UNLOAD: answer(200, {}), MODULES: answer(200, []), RELOAD: answer(200, {})})
    backend = SdWebuiBackend(settings("sdwebui", *parameters, env=env))
    backend.attached = True
    assert await backend.unload(caller)
    await backend.wake(caller)
    assert {headers.get("Authorization") for headers in caller.headers} == {header}
    assert {UNLOAD, RELOAD} <= set(caller.calls)


@pytest.mark.parametrize(
    ("answers", "name"),
    [
        ({MODULES: NOT_FOUND, "GET /config": NOT_FOUND}, "A1111"),
        ({MODULES: answer(200, [])}, "Forge"),
        (
            {
                MODULES: NOT_FOUND,
                "GET /config": answer(200, {"value": FOOTER}),
            },
            "A1111 v1.7.0",
        ),
        ({MEMORY: NOT_FOUND}, None),
        ({"GET /api/extra/version": answer(200, {"result": "KoboldCpp", "version": "1.1"})}, None),
    ],
)
async def test_identify(answers: dict[str, Answer], name: str | None) -> None:
    """Program and version by its own words; an imitation is nobody."""
    caller = FakeCaller({MEMORY: memory(1), "GET /api/extra/version": NOT_FOUND, **answers})
    assert await SdWebuiBackend(settings("sdwebui")).identify(caller) == name
    assert all(call.startswith("GET ") for call in caller.calls)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of the module are those of its logic, not of the wall clock."""
    monkeypatch.setattr(sdwebui, "IDLE_S", 0.0)
    monkeypatch.setattr(sdwebui, "FREED_S", 0.02)
    monkeypatch.setattr(sdwebui, "_POLL_S", 0.001)


IDLE = {PROGRESS: progress(), PING: answer(200, {}), PENDING: answer(200, {"size": 0}), QUEUE: NOT_FOUND}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, False),
        ({PROGRESS: progress(job="task(x)", count=1)}, True),
        ({PROGRESS: progress(job=None, count=-1)}, True),
        ({PENDING: answer(200, {"size": 2, "tasks": ["a", "b"]})}, True),
        ({QUEUE: answer(200, {"msg": "estimation", "queue_size": 1})}, True),
        ({PING: NOT_FOUND, PENDING: answer(200, {"size": 2})}, False),
        ({PROGRESS: in_turn(progress(), progress(job="task(late)", count=-1))}, True),
    ],
)
@pytest.mark.usefixtures("impatient")
async def test_busy(answers: dict[str, Answer], expected: bool) -> None:
    """A job that runs, waits, or is on its way from the page's click; previews are not asked for."""
    assert await SdWebuiBackend(settings("sdwebui")).busy(FakeCaller({**IDLE, **answers})) is expected


@pytest.mark.usefixtures("impatient")
async def test_busy_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is work, but not for ever; a refusal to tell is an error that names the way out."""
    backend = SdWebuiBackend(settings("sdwebui"))
    silent = FakeCaller({PROGRESS: TimeoutError()})
    assert await backend.busy(silent)
    monkeypatch.setattr(sdwebui, "SILENCE_LIMIT_S", 0.0)
    with pytest.raises(TimeoutError):
        await backend.busy(silent)
    for refusal in (answer(401, {"detail": "Not authenticated"}), answer(200, text="?"), answer(200, [1])):
        with pytest.raises(BackendError) as caught:
            await backend.busy(FakeCaller({PROGRESS: refusal}))
        assert "--api-auth" in (caught.value.hint or "")


# -- memory --------------------------------------------------------------------------------------------------------


def webui(*held: int | None, forge: bool = False, answers: Mapping[str, Answer] | None = None) -> FakeCaller:
    """A web UI whose allocator holds these bytes, one after the other."""
    return FakeCaller(
        {
            MEMORY: in_turn(*(memory(one) for one in held)),
            MODULES: answer(200, []) if forge else NOT_FOUND,
            PROGRESS: progress(),
            FLAGS: answer(200, {"skip_load_model_at_start": False}),
            UNLOAD: answer(200, {}),
            RELOAD: answer(200, {}),
            **(answers or {}),
        }
    )


@pytest.mark.parametrize(
    ("held", "freed"),
    [
        ((8 * GIB, 0), True),
        ((8 * GIB, 8 * GIB, GIB // 4), True),
        ((8 * GIB, GIB), True),
        ((8 * GIB, 8 * GIB), False),
        ((8 * GIB, 4 * GIB), False),
        ((0, 0), True),
        ((None, None), True),
    ],
)
@pytest.mark.parametrize("forge", [False, True])
@pytest.mark.usefixtures("impatient")
async def test_unload_is_verified(
    held: tuple[int | None, ...], freed: bool, forge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator must have let go; without CUDA there is nothing to look at, and the answer counts. Bugs 14, 15."""
    if freed:
        monkeypatch.setattr(sdwebui, "FREED_S", 20.0)
    caller = webui(*held, forge=forge)
    assert await SdWebuiBackend(settings("sdwebui")).unload(caller) is freed
    assert UNLOAD in caller.calls
    assert RELOAD not in caller.calls


@pytest.mark.parametrize("response", [answer(500, {"error": "RuntimeError"}), answer(401, {"detail": "x"}), NOT_FOUND])
async def test_a_refused_unload_is_no_unload(response: Answer) -> None:
    """Whatever is not 200 leads on to a stop."""
    assert not await SdWebuiBackend(settings("sdwebui")).unload(webui(8 * GIB, answers={UNLOAD: response}))


async def test_memory_that_cannot_be_read_is_not_free() -> None:
    """A 200 alone is no proof where a GPU may be."""
    caller = webui(1, answers={MEMORY: answer(500, {"error": "x"})})
    assert not await SdWebuiBackend(settings("sdwebui")).unload(caller)


@pytest.mark.parametrize("response", [answer(200, {}), answer(500, {}), TimeoutError("no answer")])
@pytest.mark.usefixtures("impatient")
async def test_an_attached_server_that_keeps_its_memory_is_made_whole(response: Answer) -> None:
    """It goes on as loaded and is not woken: what left its GPU must come back, or its next job fails."""
    backend = SdWebuiBackend(settings("sdwebui"))
    backend.attached = True
    caller = webui(8 * GIB, 7 * GIB, answers={UNLOAD: response})
    assert not await backend.unload(caller)
    assert caller.calls[-1] == RELOAD


async def test_a1111_that_never_loaded_is_left_alone() -> None:
    """Told to unload it would load first; so it is not told, and not told to reload either."""
    untouched = {PROGRESS: progress(timestamp="0"), FLAGS: answer(200, {"skip_load_model_at_start": True})}
    for held in (0, None):
        backend = SdWebuiBackend(settings("sdwebui"))
        caller = webui(held, answers=untouched)
        assert await backend.unload(caller)
        await backend.wake(caller)
        assert not {UNLOAD, RELOAD} & set(caller.calls)


@pytest.mark.parametrize(
    ("parameters", "answers", "asked"),
    [
        ((), {FLAGS: answer(200, {"skip_load_model_at_start": True})}, True),
        ((), {PROGRESS: progress(timestamp="0")}, True),
        (("--skip-load-model-at-start",), {PROGRESS: progress(timestamp="0"), FLAGS: answer(500)}, False),
        ((), {PROGRESS: progress(timestamp="0"), FLAGS: answer(500)}, True),
        ((), {PROGRESS: answer(500), FLAGS: answer(200, {"skip_load_model_at_start": True})}, True),
        (("--skip-load-model-at-start",), {PROGRESS: progress(timestamp="0"), MODULES: answer(200, [])}, True),
    ],
)
async def test_in_doubt_it_is_told(parameters: tuple[str, ...], answers: dict[str, Answer], asked: bool) -> None:
    """One that has worked, or that loads beside its start, holds memory or soon will; Forge has nothing to load."""
    caller = webui(0, answers=answers)
    assert await SdWebuiBackend(settings("sdwebui", *parameters)).unload(caller)
    assert (UNLOAD in caller.calls) is asked


async def test_wake_reloads_what_was_unloaded_and_nothing_else() -> None:
    """Bugs 16 and 17: after each unload, and only then."""
    backend = SdWebuiBackend(settings("sdwebui"))
    for _ in range(2):
        caller = webui(8 * GIB, 0)
        await backend.wake(caller)
        assert caller.calls == []
        assert await backend.unload(caller)
        await backend.wake(caller)
        assert caller.calls[-1] == RELOAD
        assert caller.timeouts_s[-1] == 600.0
    assert await backend.unload(webui(8 * GIB, 0))
    await backend.after_start(FakeCaller({}))  # another process
    await backend.wake(FakeCaller({}))


async def test_a_failed_wake_is_an_error() -> None:
    """With what the web UI says, and a hint where there is one."""
    oom = {"error": "OutOfMemoryError", "detail": "", "body": "", "errors": "CUDA out of memory. Tried to ..."}
    for response, said in ((answer(500, oom), "CUDA out of memory"), (ConnectionResetError("reset"), "reset")):
        backend = SdWebuiBackend(settings("sdwebui"))
        assert await backend.unload(webui(8 * GIB, 0))
        with pytest.raises(BackendError, match=said) as caught:
            await backend.wake(FakeCaller({RELOAD: response}))
        assert ("memory" in (caught.value.hint or "")) is (said == "CUDA out of memory")


@pytest.mark.parametrize(
    ("held", "forge", "answers", "reloads"),
    [
        (0, False, {}, True),
        (None, False, {}, True),
        (8 * GIB, False, {}, False),
        (0, True, {}, False),
        (0, False, {PROGRESS: progress(timestamp="0"), FLAGS: answer(200, {"skip_load_model_at_start": True})}, False),
        (0, False, {MODULES: answer(401, {"detail": "x"})}, False),
        (0, False, {RELOAD: answer(500, {"errors": "full"})}, True),
    ],
)
async def test_attaching_to_an_unloaded_a1111(
    held: int | None, forge: bool, answers: dict[str, Answer], reloads: bool
) -> None:
    """The juggler before us may have unloaded it: as it counts as loaded, it is reloaded."""
    backend = SdWebuiBackend(settings("sdwebui"))
    caller = webui(held, forge=forge, answers=answers)
    await backend.after_start(caller)
    assert caller.calls == []  # one of ours, just started
    backend.attached = True
    await backend.after_start(caller)
    assert (RELOAD in caller.calls) is reloads


async def test_the_switch() -> None:
    """``model_unloading: false`` leaves only the stop."""
    backend = SdWebuiBackend(settings("sdwebui", model_unloading=False))
    caller = webui(8 * GIB)
    assert not await backend.unload(caller)
    backend.attached = True
    await backend.after_start(caller)
    assert caller.calls == []
    assert (backend.capabilities.unload, backend.capabilities.reload) == ("none", "start")
    assert not backend.capabilities.answers_when_unloaded


def test_capabilities() -> None:
    """Soft unload, explicit reload, never during a job; what it can be depends on what is configured."""
    found = SdWebuiBackend(settings("sdwebui")).capabilities
    assert (found.unload, found.reload, found.unload_needs_idle) == ("sync", "explicit", True)
    assert found.work_outlives_request
    assert found.answers_when_unloaded
    attached = settings("sdwebui", attach_to="http://127.0.0.1:1")
    assert not SdWebuiBackend(attached).capabilities.can_start
    assert SdWebuiBackend(attached).default_concurrency == 4


# -- hints and traffic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("\x1b[1m\x1b[31mERROR: This script must not be launched as root, aborting...\x1b[0m", "-f"),
        ("launch.py: error: unrecognized arguments: --frobnicate", "--frobnicate"),
        ("launch.py: error: ambiguous option: --no could match --no-half, --nowebui", "--no could match"),
        ("launch.py: error: argument --port: invalid int value: 'x'", "argument --port"),
        ("RuntimeError: Torch is not able to use GPU; add --skip-torch-cuda-test to ...", "--use-cpu all"),
        ("ERROR: python3-venv is not installed, aborting...", "python3-venv"),
        ("ERROR: Cannot activate python venv, aborting...", "venv"),
        ("ERROR: git is not installed, aborting...", "needs git"),
        ("INCOMPATIBLE PYTHON VERSION", "3.10"),
        ("RuntimeError: Couldn't install torch.", "get torch:"),
        ("RuntimeError: Couldn't clone Stable Diffusion.", "get Stable Diffusion:"),
        ("fatal: unable to access 'https://github.com/x.git/': Could not resolve host: github.com", "network"),
        ("\x1b[31mERROR: Can't cd to /home/x/sd/, aborting...\x1b[0m", "install_dir"),
        ("python: can't open file '/x/launch.py': [Errno 2] No such file or directory", "cwd"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/x/launch.py'", "cwd"),
        ("FileNotFoundError: No checkpoints found. When searching for checkpoints, looked at:", "--ckpt-dir"),
        ("OSError: Cannot find empty port in range: 9000-9000.", "port"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "PyTorch"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", "memory"),
        ("ModuleNotFoundError: No module named 'torch'", "torch"),
    ],
)
def test_hints(line: str, part: str) -> None:
    """Known failures each get a sentence that says what to do."""
    assert part in (SdWebuiBackend(settings("sdwebui")).hint_for(["Launching...", line, ""]) or "")


def test_no_hint_for_an_ordinary_start() -> None:
    """A good log gives none."""
    lines = ["Running on local URL:  http://127.0.0.1:7860", "Startup time: 9.1s", "Model loaded in 3.1s"]
    assert SdWebuiBackend(settings("sdwebui")).hint_for(lines) is None


@pytest.mark.parametrize(
    ("route", "expected", "volatile"),
    [
        ("POST /sdapi/v1/txt2img", TrafficClass.WORK, False),
        ("POST /sdapi/v1/img2img", TrafficClass.WORK, False),
        ("POST /sdapi/v1/extra-single-image", TrafficClass.WORK, False),
        ("POST /sdapi/v1/interrogate", TrafficClass.WORK, False),
        ("POST /sdapi/v1/options", TrafficClass.WORK, False),
        ("POST /run/predict", TrafficClass.WORK, False),
        ("POST /api/predict/", TrafficClass.WORK, False),
        ("POST /queue/join", TrafficClass.WORK, False),
        ("GET /queue/join", TrafficClass.WORK, False),
        ("POST /controlnet/detect", TrafficClass.WORK, False),
        ("GET /", TrafficClass.START, False),
        ("HEAD /", TrafficClass.LIGHT, False),
        ("GET /queue/data", TrafficClass.HELD_OPEN, False),
        ("GET /heartbeat/abc", TrafficClass.HELD_OPEN, False),
        ("GET /call/name/id", TrafficClass.HELD_OPEN, False),
        ("GET /sdapi/v1/progress", TrafficClass.LIGHT, True),
        ("GET /sdapi/v1/memory", TrafficClass.LIGHT, True),
        ("GET /internal/ping", TrafficClass.LIGHT, True),
        ("GET /queue/status", TrafficClass.LIGHT, True),
        ("GET /sdapi/v1/options", TrafficClass.LIGHT, False),
        ("GET /sdapi/v1/sd-models", TrafficClass.LIGHT, False),
        ("GET /sdapi/v1/samplers", TrafficClass.LIGHT, False),
        ("GET /config", TrafficClass.LIGHT, False),
        ("GET /theme.css", TrafficClass.LIGHT, False),
        ("GET /file=html/card.png", TrafficClass.LIGHT, False),
        ("GET /assets/index.js", TrafficClass.LIGHT, False),
        ("POST /internal/progress", TrafficClass.LIGHT, False),
        ("POST /sdapi/v1/interrupt", TrafficClass.LIGHT, False),
        ("POST /sdapi/v1/skip", TrafficClass.LIGHT, False),
        ("POST /upload", TrafficClass.LIGHT, False),
        ("OPTIONS /sdapi/v1/txt2img", TrafficClass.LIGHT, False),
        ("POST /sdapi/v1/unload-checkpoint", TrafficClass.BLOCKED, False),
        ("POST /sdapi/v1/reload-checkpoint", TrafficClass.BLOCKED, False),
        ("POST /sdapi/v1/server-kill", TrafficClass.BLOCKED, False),
        ("POST /sdapi/v1/server-restart", TrafficClass.BLOCKED, False),
        ("POST /sdapi/v1/server-stop", TrafficClass.BLOCKED, False),
    ],
)
def test_traffic(route: str, expected: TrafficClass, volatile: bool) -> None:
    """Jobs are work, pages and polls are not, and nobody unloads behind our back."""
    method, _, path = route.partition(" ")
    assert SdWebuiBackend.traffic.decide(method.encode(), path.encode())[:2] == (expected, volatile)
