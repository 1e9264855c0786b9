"""One reload at a time, whole or not at all: with a target that only notes what it is told."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.reload.test_many_reloads import eventually

from juggler.cli.reload import _print
from juggler.config.load import load_config
from juggler.config.problems import ConfigFileError
from juggler.config.resolve import ResolvedConfig
from juggler.errors import ConfigError
from juggler.reload import reloader
from juggler.reload.plan import ReloadPlan
from juggler.reload.reloader import Reloader
from juggler.reload.report import outcome_data, report, summary
from juggler.reload.source import Read, read_config, read_from
from juggler.survey.threads import OneLook


class Target:
    """What is changed, in words."""

    def __init__(self, config: ResolvedConfig) -> None:
        self.config = config
        self.stopping = False
        self.diary: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.trouble: Exception | None = None
        self.bug: Exception | None = None

    async def prepare(self, wanted: ReloadPlan) -> str:
        self.diary.append("prepare")
        await self.go_on.wait()
        if self.trouble is not None:
            raise self.trouble
        return "prepared"

    async def give_up(self, prepared: Any) -> None:
        self.diary.append(f"give up {prepared}")

    def change(self, wanted: ReloadPlan, prepared: Any) -> None:
        self.diary.append(f"change {prepared}")
        if self.bug is not None:
            raise self.bug
        self.config = wanted.config


class Rig:
    """A file, and a reloader for it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "config.json"
        self.write(concurrency=1)
        loaded = load_config(self.path)
        read = read_from(loaded)
        self.target = Target(read.config)
        self.reloader = Reloader(self.target, self.path, read)

    def write(self, **endpoint: Any) -> None:
        document = {
            "backends": {"command": {"binary": "/bin/x", "env": {"API_KEY": "hunter2-hunter2"}}},
            "servers": [{"name": "S", "port": 8001, "endpoints": [{"name": "a", "backend": "command", **endpoint}]}],
        }
        self.path.write_text(json.dumps(document))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_a_change_is_taken_up_and_kept_as_the_last_reload(rig: Rig) -> None:
    rig.write(concurrency=2)
    heard: list[str] = []
    rig.reloader.when_changed(lambda: heard.append("changed"))
    outcome = await rig.reloader.reload("test")
    assert (outcome.result, outcome.ok, outcome.by) == ("done", True, "test")
    assert rig.target.diary == ["prepare", "change prepared"]
    assert rig.reloader.last is outcome
    assert rig.target.config.instances[0].concurrency == 2
    assert heard == ["changed"]
    assert (await rig.reloader.reload("test")).result == "nothing"


async def test_a_dry_run_changes_nothing_and_is_not_the_last_reload(rig: Rig) -> None:
    rig.write(concurrency=2)
    outcome = await rig.reloader.reload("test", dry_run=True)
    assert outcome.result == "planned"
    assert outcome.as_data()["changes"] == [
        {"kind": "model", "name": "S/a", "change": "change in place", "what": ["concurrency"]}
    ]
    assert rig.target.diary == []
    assert rig.reloader.last is None


async def test_a_broken_file_is_told_with_places(rig: Rig) -> None:
    rig.write(concurency=2)
    outcome = await rig.reloader.reload("test")
    assert (outcome.result, outcome.ok) == ("problems", False)
    assert outcome.problems[0]["line"] == 1
    assert "did you mean" in outcome.message
    assert outcome.as_data()["summary"] == "nothing was changed"
    assert rig.target.diary == []


async def test_what_fails_while_it_is_made_ready_is_a_problem_without_a_place(rig: Rig) -> None:
    rig.write(concurrency=2)
    rig.target.trouble = ConfigError("port 80 is taken", hint="take another")
    outcome = await rig.reloader.reload("test")
    assert outcome.result == "problems"
    assert outcome.problems[-1]["message"] == "port 80 is taken"
    assert outcome.problems[-1]["line"] is None
    assert rig.target.diary == ["prepare"]
    rig.target.trouble = None
    assert (await rig.reloader.reload("test")).result == "done", "it may be tried again"


