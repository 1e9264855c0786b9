"""The composition root: a resolved configuration becomes objects, and they live in one TaskGroup."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from juggler.clock import SystemClock
from juggler.config.load import LoadedConfig
from juggler.config.machine import directory_trouble
from juggler.config.resolve import ResolvedConfig, default_temp_dir, instances_of
from juggler.control.plane import ControlPlane
from juggler.control.steering import Steering
from juggler.descriptors import told_in_moderation
from juggler.engine import Engine
from juggler.errors import ConfigError
from juggler.ids import InstanceId
from juggler.keeper import MemoryKeeper
from juggler.lifecycle.launcher import Launcher
from juggler.lifecycle.local import LocalLauncher
from juggler.listeners import Listeners
from juggler.listeners import Prepared as PreparedDoors
from juggler.logs.book import Logs
from juggler.proxy.listener import Listener
from juggler.reload.outcome import ReloadOutcome
from juggler.reload.plan import ReloadPlan
from juggler.reload.reloader import Reloader
from juggler.reload.report import outcome_data, report, summary
from juggler.reload.source import read_from
from juggler.service.notify import Notifier
from juggler.signals import install
from juggler.warmup import Warmup
from juggler.world import Successor, World

if TYPE_CHECKING:
    from juggler.history.history import History

_log = logging.getLogger("juggler.app")

DRAIN_S = 30.0
"""How long running requests may go on after the first SIGTERM or Ctrl-C; a second one ends them at once."""

LAST_RESORT_S = 60.0
"""After this, processes that have not ended are killed without another word."""

CLOSE_SLACK_S = 2.0
"""For the listeners to report that their connections are gone."""

_LOST = {
    "temp_dir": "programs that need private files there do not start",
    "state_dir": "nothing that is learned, and no conversation, is kept",
}
"""What does not work while a directory cannot be written."""

SWITCH_INTERVAL_S = 0.0005
"""For helper threads: with CPython's default of 5 ms a busy one delays every stream (dataplane.md section 3)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was made ready for a new configuration."""

    coming: Mapping[InstanceId, Successor]
    doors: PreparedDoors
    went_live: asyncio.Event
    """To be set when it is in effect: requests at new listeners wait for that."""


