"""The local launcher against real processes: starting, seeing the end, stopping, reading, and leaking nothing."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from juggler import descriptors
from juggler.backends.base import Address, LaunchPlan, StopStep
from juggler.errors import BackendError, StartFailed
from juggler.lifecycle import guardian, local
from juggler.lifecycle.local import LocalHandle, LocalLauncher
from juggler.units import KIB

PROGRAMS = Path(__file__).parent.parent / "programs"
ADDRESS = Address("127.0.0.1", 1)
POLITE = (StopStep("SIGTERM", 5.0),)
LIMIT_S = 20.0

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def plan_for(program: str, *args: str, ladder: tuple[StopStep, ...] = POLITE, **fields: object) -> LaunchPlan:
    argv = (sys.executable, str(PROGRAMS / program), *args)
    return LaunchPlan(argv=argv, env=dict(os.environ), cwd=None, stop_ladder=ladder, **fields)  # type: ignore[arg-type]


def open_fds() -> set[str]:
    """Descriptors of this process; the one of the listing itself is among them each time."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Poll; fail when ``limit_s`` is over."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


async def said(handle: LocalHandle, text: str) -> str:
    """The first line of output that holds ``text``, once it is there."""
    await until(lambda: any(text in line for line in handle.output(100)))
    return next(line for line in handle.output(100) if text in line)


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.close()


async def test_the_end_is_noticed_at_once_with_all_output(launcher: LocalLauncher) -> None:
    """Status, run time and the last words, those without a line end too, are there when ``wait`` returns."""
    handle = await launcher.start("a", plan_for("die_at_once.py"), ADDRESS)
    report = await asyncio.wait_for(handle.wait(), LIMIT_S)
    assert report.status == 3
    assert 0 < report.runtime_s < 10
    assert handle.exit == report
    assert sorted(handle.output()) == ["error: no such model", "giving up", "loading"]


async def test_a_death_is_noticed_within_100_ms(launcher: LocalLauncher) -> None:
    """From outside: SIGKILL to the main process; the report says so. Most of five, as the machine may be slow once."""
    noticed_s = []
    for number in range(5):
        handle = await launcher.start(f"a{number}", plan_for("ignore_sigterm.py"), ADDRESS)
        await said(handle, "ready")
        killed_at = time.monotonic()
        os.kill(handle._session.pid, signal.SIGKILL)
        report = await asyncio.wait_for(handle.wait(), LIMIT_S)
        noticed_s.append(time.monotonic() - killed_at)
        assert str(report) == "killed by signal 9"
    assert statistics.median(noticed_s) < 0.1, noticed_s


