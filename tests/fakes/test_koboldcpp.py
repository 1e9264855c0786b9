"""The koboldcpp backend against its stand-in, below a guardian as in the whole program."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import PROGRAMS, processes_marked
from tests.programs import fake_koboldcpp

from juggler.backends import koboldcpp
from juggler.backends.base import Address, BackendSettings, Capabilities, ProbeResult
from juggler.backends.koboldcpp import KoboldCppBackend
from juggler.clock import SystemClock
from juggler.errors import BackendError, StartFailed
from juggler.ids import InstanceId
from juggler.lifecycle.caller import HttpCaller
from juggler.lifecycle.local import LocalHandle, LocalLauncher
from juggler.lifecycle.readiness import PortTaken, wait_until_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

LIMIT_S = 30.0
BY_SIGINT = (0, -signal.SIGINT)
"""Caught where it waits, or anywhere else: Python then ends by the signal itself."""

SCRIPT = str(PROGRAMS / "fake_koboldcpp.py")


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
def unpacked() -> Iterator[Path]:
    """The program's TMPDIR, with a short path: that of the socket of ``multiprocessing.Manager`` has 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="kcpp-") as folder:
        yield Path(folder)


@pytest.fixture
def settings(marker: str, tmp_path: Path, unpacked: Path) -> BackendSettings:
    """One executable, as the one-file program is, and a model in its working directory."""
    program = tmp_path / "koboldcpp"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SCRIPT}" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "tiny.gguf").touch()
    name, value = marker.split("=")
    return BackendSettings(
        instance=InstanceId("srv/llm"),
        endpoint_name="llm",
        type="koboldcpp",
        binary=str(program),
        parameters=("--model", "tiny.gguf"),
        env={
            name: value,
            "FAKE_LOAD_S": "0.05",
            "FAKE_EVENTS": str(tmp_path / "events"),
            "TMPDIR": str(unpacked),
        },
        cwd=str(tmp_path),
        temp_dir=tmp_path / "private",
        start_timeout_s=LIMIT_S,
    )


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.close()


@dataclass
class World:
    """One ready server."""

    backend: KoboldCppBackend
    caller: HttpCaller
    handle: LocalHandle

    async def get(self, path: str) -> Any:
        answer = await self.caller.call("GET", path, timeout_s=LIMIT_S)
        assert answer.status == 200, answer.body
        return answer.json()

    async def generate(self, **fields: object) -> str:
        body = json.dumps({"prompt": "hello", **fields}).encode()
        answer = await self.caller.call("POST", "/api/v1/generate", body=body, timeout_s=LIMIT_S)
        assert answer.status == 200, answer.body
        document = answer.json()
        assert isinstance(document, dict)
        text = document["results"][0]["text"]
        assert isinstance(text, str)
        return text

    async def state(self) -> Any:
        return await self.get("/fake/state")

    async def abort(self) -> None:
        """End the generation that runs, which must have said something."""
        async with asyncio.timeout(LIMIT_S):
            while not (await self.get("/api/extra/generate/check"))["results"][0]["text"]:
                await asyncio.sleep(0.01)
        answer = await self.caller.call("POST", "/api/extra/abort", body=b"{}", timeout_s=LIMIT_S)
        assert answer.status == 200

    def capabilities(self) -> Capabilities:
        """As they are now."""
        return self.backend.capabilities

    async def model(self) -> str:
        return str((await self.get("/api/v1/model"))["result"])


