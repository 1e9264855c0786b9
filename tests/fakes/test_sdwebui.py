"""The sdwebui backend against its stand-in: webui.sh with Python below it, below a guardian as in the whole program."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.gradio_page import Click
from tests.e2e.support import PROGRAMS
from tests.ports import free_port

from juggler.backends import sdwebui
from juggler.backends.base import BackendSettings, ProbeResult
from juggler.backends.sdwebui import SdWebuiBackend
from juggler.clock import SystemClock
from juggler.errors import BackendError, ReadyTimeout, StartFailed
from juggler.ids import InstanceId
from juggler.lifecycle.attaching import AttachTarget
from juggler.lifecycle.caller import HttpCaller
from juggler.lifecycle.local import LocalHandle, LocalLauncher
from juggler.lifecycle.readiness import wait_until_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes below a guardian"),
]

LIMIT_S = 30.0
FORGE = {"FAKE_VARIANT": "forge"}
both_variants = pytest.mark.parametrize("variant", [{}, FORGE], ids=["a1111", "forge"])
both_modes = pytest.mark.parametrize("mode", [(), ("--nowebui",)], ids=["ui", "api"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A web UI's folder with its script and its program."""
    folder = tmp_path / "stable diffusion"
    folder.mkdir()
    (folder / "webui.sh").symlink_to(PROGRAMS / "fake_webui.sh")
    (folder / "launch.py").symlink_to(PROGRAMS / "fake_sdwebui.py")
    return folder


@dataclass
class Running:
    """One stand-in that is ready."""

    backend: SdWebuiBackend
    caller: HttpCaller
    handle: LocalHandle
    folder: Path

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else None
        answer = await self.caller.call(method, path, body=data, timeout_s=LIMIT_S)
        return answer.status, answer.json()

    async def paint(self, steps: int = 1, **more: object) -> tuple[int, Any]:
        return await self.ask("POST", "/sdapi/v1/txt2img", {"steps": steps, **more})

    async def held_mib(self) -> int:
        _, document = await self.ask("GET", "/sdapi/v1/memory")
        return int(document["cuda"]["reserved"]["current"]) // 1024**2

    def happened(self) -> list[str]:
        return recorded(self.folder)

    async def interrupt(self) -> None:
        """End the job that runs."""
        assert (await self.ask("POST", "/sdapi/v1/interrupt"))[0] == 200

    async def until(self, what: str, count: int = 1) -> None:
        await until(lambda: self.happened().count(what) >= count)


def recorded(folder: Path) -> list[str]:
    """What the stand-in noted, without pids."""
    path = folder / "record"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(" ")[2] for line in lines]


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def settings(
    folder: Path,
    *parameters: str,
    env: Mapping[str, str] | None = None,
    binary: str = "webui.sh",
    start_timeout_s: float = LIMIT_S,
    stop_timeout_s: float = LIMIT_S,
    ui_prefix: str = "",
) -> BackendSettings:
    return BackendSettings(
        instance=InstanceId("srv/images"),
        endpoint_name="images",
        type="sdwebui",
        binary=str(folder / binary),
        parameters=parameters,
        env={"FAKE_RECORD": str(folder / "record"), "FAKE_PYTHON": sys.executable, **(env or {})},
        start_timeout_s=start_timeout_s,
        stop_timeout_s=stop_timeout_s,
        ui_prefix=ui_prefix,
    )


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.close()


@asynccontextmanager
async def started(launcher: LocalLauncher, folder: Path, *parameters: str, **more: Any) -> AsyncIterator[Running]:
    """A stand-in started by its plan and ready; killed at the end if it still runs."""
    given = settings(folder, *parameters, **more)
    backend = SdWebuiBackend(given)
    address = await launcher.reserve()
    handle = await launcher.start("srv/images#1", backend.plan(address, os.environ), address)
    caller = HttpCaller(handle.address)
    try:
        await wait_until_ready(backend, caller, handle, timeout_s=given.start_timeout_s, clock=SystemClock())
        await backend.after_start(caller)
        yield Running(backend, caller, handle, folder)
    finally:
        await handle.kill()