@dataclass
class App:
    """One running juggler.

    Args:
        config: What to run.
        drain_s: See ``DRAIN_S``.
        launcher: Where processes run; the local machine if None.
    """

    config: ResolvedConfig
    drain_s: float = DRAIN_S
    launcher: Launcher | None = None
    on_listening: Callable[["App"], None] | None = None
    """Called once all listeners are open."""
    notifier: Notifier | None = None
    """Tells the service manager how it goes."""
    loaded: LoadedConfig | None = None
    """What ``config`` was made from; with it, the file can be read again (``reload``)."""
    engine: Engine = field(init=False)
    keeper: MemoryKeeper = field(init=False)
    warmup: Warmup = field(init=False)
    logs: Logs = field(init=False, default_factory=Logs)
    history: "History" = field(init=False)
    steering: Steering = field(init=False)
    control: ControlPlane | None = field(init=False, default=None)
    reloader: Reloader = field(init=False)
    _world: World = field(init=False)
    _doors: Listeners = field(init=False)
    _tasks: asyncio.TaskGroup = field(init=False)
    _warming: "asyncio.Task[None]" = field(init=False)
    _stopping: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        path = Path(self.loaded.path) if self.loaded is not None else None
        self.reloader = Reloader(self, path, read_from(self.loaded) if self.loaded is not None else None)

    @property
    def listeners(self) -> Mapping[str, Listener]:
        """Those of the operator, by the name of their server."""
        return self._doors.by_name

    async def run(self) -> None:
        """Serve until ``stop`` is called; returns with every child gone.

        Raises:
            ConfigError: An address of a server cannot be listened on.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(told_in_moderation(loop.time))
        self.logs.open()
        self._prepare_directories()
        clock = SystemClock()
        launcher = self.launcher if self.launcher is not None else LocalLauncher()
        self._world = World(self.config, launcher, clock, self.logs)
        self.engine, self.keeper = self._world.engine, self._world.keeper
        self._doors = Listeners(self.engine)
        self.warmup = Warmup(self.config.warmup)
        self.steering = Steering(self.engine)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._listen(tasks)
                self._record(tasks, clock)  # not before: a second juggler by mistake ends here, and writes nothing
                self._world.start(tasks)
                helpers = [tasks.create_task(self.reloader.run(), name="reload")]
                if self.notifier is not None:
                    helpers.append(tasks.create_task(self.notifier.run(self._in_short), name="notifier"))
                if self.control is not None:
                    helpers.append(tasks.create_task(self.control.run(), name="control plane"))
                try:
                    await self._serve(tasks, launcher)
                finally:
                    self.steering.close()
                    self._doors.stop_watching()
                    for helper in helpers:
                        helper.cancel()
                    await self._world.stop()
                    await self.history.stop()
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            self._doors.abort()
            if self.control is not None:
                self.control.abort()
            await launcher.close()
            self.logs.close()

    def _record(self, tasks: asyncio.TaskGroup, clock: SystemClock) -> None:
        # Here, because clients can connect by now, and need not wait for what this imports: SQLite and more.
        from juggler.history.history import History

        self.history = History(self.engine, clock, self.config.state_dir, self.config.history)
        self.history.start(tasks)

    async def _serve(self, tasks: asyncio.TaskGroup, launcher: Launcher) -> None:
        if isinstance(launcher, LocalLauncher):
            launcher.prepare()  # the first start finds a guardian ready
        self._warm_up()
        if self.on_listening is not None:
            self.on_listening(self)
        if self.notifier is not None:
            self.notifier.ready()
            self.reloader.on_begin = self.notifier.reloading
            self.reloader.when_changed(self.notifier.ready)
        await self._stopping.wait()
        self._warming.cancel()
        closing = tasks.create_task(self._doors.close(self.drain_s), name="close listeners")
        try:
            async with asyncio.timeout(self.drain_s + LAST_RESORT_S):
                await self.engine.finished.wait()
        except TimeoutError:
            _log.error("some processes did not end in time; they are killed")
        # What was answered may still be on its way to a slow client; closing is bounded by the drain itself.
        await asyncio.wait((closing,), timeout=self.drain_s + CLOSE_SLACK_S)
        closing.cancel()

    def stop(self) -> None:
        """First call: drain. Second call: hurry."""
        self._doors.forget_pages()
        if not self._stopping.is_set():
            _log.info("shutting down; running requests have %.0f s (again: at once)", self.drain_s)
            self._stopping.set()
            if self.notifier is not None:
                self.notifier.stopping(self.drain_s + LAST_RESORT_S)
            self.engine.shut_down(self.drain_s)
        else:
            _log.warning("shutting down at once")
            self._doors.abort()
            self.engine.hurry()

    def install_signal_handlers(self) -> None:
        """SIGTERM and Ctrl-C stop the app, a second one hurries it; SIGHUP reloads the file it was made from."""
        install(self.stop, self.reloader.signal if self.reloader.path is not None else None)

    # -- a new configuration -------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether it is on its way out."""
        return self._stopping.is_set()

    async def reload(self, *, dry_run: bool = False, by: str = "API") -> ReloadOutcome:
        """Read the configuration file again and take it up, or only say what that would change."""
        return await self.reloader.reload(by, dry_run=dry_run)

    async def prepare(self, wanted: ReloadPlan) -> Prepared:
        """What can fail, or takes time; see ``reload.reloader.Target``."""
        coming = await self._world.prepare(wanted)
        went_live = asyncio.Event()
        return Prepared(coming, await self._doors.prepare(wanted, went_live), went_live)

    async def give_up(self, prepared: Prepared) -> None:
        """Everything goes on as before."""
        await self._doors.give_up(prepared.doors)

    def change(self, wanted: ReloadPlan, prepared: Prepared) -> None:
        """Take it up, in one turn of the loop."""
        before, after = instances_of(self.config.servers), instances_of(wanted.config.servers)
        self._world.change(wanted, prepared.coming)
        self._doors.change(wanted, prepared.doors)
        self.config = wanted.config
        prepared.went_live.set()
        self.warmup.change(wanted.config.warmup, before, after, prepared.coming)
        if self._warming.done():
            self._warm_up()

    def _warm_up(self) -> None:
        self._warming = self._tasks.create_task(self.warmup.run(self.engine), name="warm-up")

    # -- for the control plane -----------------------------------------------------------------------------------

    def config_summary(self) -> dict[str, object]:
        """Where the configuration came from, how many problems it has, what the last reload did."""
        return summary(self.reloader, self.config)

    def config_report(self) -> dict[str, object]:
        """The configuration with its problems, secrets masked."""
        return report(self.reloader, self.config)

    async def reload_by_api(self, *, dry_run: bool) -> dict[str, object]:
        """Read the configuration again; returns what came of it as plain data, with ``ok``."""
        return outcome_data(await self.reload(dry_run=dry_run), self.reloader, self.config)

    def when_changed(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called after each reload; returns what ends that."""
        return self.reloader.when_changed(listener)

    def _in_short(self) -> str:
        """One line for the service manager."""
        instances = list(self.engine.scheduler.state.instances.values())
        loaded = sum(1 for one in instances if one.up)
        waiting, running = sum(len(one.queue) for one in instances), sum(len(one.running) for one in instances)
        return f"{loaded} of {len(instances)} loaded, {running} running, {waiting} waiting"

    def _prepare_directories(self) -> None:
        for key, directory in (("temp_dir", self.config.temp_dir), ("state_dir", self.config.state_dir)):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                why = directory_trouble(directory) or f"{directory} cannot be made: {error.strerror or error}"
                raise ConfigError(f"{key}: {why}", hint=f"set `{key}` to a directory that can be made") from error
            trouble = directory_trouble(directory)
            if trouble is not None:
                _log.warning("%s: %s: %s", key, trouble, _LOST[key])
        if self.config.temp_dir == default_temp_dir():
            _make_private(self.config.temp_dir)

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        """Open all listeners."""
        await self._doors.open(self.config, tasks)
        control = self.config.control
        if control is None:
            return
        try:
            self.control = ControlPlane(self, control)
        except OSError as error:
            _log.warning("no dashboard and no API: %s; set `control` in the configuration", error.strerror or error)
        else:
            host, port = self.control.addresses[0]
            _log.info("dashboard and API on http://%s:%d", f"[{host}]" if ":" in host else host, port)


def _make_private(directory: Path) -> None:
    """Nobody else may put files among ours: the name of the default directory can be guessed.

    Raises:
        ConfigError: Somebody else has made it, or a link in its place.
    """
    if not hasattr(os, "geteuid"):
        return
    if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
        raise ConfigError(
            f"{directory} cannot be used for private files: somebody else has made it",
            hint="remove it, or name another `temp_dir` that only you can write to",
        )
    directory.chmod(0o700)
