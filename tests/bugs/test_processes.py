"""Bugs 1 to 10 of the prototype (backends.md section 11): processes. Each test would fail with its bug."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from juggler.backends.registry import BACKENDS
from juggler.ids import InstanceId
from juggler.lifecycle.supervisor import Supervisor
from juggler.testing.fake_backend import FakeBackend
from juggler.testing.fake_launcher import FakeLauncher, FakeProgram
from juggler.testing.recorded_reports import RecordedReports
from juggler.testing.virtual_time import VirtualClock, run_virtual
from tests.e2e.support import PROGRAMS, eventually, exclusive, processes_marked, running, web

WRAPPER = str(PROGRAMS / "wrapper.sh")
WEB = str(PROGRAMS / "web.py")


def wrapped(*flags: str, **more: Any) -> dict[str, Any]:
    """The stand-in server behind a shell script that stays, as ``webui.sh`` does."""
    parameters = [WRAPPER, sys.executable, WEB, "--port", "{port}", *flags]
    return {"type": "command", "binary": "bash", "default_parameters": parameters, **more}


def test_bug_01_a_chatty_backend_is_never_blocked(tmp_path: Path) -> None:
    """Its output is drained from the first byte; undrained, it would stop after 64 KiB."""
    with running(tmp_path, exclusive(a=web("--flood"))) as juggler:
        for _ in range(3):
            assert juggler.ask("POST", "/a/x").status == 200
            time.sleep(0.1)


def test_bug_02_a_stop_ends_the_whole_family_and_has_a_limit(tmp_path: Path) -> None:
    """The script's child ignores SIGTERM: it is gone all the same before the other one starts."""
    with running(tmp_path, exclusive(a=wrapped("--ignore-sigterm", stop_timeout=0.3), b=web("--name", "b"))) as juggler:
        first = int(juggler.ask("POST", "/a/x").json()["pid"])
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


def test_bug_03_waiting_for_readiness_ends(tmp_path: Path) -> None:
    """With the endpoint's deadline, or as soon as the process dies; both are answers, not exceptions."""
    config = exclusive(never=web("--never-ready", start_timeout=0.7, ready_path="/x"), dies=web("--fail", "no model"))
    with running(tmp_path, config) as juggler:
        answer = juggler.ask("POST", "/never/x")
        assert (answer.status, answer.json()["error"]["code"]) == (503, "backend_ready_timeout")
        answer = juggler.ask("POST", "/dies/x")
        assert (answer.status, answer.json()["error"]["code"]) == (503, "backend_start_failed")
        assert "no model" in answer.json()["error"]["message"]


def test_bug_03_a_quick_backend_is_seen_quickly() -> None:
    """The first looks are close together, and the pause between them is bounded."""
    from juggler.lifecycle import readiness

    assert readiness.FIRST_PAUSE_S <= 0.05
    assert readiness.PAUSE_LIMIT_S <= 0.5


def test_bug_04_backends_have_an_address_of_their_own(tmp_path: Path) -> None:
    """A listener on all interfaces says nothing about where its backend listens, and is told to nobody."""
    config = exclusive(a=web())
    config["servers"][0]["host"] = "0.0.0.0"
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/a/x").status == 200
        host, _, port = juggler.instance("S/a")["address"].partition(":")
        assert host == "127.0.0.1"
        assert int(port) != juggler.port
        with socket.socket() as sock:  # nobody listens there on another address of this machine
            sock.settimeout(2)
            assert sock.connect_ex(("127.0.0.2", int(port))) != 0


def test_bug_05_a_port_that_was_taken_meanwhile_is_given_up(tmp_path: Path) -> None:
    """The first start finds its port taken; the request is answered by a second one elsewhere."""
    script = tmp_path / "unlucky.sh"
    script.write_text(
        f'if [ ! -e "{tmp_path}/tried" ]; then touch "{tmp_path}/tried"; echo "bind: Address already in use" >&2; '
        f'exit 1; fi; exec "{sys.executable}" "{WEB}" --port "$1"\n'
    )
    unlucky = {"type": "command", "binary": "sh", "default_parameters": [str(script), "{port}"]}
    with running(tmp_path, exclusive(a=unlucky)) as juggler:
        assert juggler.ask("POST", "/a/x").status == 200
        assert "trying another port" in juggler.text()


def test_bug_06_programs_are_found_in_path_and_directories_are_none(tmp_path: Path) -> None:
    """A bare name is looked up; a directory or nothing is said so, and nobody is stopped for it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "my-server").symlink_to(sys.executable)
    parameters = [WEB, "--port", "{port}"]
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    named = {"type": "command", "binary": "my-server", "default_parameters": parameters, "env": {"PATH": path}}
    config = exclusive(a=named, folder=web(binary=str(tmp_path)), missing=web(binary=str(tmp_path / "none")))
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/a/x").status == 200
        assert "is a directory" in juggler.ask("POST", "/folder/x").json()["error"]["message"]
        assert "does not exist" in juggler.ask("POST", "/missing/x").json()["error"]["message"]
        assert juggler.instance("S/a")["residency"] == "ready"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_bug_07_nothing_outlives_the_program(tmp_path: Path, number: signal.Signals) -> None:
    """However it ends: politely, by Ctrl-C, or without a chance to do anything."""
    with running(tmp_path, exclusive(a=wrapped())) as juggler:
        assert juggler.ask("POST", "/a/x").status == 200
        assert len(processes_marked(juggler.marker)) > 1
        juggler.stop(number)
        eventually(lambda: not juggler.left_behind(), "nothing is left")


def test_bug_08_a_failed_unload_becomes_a_stop(tmp_path: Path) -> None:
    """The server refuses to unload: its process is gone before the other one starts."""
    parameters = [str(PROGRAMS / "attached.py"), "--port", "{port}", "--refuses"]
    stubborn = {"type": "command", "binary": sys.executable, "default_parameters": parameters, "unload": "POST /unload"}
    with running(tmp_path, exclusive(a=stubborn, b=web("--name", "b"))) as juggler:
        pid = int(juggler.ask("POST", "/a/x").json()["pid"])
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert juggler.instance("S/a")["residency"] == "stopped"


def test_bug_09_the_hook_after_a_start_is_called() -> None:
    """Before the first request is let in, by the name that the modules define."""

    async def scenario() -> None:
        backend, reports = FakeBackend(), RecordedReports()
        launcher = FakeLauncher(FakeProgram())
        supervisor = Supervisor(InstanceId("chat"), backend, launcher, reports, VirtualClock(), {})
        seen_at_ready: list[str] = []
        reports.on_report = lambda report: seen_at_ready.extend(backend.calls)
        owner = asyncio.create_task(supervisor.run())
        supervisor.start(1)
        await reports.until("instance_ready")
        assert "after_start" in seen_at_ready
        owner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await owner

    run_virtual(scenario())


@pytest.mark.parametrize("type_name", sorted(BACKENDS))
def test_bug_09_no_module_defines_a_hook_that_nobody_calls(type_name: str) -> None:
    """A method that looks like a hook is one of the contract's."""
    from juggler.backends.base import Backend

    kind = BACKENDS[type_name]
    public = {name for name in vars(kind) if not name.startswith("_")}
    looks_like_hook = {name for name in public if name.split("_")[0] in ("after", "before", "on", "post", "pre")}
    assert looks_like_hook <= set(dir(Backend))