def listening(folder: Path) -> dict[str, Any]:
    """Where it listens, by its own account."""
    (line,) = (line for line in recorded(folder) if line.startswith("listens "))
    document: dict[str, Any] = json.loads(line.removeprefix("listens "))
    return document


# -- start ---------------------------------------------------------------------------------------------------------


@both_variants
@both_modes
async def test_it_starts_on_our_address_whatever_the_operator_wrote(
    launcher: LocalLauncher, folder: Path, variant: dict[str, str], mode: tuple[str, ...]
) -> None:
    """Options, variables and webui-user.sh try to move it, to open a browser and a tunnel: none gets through."""
    (folder / "webui-user.sh").write_text(
        "export COMMANDLINE_ARGS=\"--port 1 --listen --share --autolaunch --medvram --ckpt-dir '/my models'\"\n"
        "export GRADIO_SERVER_PORT=1 GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SHARE=True\nunset SD_WEBUI_RESTARTING\n"
    )
    theirs = ("--port=2", "--listen", "--share", "--autolaunch", "--xformers", *mode)
    env = {**variant, "COMMANDLINE_ARGS": "--po 3 --server-name 0.0.0.0 --no-half", "GRADIO_SERVER_PORT": "4"}
    async with started(launcher, folder, *theirs, env=env, ui_prefix="/sd") as running:
        assert listening(folder) == {
            "host": "127.0.0.1",
            "port": running.handle.address.port,
            "ui": not mode,
            "subpath": None if mode else "sd",
        }
        assert "bash runs sdwebui_shim.py" in running.happened()
        assert not [line for line in running.happened() if line.startswith("opens")]
        _, flags = await running.ask("GET", "/sdapi/v1/cmd-flags")
        assert (flags["xformers"], flags["no_half"], flags["medvram"]) == (True, True, True)
        assert flags["ckpt_dir"] == "/my models"
        assert await running.backend.identify(running.caller) == (
            {0: "A1111", 1: "Forge"}[bool(variant)]
            if mode
            else {0: "A1111 v1.7.0", 1: "Forge f2.0.1v1.10.1"}[bool(variant)]
        )


async def test_without_ui_by_webui_user_sh(launcher: LocalLauncher, folder: Path) -> None:
    """Even there it is bound to one address, which that mode by itself is not."""
    (folder / "webui-user.sh").write_text('export COMMANDLINE_ARGS="--nowebui"\n')
    async with started(launcher, folder) as running:
        found = listening(folder)
        assert (found["host"], found["port"], found["ui"]) == ("127.0.0.1", running.handle.address.port, False)


async def test_launch_py_itself(launcher: LocalLauncher, folder: Path) -> None:
    """Without bash; the environment's own Python is used, and it runs in its folder."""
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "venv/bin/python").symlink_to(sys.executable)
    async with started(launcher, folder, "--listen", binary="launch.py") as running:
        assert listening(folder)["host"] == "127.0.0.1"
        assert not [line for line in running.happened() if line.startswith("bash")]


async def test_a_restart_from_its_own_page_stays_on_our_port(launcher: LocalLauncher, folder: Path) -> None:
    """webui.sh goes round again; the same process of ours becomes ready once more."""
    async with started(launcher, folder, "--api-server-stop") as running:
        (folder / "tmp").mkdir()
        (folder / "tmp/restart").touch()
        with pytest.raises(ConnectionError):
            await running.ask("POST", "/sdapi/v1/server-kill")
        await until(lambda: len([line for line in running.happened() if line.startswith("listens")]) == 2)
        async with asyncio.timeout(LIMIT_S):
            while await running.backend.probe(running.caller) is not ProbeResult.READY:
                await asyncio.sleep(0.01)
        assert running.handle.exit is None


