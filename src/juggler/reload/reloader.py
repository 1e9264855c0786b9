"""Takes up a changed configuration: one reload at a time, whole or not at all."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from juggler.config.problems import ConfigFileError
from juggler.config.resolve import ResolvedConfig
from juggler.errors import ConfigError
from juggler.reload.outcome import ReloadOutcome, Result
from juggler.reload.plan import ReloadPlan, plan
from juggler.reload.source import Read, identity_of, read_config
from juggler.reload.watch import Watcher
from juggler.survey.threads import OneLook, in_thread
from juggler.units import MINUTES, SECONDS

READ_LIMIT_S = 10 * SECONDS
PREPARE_LIMIT_S = 1 * MINUTES
"""For looks at model files, certificates, and addresses; each has its own, shorter limit."""

BY_SIGNAL = "SIGHUP"
BY_WATCH = "file change"

_BUG = "a bug in the juggler; its log tells the story"

_log = logging.getLogger("juggler.reload")

_Problem = dict[str, object]


class Target(Protocol):
    """What is changed."""

    @property
    def config(self) -> ResolvedConfig:
        """What is in effect, by the ids of the running program."""
        ...

    @property
    def stopping(self) -> bool: ...

    async def prepare(self, wanted: ReloadPlan) -> Any:
        """Do what can fail; changes nothing.

        Raises:
            ConfigError: It did fail.
        """
        ...

    async def give_up(self, prepared: Any) -> None:
        """Undo that; also what ``change`` has not taken into use before it failed."""
        ...

    def change(self, wanted: ReloadPlan, prepared: Any) -> None:
        """Take it up. Fails by a bug only; then a part may be in effect."""
        ...


class Reloader:
    """See the module.

    Args:
        target: What is changed.
        path: The file; None: this juggler runs without one.
        running: What was read of it for the configuration in effect.
    """

    def __init__(self, target: Target, path: Path | None, running: Read | None) -> None:
        self._target = target
        self.path = path
        self.running = running
        self.loaded_at = time.time()
        """When what is in effect was taken up."""
        self.last: ReloadOutcome | None = None
        """The last reload that was no dry run."""
        self.on_begin: Callable[[], None] | None = None
        """Called when one begins that is no dry run, nor a further try by itself; ``when_changed`` tells its end."""
        self._lock = asyncio.Lock()
        self._one_read = OneLook(READ_LIMIT_S)
        """Of those that nobody asks for: on a disk that hangs, each would leave a thread behind."""
        self._signalled = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        self._watching: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[], None]] = []

    def when_changed(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called after each reload, but for tries by itself that failed as before.

        Returns what ends that.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    # -- triggers ------------------------------------------------------------------------------------------------

    def signal(self) -> None:
        """Reload soon; many at once are one."""
        self._signalled.set()

    async def run(self) -> None:
        """Carry out what ``signal`` asks for, until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._follow()
            while True:
                await self._signalled.wait()
                self._signalled.clear()
                await self.reload(BY_SIGNAL)

    def _follow(self) -> None:
        """Begin or end to watch the file, as the configuration in effect says."""
        wanted = self._target.config.watch and self.path is not None
        if wanted and self._watching is None:
            path = self.path
            assert path is not None
            watcher = Watcher(lambda: identity_of(path), self._by_watch)
            self._watching = self._tasks.create_task(watcher.run(), name="watch the configuration")
        elif not wanted and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    # -- one reload ----------------------------------------------------------------------------------------------

    async def reload(self, by: str, *, dry_run: bool = False) -> ReloadOutcome:
        """Read the file and bring the running program in line with it; waits for a reload that is under way.

        Args:
            by: Who asks.
            dry_run: Only say what would happen.
        """
        at, began = time.time(), time.monotonic()

        def came(result: Result, message: str, **more: Any) -> ReloadOutcome:
            if result == "problems":
                more["problems"] = _with_error(more.get("problems", ()), message, more.get("hint"))
            took_s = time.monotonic() - began
            return ReloadOutcome(at, by, result, message, took_s=took_s, dry_run=dry_run, **more)

        async with self._lock:
            if dry_run:
                return await self._guarded(came, by, dry_run)
            before = self.last
            silent = by == BY_WATCH and _is_tried_again(before)
            if not silent and self.on_begin is not None:
                _call(self.on_begin)
            try:
                self.last = outcome = await self._guarded(came, by, dry_run)
                silent = _same_again(before, outcome)
                if not silent:
                    self._tell(outcome)
            finally:
                for listener in list(self._listeners) if not silent else ():
                    _call(listener)
                # Not from within: the task that watches may be the one that is in here.
                asyncio.get_running_loop().call_soon(self._follow_later)
        return outcome

    async def _by_watch(self) -> bool:
        """The file has changed; returns whether that is settled, or to be tried again."""
        return not (await self.reload(BY_WATCH)).passing

    async def _guarded(self, came: Callable[..., ReloadOutcome], by: str, dry_run: bool) -> ReloadOutcome:
        try:
            return await self._reload(came, by, dry_run)
        except Exception:  # a mistake in here must not end the program that serves
            _log.exception("the configuration could not be taken up")
            return came("problems", _BUG)

    def _follow_later(self) -> None:
        if not self._target.stopping:
            self._follow()

    async def _reload(self, came: Callable[..., ReloadOutcome], by: str, dry_run: bool) -> ReloadOutcome:
        if self.path is None:
            return came("refused", "this juggler runs without a configuration file")
        if self._target.stopping:
            return came("refused", "the juggler is shutting down")
        try:
            read = await self._read(self.path, by)
        except ConfigError as error:
            passing = isinstance(error, ConfigFileError)
            return came("problems", error.message, problems=_problems(error), hint=error.hint, passing=passing)
        except TimeoutError:
            return came("problems", f"{self.path} could not be read within {READ_LIMIT_S:.0f} s", passing=True)
        wanted = plan(self._target.config, read.config)
        more = {
            "problems": tuple(one.as_dict() for one in read.warnings),
            "plan": wanted,
            "digest": read.digest,
        }
        if dry_run:
            return came("planned", wanted.summary, **more)
        if wanted.nothing:
            self._is_running(read)
            return came("nothing", wanted.summary, **more)
        return await self._take_up(came, wanted, read, more)

    async def _read(self, path: Path, by: str) -> Read:
        if by == BY_WATCH:
            return await self._one_read.in_thread(lambda: read_config(path))
        return await in_thread(READ_LIMIT_S, read_config, path)

    async def _take_up(
        self, came: Callable[..., ReloadOutcome], wanted: ReloadPlan, read: Read, more: dict[str, Any]
    ) -> ReloadOutcome:
        target = self._target
        try:
            async with asyncio.timeout(PREPARE_LIMIT_S):
                prepared = await target.prepare(wanted)
        except ConfigError as error:
            more["problems"] = (*more["problems"], *_problems(error))
            return came("problems", error.message, hint=error.hint, passing=error.retry_after_s is not None, **more)
        except TimeoutError:
            return came("problems", f"it could not be made ready within {PREPARE_LIMIT_S:.0f} s", **more)
        if target.stopping:
            await target.give_up(prepared)
            return came("refused", "the juggler is shutting down", **more)
        try:
            target.change(wanted, prepared)
        except Exception:
            _log.exception("the configuration could not be taken up")
            await target.give_up(prepared)
            return came("problems", _BUG, hint="restart the juggler", half_done=True, **more)
        self._is_running(read)
        return came("done", wanted.summary, **more)

    def _is_running(self, read: Read) -> None:
        self.running, self.loaded_at = read, time.time()

    def _tell(self, outcome: ReloadOutcome) -> None:
        if outcome.result == "nothing" and outcome.by == BY_WATCH:
            return  # touched, or written anew with the same content
        if not outcome.ok:
            _log.error("reload (%s): %s: %s", outcome.by, outcome.harm, outcome.message)
            return
        assert outcome.plan is not None
        for problem in outcome.problems:
            _log.warning("%s:%s: %s", problem["path"], problem["line"], problem["message"])
        _log.info("reload (%s): %s", outcome.by, outcome.message)
        for line in outcome.plan.lines():
            _log.info("reload: %s", line)


