"""The comfyui backend against its stand-in in a real process, below a guardian as in the whole program."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.comfy_page import Page, Refused, browser_headers
from tests.e2e.support import PROGRAMS, eventually

from juggler.backends import comfyui_memory
from juggler.backends.base import Address, BackendSettings, ProbeResult
from juggler.backends.comfyui import ComfyUiBackend
from juggler.clock import SystemClock
from juggler.errors import BackendError, ReadyTimeout, StartFailed
from juggler.ids import InstanceId
from juggler.lifecycle.attaching import AttachTarget
from juggler.lifecycle.caller import HttpCaller
from juggler.lifecycle.local import LocalHandle, LocalLauncher
from juggler.lifecycle.readiness import PortTaken, wait_until_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes below a guardian"),
]

LIMIT_S = 30.0
JOB = {"1": {"class_type": "KSampler", "inputs": {}}}
NEW = {"FAKE_VERSION": "0.35.0"}


def job(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"1": {"class_type": class_type, "inputs": inputs}}


@dataclass
class Running:
    """One stand-in that is ready."""

    backend: ComfyUiBackend
    caller: HttpCaller
    handle: LocalHandle
    _record: Path

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else None
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.caller.call(method, path, body=data, headers=fields, timeout_s=LIMIT_S)
        try:
            return answer.status, answer.json()
        except ValueError:
            return answer.status, answer.body

    async def queue(self, prompt: dict[str, Any], **more: object) -> str:
        status, document = await self.ask("POST", "/prompt", {"prompt": prompt, **more})
        assert status == 200, document
        return str(document["prompt_id"])

    async def until_idle(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while await self.backend.busy(self.caller):
                await asyncio.sleep(0.01)

    async def interrupt(self, prompt_id: str) -> None:
        """End a prompt, as soon as it runs."""
        await asyncio.to_thread(eventually, lambda: f"job {prompt_id}" in self.happened(), "it runs")
        assert (await self.ask("POST", "/interrupt", {}))[0] == 200

    async def held_mib(self) -> int:
        _, document = await self.ask("GET", "/system_stats")
        return sum(int(device["torch_vram_total"]) for device in document["devices"]) // 1024**2

    def happened(self) -> list[str]:
        """What the stand-in noted, without its pid."""
        return recorded(self._record)


def recorded(path: Path) -> list[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(" ")[2] for line in lines]


def settings(tmp_path: Path, *parameters: str, env: Mapping[str, str] | None = None) -> BackendSettings:
    return BackendSettings(
        instance=InstanceId("srv/images"),
        endpoint_name="images",
        type="comfyui",
        binary=sys.executable,
        parameters=(str(PROGRAMS / "fake_comfyui.py"), *parameters),
        env={"FAKE_RECORD": str(tmp_path / "record"), **(env or {})},
        start_timeout_s=LIMIT_S,
        stop_timeout_s=LIMIT_S,
    )


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.close()


@asynccontextmanager
async def started(launcher: LocalLauncher, given: BackendSettings) -> AsyncIterator[Running]:
    """A stand-in started by its plan and ready; killed at the end if it still runs."""
    backend = ComfyUiBackend(given)
    address = await launcher.reserve()
    handle = await launcher.start("srv/images#1", backend.plan(address, os.environ), address)
    caller = HttpCaller(handle.address)
    try:
        await wait_until_ready(backend, caller, handle, timeout_s=given.start_timeout_s, clock=SystemClock())
        yield Running(backend, caller, handle, Path(given.env["FAKE_RECORD"]))
    finally:
        await handle.kill()


# -- start and stop ------------------------------------------------------------------------------------------------


async def test_started_with_our_address_and_stopped_by_sigint(launcher: LocalLauncher, tmp_path: Path) -> None:
    """The operator's address, TLS and browser do not get through; SIGINT lets it tidy up."""
    given = ("--listen", "--port=1", "--tls-k", "k", "--tls-c", "c", "--auto-launch", "--lowvram")
    async with started(launcher, settings(tmp_path, *given)) as running:
        assert running.caller.address == running.handle.address
        began = time.monotonic()
        report = await running.handle.stop()
        assert report.status == 0
        assert time.monotonic() - began < LIMIT_S / 2
    start, *later = running.happened()
    port = str(running.handle.address.port)
    own = ["--listen", "127.0.0.1", "--port", port, "--disable-auto-launch"]
    assert json.loads(start.removeprefix("start ")) == ["--lowvram", *own]
    assert later == ["stopped by SIGINT"]