async def until(condition: Callable[[], object], what: str) -> None:
    """Poll; fail after a long time."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


async def launched(
    launcher: LocalLauncher, settings: BackendSettings, *parameters: str, **env: str
) -> tuple[KoboldCppBackend, LocalHandle]:
    """Started, and perhaps not ready yet. Parameters come on top of those of the settings."""
    settings = replace(settings, parameters=(*settings.parameters, *parameters), env={**settings.env, **env})
    backend = KoboldCppBackend(settings)
    address = await launcher.reserve()
    return backend, await launcher.start("srv/llm#1", backend.plan(address, os.environ), address)


@asynccontextmanager
async def started(
    launcher: LocalLauncher, settings: BackendSettings, *parameters: str, **env: str
) -> AsyncIterator[World]:
    """Started and ready, as the supervisor does it."""
    backend, handle = await launched(launcher, settings, *parameters, **env)
    caller = HttpCaller(handle.address)
    await wait_until_ready(backend, caller, handle, timeout_s=LIMIT_S, clock=SystemClock())
    await backend.after_start(caller)
    yield World(backend, caller, handle)


async def failed_start(launcher: LocalLauncher, settings: BackendSettings, *parameters: str, **env: str) -> StartFailed:
    backend, handle = await launched(launcher, settings, *parameters, **env)
    with pytest.raises(StartFailed) as caught:
        await wait_until_ready(backend, HttpCaller(handle.address), handle, timeout_s=LIMIT_S, clock=SystemClock())
    return caught.value


def left(marker: str) -> list[str]:
    """What lives on of the server; the guardian ends a moment after it."""
    return [line for line in processes_marked(marker) if "guardian" not in line]


def events(settings: BackendSettings) -> list[str]:
    """What its workers have noted, without their numbers."""
    lines = Path(settings.env["FAKE_EVENTS"]).read_text().splitlines()
    return [line.partition(" in ")[0] for line in lines]


# -------------------------------------------------------------------- what the program makes of a command line


def effective(monkeypatch: pytest.MonkeyPatch, directory: Path, *words: str) -> Any:
    """The arguments the stand-in works with, as load_config_cli leaves them."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["koboldcpp", *words])
    args = fake_koboldcpp.parser().parse_args()
    fake_koboldcpp.prepared(args)
    return args


PRECEDENCE: list[tuple[list[str], dict[str, object], tuple[object, ...]]] = [
    (["--config", "f.kcpps", "--port", "6000"], {"port": 5001, "port_param": 5001}, (6000, "m.gguf")),
    (["--config", "f.kcpps", "--port=6000"], {"port": 7000}, (7000, "m.gguf")),
    (["--config", "f.kcpps", "--port", "6000"], {"port_param": 7000}, (7000, "m.gguf")),
    (["--config", "f.kcpps"], {"port": 7000, "port_param": 7000}, (7000, "m.gguf")),
    (["--config", "f.kcpps", "--model", "a.gguf"], {"model_param": "b.gguf"}, (5001, "a.gguf")),
    (["--config", "f.kcpps", "--model=a.gguf"], {"model_param": "b.gguf"}, (5001, "b.gguf")),
    (["--config", "f.kcpps", "-m", "a.gguf"], {"model_param": "b.gguf"}, (5001, "b.gguf")),
    (["--config", "f.kcpps"], {"model": ["c.gguf"]}, (5001, "c.gguf")),
    (["f.kcpps", "6000"], {"port_param": 7000}, (7000, "m.gguf")),
]
"""The table of backends.md 4.2 and some more: command line, file (which names m.gguf), port and model."""


@pytest.mark.parametrize(("words", "content", "expected"), PRECEDENCE)
def test_precedence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: BackendSettings,
    words: list[str],
    content: dict[str, object],
    expected: tuple[object, ...],
) -> None:
    """1. The stand-in does as the table says. 2. With our command the port is ours, and the model the same."""
    model = {} if "model" in content or "model_param" in content else {"model_param": "m.gguf"}
    (tmp_path / "f.kcpps").write_text(json.dumps({**content, **model}))
    args = effective(monkeypatch, tmp_path, *words)
    # A port of a file that nobody asked to convert again stays where it is: the server binds ``port``.
    assert (args.port, args.model_param) == expected
    plan = KoboldCppBackend(replace(settings, parameters=tuple(words))).plan(Address("127.0.0.1", 9000), {})
    ours = effective(monkeypatch, tmp_path, *plan.argv[1:])
    assert (ours.port, ours.host, ours.model_param) == (9000, "127.0.0.1", expected[1])