@pytest.mark.parametrize(
    ("parameters", "env", "said", "hint"),
    [
        (("--frobnicate",), {}, "unrecognized arguments: --frobnicate", "does not know --frobnicate"),
        (("--no",), {}, "ambiguous option", "correct `parameters`"),
        ((), {"FAKE_START": "torch"}, "not able to use GPU", "--skip-torch-cuda-test"),
        ((), {"LAUNCH_SCRIPT": "/no/launch.py"}, "can't open file", "cwd"),
    ],
)
async def test_failed_starts(
    launcher: LocalLauncher, folder: Path, parameters: tuple[str, ...], env: dict[str, str], said: str, hint: str
) -> None:
    """The end is noticed at once, and told with the program's own last words and what to do."""
    with pytest.raises(StartFailed, match=said) as caught:
        async with started(launcher, folder, *parameters, env=env):
            pass
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("env", [{**FORGE, "FAKE_START": "zombie"}, {"FAKE_START": "deaf"}], ids=["no port", "no api"])
async def test_alive_without_a_server(launcher: LocalLauncher, folder: Path, env: dict[str, str]) -> None:
    """Forge lives on when its server's thread has died, and an API that is off stays off: the deadline ends it."""
    with pytest.raises(ReadyTimeout):
        async with started(launcher, folder, env=env, start_timeout_s=0.7):
            pass


# -- stop ----------------------------------------------------------------------------------------------------------


@both_variants
@both_modes
async def test_a_stop_leaves_nothing(
    launcher: LocalLauncher, folder: Path, variant: dict[str, str], mode: tuple[str, ...]
) -> None:
    """bash and the Python below it end together, and no restart loop brings one back."""
    async with started(launcher, folder, *mode, env=variant) as running:
        await running.handle.stop()
        assert running.handle.gone
        assert running.happened().count("bash runs sdwebui_shim.py") == 1


async def test_a_working_a1111_without_ui_is_hurried(launcher: LocalLauncher, folder: Path) -> None:
    """It drains after SIGTERM, for as long as a picture takes: the SIGINT after it does not wait."""
    async with started(launcher, folder, "--nowebui", stop_timeout_s=4.0) as running:
        painting = asyncio.create_task(running.paint(steps=10_000))
        await running.until("job begins")
        await running.handle.stop()
        assert running.handle.gone
        with pytest.raises(ConnectionError):
            await painting
        assert "forced" in running.happened()
        assert "drained" not in running.happened()


async def test_a_hung_one_is_killed(launcher: LocalLauncher, folder: Path) -> None:
    """Signals that nobody hears do not hold up the stop."""
    async with started(launcher, folder, env={"FAKE_STOP": "ignore"}, stop_timeout_s=0.2) as running:
        await running.handle.stop()
        assert running.handle.gone


# -- memory --------------------------------------------------------------------------------------------------------


@both_variants
@both_modes
async def test_unload_wake_and_paint(
    launcher: LocalLauncher, folder: Path, variant: dict[str, str], mode: tuple[str, ...]
) -> None:
    """Bugs 14 to 17: it is unloaded, the memory is free, it is reloaded before its next job, time after time."""
    async with started(launcher, folder, *mode, env=variant) as running:
        for _ in range(3):
            assert (await running.paint())[0] == 200
            assert await running.held_mib() == 6000
            assert not await running.backend.busy(running.caller)
            assert await running.backend.unload(running.caller)
            assert await running.held_mib() == 0
            assert await running.backend.probe(running.caller) is ProbeResult.READY
            await running.backend.wake(running.caller)
        assert running.happened().count("reloaded") == 3


async def test_what_happens_without_the_reload(launcher: LocalLauncher, folder: Path) -> None:
    """The reason for it: A1111 fails, Forge and A1111 with --medvram do not."""
    for parameters, env, status in (((), {}, 500), ((), FORGE, 200), (("--medvram",), {}, 200)):
        async with started(launcher, folder, *parameters, env=env) as running:
            await running.paint()
            assert await running.backend.unload(running.caller)
            found, document = await running.paint()
            assert found == status
            assert ("same device" in document.get("errors", "")) is (status == 500)


