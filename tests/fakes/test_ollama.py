"""The ollama backend against its stand-in in a real process, below a guardian as in the whole program."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import PROGRAMS, processes_marked
from tests.ports import free_port

from juggler.backends import ollama, ollama_models
from juggler.backends.base import Address, BackendSettings, ProbeResult
from juggler.backends.ollama import OllamaBackend
from juggler.clock import SystemClock
from juggler.errors import StartFailed
from juggler.ids import InstanceId
from juggler.lifecycle.caller import HttpCaller
from juggler.lifecycle.local import LocalHandle, LocalLauncher
from juggler.lifecycle.readiness import PortTaken, wait_until_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

LIMIT_S = 30.0


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The stand-in as one executable, as ollama is."""
    file = tmp_path / "ollama"
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAMS / "fake_ollama.py"}" "$@"\n')
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def marker() -> Iterator[str]:
    """In the environment of everything started; whatever a failed test left is killed."""
    marker = f"JUGGLER_TEST_MARKER={uuid.uuid4().hex}"
    yield marker
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal() and int(directory.name) != os.getpid():
            try:
                if marker.encode() in (directory / "environ").read_bytes():
                    os.kill(int(directory.name), signal.SIGKILL)
            except OSError:
                pass


@pytest.fixture
def settings(program: str, marker: str, tmp_path: Path) -> BackendSettings:
    name, value = marker.split("=")
    return BackendSettings(
        instance=InstanceId("srv/llm"),
        endpoint_name="llm",
        type="ollama",
        binary=program,
        env={name: value, "HOME": str(tmp_path), "FAKE_LOAD_S": "0.02", "FAKE_RECOVERY_S": "0.02"},
    )


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.close()


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's memory is back after 0.02 s, unless a test says otherwise."""
    monkeypatch.setattr(ollama_models, "SETTLE_S", 0.4)
    monkeypatch.setattr(ollama_models, "QUIET_S", 0.2)
    monkeypatch.setattr(ollama_models, "POLL_S", 0.02)
    monkeypatch.setattr(ollama_models, "ORDER_AGAIN_S", 0.2)


@dataclass
class World:
    """One ready server."""

    backend: OllamaBackend
    caller: HttpCaller
    handle: LocalHandle

    async def ask(self, path: str, **fields: object) -> Any:
        """POST; the last line of the answer."""
        answer = await self.caller.call("POST", path, body=json.dumps(fields).encode(), timeout_s=LIMIT_S)
        assert answer.status == 200, answer.body
        return json.loads(answer.body.splitlines()[-1])

    async def generate(self, model: str, **fields: object) -> Any:
        return await self.ask("/api/generate", model=model, prompt="hello", **fields)

    async def state(self) -> Any:
        return (await self.caller.call("GET", "/fake/state", timeout_s=LIMIT_S)).json()


async def until(condition: Callable[[], object], what: str) -> None:
    """Poll; fail after a long time."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


@asynccontextmanager
async def started(
    launcher: LocalLauncher, settings: BackendSettings, *, stop_timeout_s: float = 10.0, **env: str
) -> AsyncIterator[World]:
    """Started as the supervisor does it."""
    settings = replace(settings, env={**settings.env, **env}, stop_timeout_s=stop_timeout_s)
    backend = OllamaBackend(settings)
    address = await launcher.reserve()
    handle = await launcher.start("srv/llm#1", backend.plan(address, os.environ), address)
    caller = HttpCaller(address)
    await wait_until_ready(backend, caller, handle, timeout_s=LIMIT_S, clock=SystemClock())
    await backend.after_start(caller)
    yield World(backend, caller, handle)


def left(marker: str) -> list[str]:
    """What lives on of the server and its runners; the guardian ends a moment after them."""
    return [line for line in processes_marked(marker) if "guardian" not in line]


# -------------------------------------------------------------------- start


async def test_ready_once_it_answers(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """1. It binds its port, and takes connections. 2. It answers nothing for a while. 3. Only then it is ready."""
    began = time.monotonic()
    async with started(launcher, settings, FAKE_START_S="0.6") as world:
        assert time.monotonic() - began >= 0.6
        assert world.handle.exit is None
        assert await world.backend.identify(world.caller) == "ollama 0.33.0"
        state = await world.state()
        assert state["loads"] == []  # no model is named at the start, so none is loaded
        assert any("Listening on 127.0.0.1" in line for line in world.handle.output(50))


async def test_a_taken_port_is_another_ports_turn(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """It says so and ends; the supervisor then tries another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        backend = OllamaBackend(settings)
        handle = await launcher.start("srv/llm#1", backend.plan(address, os.environ), address)
        with pytest.raises(PortTaken, match="address already in use"):
            await wait_until_ready(backend, HttpCaller(address), handle, timeout_s=LIMIT_S, clock=SystemClock())