UNWANTED = {"launch": True, "showgui": True, "prompt": "x", "benchmark": "x", "onready": "x", "ssl": ["a", "b"]}


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "f.kcpps"],
        ["--config=f.kcpps", "--port=1", "--host=0.0.0.0"],
        ["--conf", "f.kcpps", "--po", "1", "--hos", "0.0.0.0"],
        ["--model", "f.kcpps", "--port", "1"],
        ["--model=f.kcpps"],
        ["-m", "f.kcpps", "--threads", "8"],
        ["-mf.kcpps"],
        ["f.kcpps"],
        ["f.kcpps", "6000"],
        ["--threads", "8", "f.kcpps", "6000"],
        ["f.kcpps", "6000", "--host", "0.0.0.0"],
        ["--config", "f.kcpps", "--model", "g.kcppt"],
        ["--config", "g.kcppt", "f.kcpps", "6000"],
        ["--config", "chain.kcpps", "--port", "1"],
    ],
)
def test_every_form_is_served_at_our_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: BackendSettings, words: list[str]
) -> None:
    """However a settings file is named, and whatever is in it, the program ends up as a server of ours."""
    content = {"port": 7000, "port_param": 7000, "host": "", "contextsize": 4096, **UNWANTED}
    (tmp_path / "f.kcpps").write_text(json.dumps({**content, "model_param": "b.gguf"}))
    (tmp_path / "g.kcppt").write_text(json.dumps({**content, "model": ["b.gguf"]}))
    (tmp_path / "chain.kcpps").write_text(json.dumps({**content, "model_param": "g.kcppt"}))
    plan = KoboldCppBackend(replace(settings, parameters=tuple(words))).plan(Address("127.0.0.1", 9000), {})
    args = effective(monkeypatch, tmp_path, *plan.argv[1:])
    assert (args.port, args.port_param, args.host) == (9000, 9000, "127.0.0.1")
    assert (args.model_param, args.contextsize) == ("b.gguf", 4096)
    assert args.threads == (8 if "8" in words else 4)
    assert {name for name in UNWANTED if getattr(args, name)} == set()