async def test_unload_right_after_the_start_waits_for_the_load(launcher: LocalLauncher, folder: Path) -> None:
    """Ready is not loaded: A1111 loads beside its start, and the memory it is about to take counts."""
    async with started(launcher, folder, env={"FAKE_LOAD_S": "0.5"}) as running:
        assert await running.backend.unload(running.caller)
        assert running.happened()[-2:] == ["loaded", "unloaded"]
        assert await running.held_mib() == 0


async def test_one_that_loaded_nothing_is_left_alone(launcher: LocalLauncher, folder: Path) -> None:
    """With --skip-load-model-at-start an unload would load first; after work it is unloaded as any other."""
    async with started(launcher, folder, "--skip-load-model-at-start") as running:
        assert await running.backend.unload(running.caller)
        await running.backend.wake(running.caller)
        assert not {"loaded", "unloaded", "reloaded"} & set(running.happened())
        assert (await running.paint())[0] == 200
        assert await running.backend.unload(running.caller)
        assert await running.held_mib() == 0


@pytest.mark.parametrize(
    ("env", "freed"),
    [
        ({"FAKE_UNLOAD": "error"}, False),
        ({"FAKE_UNLOAD": "ignored"}, False),
        ({"FAKE_KEPT_MIB": "3000"}, False),
        ({"FAKE_KEPT_MIB": "400"}, True),
        ({"FAKE_CUDA": "0"}, True),
    ],
)
@both_variants
async def test_unload_is_believed_only_with_proof(
    launcher: LocalLauncher,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: dict[str, str],
    env: dict[str, str],
    freed: bool,
) -> None:
    """Bug 8: what cannot be shown to be free leads on to a stop."""
    monkeypatch.setattr(sdwebui, "FREED_S", 0.1)
    async with started(launcher, folder, env={**variant, **env}) as running:
        await running.paint()
        assert await running.backend.unload(running.caller) is freed