@pytest.mark.parametrize(
    ("parameters", "failure", "said"),
    [
        ((), "Error: mkdir /models/blobs: permission denied", "OLLAMA_MODELS"),
        (("--port", "1"), "", "takes no options"),
        (("serve", "llama3"), "", "leave `parameters` empty"),
    ],
)
async def test_failed_starts_are_explained(
    launcher: LocalLauncher, settings: BackendSettings, parameters: tuple[str, ...], failure: str, said: str
) -> None:
    """The program's own words become a sentence that helps."""
    backend = OllamaBackend(replace(settings, parameters=parameters, env={**settings.env, "FAKE_FAIL": failure}))
    address = await launcher.reserve()
    handle = await launcher.start("srv/llm#1", backend.plan(address, os.environ), address)
    with pytest.raises(StartFailed) as caught:
        await wait_until_ready(backend, HttpCaller(address), handle, timeout_s=LIMIT_S, clock=SystemClock())
    assert said in (caught.value.hint or "")


async def test_without_a_home(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """A service without HOME is a usual first try."""
    env = {name: value for name, value in settings.env.items() if name != "HOME"}
    backend = OllamaBackend(replace(settings, env=env))
    environ = {name: value for name, value in os.environ.items() if name != "HOME"}
    address = await launcher.reserve()
    handle = await launcher.start("srv/llm#1", backend.plan(address, environ), address)
    with pytest.raises(StartFailed) as caught:
        await wait_until_ready(backend, HttpCaller(address), handle, timeout_s=LIMIT_S, clock=SystemClock())
    assert "HOME in `env`" in (caught.value.hint or "")


def test_it_tells_its_version_without_a_server(program: str) -> None:
    """For ``juggler doctor``."""
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{free_port()}"}
    words = (program, *OllamaBackend.version_arguments)
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert "client version is 0.33.0" in done.stdout


# -------------------------------------------------------------------- unload


async def test_unload_and_lazy_reload(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Every model goes, the process stays, its lists are answered, and a request loads its model again."""
    async with started(launcher, settings) as world:
        pid = (await world.state())["pid"]
        await world.generate("small")
        await world.ask("/api/embed", model="embed", input="x")
        assert len((await world.state())["runners"]) == 2
        assert not await world.backend.busy(world.caller)
        assert await world.backend.unload(world.caller)
        state = await world.state()
        assert (state["pid"], state["runners"], state["vram_used_mb"]) == (pid, {}, 0)
        assert sorted(state["orders"]) == ["embed:latest", "small:latest"]
        assert (await world.caller.call("GET", "/api/tags")).status == 200
        assert await world.backend.probe(world.caller) is ProbeResult.READY
        await world.backend.wake(world.caller)
        assert (await world.state())["runners"] == {}
        await world.generate("small")
        assert list((await world.state())["runners"]) == ["small:latest"]


async def test_the_list_empties_before_the_memory(
    launcher: LocalLauncher, settings: BackendSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prototype bug 31: unloaded means that the memory is back, not that the order was taken."""
    monkeypatch.setattr(ollama_models, "SETTLE_S", 5.0)  # generous, as the time between: this machine may be slow
    async with started(launcher, settings, FAKE_RECOVERY_S="2.5") as world:
        await world.generate("big")
        unloading = asyncio.create_task(world.backend.unload(world.caller))
        async with asyncio.timeout(LIMIT_S):
            while (state := await world.state())["runners"]:
                await asyncio.sleep(0.01)
            assert state["vram_used_mb"] == 600
            assert not unloading.done()
            assert await unloading
        assert (await world.state())["vram_used_mb"] == 0


async def test_running_requests_end_first(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Of somebody else, on an attached server: they lose nothing."""
    async with started(launcher, settings) as world:
        world.backend.attached = True
        await world.generate("small")
        running = asyncio.create_task(world.generate("small", options={"num_predict": 100}))
        async with asyncio.timeout(LIMIT_S):
            while not (await world.state())["busy"] and not running.done():
                await asyncio.sleep(0.01)
        assert await world.backend.unload(world.caller)
        assert running.done()
        assert (await running)["done_reason"] == "stop"
        assert (await world.state())["runners"] == {}


async def test_no_client_pins_the_memory(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Whatever ``keep_alive`` a request carried, of whatever kind."""
    async with started(launcher, settings, FAKE_MODELS="a:latest=1,b:latest=1,c:latest=1,d:latest=1") as world:
        for model, keep_alive in zip("abcd", (-1, "-1m", "24h", 10**9), strict=True):
            await world.generate(model, keep_alive=keep_alive)
        assert len((await world.state())["runners"]) == 4
        assert await world.backend.unload(world.caller)
        assert (await world.state())["vram_used_mb"] == 0


async def test_only_the_juggler_unloads(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Without ``keep_alive`` in a request a model of ours stays for ever: ollama's own five minutes are off."""
    async with started(launcher, settings) as world:
        await world.generate("small")
        (model,) = json.loads((await world.caller.call("GET", "/api/ps")).body)["models"]
        assert int(model["expires_at"][:4]) > time.gmtime().tm_year + 10


async def test_models_that_appear_meanwhile(
    launcher: LocalLauncher, settings: BackendSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else loads one while we unload."""
    monkeypatch.setattr(ollama_models, "SETTLE_S", 1.5)
    async with started(launcher, settings, FAKE_FOREIGN="embed:latest") as world:
        await world.generate("small")
        assert await world.backend.unload(world.caller)
        state = await world.state()
        assert state["loads"] == ["small:latest", "embed:latest"]
        assert (state["runners"], state["vram_used_mb"]) == ({}, 0)


async def test_a_load_that_is_listed_is_waited_for(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Older versions list a model that still loads, and the order to unload it waits for the load."""
    async with started(launcher, settings, FAKE_LISTS_LOADING="1", FAKE_LOAD_S="0.6") as world:
        loading = asyncio.create_task(world.generate("small"))
        async with asyncio.timeout(LIMIT_S):
            while not (await world.state())["runners"]:
                await asyncio.sleep(0.01)
        assert await world.backend.unload(world.caller)
        await loading
        assert (await world.state())["vram_used_mb"] == 0


async def test_a_load_whose_client_has_gone(
    launcher: LocalLauncher, settings: BackendSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds memory without being listed, until ollama gives it up: unloaded must not be said before."""
    monkeypatch.setattr(ollama_models, "QUIET_S", 2.0)  # generous: this machine may be slow
    async with started(launcher, settings, FAKE_LOAD_S="60") as world:
        loading = asyncio.create_task(world.generate("small"))
        async with asyncio.timeout(LIMIT_S):
            while not (await world.state())["vram_used_mb"]:
                await asyncio.sleep(0.01)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        assert await ollama_models.loaded_models(world.caller) == []
        assert await world.backend.unload(world.caller)
        assert (await world.state())["vram_used_mb"] == 0


async def test_one_that_stays_does_not_keep_the_others(
    launcher: LocalLauncher, settings: BackendSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are unloaded, and the truth is told: not everything is free, so a stop may follow."""
    async with started(launcher, settings, FAKE_UNLOAD="small:latest=404,big:latest=500") as world:
        for model in ("small", "embed", "big"):
            await world.generate(model)
        assert not await world.backend.unload(world.caller)
        assert sorted((await world.state())["runners"]) == ["big:latest", "small:latest"]
        assert "small:latest is not among its models any more" in caplog.text
        assert "the order for big:latest was answered with status 500 (something broke)" in caplog.text


async def test_an_order_without_effect_is_no_unload(
    launcher: LocalLauncher, settings: BackendSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 is a promise, not a proof."""
    monkeypatch.setattr(ollama, "OWN_UNLOAD_LIMIT_S", 0.5)
    async with started(launcher, settings, FAKE_UNLOAD="small:latest=ignored") as world:
        await world.generate("small")
        assert not await world.backend.unload(world.caller)
        assert list((await world.state())["runners"]) == ["small:latest"]


async def test_a_model_beside_the_gpu_is_told(
    launcher: LocalLauncher, settings: BackendSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Ollama puts on the CPU what does not fit, without a word; the operator gets one."""
    async with started(launcher, settings, FAKE_VRAM_MB="400") as world:
        await world.generate("small")
        await world.generate("big")
        await world.backend.before_stop(world.caller)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "big:latest ran with 0.1 of its 0.6 GiB on the GPU" in warning.getMessage()


# -------------------------------------------------------------------- end


@pytest.mark.parametrize("deaf", ["", "1"])
async def test_stop_ends_the_runners(
    launcher: LocalLauncher, settings: BackendSettings, marker: str, deaf: str
) -> None:
    """It kills its runners and ends with status 0; those that are deaf to our signal as well."""
    async with started(launcher, settings, FAKE_DEAF_RUNNERS=deaf) as world:
        await world.generate("small")
        await world.generate("embed")
        assert len(left(marker)) == 3
        report = await world.handle.stop()
        assert report.status == 0
        assert left(marker) == []


async def test_killed_from_outside_it_leaves_no_runners(
    launcher: LocalLauncher, settings: BackendSettings, marker: str
) -> None:
    """1. Somebody kills ``ollama serve``. 2. Its runners live on, and hold the memory. 3. The guardian ends them."""
    async with started(launcher, settings, FAKE_DEAF_RUNNERS="1") as world:
        await world.generate("small")
        await world.generate("embed")
        state = await world.state()
        os.kill(state["pid"], signal.SIGKILL)
        report = await asyncio.wait_for(world.handle.wait(), LIMIT_S)
        assert report.status == -signal.SIGKILL
        await until(lambda: not left(marker), "the runners have gone")


async def test_hung_at_stop_it_is_killed_with_its_runners(
    launcher: LocalLauncher, settings: BackendSettings, marker: str
) -> None:
    """SIGKILL to ``ollama serve`` alone would orphan them; the whole tree is ended."""
    env = {"FAKE_IGNORE_SIGTERM": "1", "FAKE_DEAF_RUNNERS": "1"}
    async with started(launcher, settings, stop_timeout_s=0.3, **env) as world:
        await world.generate("small")
        report = await asyncio.wait_for(world.handle.stop(), LIMIT_S)
        assert report.status == -signal.SIGKILL
        assert left(marker) == []


async def test_stopped_in_the_middle_of_a_load(launcher: LocalLauncher, settings: BackendSettings, marker: str) -> None:
    """A runner that is not listed yet is ended as well."""
    async with started(launcher, settings, FAKE_LOAD_S="60") as world:
        loading = asyncio.create_task(world.generate("small"))
        await until(lambda: len(left(marker)) == 2, "the runner was started")
        await world.handle.stop()
        assert left(marker) == []
        with pytest.raises(OSError, match=r".*"):
            await loading
