"""Nothing is left: whatever the backend forks, and however the juggler dies.

Every process of a launch carries a marker in its environment, which ``/proc/*/environ`` shows wherever it went.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from juggler.backends.base import Address, LaunchPlan, StopStep
from juggler.lifecycle import guardian
from juggler.lifecycle.local import LocalHandle, LocalLauncher

PROGRAMS = Path(__file__).parent.parent / "programs"
ADDRESS = Address("127.0.0.1", 1)
LIMIT_S = 20.0

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def marked(marker: str) -> list[int]:
    """Living processes with the marker in their environment."""
    found = []
    for process in guardian.read_processes().values():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
        if f"JUGGLER_TEST_MARKER={marker}".encode() in environ.split(b"\0") and process.pid != os.getpid():
            found.append(process.pid)
    return found


def lives(pid: int) -> bool:
    process = guardian.read_process(pid)
    return process is not None and not process.ended


def until(condition: Callable[[], bool]) -> None:
    """Poll; fail when ``LIMIT_S`` is over."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < LIMIT_S, "condition not reached"
        time.sleep(0.01)


@pytest.fixture
def marker() -> Iterator[str]:
    marker = uuid.uuid4().hex
    yield marker
    for pid in marked(marker):  # of a failed test
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.close()


async def started(launcher: LocalLauncher, marker: str, *argv: str, grace_s: float = 0.2) -> tuple[LocalHandle, str]:
    """Start a program; its handle and the line that begins with ``ready``."""
    plan = LaunchPlan(
        argv=argv,
        env={**os.environ, "JUGGLER_TEST_MARKER": marker},
        cwd=str(PROGRAMS),
        stop_ladder=(StopStep("SIGTERM", grace_s),),
    )
    handle = await launcher.start(marker, plan, ADDRESS)
    async with asyncio.timeout(LIMIT_S):
        while not (lines := [line for line in handle.output(50) if line.startswith("ready")]):
            await asyncio.sleep(0.005)
    return handle, lines[0]


@pytest.mark.parametrize("way", ["stop", "kill", "close"])
@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_family_is_ended_completely(launcher: LocalLauncher, marker: str, way: str, wrapped: bool) -> None:
    """A child, and a double-forked grandchild in its own session, both deaf to SIGTERM, with or without a wrapper."""
    program = [sys.executable, "tree.py"]
    argv = ["/bin/bash", "wrapper.sh", *program] if wrapped else program
    handle, line = await started(launcher, marker, *argv)
    pids = [int(word) for word in line.split()[1:]]
    until(lambda: len(marked(marker)) == 3 + wrapped)  # the one in between of the double fork may still be there
    assert os.getsid(pids[2]) != os.getsid(pids[0])
    await asyncio.wait_for({"stop": handle.stop, "kill": handle.kill, "close": launcher.close}[way](), LIMIT_S)
    assert handle.gone
    assert marked(marker) == []
    assert not any(map(lives, pids))
    until(lambda: not lives(handle._guardian_pid))


async def test_an_outsider_gets_sigterm_and_time(launcher: LocalLauncher, marker: str) -> None:
    """Who left the group is asked politely too, once the main process has ended; no need to wait for SIGKILL."""
    handle, _ = await started(launcher, marker, sys.executable, "tree.py", "polite", grace_s=50)
    report = await asyncio.wait_for(handle.stop(), LIMIT_S)
    assert report.status == -signal.SIGTERM
    assert marked(marker) == []


async def test_leftovers_of_a_main_process_that_ended_by_itself(launcher: LocalLauncher, marker: str) -> None:
    """The rest gets SIGTERM, 2 s, SIGKILL, with nobody asking for it."""
    handle, _ = await started(launcher, marker, sys.executable, "tree.py", "exit")
    async with asyncio.timeout(LIMIT_S):
        assert (await handle.wait()).status == 7
        await handle._gone
    assert marked(marker) == []
    assert guardian.CLEAR_GRACE_S == 2