async def test_folder_that_looks_like_comfyui(launcher: LocalLauncher, tmp_path: Path) -> None:
    """``main.py`` alone is enough: a Python is found, and it runs in its folder."""
    given = replace(settings(tmp_path), binary=str(PROGRAMS / "comfyui" / "main.py"), parameters=("--cpu",))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    given = replace(given, env={**given.env, "PATH": path})
    async with started(launcher, given) as running:
        assert await running.backend.identify(running.caller) == "ComfyUI 0.3.64"
        assert ComfyUiBackend(given).plan(Address("127.0.0.1", 1), {}).cwd == str(PROGRAMS / "comfyui")


async def test_hung_at_stop_is_killed(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Both signals in vain: SIGKILL ends it after the grace times."""
    given = replace(settings(tmp_path, env={"FAKE_STOP": "ignore"}), stop_timeout_s=0.4)
    async with started(launcher, given) as running:
        report = await running.handle.stop()
        assert report.status == -9
    assert "stopped by SIGINT" not in running.happened()


@pytest.mark.parametrize(
    ("env", "error", "said", "hint"),
    [
        ({"FAKE_START": "assets", **NEW}, StartFailed, "ASSETS_STARTUP_FAILED", "--disable-assets"),
        ({"FAKE_START": "port"}, PortTaken, "attempting to bind", "port"),
        ({"FAKE_START": "port", **NEW}, PortTaken, "already in use", "port"),
        ({"FAKE_START": "torch"}, StartFailed, "No module named 'torch'", "ComfyUI's own environment"),
        ({"FAKE_START": "cuda"}, StartFailed, "Torch not compiled", "--cpu"),
        ({"FAKE_START": "hang"}, ReadyTimeout, "was not ready", None),
    ],
)
async def test_starts_that_fail(
    launcher: LocalLauncher,
    tmp_path: Path,
    env: dict[str, str],
    error: type[BackendError],
    said: str,
    hint: str | None,
) -> None:
    """Each end is told with its real words, and with what to do; a taken port is tried again elsewhere."""
    given = settings(tmp_path, env=env)
    if error is ReadyTimeout:
        given = replace(given, start_timeout_s=0.5)
    with pytest.raises(error, match=said) as caught:
        async with started(launcher, given):
            pass
    assert type(caught.value) is error
    assert hint is None or hint in (caught.value.hint or "")


async def test_an_unknown_option_is_told(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Argparse says it, we pass it on: this version has no assets to disable."""
    with pytest.raises(StartFailed) as caught:
        async with started(launcher, settings(tmp_path, "--disable-assets")):
            pass
    assert "--disable-assets" in (caught.value.hint or "")
    assert caught.value.exit_status == 2


# -- work ----------------------------------------------------------------------------------------------------------


async def test_a_job_outlives_its_request(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Busy from the answer of ``POST /prompt`` to the end of the last prompt; then its results are there."""
    async with started(launcher, settings(tmp_path)) as running:
        assert not await running.backend.busy(running.caller)
        first = await running.queue(job("Sleep", seconds=30))
        second = await running.queue(JOB)
        assert await running.backend.busy(running.caller)
        await running.interrupt(first)
        await running.until_idle()
        status, history = await running.ask("GET", f"/history/{second}")
        assert status == 200
        image = history[second]["outputs"]["9"]["images"][0]
        status, picture = await running.ask("GET", f"/api/view?filename={image['filename']}&type=output")
        assert status == 200
        assert picture.startswith(b"\x89PNG")
        assert [line for line in running.happened() if line.startswith("done")] == [f"done {first}", f"done {second}"]


@pytest.mark.parametrize("habit", ["garbage", "error"])
async def test_busy_without_a_usable_answer(launcher: LocalLauncher, tmp_path: Path, habit: str) -> None:
    """An error that the supervisor logs; never "idle" in silence."""
    async with started(launcher, settings(tmp_path, env={"FAKE_QUEUE": habit})) as running:
        with pytest.raises(BackendError, match="queue"):
            await running.backend.busy(running.caller)


async def test_a_silent_event_loop_counts_as_work(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Python's lock is held nobody answers, and a job may run."""
    monkeypatch.setattr(HttpCaller, "call", _with_limit(HttpCaller.call, 0.2))
    async with started(launcher, settings(tmp_path, env={"FAKE_QUEUE": "silent"})) as running:
        assert await running.backend.busy(running.caller)


def _with_limit(call: Any, limit_s: float) -> Any:
    async def limited(self: HttpCaller, method: str, path: str, **more: Any) -> Any:
        if path == "/prompt":
            more["timeout_s"] = limit_s
        return await call(self, method, path, **more)

    return limited


# -- unload --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"FAKE_FREE_S": "0.3"},
        {"FAKE_FREE": "lost"},
        {"FAKE_KEPT_MIB": "900"},
        {"FAKE_DYNAMIC_VRAM": "1", "FAKE_CACHE_MIB": "200", "FAKE_FREE_S": "0.4", **NEW},
        {"FAKE_DEVICES": "cuda,cuda", **NEW},
    ],
)
async def test_unloaded_when_it_shows(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    """However late or deaf the thread is, True means that it has let go; the next job loads again."""
    monkeypatch.setattr(comfyui_memory, "ORDER_EVERY_S", 0.3)
    async with started(launcher, settings(tmp_path, env=env)) as running:
        await running.queue(JOB)
        await running.until_idle()
        held_mib = await running.held_mib()
        assert held_mib >= 200
        assert await running.backend.unload(running.caller)
        happened = running.happened()
        assert "freed" in happened
        assert {line for line in happened if line.startswith("free ")} == {"free free_memory+unload_models"}
        assert await running.held_mib() == int(env.get("FAKE_KEPT_MIB", 0))
        assert await running.backend.probe(running.caller) is ProbeResult.READY
        await running.queue(JOB)
        await running.until_idle()
        assert running.happened().count("load") == 2


@pytest.mark.parametrize(
    "env", [{"FAKE_FREE": "ignored"}, {"FAKE_FREE": "error"}, {"FAKE_KEPT_MIB": "3000"}, {"FAKE_QUEUE": "garbage"}]
)
async def test_not_unloaded(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    """What does not show, or is refused, is no unload; the supervisor stops the process then."""
    monkeypatch.setattr(comfyui_memory, "UNLOAD_LIMIT_S", 0.8)
    async with started(launcher, settings(tmp_path, env=env)) as running:
        prompt_id = await running.queue(JOB)
        await asyncio.to_thread(eventually, lambda: f"done {prompt_id}" in running.happened(), "the job is done")
        assert not await running.backend.unload(running.caller)


async def test_a_device_without_numbers(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU the numbers are those of the RAM and never fall: an accepted order and an idle queue must do."""
    monkeypatch.setattr(comfyui_memory, "NOTHING_TO_FREE_S", 0.5)
    async with started(launcher, settings(tmp_path, env={"FAKE_DEVICES": "cpu"})) as running:
        await running.queue(JOB)
        await running.until_idle()
        assert await running.backend.unload(running.caller)
        await asyncio.to_thread(eventually, lambda: "freed" in running.happened(), "the order was seen")


async def test_somebody_elses_job_is_waited_for(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that came behind our back is neither cut nor taken for freed memory."""
    monkeypatch.setattr(comfyui_memory, "NOTHING_TO_FREE_S", 0.2)
    async with started(launcher, settings(tmp_path)) as running:
        prompt_id = await running.queue(job("Sleep", seconds=0.5))
        assert await running.backend.unload(running.caller)
        happened = running.happened()
        assert happened.index(f"done {prompt_id}") < happened.index("freed")


async def test_the_page_stays_open(launcher: LocalLauncher, tmp_path: Path) -> None:
    """The socket hears of jobs before and after an unload; nothing of ours closes it."""
    async with started(launcher, settings(tmp_path)) as running:
        page = await asyncio.to_thread(Page, running.caller.address.port, "/ws?clientId=tab")
        try:
            await asyncio.to_thread(page.until, "status")
            assert page.events[0]["data"]["sid"] == "tab"
            for count in (1, 2):
                await running.queue(job("Preview", bytes=100_000), client_id="tab")
                await asyncio.to_thread(page.until, "executed", count)
                await running.until_idle()
                assert await running.backend.unload(running.caller)
            assert page.kinds().count("progress") == 20
            assert page.binary_bytes >= 20 * 100_000
            assert not page.closed.is_set()
        finally:
            await asyncio.to_thread(page.close)


# -- the stand-in's own rules --------------------------------------------------------------------------------------


OLD_RULES: list[tuple[dict[str, str], int]] = [
    ({}, 200),
    ({"Origin": "http://127.0.0.1:{port}"}, 200),
    ({"Origin": "HTTP://127.0.0.1:{port}"}, 200),
    ({"Origin": "http://127.0.0.1"}, 200),
    ({"Origin": "http://127.0.0.1:1"}, 403),
    ({"Origin": "http://localhost:{port}"}, 403),
    ({"Origin": "http://juggler:8022"}, 403),
    ({"Origin": "null"}, 200),
    ({"Host": "LOCALHOST", "Origin": "http://localhost:8022"}, 200),
    ({"Host": "192.0.2.1:8188", "Origin": "http://evil.example"}, 200),
    ({"Sec-Fetch-Site": "cross-site"}, 200),
]
NEW_RULES: list[tuple[dict[str, str], int]] = [
    *OLD_RULES[:-1],
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 200),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:{port}"}, 200),
]


@pytest.mark.parametrize(("env", "rules"), [({}, OLD_RULES), (NEW, NEW_RULES)])
async def test_origin_rule(
    launcher: LocalLauncher, tmp_path: Path, env: dict[str, str], rules: list[tuple[dict[str, str], int]]
) -> None:
    """The stand-in refuses foreign pages as both generations do (backends.md 5.5): empty 403, OPTIONS and /ws too."""
    async with started(launcher, settings(tmp_path, env=env)) as running:
        port = running.caller.address.port
        for headers, expected in rules:
            sent = {name: value.replace("{port}", str(port)) for name, value in headers.items()}
            for method, path in (("GET", "/prompt"), ("OPTIONS", "/api/prompt"), ("POST", "/interrupt")):
                status, body = await running.ask(method, path, **sent)
                assert status == expected, sent
                assert expected == 200 or body == b""
        with pytest.raises(Refused, match="403"):
            await asyncio.to_thread(Page, port, "/ws", browser_headers("http://juggler:8022"))


async def test_origin_rule_switched_off(launcher: LocalLauncher, tmp_path: Path) -> None:
    """``--enable-cors-header`` is the operator's to give, and passes."""
    async with started(launcher, settings(tmp_path, "--enable-cors-header", env=NEW)) as running:
        status, _ = await running.ask("POST", "/interrupt", Origin="http://evil.example")
        assert status == 200


async def test_routes_of_the_stand_in(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Shapes and statuses of backends.md 5.3 to 5.6, with and without ``/api``."""
    async with started(launcher, settings(tmp_path)) as running:
        await _use_routes(running, "")
        await _use_routes(running, "/api")


async def _use_routes(running: Running, prefix: str) -> None:
    assert await running.ask("GET", f"{prefix}/queue") == (200, {"queue_running": [], "queue_pending": []})
    assert await running.ask("GET", f"{prefix}/prompt") == (200, {"exec_info": {"queue_remaining": 0}})
    status, document = await running.ask("POST", f"{prefix}/prompt", {})
    assert (status, document["error"]["type"], document["node_errors"]) == (400, "no_prompt", {})
    assert (await running.ask("POST", f"{prefix}/prompt", {"prompt": {}}))[0] == 400
    assert await running.ask("POST", f"{prefix}/free", {"unload_models": True}) == (200, b"")
    answer = await running.caller.call("POST", f"{prefix}/free", body=b"{")
    assert answer.status == 500
    assert await running.ask("POST", f"{prefix}/interrupt") == (200, b"")
    long = await running.queue(job("Sleep", seconds=30))
    waiting = await running.queue(JOB)
    assert await running.ask("POST", f"{prefix}/queue", {"delete": [waiting]}) == (200, b"")
    assert (await running.ask("GET", f"{prefix}/prompt"))[1] == {"exec_info": {"queue_remaining": 1}}
    await asyncio.to_thread(eventually, lambda: f"job {long}" in running.happened(), "it runs")
    assert await running.ask("POST", f"{prefix}/interrupt", {}) == (200, b"")
    await running.until_idle()
    status, history = await running.ask("GET", f"{prefix}/history")
    assert history[long]["status"]["status_str"] == "error"
    assert list(history) == [long]
    assert await running.ask("POST", f"{prefix}/history", {"clear": True}) == (200, b"")
    assert await running.ask("GET", f"{prefix}/history/{long}") == (200, {})
    assert (await running.ask("GET", f"{prefix}/nowhere"))[0] == 404


async def test_unload_models_alone_is_not_enough(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Why both flags are sent: cached results stay on the GPU (bug 18 of the prototype)."""
    async with started(launcher, settings(tmp_path)) as running:
        await running.queue(JOB)
        await running.until_idle()
        await running.ask("POST", "/free", {"unload_models": True})
        await asyncio.to_thread(eventually, lambda: "freed" in running.happened(), "the flag was seen")
        assert await running.held_mib() == 2048


# -- attached ------------------------------------------------------------------------------------------------------


async def test_attached(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Found by its own answer, also as ``localhost``, whoever started it."""
    async with started(launcher, settings(tmp_path)) as running:
        url = f"http://localhost:{running.caller.address.port}"
        backend = ComfyUiBackend(replace(settings(tmp_path), binary=None, parameters=(), attach_to=url))
        backend.attached = True
        caller = await AttachTarget(url, backend, SystemClock()).find()
        assert await backend.identify(caller) == "ComfyUI 0.3.64"
        prompt_id = await running.queue(job("Sleep", seconds=30))
        assert await backend.busy(caller)
        await running.interrupt(prompt_id)
        await running.until_idle()
        assert await backend.unload(caller)