async def test_calls_that_hang_are_given_up(
    launcher: LocalLauncher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an unload nor a progress that never answers holds up anybody for long."""
    monkeypatch.setattr(sdwebui, "UNLOAD_S", 0.1)
    monkeypatch.setattr(sdwebui, "BUSY_S", 0.1)
    async with started(launcher, folder, env={"FAKE_UNLOAD": "hang", "FAKE_PROGRESS": "hang"}) as running:
        await running.paint()
        assert await running.backend.busy(running.caller)
        assert not await running.backend.unload(running.caller)


async def test_a_wake_that_fails_says_why(launcher: LocalLauncher, folder: Path) -> None:
    """The web UI's own words and a hint: the process is then started anew."""
    async with started(launcher, folder, env={"FAKE_RELOAD": "error"}) as running:
        await running.paint()
        assert await running.backend.unload(running.caller)
        with pytest.raises(BackendError, match="CUDA out of memory") as caught:
            await running.backend.wake(running.caller)
        assert "memory" in (caught.value.hint or "")


async def test_an_api_password_is_no_obstacle(launcher: LocalLauncher, folder: Path) -> None:
    """With the password in the parameters everything works; with one only webui-user.sh knows, it starts at least."""
    async with started(launcher, folder, "--api-auth", "me:secret,you:x") as running:
        assert (await running.paint())[0] == 401
        assert not await running.backend.busy(running.caller)
        assert await running.backend.unload(running.caller)
        await running.backend.wake(running.caller)
        assert running.happened()[-1] == "reloaded"
        assert await running.backend.identify(running.caller) == "A1111 v1.7.0"
    (folder / "webui-user.sh").write_text('export COMMANDLINE_ARGS="--api-auth me:secret"\n')
    async with started(launcher, folder) as running:
        assert not await running.backend.unload(running.caller)
        with pytest.raises(BackendError):
            await running.backend.busy(running.caller)


# -- busy ----------------------------------------------------------------------------------------------------------


@both_variants
async def test_a_job_outlives_its_client(launcher: LocalLauncher, folder: Path, variant: dict[str, str]) -> None:
    """A client that hangs up does not end its job; an unload now would break it."""
    async with started(launcher, folder, env=variant) as running:
        painting = asyncio.create_task(running.paint(steps=30))
        await running.until("job begins")
        painting.cancel()
        await asyncio.gather(painting, return_exceptions=True)
        while await running.backend.busy(running.caller):
            await asyncio.sleep(0.01)
        assert running.happened()[-1] == "job ends"


async def test_an_unload_breaks_a_job(launcher: LocalLauncher, folder: Path) -> None:
    """Why it is asked first: the stand-in's running job fails as the real one's does."""
    async with started(launcher, folder) as running:
        painting = asyncio.create_task(running.paint(steps=1000))
        await running.until("job begins")
        assert await running.backend.unload(running.caller)
        assert (await painting)[0] == 500


async def test_a_click_counts_before_it_is_a_job(launcher: LocalLauncher, folder: Path) -> None:
    """Between the click and the job the page is asked for its data, and nothing else is to be seen: gradio 3."""
    async with started(launcher, folder) as running:
        port = running.handle.address.port
        with Click(port, steps=2000) as click:
            await asyncio.to_thread(click.until, "send_hash")
            assert await running.backend.busy(running.caller)
            await running.until("job begins")
            await running.interrupt()
            assert await asyncio.to_thread(click.result) == "image"
        assert not await running.backend.busy(running.caller)


async def test_a_posted_click_counts_before_it_is_a_job(launcher: LocalLauncher, folder: Path) -> None:
    """Its post is answered at once, gradio 4; the second one waits in gradio's own queue for the first."""
    async with started(launcher, folder, env={**FORGE, "FAKE_CLICK_S": "0.1"}) as running:
        await running.paint()  # loaded, so that the jobs take no longer than they say
        for steps in (15, 2000):
            body = {"data": ["task(x)", "a cat", steps], "fn_index": 1, "session_hash": "abc"}
            assert (await running.ask("POST", "/queue/join", body))[0] == 200
        assert await running.backend.busy(running.caller)
        await running.until("job ends", 2)
        assert await running.backend.busy(running.caller)
        await running.until("job begins", 3)
        await running.interrupt()
        await running.until("job ends", 3)
        async with asyncio.timeout(LIMIT_S):
            while await running.backend.busy(running.caller):
                await asyncio.sleep(0.01)


async def test_an_open_page_is_no_work(launcher: LocalLauncher, folder: Path) -> None:
    """gradio 4's heartbeat lasts as long as the page."""
    async with started(launcher, folder, env=FORGE) as running:
        page = asyncio.create_task(running.caller.call("GET", "/heartbeat/abc", timeout_s=LIMIT_S))
        await running.until("page opens")
        assert not await running.backend.busy(running.caller)
        assert await running.backend.unload(running.caller)
        assert not page.done()
        page.cancel()
        await asyncio.gather(page, return_exceptions=True)
        await running.until("page closes")


# -- attach --------------------------------------------------------------------------------------------------------


async def test_attaching_after_somebody_unloaded_it(launcher: LocalLauncher, folder: Path) -> None:
    """A juggler before us left it unloaded: the next job must not fail for that."""
    async with started(launcher, folder) as running:
        await running.paint()
        assert await running.backend.unload(running.caller)
        later = SdWebuiBackend(settings(folder))
        later.attached = True
        target = AttachTarget(f"http://127.0.0.1:{running.handle.address.port}", later, SystemClock())
        caller = await target.find()
        await later.after_start(caller)
        assert (await running.paint())[0] == 200
        assert await later.unload(caller)


async def test_another_program_is_not_attached_to() -> None:
    """Nobody there at all, for a start."""
    backend = SdWebuiBackend(settings(Path("/nowhere")))
    backend.attached = True
    assert not await AttachTarget(f"http://127.0.0.1:{free_port()}", backend, SystemClock()).answers()