async def test_surroundings_of_a_program(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Exactly the plan's environment, directory and arguments; stdin at its end, no foreign descriptor or signal."""
    argv = (sys.executable, str(PROGRAMS / "inspect_self.py"), "ä b", "")
    env = {"PATH": "/bin", "NAME": "välue \udcff", "LC_ALL": "C.UTF-8"}
    handle = await launcher.start("a", LaunchPlan(argv, env, str(tmp_path), POLITE), ADDRESS)
    assert (await asyncio.wait_for(handle.wait(), LIMIT_S)).status == 0, handle.output()
    seen = json.loads(handle.output()[-1])
    assert seen["fds"] == [0, 1, 2]
    assert seen["stdin"] == os.devnull
    assert int(seen["blocked"], 16) == 0
    # CPython itself ignores SIGPIPE and SIGXFSZ; signals from 32 on are the C library's and the surroundings' own.
    assert int(seen["ignored"], 16) & 0x7FFFFFFF == 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert seen["leader"]
    assert (seen["cwd"], seen["env"], seen["argv"]) == (str(tmp_path), env, ["ä b", ""])


async def test_our_own_limit_on_descriptors_is_not_handed_down(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs with ``select`` break above 1024: they get the soft limit that the juggler was started with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    plan = LaunchPlan((sys.executable, "-c", script), dict(os.environ), None, POLITE)
    for name, given in (("a", soft - 7), ("b", None)):
        monkeypatch.setattr(descriptors, "_given", given)
        handle = await launcher.start(name, plan, ADDRESS)
        assert (await asyncio.wait_for(handle.wait(), LIMIT_S)).status == 0, handle.output()
        assert handle.output() == [f"{given or soft} {hard}"]


async def test_100_mb_at_full_speed(launcher: LocalLauncher) -> None:
    """The child is never stuck, the loop goes on turning, and nothing but the ring is kept.

    How long the longest turn of the loop takes is told by the processor's time: others may take the processor away.
    """
    handle = await launcher.start("a", plan_for("flood.py", "100"), ADDRESS)
    worked_s, turned_s = [], []
    waiting = asyncio.ensure_future(handle.wait())
    while not waiting.done():
        worked, turned = time.thread_time(), time.monotonic()
        await asyncio.sleep(0.001)
        worked_s.append(time.thread_time() - worked)
        turned_s.append(time.monotonic() - turned)
    assert (await waiting).status == 0
    ring = handle._link.ring
    assert ring.bytes_seen >= 100 * 1024 * KIB
    assert ring._bytes <= 256 * KIB
    assert any("flood: 104857600 bytes" in line for line in handle.output(500))
    assert max(worked_s) < 0.25
    assert statistics.median(turned_s) < 0.25


@pytest.mark.parametrize(("program", "text"), [("no_newline.py", "begun"), ("closes_output.py", "closing")])
async def test_odd_writers_are_stopped_like_others(launcher: LocalLauncher, program: str, text: str) -> None:
    """No line end ever, or no output at all any more: the text is kept, the process is not mistaken for ended."""
    handle = await launcher.start("a", plan_for(program), ADDRESS)
    await said(handle, text)
    assert handle.exit is None
    report = await asyncio.wait_for(handle.stop(), LIMIT_S)
    assert report.status == -signal.SIGTERM
    assert handle.gone


def _not_executable(folder: Path) -> tuple[str, str]:
    file = folder / "plain"
    file.write_text("#!/bin/sh\n")
    return str(file), "is not executable"


def _no_shebang(folder: Path) -> tuple[str, str]:
    file = folder / "script"
    file.write_text("echo hello\n")
    file.chmod(0o755)
    return str(file), "no script that names its interpreter"


def _bad_interpreter(folder: Path) -> tuple[str, str]:
    file = folder / "script"
    file.write_text("#!/nowhere/python3\n")
    file.chmod(0o755)
    return str(file), "interpreter '/nowhere/python3'"


def _windows_line_ends(folder: Path) -> tuple[str, str]:
    file = folder / "script"
    file.write_bytes(b"#!/bin/sh\r\necho\r\n")
    file.chmod(0o755)
    return str(file), "Windows line ends"


def _foreign_machine(folder: Path) -> tuple[str, str]:
    file = folder / "program"
    file.write_bytes(b"MZ" + bytes(200))
    file.chmod(0o755)
    return str(file), "another kind of machine"


def _missing(folder: Path) -> tuple[str, str]:
    return str(folder / "missing"), "does not exist"


def _not_on_path(folder: Path) -> tuple[str, str]:
    return "no-such-program-at-all", "no directory of PATH"


def _directory(folder: Path) -> tuple[str, str]:
    return str(folder), "is a directory"


@pytest.mark.parametrize(
    "case",
    [
        _not_executable,
        _no_shebang,
        _bad_interpreter,
        _windows_line_ends,
        _foreign_machine,
        _missing,
        _not_on_path,
        _directory,
    ],
)
async def test_what_cannot_be_executed_is_explained(
    launcher: LocalLauncher, tmp_path: Path, case: Callable[[Path], tuple[str, str]]
) -> None:
    """Each failure of exec becomes a sentence that names the file, with a hint, and leaves nothing behind."""
    name, expected = case(tmp_path)
    private = tmp_path / "private"
    private.write_text("")
    plan = LaunchPlan((name, "x"), dict(os.environ), None, POLITE, (str(private),))
    with pytest.raises(StartFailed) as failure:
        await launcher.start("a", plan, ADDRESS)
    assert name in failure.value.message
    assert failure.value.hint
    assert expected in f"{failure.value.message} {failure.value.hint}"
    assert not private.exists()
    assert await launcher.describe("a") is None


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (LaunchPlan(("/bin/true",), {}, "/nowhere", ()), "working directory '/nowhere' does not exist"),
        (LaunchPlan(("/bin/true",), {}, "/bin/true", ()), "is not a directory"),
        (LaunchPlan((), {}, None, ()), "empty"),
        (LaunchPlan(("/bin/true", "a\0b"), {}, None, ()), "NUL"),
        (LaunchPlan(("/bin/true",), {"A=B": "c"}, None, ()), "'A=B'"),
        (LaunchPlan(("/bin/true", "x" * 3_000_000), {}, None, ()), "too long"),
    ],
)
async def test_impossible_plans_are_refused(launcher: LocalLauncher, plan: LaunchPlan, expected: str) -> None:
    """Bad directories, and texts that no system call accepts."""
    with pytest.raises(StartFailed, match=expected):
        await launcher.start("a", plan, ADDRESS)