def _call(listener: Callable[[], None]) -> None:
    """Tell somebody; a mistake of his must not end the program that serves."""
    try:
        listener()
    except Exception:
        _log.exception("somebody could not be told of a reload")


def _is_tried_again(outcome: ReloadOutcome | None) -> bool:
    """Whether the next one that the watcher begins is likely to be the same change."""
    return outcome is not None and outcome.passing and outcome.by == BY_WATCH


def _same_again(before: ReloadOutcome | None, after: ReloadOutcome) -> bool:
    """Whether it was tried again by itself, and failed as it did before."""
    if before is None or not (_is_tried_again(before) and _is_tried_again(after)):
        return False
    return (before.message, before.problems, before.digest) == (after.message, after.problems, after.digest)


def _problems(error: ConfigError) -> tuple[_Problem, ...]:
    """As plain data, if they are of the file's text."""
    found = error.details.get("problems")
    return tuple(found) if isinstance(found, list) else ()


def _with_error(problems: tuple[_Problem, ...], message: str, hint: str | None) -> tuple[_Problem, ...]:
    """With what has failed among them; as it is not of the file's text, it has no place in it."""
    if any(one["severity"] == "error" for one in problems):
        return problems
    nowhere = {"path": None, "line": None, "column": None}
    return (*problems, {"severity": "error", **nowhere, "message": message, "hint": hint})