async def test_a_bug_ends_the_reload_and_nothing_else(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.write(concurrency=2)
    rig.target.trouble = RuntimeError("oops")
    outcome = await rig.reloader.reload("test")
    assert (outcome.result, outcome.message) == ("problems", "a bug in the juggler; its log tells the story")
    assert "oops" in caplog.text


async def test_a_bug_while_it_is_taken_up(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """What was opened is closed again, and nobody claims that nothing was changed."""
    rig.write(concurrency=2)
    rig.target.bug = RuntimeError("oops")
    outcome = await rig.reloader.reload("test")
    assert rig.target.diary == ["prepare", "change prepared", "give up prepared"]
    assert (outcome.result, outcome.ok, outcome.half_done) == ("problems", False, True)
    data = outcome.as_data()
    assert (data["summary"], data["hint"]) == ("a part of it may have been changed", "restart the juggler")
    assert outcome.problems[-1]["message"] == outcome.message
    assert "oops" in caplog.text
    assert "reload (test): a part of it may have been changed: a bug" in caplog.text
    assert "nothing was changed" not in caplog.text


async def test_a_mistake_of_one_who_is_told_harms_nobody(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The others are told, signals are heard on."""

    def fail() -> None:
        raise ZeroDivisionError("told")

    came = asyncio.Event()
    rig.reloader.on_begin = fail
    rig.reloader.when_changed(fail)
    rig.reloader.when_changed(came.set)
    task = asyncio.create_task(rig.reloader.run())
    for concurrency in (2, 3):
        rig.write(concurrency=concurrency)
        rig.reloader.signal()
        await asyncio.wait_for(came.wait(), 10)
        came.clear()
        assert rig.target.config.instances[0].concurrency == concurrency
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert caplog.text.count("ZeroDivisionError: told") == 4
    caplog.clear()


async def test_the_end_of_a_reload_that_was_cancelled_is_told(rig: Rig) -> None:
    """Its beginning was."""
    heard: list[str] = []
    rig.reloader.on_begin = lambda: heard.append("begin")
    rig.reloader.when_changed(lambda: heard.append("end"))
    rig.target.go_on.clear()
    rig.write(concurrency=2)
    task = asyncio.create_task(rig.reloader.reload("test"))
    while not rig.target.diary:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert heard == ["begin", "end"]


async def test_what_fails_for_a_reason_outside_the_file_is_tried_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """By the watcher, which says so once; the file itself has to be changed before it is read again."""
    rig.write(concurrency=2)
    rig.target.trouble = ConfigError("port 80 is taken", retry_after_s=5)
    for _ in range(3):
        assert not await rig.reloader._by_watch()
    assert caplog.text.count("port 80 is taken") == 1
    await rig.reloader.reload("test")
    assert caplog.text.count("port 80 is taken") == 2, "who asks is told"
    rig.target.trouble = ConfigError("port 81 is taken, and each try is felt")
    assert await rig.reloader._by_watch()
    rig.target.trouble = None
    assert await rig.reloader._by_watch()
    assert rig.target.config.instances[0].concurrency == 2
    rig.write(concurency=2)
    assert await rig.reloader._by_watch()


async def test_what_is_tried_again_and_fails_as_before_is_told_to_nobody(rig: Rig) -> None:
    """Neither to pages nor to the service manager; that it has come to something else is."""
    heard: list[str] = []
    rig.reloader.on_begin = lambda: heard.append("begin")
    rig.reloader.when_changed(lambda: heard.append("end"))
    rig.write(concurrency=2)
    rig.target.trouble = ConfigError("port 80 is taken", retry_after_s=5)
    for _ in range(3):
        assert not await rig.reloader._by_watch()
    assert heard == ["begin", "end"]
    rig.write(concurrency=3)
    assert not await rig.reloader._by_watch()
    assert heard == ["begin", "end", "end"], "the file is another one"
    await rig.reloader.reload("test")
    assert heard == ["begin", "end", "end", "begin", "end"], "who asks is told"
    assert not await rig.reloader._by_watch()
    heard.clear()
    rig.target.trouble = None
    assert await rig.reloader._by_watch()
    assert heard == ["end"]


def unreadable(path: Path) -> Read:
    raise ConfigFileError(f"{path} cannot be read: Permission denied")


AWAKE = threading.Event()
"""The disk answers."""


@pytest.fixture
def asleep() -> Iterator[None]:
    """The disk sleeps, until a test or its end wakes it up."""
    AWAKE.clear()
    yield
    AWAKE.set()


def slow_to_read(path: Path) -> Read:
    AWAKE.wait(20)
    return read_config(path)


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize("read", [unreadable, slow_to_read])
async def test_a_file_that_cannot_be_read_for_now_is_read_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, read: Callable[[Path], Read]
) -> None:
    """A disk that sleeps, or rights that are put in order a moment later: the file is the same for the watcher."""
    rig.write(concurrency=2)
    rig.reloader._one_read = OneLook(0.05 if read is slow_to_read else 10)
    with monkeypatch.context() as patched:
        patched.setattr(reloader, "read_config", read)
        for _ in range(2):
            assert not await rig.reloader._by_watch()
        assert caplog.text.count("be read") == 1
    AWAKE.set()
    await eventually(lambda: not rig.reloader._one_read._under_way, "it has been read")
    rig.reloader._one_read = OneLook(20)
    assert await rig.reloader._by_watch()
    assert rig.target.config.instances[0].concurrency == 2


async def test_a_read_that_hangs_is_the_only_one_that_nobody_has_asked_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks has it read once more: the file may be another one by now."""
    answers, reads = threading.Event(), list[Path]()

    def hang(path: Path) -> Read:
        reads.append(path)
        answers.wait(20)
        return read_config(path)

    monkeypatch.setattr(reloader, "read_config", hang)
    monkeypatch.setattr(reloader, "READ_LIMIT_S", 0.05)
    rig.reloader._one_read = OneLook(0.05)
    for _ in range(3):
        assert not await rig.reloader._by_watch()
    await eventually(lambda: reads, "the thread has begun")
    assert len(reads) == 1
    assert "could not be read" in (await rig.reloader.reload("test")).message
    await eventually(lambda: len(reads) > 1, "another one has begun")
    assert len(reads) == 2
    answers.set()


def write_with_warning(rig: Rig) -> None:
    """Clients would look for one of its endpoints elsewhere."""
    document = json.loads(rig.path.read_text())
    rows = [{"name": "a", "path_prefix": "/"}, {"name": "b", "path_prefix": "/x"}]
    document["servers"][0]["endpoints"] = [{**one, "backend": "command"} for one in rows]
    rig.path.write_text(json.dumps(document))


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize("why", ["read", "prepare", "bug"])
async def test_why_it_failed_is_told_to_who_asked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    """Also where it is no problem of the file, which has a harmless one."""
    write_with_warning(rig)
    if why == "read":
        monkeypatch.setattr(reloader, "READ_LIMIT_S", 0.05)
        monkeypatch.setattr(reloader, "read_config", slow_to_read)
    elif why == "prepare":
        monkeypatch.setattr(reloader, "PREPARE_LIMIT_S", 0.05)
        rig.target.go_on.clear()
    else:
        rig.target.trouble = RuntimeError("oops")
    told = outcome_data(await rig.reloader.reload("API"), rig.reloader, rig.target.config)
    _print(told)
    shown = capsys.readouterr().err
    expected = {"read": "could not be read", "prepare": "could not be made ready", "bug": "a bug in the juggler"}[why]
    assert expected in str(told["message"])
    assert expected in shown
    assert "nothing was changed" in shown
    problems = told["problems"]
    assert isinstance(problems, list)
    assert [one["severity"] for one in problems] == [*["warning"] * (why == "prepare"), "error"]


async def test_why_it_was_refused_is_told_beside_a_harmless_problem(rig: Rig) -> None:
    write_with_warning(rig)
    rig.target.go_on.clear()
    task = asyncio.create_task(rig.reloader.reload("test"))
    await eventually(lambda: rig.target.diary, "it is made ready")
    rig.target.stopping = True
    rig.target.go_on.set()
    outcome = await task
    assert [one["severity"] for one in outcome.problems] == ["warning"]
    assert outcome_data(outcome, rig.reloader, rig.target.config)["message"] == "the juggler is shutting down"


async def test_two_at_once_follow_one_another(rig: Rig) -> None:
    rig.target.go_on.clear()
    rig.write(concurrency=2)
    first = asyncio.create_task(rig.reloader.reload("first"))
    while not rig.target.diary:
        await asyncio.sleep(0)
    rig.write(concurrency=3)
    second = asyncio.create_task(rig.reloader.reload("second"))
    await asyncio.sleep(0)
    rig.target.go_on.set()
    assert [(await one).result for one in (first, second)] == ["done", "done"]
    assert rig.target.diary == ["prepare", "change prepared"] * 2
    assert rig.target.config.instances[0].concurrency == 3


async def test_a_shutdown_that_begins_meanwhile_comes_first(rig: Rig) -> None:
    rig.target.go_on.clear()
    rig.write(concurrency=2)
    task = asyncio.create_task(rig.reloader.reload("test"))
    while not rig.target.diary:
        await asyncio.sleep(0)
    rig.target.stopping = True
    rig.target.go_on.set()
    assert (await task).result == "refused"
    assert rig.target.diary == ["prepare", "give up prepared"]
    assert (await rig.reloader.reload("test")).result == "refused"


async def test_without_a_file_there_is_nothing_to_read(rig: Rig) -> None:
    outcome = await Reloader(rig.target, None, None).reload("test")
    assert (outcome.result, outcome.message) == ("refused", "this juggler runs without a configuration file")


async def test_many_signals_are_one_reload(rig: Rig) -> None:
    rig.write(concurrency=2)
    heard: list[str] = []
    came = asyncio.Event()

    def changed() -> None:
        heard.append("changed")
        came.set()

    rig.reloader.when_changed(changed)
    task = asyncio.create_task(rig.reloader.run())
    for _ in range(5):
        rig.reloader.signal()
    await asyncio.wait_for(came.wait(), 10)
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert heard == ["changed"]


async def test_the_report_hides_secrets(rig: Rig) -> None:
    told = report(rig.reloader, rig.target.config)
    assert "hunter2" not in json.dumps(told)
    assert '"API_KEY": "***"' in str(told["text_masked"])
    effective = told["effective"]
    assert isinstance(effective, dict)
    assert effective["instances"][0]["settings"]["env"] == {"API_KEY": "***"}
    assert summary(rig.reloader, rig.target.config)["path"] == str(rig.path)


@pytest.mark.parametrize(
    "text", ["Authorization: Bearer s3cr3t-word-77", "postgres://me:s3cr3t-word-77@db/x", "/x?token=s3cr3t-word-77"]
)
async def test_the_report_hides_what_looks_like_a_secret(rig: Rig, text: str) -> None:
    """Under whatever name: also where the words of the configuration do not tell that it is one."""
    rig.path.write_text(rig.path.read_text().replace('"API_KEY"', f'"ABOUT": {json.dumps(text)}, "API_KEY"'))
    outcome = await rig.reloader.reload("test")
    assert outcome.ok, outcome.message
    told = report(rig.reloader, rig.target.config)
    assert "s3cr3t" not in json.dumps(told)
    effective = told["effective"]
    assert isinstance(effective, dict)
    assert "***" in effective["instances"][0]["settings"]["env"]["ABOUT"]


@pytest.mark.parametrize("secret", ["true", "null", "8001", "instances", '"},{"', "name"])
async def test_the_report_can_be_made_whatever_the_secret_is(rig: Rig, secret: str) -> None:
    """Its texts are masked, not its structure."""
    rig.path.write_text(rig.path.read_text().replace('"hunter2-hunter2"', json.dumps(secret)))
    outcome = await rig.reloader.reload("test")
    assert outcome.ok, outcome.message
    effective = report(rig.reloader, rig.target.config)["effective"]
    assert isinstance(effective, dict)
    assert effective["servers"][0]["port"] == 8001
    told = effective["instances"][0]["settings"]["env"]["API_KEY"]
    assert told == (secret if secret in ("true", "null") else "***")


async def test_problems_are_told_to_others_without_secrets(rig: Rig) -> None:
    """All is on one line here; what was a secret before is one still, and what looks like one may be."""
    text = rig.path.read_text()
    rig.path.write_text(text.replace('"port"', '"prot"'))
    outcome = await rig.reloader.reload("test")
    assert "hunter2" in outcome.message, "the operator's terminal shows the line"
    told = outcome_data(outcome, rig.reloader, rig.target.config)
    assert "hunter2" not in json.dumps(told)
    assert str(told["message"]).startswith(f"{rig.path}:1:")
    rig.path.write_text(text.replace('"port"', '"prot"').replace("hunter2", "another"))
    told = outcome_data(await rig.reloader.reload("test"), rig.reloader, rig.target.config)
    assert "another" not in json.dumps(told)