async def test_a_known_id_gives_the_same_process(launcher: LocalLauncher) -> None:
    """Also when two starts overlap; after the end the id starts anew."""
    plan = plan_for("slow_goodbye.py", "0")
    first, second = await asyncio.gather(*(launcher.start("a", plan, ADDRESS) for _ in range(2)))
    assert first is second is await launcher.start("a", plan, ADDRESS)
    info = await launcher.describe("a")
    assert info is not None
    assert (info.alive, info.exit, info.node) == (True, None, "local")
    await said(first, "ready")
    await first.stop()
    info = await launcher.describe("a")
    assert info is not None
    assert (info.alive, info.exit) == (False, first.exit)
    assert await launcher.start("a", plan, ADDRESS) is not first


async def test_a_cancelled_start_leaves_nothing(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Wherever the caller gives up, no process and no temporary file stays."""
    marks = []
    for turns in range(12):
        private = tmp_path / f"private-{turns}"
        private.write_text("")
        marks.append(private)
        plan = plan_for("ignore_sigterm.py", str(private), temp_files=(str(private),))
        start = asyncio.ensure_future(launcher.start(f"a{turns}", plan, ADDRESS))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        start.cancel()
        try:
            await (await start).kill()
        except asyncio.CancelledError:
            pass
    await until(lambda: not any(_with_argument(str(private)) for private in marks))


def _with_argument(argument: str) -> list[int]:
    found = []
    for process in guardian.read_processes().values():
        try:
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if argument.encode() in command.split(b"\0") and not process.ended:
            found.append(process.pid)
    return found


async def test_the_polite_ladder_is_walked_and_shared(launcher: LocalLauncher) -> None:
    """A program that needs a moment gets it; all callers get the one report, and later ones too."""
    handle = await launcher.start("a", plan_for("slow_goodbye.py", "0.1"), ADDRESS)
    await said(handle, "ready")
    reports = await asyncio.wait_for(asyncio.gather(handle.stop(), handle.stop(()), handle.wait()), LIMIT_S)
    assert {report.status for report in reports} == {0}
    assert handle.output()[-1] == "finished politely"
    assert await handle.stop() == await handle.kill() == handle.exit


@pytest.mark.slow
async def test_a_child_of_a_wrapper_keeps_the_time_of_the_ladder(launcher: LocalLauncher) -> None:
    """The wrapper dies of SIGTERM at once, its server finishes its work: longer than unasked leftovers would get."""
    server = (sys.executable, str(PROGRAMS / "slow_goodbye.py"), "2.5")
    plan = LaunchPlan((str(PROGRAMS / "wrapper.sh"), *server), dict(os.environ), None, (StopStep("SIGTERM", 10.0),))
    handle = await launcher.start("a", plan, ADDRESS)
    await said(handle, "ready")
    report = await asyncio.wait_for(handle.stop(), LIMIT_S)
    assert report.status in (0, -signal.SIGTERM)
    assert "finished politely" in handle.output()


async def test_the_ladder_ends_in_sigkill(launcher: LocalLauncher) -> None:
    """A program that ignores every rung is killed after their grace times; the quickest of three is not late."""
    plan = plan_for("ignore_sigterm.py", ladder=(StopStep("SIGINT", 0.1), StopStep("SIGTERM", 0.1)))
    took_s = []
    for number in range(3):
        handle = await launcher.start(f"a{number}", plan, ADDRESS)
        await said(handle, "ready")
        started = time.monotonic()
        assert (await asyncio.wait_for(handle.stop(), LIMIT_S)).status == -signal.SIGKILL
        took_s.append(time.monotonic() - started)
    assert 0.2 <= min(took_s) < 2, took_s


async def test_kill_hurries_a_stop(launcher: LocalLauncher) -> None:
    """In the middle of a long grace time."""
    handle = await launcher.start("a", plan_for("ignore_sigterm.py", ladder=(StopStep("SIGTERM", 50.0),)), ADDRESS)
    await said(handle, "ready")
    stopping = asyncio.ensure_future(handle.stop())
    await asyncio.sleep(0)
    report = await asyncio.wait_for(handle.kill(), LIMIT_S)
    assert report.status == -signal.SIGKILL
    assert await asyncio.wait_for(stopping, LIMIT_S) == report


async def test_a_process_that_survives_sigkill_is_reported(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that hangs in a driver: the caller gets an error in bounded time, and the report once it has ended."""
    handle = await launcher.start("a", plan_for("ignore_sigterm.py"), ADDRESS)
    await said(handle, "ready")
    with monkeypatch.context() as patch:
        patch.setattr(local, "KILL_LIMIT_S", 0.05)
        patch.setattr(handle._link, "order", lambda op, **fields: None)
        for attempt in (handle.kill, lambda: handle.stop(())):
            with pytest.raises(BackendError, match="does not end although it was killed"):
                await attempt()
    assert handle.exit is None
    await handle.kill()
    assert (await handle.stop()).status == -signal.SIGKILL


async def test_cancelled_waiters_harm_nobody(launcher: LocalLauncher) -> None:
    """Neither ``wait`` nor ``stop`` of others ends with a cancelled caller."""
    handle = await launcher.start("a", plan_for("slow_goodbye.py", "0.05"), ADDRESS)
    await said(handle, "ready")
    calls = [asyncio.ensure_future(call) for call in (handle.wait(), handle.wait(), handle.stop(), handle.stop())]
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[2].cancel()
    assert (await asyncio.wait_for(calls[1], LIMIT_S)) == (await asyncio.wait_for(calls[3], LIMIT_S))


async def test_an_unknown_signal_is_refused(launcher: LocalLauncher) -> None:
    """Before anything is sent or awaited."""
    handle = await launcher.start("a", plan_for("ignore_sigterm.py"), ADDRESS)
    with pytest.raises(ValueError, match="SIGNOTHING"):
        await handle.signal("SIGNOTHING")
    with pytest.raises(ValueError, match="SIGNOTHING"):
        await handle.stop([StopStep("SIGNOTHING", 1.0)])
    await handle.kill()
    await handle.signal("SIGTERM")


async def test_memory_counts_descendants(launcher: LocalLauncher) -> None:
    """Three Python processes hold more than one; nothing is reported for what is unknown or over."""
    single = await launcher.start("single", plan_for("ignore_sigterm.py"), ADDRESS)
    family = await launcher.start("family", plan_for("tree.py"), ADDRESS)
    await said(single, "ready")
    await said(family, "ready")
    one, three = (await launcher.memory("single"))["rss"], (await launcher.memory("family"))["rss"]
    assert 4 * 1024 * KIB < one < three
    await family.kill()
    assert await launcher.memory("family") == await launcher.memory("unknown") == {}


async def test_prefetch_reads_what_it_may(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Up to the limit, in order, leaving out what is no file; a pipe does not block it."""
    for name, size in (("a", 5_000_000), ("b", 3_000_000)):
        (tmp_path / name).write_bytes(bytes(size))
    os.mkfifo(tmp_path / "pipe")
    files = [str(tmp_path / name) for name in ("missing", "pipe", "a", ".", "b")]
    assert await launcher.prefetch(files, 10**9) == 8_000_000
    assert await launcher.prefetch(files, 6_000_000) == 6_000_000
    assert await launcher.prefetch(files, 0) == 0


async def test_a_cancelled_prefetch_stops_reading(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Its thread sees the stop order."""
    file = tmp_path / "large"
    with file.open("wb") as opened:
        opened.truncate(64 * 1024**3)  # sparse: reading it all would take far longer than this test may
    reading = asyncio.ensure_future(launcher.prefetch([str(file)], 10**12))
    await until(lambda: bool(launcher._prefetches))
    stop = next(iter(launcher._prefetches))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert stop.is_set()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_killed_spare_is_replaced(launcher: LocalLauncher) -> None:
    """The next start takes a fresh guardian; whether its loss was seen before or not makes no difference."""
    for seen in (True, False):
        await launcher.reserve()
        assert launcher._spare is not None
        link = await launcher._spare
        (keeper,) = _spare_guardians()
        os.kill(keeper, signal.SIGKILL)
        if seen:
            await until(lambda link=link: link.lost)  # type: ignore[misc]
        handle = await launcher.start(f"a{seen}", plan_for("ignore_sigterm.py"), ADDRESS)
        assert handle.exit is None
        await handle.kill()


def _spare_guardians() -> list[int]:
    """Guardians that keep nothing and hold the other end of a pipe of ours."""
    script = str(Path(guardian.__file__).resolve())
    parents = {process.parent for process in guardian.read_processes().values()}
    mine = _pipes_of(os.getpid())
    return [pid for pid in _with_argument(script) if pid not in parents and _pipes_of(pid) & mine]


def _pipes_of(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # somebody else's guardian may have ended meanwhile
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # the listing's own descriptor
                found.add(str(entry.readlink()))
    return {target for target in found if target.startswith("pipe:")}


async def test_a_lost_guardian_takes_its_backend_along(launcher: LocalLauncher, tmp_path: Path) -> None:
    """SIGKILL to the guardian itself: main process and group end, files go, callers get their answers."""
    private = tmp_path / "private"
    private.write_text("")
    plan = LaunchPlan(
        (str(PROGRAMS / "wrapper.sh"), sys.executable, str(PROGRAMS / "ignore_sigterm.py"), str(private)),
        dict(os.environ),
        None,
        POLITE,
        (str(private),),
    )
    handle = await launcher.start("a", plan, ADDRESS)
    await said(handle, "ready")
    os.kill(handle._guardian_pid, signal.SIGKILL)
    report = await asyncio.wait_for(handle.stop(), LIMIT_S)
    assert report.status == -signal.SIGKILL
    assert not _with_argument(str(private))
    assert not private.exists()


@pytest.mark.slow
async def test_fifty_rounds_leak_nothing(launcher: LocalLauncher) -> None:
    """Descriptors, zombies, tasks and remembered launches stay bounded."""
    plan = LaunchPlan(("/bin/sleep", "60"), dict(os.environ), None, POLITE)

    async def one_round(number: int) -> None:
        handle = await launcher.start(f"a{number}", plan, ADDRESS)
        await (handle.stop() if number % 2 else handle.kill())
        if launcher._spare is not None:
            await launcher._spare

    def children() -> set[int]:
        return {one.pid for one in guardian.read_processes().values() if one.parent == os.getpid()}

    await one_round(0)
    before, others = len(open_fds()), children()
    for number in range(1, 51):
        await one_round(number)
    await until(lambda: len(open_fds()) <= before)
    await until(lambda: children() <= others)
    assert len(launcher._handles) <= local.ENDED_KEPT_MAX + 1
    await until(lambda: not launcher._tasks)


async def test_close_ends_everything_and_refuses_more(tmp_path: Path) -> None:
    """Running backends, the spare, files; twice is as good as once."""
    before = open_fds()
    launcher = LocalLauncher()
    private = tmp_path / "folder"
    (private / "deep").mkdir(parents=True)
    (private / "deep" / "file").write_text("")
    (private / "link").symlink_to(tmp_path)
    handles = [
        await launcher.start(f"a{number}", plan_for("ignore_sigterm.py", temp_files=(str(private),)), ADDRESS)
        for number in range(3)
    ]
    await asyncio.wait_for(launcher.close(), LIMIT_S)
    await launcher.close()
    assert all(handle.gone for handle in handles)
    assert not private.exists()
    assert tmp_path.exists()
    with pytest.raises(StartFailed, match="shutting down"):
        await launcher.start("late", plan_for("ignore_sigterm.py"), ADDRESS)
    assert open_fds() <= before


async def test_a_python_that_does_not_start_is_reported(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No spare, no start, one sentence; nothing stays open; it works again when the cause is gone."""
    before = len(open_fds())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(StartFailed, match="keeper process could not be started"):
            await launcher.start("a", plan_for("ignore_sigterm.py"), ADDRESS)
    assert len(open_fds()) == before
    handle = await launcher.start("a", plan_for("ignore_sigterm.py"), ADDRESS)
    await handle.kill()


def test_the_same_under_uvloop() -> None:
    """Start, output, flood, stop and close on the other loop; the fast path is the same code."""
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        launcher = LocalLauncher()
        for _ in range(3):
            flood = await launcher.start("flood", plan_for("flood.py", "20"), await launcher.reserve())
            family = await launcher.start("family", plan_for("tree.py", ladder=()), ADDRESS)
            await said(family, "ready")
            assert (await asyncio.wait_for(flood.wait(), 20)).status == 0
            assert flood._link.ring.bytes_seen > 20 * 1024 * KIB
            assert (await asyncio.wait_for(family.stop(), LIMIT_S)).status == -signal.SIGKILL
        await launcher.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))  # libuv opens a pipe of its own on first use and keeps it
    before = open_fds()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    assert open_fds() <= before


async def test_windows_is_refused_with_a_sentence(launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module imports everywhere; starting says what to do instead."""
    plan = plan_for("ignore_sigterm.py")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        with pytest.raises(StartFailed, match="Windows") as failure:
            await launcher.start("a", plan, ADDRESS)
    assert "attach_to" in (failure.value.hint or "")
