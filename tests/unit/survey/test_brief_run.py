"""Programs that are run for what they print: bounded in time and output, and gone afterwards."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

import pytest

from juggler.errors import StartFailed
from juggler.survey import brief_run
from juggler.survey.brief_run import BriefRun, run_briefly
from tests.e2e.support import eventually, processes_marked

TOOL = Path(__file__).parents[2] / "programs" / "fake_version_tool.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no guardian on Windows")


def run(*words: str, limit_s: float = 20, marker: str = "", cwd: str | None = None, **env: str) -> BriefRun:
    """The tool with some habits; an awkward locale makes no difference."""
    environ = {**os.environ, **env, "JUGGLER_TEST_MARKER": marker}
    return asyncio.run(run_briefly([sys.executable, str(TOOL), *words], env=environ, cwd=cwd, limit_s=limit_s))


def test_status_and_both_streams() -> None:
    """What it wrote on stdout and stderr, in order, and how it ended."""
    found = run("--version", FAKE_FIRST="to stderr \x1b[31mred\x1b[0m", FAKE_STATUS="3")
    assert found.status == 3
    assert found.lines[:2] == ["to stderr red", "version: 7777 (abcdef0)"]


def test_a_program_that_hangs_is_killed(tmp_path: Path) -> None:
    """The deadline holds, what it had written is kept, and nothing is left. On a busy machine it writes late."""
    marker = f"hang-{tmp_path.name}-{time.monotonic_ns()}"
    for limit_s in (1, 4, 16):
        found = run("--version", limit_s=limit_s, marker=marker, FAKE_HABIT="hang", FAKE_FIRST="loading")
        assert found.status is None
        assert processes_marked(marker) == []
        if found.lines:
            break
    assert found.lines == ["loading"]


def test_a_child_in_a_session_of_its_own_is_killed_too(tmp_path: Path) -> None:
    """The program itself ends at once; what it leaves behind does not outlive the call."""
    marker = f"child-{tmp_path.name}-{time.monotonic_ns()}"
    found = run("--version", marker=marker, FAKE_HABIT="child")
    assert found.status == 0
    assert "version: 7777" in found.output
    assert processes_marked(marker) == []


def test_a_flood_is_drained_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output without end fills neither the pipe nor our memory. On a busy machine it begins late."""
    monkeypatch.setattr(brief_run, "OUTPUT_BYTES_MAX", 10_000)
    for limit_s in (0.5, 4, 16):
        found = run("--version", limit_s=limit_s, FAKE_HABIT="flood")
        assert found.status is None
        if len(found.output) >= 10_000:
            break
    assert len(found.output) == 10_000


def test_death_by_a_signal() -> None:
    """Minus the signal's number: a build for another processor dies of SIGILL (4)."""
    assert run("--version", FAKE_HABIT="dies").status == -4


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "does not exist"), ("#!/no/such/python\n", "interpreter"), ("\x7fELF", "another kind of machine")],
)
def test_what_cannot_be_executed(tmp_path: Path, text: str | None, words: str) -> None:
    """The reason is told, with the file's name."""
    path = tmp_path / "program"
    if text is not None:
        path.write_text(text)
        path.chmod(0o755)
    with pytest.raises(StartFailed, match=words):
        asyncio.run(run_briefly([str(path)], env=dict(os.environ)))


def test_a_cancelled_run_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle: the program ends although nobody waits for it any more."""
    marker = f"cancelled-{tmp_path.name}-{time.monotonic_ns()}"
    environ = {**os.environ, "FAKE_HABIT": "hang", "JUGGLER_TEST_MARKER": marker}

    async def body() -> None:
        task = asyncio.create_task(run_briefly([sys.executable, str(TOOL), "--version"], env=environ))
        while not processes_marked(marker):
            await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(body(), 20))
    eventually(lambda: not processes_marked(marker), "nothing is left of a cancelled run")