async def test_the_end_of_a_main_process_is_reported_before_that_of_its_leftovers(
    launcher: LocalLauncher, marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a guardian that would give them a minute."""
    text = Path(guardian.__file__).read_text(encoding="utf-8")
    patient = tmp_path / "guardian.py"
    patient.write_text(text.replace("\nCLEAR_GRACE_S = 2.0\n", "\nCLEAR_GRACE_S = 60.0\n"), encoding="utf-8")
    assert patient.read_text(encoding="utf-8") != text
    with monkeypatch.context() as patch:
        patch.setattr(guardian, "__file__", str(patient))
        handle, line = await started(launcher, marker, sys.executable, "tree.py", "exit")
    assert (await asyncio.wait_for(handle.wait(), LIMIT_S)).status == 7
    assert not handle.gone
    assert all(lives(int(pid)) for pid in line.split()[2:])
    await asyncio.wait_for(handle.kill(), LIMIT_S)
    assert marked(marker) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("program", [("tree.py",), ("tree.py", "exit"), ("ignore_sigterm.py",)])
def test_a_killed_juggler_leaves_nothing(
    marker: str, tmp_path: Path, program: tuple[str, ...], number: signal.Signals
) -> None:
    """1. A juggler starts a family. 2. It is killed. 3. Within 3 s no process, file or guardian is left.

    One of three is enough for the 3 s: a busy machine may take longer.
    """
    assert any(_left_for_s(marker, tmp_path / "private", program, number) < 3 for _ in range(3))


def _left_for_s(marker: str, private: Path, program: tuple[str, ...], number: signal.Signals) -> float:
    """How long something is left of a juggler that is killed."""
    private.mkdir()
    (private / "key").write_text("secret")
    command = [sys.executable, str(PROGRAMS / "stand_in_juggler.py"), str(private), marker]
    command += [str(PROGRAMS / program[0]), *program[1:]]
    environ = {**os.environ, "JUGGLER_TEST_MARKER": marker}  # for the guardians, the spare one too
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as juggler:
        assert juggler.stdout is not None
        line = juggler.stdout.readline()
        assert line.startswith("ready"), line
        pids = marked(marker)
        assert len(pids) >= 3  # the juggler, its guardian, the program
        juggler.send_signal(number)
        juggler.wait(LIMIT_S)
        killed_at = time.monotonic()
        # By pid too: an ending process loses its environment a moment before it is gone.
        until(lambda: not (marked(marker) or private.exists() or any(map(lives, pids))))
        return time.monotonic() - killed_at


def test_a_guardian_without_a_plan_ends_with_its_juggler(marker: str) -> None:
    """A spare holds nothing and stays for nobody; signals that are meant for a terminal do not end it before."""
    ours, theirs = socket.socketpair()
    out, out_write = os.pipe()
    passed = (theirs.fileno(), out_write)
    script = str(Path(guardian.__file__).resolve())
    argv = [sys.executable, "-I", "-S", script, str(passed[0]), str(passed[1]), str(passed[1])]
    environ = {"JUGGLER_TEST_MARKER": marker}
    subprocess.run(argv, pass_fds=passed, check=True, timeout=LIMIT_S, env=environ)
    theirs.close()
    os.close(out_write)
    (keeper,) = marked(marker)
    status = Path(f"/proc/{keeper}/status")
    until(lambda: "SigIgn:\t0000000000000000" not in status.read_text())
    until(lambda: int(status.read_text().partition("SigIgn:")[2].split()[0], 16) & 1 << signal.SIGALRM - 1 != 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(keeper, number)
    assert os.getsid(keeper) != os.getsid(0)
    assert lives(keeper)
    ours.close()
    until(lambda: not lives(keeper))
    os.close(out)


async def test_zombies_are_reaped(launcher: LocalLauncher, marker: str) -> None:
    """An orphan that ends while the main process lives does not stay as an entry."""
    handle, line = await started(launcher, marker, sys.executable, "tree.py")
    orphan = int(line.split()[-1])
    os.kill(orphan, signal.SIGKILL)
    until(lambda: guardian.read_process(orphan) is None)
    assert handle.exit is None


async def test_a_stopped_process_is_killed_too(launcher: LocalLauncher, marker: str) -> None:
    """SIGSTOP delays the polite signal for ever, but not the end."""
    handle, line = await started(launcher, marker, sys.executable, "tree.py")
    for pid in line.split()[1:]:
        os.kill(int(pid), signal.SIGSTOP)
    await asyncio.wait_for(handle.stop(), LIMIT_S)
    assert marked(marker) == []


def test_stat_lines_with_odd_names_are_read() -> None:
    """A process may call itself ``) Z 1 (``; the fields are still found (proc(5))."""
    numbers = " ".join(str(number) for number in range(7, 60))
    process = guardian.Process(42, f"42 () Z 1 () S 10 20 30 {numbers}\n".encode())
    assert (process.state, process.parent, process.group, process.session) == (b"S", 10, 20, 30)
    assert process.start == 22
    assert process.rss_pages == 24


def test_a_recycled_pid_is_not_signalled() -> None:
    """The start time decides, not the number."""
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        seen = guardian.read_process(stranger.pid)
        assert seen is not None
        seen.start -= 1
        guardian.signal_verified(seen, signal.SIGKILL)
        assert stranger.poll() is None
        seen.start += 1
        guardian.signal_verified(seen, signal.SIGKILL)
        assert stranger.wait(LIMIT_S) == -signal.SIGKILL


def test_removing_never_follows_links(tmp_path: Path) -> None:
    """Of a folder with a link to another, only the link goes; what is missing is no error."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("")
    gone = tmp_path / "gone"
    (gone / "deep").mkdir(parents=True)
    (gone / "deep" / "link").symlink_to(kept)
    link = tmp_path / "link"
    link.symlink_to(kept)
    guardian.remove_paths([str(gone), str(link), str(tmp_path / "missing")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (kept / "file").exists()