@pytest.mark.parametrize(
    "words",
    [
        ["tiny.gguf", "6000"],
        ["--gpulayers", "-1", "tiny.gguf", "6000"],
        ["--tensor_split", "7", "3", "-c", "4096", "tiny.gguf", "6000"],
        ["--usecublas", "0", "--quiet", "tiny.gguf", "6000"],
        ["--quiet", "--", "tiny.gguf", "6000"],
        ["--model", "tiny.gguf", "--port", "6000"],
        ["-mtiny.gguf", "--po=6000", "-pxyz"],
    ],
)
def test_every_form_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: BackendSettings, words: list[str]
) -> None:
    """Positional words are found among the values of options, as argparse finds them."""
    plan = KoboldCppBackend(replace(settings, parameters=tuple(words))).plan(Address("127.0.0.1", 9000), {})
    args = effective(monkeypatch, tmp_path, *plan.argv[1:])
    assert (args.port, args.host, args.model_param, args.prompt) == (9000, "127.0.0.1", "tiny.gguf", "")


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["-p", "hi", "tiny.gguf"], "An answer to: hi", 0),
        (["--version"], "1.116.1", 0),
        (["tiny.gguf", "6000", "--port", "5"], "not allowed with argument", 2),
        (["--config", "none.kcpps"], "Specified kcpp config file invalid or not found.", 2),
        (["--quiet"], "GUI failed to start", 2),
        (["none.gguf"], "Cannot find text model file: none.gguf", 2),
    ],
)
def test_the_stand_in_ends_as_the_real_one(settings: BackendSettings, words: list[str], said: str, status: int) -> None:
    """What our command lines must avoid, or explain."""
    env = {**os.environ, **settings.env}
    command = [str(settings.binary), *words]
    done = subprocess.run(command, cwd=settings.cwd, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert said in done.stdout + done.stderr
    assert done.returncode == status


# -------------------------------------------------------------------- start


async def test_ready_once_its_models_are_loaded(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """1. The port is closed while it loads, and writes a lot. 2. It opens, and the server is known by name."""
    backend, handle = await launched(launcher, settings, FAKE_LOAD_S="0.4", FAKE_BIG_OUTPUT="300000")
    caller = HttpCaller(handle.address)
    assert await backend.probe(caller) is ProbeResult.NOT_YET
    await wait_until_ready(backend, caller, handle, timeout_s=LIMIT_S, clock=SystemClock())
    assert await backend.identify(caller) == "KoboldCpp 1.116.1"
    world = World(backend, caller, handle)
    assert await world.generate() == "word0 word1 word2 "
    args = (await world.state())["args"]
    assert (args["host"], args["port"]) == ("127.0.0.1", handle.address.port)
    assert any("Please connect to custom endpoint" in line for line in handle.output(50))
    assert (await caller.call("HEAD", "/no/such/path")).status == 200  # why nothing is ever probed with it


async def test_private_copy_lives_as_long_as_the_process(
    launcher: LocalLauncher, settings: BackendSettings, tmp_path: Path
) -> None:
    """It may hold passwords: nobody else can read it while the server runs, and it is gone afterwards."""
    theirs = json.dumps({"model_param": "tiny.gguf", "port_param": 7000, "host": "", "password": "from the file"})
    (tmp_path / "mine.kcpps").write_text(theirs)
    only = replace(settings, parameters=("mine.kcpps", "6000"))
    async with started(launcher, only) as world:
        args = (await world.state())["args"]
        (copy,) = args["config"]
        assert Path(copy).stat().st_mode & 0o777 == 0o600
        assert Path(copy).parent.stat().st_mode & 0o777 == 0o700
        assert (args["host"], args["port"]) == ("127.0.0.1", world.handle.address.port)
        assert (await world.get("/api/extra/version"))["protected"] is True
        await world.handle.stop()
    assert list((tmp_path / "private").iterdir()) == []
    assert (tmp_path / "mine.kcpps").read_text() == theirs


async def test_copy_of_a_failed_start_is_removed(
    launcher: LocalLauncher, settings: BackendSettings, tmp_path: Path
) -> None:
    """Also when the process ends by itself before it was ready."""
    (tmp_path / "mine.kcpps").write_text(json.dumps({"model_param": "missing.gguf"}))
    error = await failed_start(launcher, replace(settings, parameters=("--config", "mine.kcpps")))
    assert error.exit_status == 2
    await until(lambda: not list((tmp_path / "private").iterdir()), "the private folder is empty")


async def test_interpreter_with_script(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """As in a source folder."""
    parameters = ("-u", SCRIPT, "tiny.gguf", "6000")
    async with started(launcher, replace(settings, binary=sys.executable, parameters=parameters)) as world:
        assert await world.model() == "koboldcpp/tiny"


@pytest.mark.parametrize(
    ("parameters", "env", "status", "hint"),
    [
        (["--model", "none.gguf"], {}, 2, "none.gguf does not exist"),
        (["--quiet"], {}, 2, "no model is named"),
        (["--model", "tiny.gguf"], {"FAKE_LOADS": "die"}, 3, "could not be loaded"),
        (["--model", "tiny.gguf", "--mirostat=2"], {}, 2, "does not know --mirostat=2"),
        (["--model", "tiny.gguf", "--mirostat", "2"], {}, 2, "a word that belongs to no option"),
        (["--unknown", "tiny.gguf", "6000"], {}, 2, "a port stands behind the model"),
        (["--model", "tiny.gguf", "--threads"], {}, 2, "argument --threads/-t"),
        (["--admin", "--model", "tiny.gguf"], {"FAKE_LOADS": "die"}, 0, "could not be loaded"),
    ],
)
async def test_failed_starts_are_explained(
    launcher: LocalLauncher,
    settings: BackendSettings,
    marker: str,
    parameters: list[str],
    env: dict[str, str],
    status: int,
    hint: str,
) -> None:
    """The program's own words become a sentence that helps, whatever its exit status means."""
    error = await failed_start(launcher, replace(settings, parameters=tuple(parameters)), **env)
    assert hint in (error.hint or "")
    assert error.exit_status == status
    await until(lambda: not left(marker), "nothing is left")


async def test_a_taken_port_is_another_ports_turn(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """It ends with status 0, which means nothing; what it says counts."""
    backend = KoboldCppBackend(settings)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        handle = await launcher.start("srv/llm#1", backend.plan(address, os.environ), address)
        with pytest.raises(PortTaken, match="cannot bind") as caught:
            await wait_until_ready(backend, HttpCaller(address), handle, timeout_s=LIMIT_S, clock=SystemClock())
    assert caught.value.exit_status == 0


async def test_passwords_stay_out_of_errors(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """1. It prints all its arguments before it loads. 2. It fails. 3. Clients see its last lines, and no password."""
    secret = "it's\tours"
    backend, handle = await launched(
        launcher, settings, "--password", secret, KCPP_ADMINPASSWORD="also ours", FAKE_LOADS="die"
    )
    with pytest.raises(StartFailed) as caught:
        await wait_until_ready(backend, HttpCaller(handle.address), handle, timeout_s=LIMIT_S, clock=SystemClock())
    assert any("also ours" in line for line in handle.output(50))
    told = "\n".join([caught.value.message, *caught.value.log_tail])
    assert "Namespace(" in told
    assert "ours" not in told


# -------------------------------------------------------------------- stop


async def test_stop_without_a_word(launcher: LocalLauncher, settings: BackendSettings, marker: str) -> None:
    """SIGINT ends it cleanly."""
    async with started(launcher, settings) as world:
        report = await world.handle.stop()
        assert report.status in BY_SIGINT
    await until(lambda: not left(marker), "nothing is left")


async def test_stop_in_the_middle_of_native_code(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Python cannot handle SIGINT then; SIGTERM ends it without asking Python."""
    _, handle = await launched(launcher, replace(settings, stop_timeout_s=1.0), FAKE_NATIVE_LOAD="1", FAKE_LOAD_S="60")
    await until(lambda: any("Loading Text Model" in line for line in handle.output(20)), "it loads")
    report = await handle.stop()
    assert report.status == -signal.SIGTERM


@pytest.mark.parametrize("parameters", [(), ("--admin",)])
async def test_stop_of_a_deaf_one(
    launcher: LocalLauncher, settings: BackendSettings, marker: str, parameters: tuple[str, ...]
) -> None:
    """SIGKILL ends what does not listen, and all of its processes."""
    async with started(launcher, replace(settings, stop_timeout_s=0.4), *parameters, FAKE_DEAF="1") as world:
        assert (await world.handle.stop()).status == -signal.SIGKILL
    await until(lambda: not left(marker), "nothing is left")


async def test_stop_of_a_manager_and_its_worker(
    launcher: LocalLauncher, settings: BackendSettings, marker: str
) -> None:
    """Manager, helper and worker end with the group's SIGINT."""
    async with started(launcher, settings, "--admin") as world:
        assert len([line for line in left(marker) if "fake_koboldcpp" in line]) == 3
        report = await world.handle.stop()
        assert report.status in BY_SIGINT
    await until(lambda: not left(marker), "nothing is left")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_worker_does_not_outlive_its_manager(
    launcher: LocalLauncher, settings: BackendSettings, marker: str, number: signal.Signals
) -> None:
    """Somebody ends the manager alone: its worker would go on serving, and holding its memory."""
    async with started(launcher, settings, "--admin") as world:
        os.kill((await world.state())["parent"], number)
        assert (await world.handle.wait()).status == -number
    await until(lambda: not left(marker), "nothing is left")


async def test_bootloader(launcher: LocalLauncher, settings: BackendSettings, marker: str, unpacked: Path) -> None:
    """The one-file program: stopped politely, it removes what it has unpacked.

    SIGINT reaches the manager twice, from us and from its parent. If the second comes in the middle of its clean-up
    the manager waits for its helper for ever, as Python's ``multiprocessing`` has it, and SIGTERM ends them all.
    """
    patient = replace(settings, stop_timeout_s=6.0)
    async with started(launcher, patient, "--admin", FAKE_BOOTLOADER="1") as world:
        assert len([line for line in left(marker) if "fake_koboldcpp" in line]) == 4
        assert [path.name[:4] for path in unpacked.glob("_MEI*")] == ["_MEI"]
        # 1: the second SIGINT came while Python was on its way out of the first.
        assert (await world.handle.stop()).status in (*BY_SIGINT, -signal.SIGTERM, 1)
    await until(lambda: not left(marker), "nothing is left")
    assert list(unpacked.glob("_MEI*")) == []


async def test_a_bootloader_killed_alone(launcher: LocalLauncher, settings: BackendSettings, marker: str) -> None:
    """Its child would be an orphan that serves on; it is found and ended."""
    async with started(launcher, settings, FAKE_BOOTLOADER="1") as world:
        os.kill((await world.state())["parent"], signal.SIGKILL)
        assert (await world.handle.wait()).status == -signal.SIGKILL
    await until(lambda: not left(marker), "nothing is left")


# -------------------------------------------------------------------- busy


async def test_busy(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """1. A generation makes it busy. 2. Its client leaves: it goes on. 3. It ends: free."""
    async with started(launcher, settings, FAKE_TOKEN_S="0.02") as world:
        assert not await world.backend.busy(world.caller)
        working = asyncio.create_task(world.generate(max_length=2000))
        async with asyncio.timeout(LIMIT_S):
            while not await world.backend.busy(world.caller):
                await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert await world.backend.busy(world.caller)
        await world.abort()
        async with asyncio.timeout(LIMIT_S):
            while await world.backend.busy(world.caller):
                await asyncio.sleep(0.02)


async def test_a_full_queue(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """As many as ``default_concurrency`` says are taken; one more is refused."""
    async with started(launcher, settings, "--multiuser", "2", FAKE_TOKEN_S="0.02") as world:
        assert world.backend.default_concurrency == 2
        working = [asyncio.create_task(world.generate(max_length=1000))]
        async with asyncio.timeout(LIMIT_S):
            while not await world.backend.busy(world.caller):
                await asyncio.sleep(0.01)
            working.append(asyncio.create_task(world.generate()))
            while (await world.get("/api/extra/perf"))["queue"] < 1:
                await asyncio.sleep(0.01)
        refused = await world.caller.call("POST", "/api/v1/generate", body=b"{}", timeout_s=LIMIT_S)
        assert refused.status == 503
        await world.abort()
        for task in working:
            assert await task


# -------------------------------------------------------------------- unload and wake


async def test_unload_and_wake(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """The old worker answers on, then nobody does, then one without a model; and back in the same way."""
    async with started(launcher, settings, "--admin", "--adminpassword", "admins", FAKE_PACE="0.3") as world:
        assert world.capabilities().unload == "async"
        first = (await world.state())["pid"]
        assert await world.backend.unload(world.caller)
        second = (await world.state())["pid"]
        assert second != first
        assert await world.model() == "inactive"
        assert not left_alive(first)
        assert await world.backend.probe(world.caller) is ProbeResult.READY
        assert await world.backend.unload(world.caller)  # nothing to do any more
        await world.backend.wake(world.caller)
        assert await world.model() == "koboldcpp/tiny"
        assert (await world.state())["pid"] != second
        assert await world.generate()
        await world.backend.wake(world.caller)  # nothing to do any more
        assert world.handle.exit is None
    assert events(settings) == [
        *("serving llm", "reload unload_model accepted", "serving nothing"),
        *("reload initial_model accepted", "serving llm"),
        *("generation /api/v1/generate", "generated 3 words"),
    ]


def left_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_unload_of_an_image_model(launcher: LocalLauncher, settings: BackendSettings, tmp_path: Path) -> None:
    """There is no text model before and after it, which must not be taken for an unload."""
    (tmp_path / "paint.gguf").touch()
    only = replace(settings, parameters=("--sdmodel", "paint.gguf", "--admin"))
    async with started(launcher, only) as world:
        first = (await world.state())["pid"]
        assert await world.backend.unload(world.caller)
        assert (await world.state())["pid"] != first
        assert (await world.get("/api/extra/version"))["txt2img"] is False
        await world.backend.wake(world.caller)
        assert (await world.get("/api/extra/version"))["txt2img"] is True


async def test_admin_in_the_settings_file(launcher: LocalLauncher, settings: BackendSettings, tmp_path: Path) -> None:
    """Mode and password come from the file then; a second life of the worker still has our address."""
    content = {"model_param": "tiny.gguf", "admin": True, "adminpassword": "in the file", "adminunloadtimeout": 5}
    (tmp_path / "mine.kcpps").write_text(json.dumps({**content, "port_param": 7000}))
    async with started(launcher, replace(settings, parameters=("mine.kcpps",))) as world:
        assert world.capabilities().unload == "async"
        assert (await world.state())["args"]["adminunloadtimeout"] == 0
        assert await world.backend.unload(world.caller)
        await world.backend.wake(world.caller)
        assert await world.model() == "koboldcpp/tiny"


async def test_without_admin_there_is_no_unload(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Nothing is even asked for; the process is stopped instead."""
    async with started(launcher, settings) as world:
        assert world.capabilities().unload == "none"
        assert not await world.backend.unload(world.caller)
        assert await world.generate()
    assert "reload" not in " ".join(events(settings))


async def test_a_version_that_could_not_be_woken(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Before 1.110 there was no way back, so it is not unloaded."""
    async with started(launcher, settings, "--admin", FAKE_VERSION_BEFORE_110="1") as world:
        assert world.capabilities().unload == "none"
        assert not await world.backend.unload(world.caller)
        assert await world.model() == "koboldcpp/tiny"


async def test_an_unload_that_ends_with_the_model(
    launcher: LocalLauncher, settings: BackendSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker without a model dies, and the manager falls back to the first configuration: nothing is free.

    Whoever looks too late to see the gap between the two waits until the limit.
    """
    monkeypatch.setattr(koboldcpp, "UNLOAD_LIMIT_S", 15.0)
    async with started(launcher, settings, "--admin", FAKE_LOADS="ok,die,ok") as world:
        assert not await world.backend.unload(world.caller)
        assert await world.model() == "koboldcpp/tiny"
        assert await world.generate()


async def test_an_order_that_is_not_carried_out(
    launcher: LocalLauncher, settings: BackendSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``{"success":true}`` is not the unload."""
    monkeypatch.setattr(koboldcpp, "UNLOAD_LIMIT_S", 0.5)
    async with started(launcher, settings, "--admin", FAKE_DEAF_ADMIN="1") as world:
        assert not await world.backend.unload(world.caller)
        assert await world.model() == "koboldcpp/tiny"


async def test_a_wake_that_the_manager_repairs(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """The first new worker dies while it loads, the manager's second try succeeds."""
    async with started(launcher, settings, "--admin", FAKE_LOADS="ok,ok,die,ok") as world:
        assert await world.backend.unload(world.caller)
        await world.backend.wake(world.caller)
        assert await world.model() == "koboldcpp/tiny"


async def test_a_wake_that_fails(launcher: LocalLauncher, settings: BackendSettings, marker: str) -> None:
    """Both tries die, and the manager ends: the owner sees that at once, a lone caller at the time limit."""
    short = replace(settings, start_timeout_s=1.0)
    async with started(launcher, short, "--admin", FAKE_LOADS="ok,ok,die,die") as world:
        assert await world.backend.unload(world.caller)
        with pytest.raises((BackendError, OSError)):
            await world.backend.wake(world.caller)
        async with asyncio.timeout(LIMIT_S):
            assert (await world.handle.wait()).status == 0
    await until(lambda: not left(marker), "nothing is left")


# -------------------------------------------------------------------- attached


@asynccontextmanager
async def attached(world: World, settings: BackendSettings, *parameters: str) -> AsyncIterator[World]:
    """The same server, as a juggler sees it that has not started it."""
    url = f"http://127.0.0.1:{world.handle.address.port}"
    backend = KoboldCppBackend(replace(settings, attach_to=url, binary=None, parameters=parameters, env={}))
    backend.attached = True
    assert await backend.probe(world.caller) is ProbeResult.READY
    await backend.after_start(world.caller)
    yield World(backend, world.caller, world.handle)


async def test_attached_with_password(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """Without the password of the administration it is left as it is; with it, it is unloaded and woken."""
    async with started(launcher, settings, "--admin", "--adminpassword", "admins") as own:
        async with attached(own, settings, "--adminpassword", "wrong") as world:
            assert world.capabilities().unload == "none"
            assert not await world.backend.unload(world.caller)
            assert await world.model() == "koboldcpp/tiny"
        async with attached(own, settings, "--adminpassword", "admins") as world:
            assert world.capabilities().unload == "async"
            assert await world.backend.unload(world.caller)
            assert await world.model() == "inactive"
            await world.backend.wake(world.caller)
            assert await world.model() == "koboldcpp/tiny"


async def test_attached_without_admin(launcher: LocalLauncher, settings: BackendSettings) -> None:
    """There is nothing it could be asked for."""
    async with started(launcher, settings) as own, attached(own, settings) as world:
        assert world.capabilities().unload == "none"
        assert not await world.backend.unload(world.caller)


async def test_attached_to_one_that_is_unloaded(
    launcher: LocalLauncher, settings: BackendSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Left so by an earlier juggler: an unload finds it done, and the next wake brings the model back."""
    async with started(launcher, settings, "--admin") as own:
        assert await own.backend.unload(own.caller)
        async with attached(own, settings) as world:
            assert "has no model loaded" in caplog.text
            assert await world.backend.unload(world.caller)
            await world.backend.wake(world.caller)
            assert await world.model() == "koboldcpp/tiny"
