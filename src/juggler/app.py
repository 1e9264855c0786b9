"""The composition root: a resolved configuration becomes objects, and they live in one TaskGroup."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from juggler.backends.base import Backend
from juggler.backends.registry import api_for, create, traffic_for
from juggler.clock import SystemClock
from juggler.config.machine import directory_trouble
from juggler.config.resolve import ResolvedConfig, ResolvedEndpoint, ResolvedInstance, ResolvedServer, default_temp_dir
from juggler.control.api import ControlGateway
from juggler.descriptors import make_room, told_in_moderation
from juggler.engine import Engine
from juggler.errors import ConfigError
from juggler.gateway import EndpointGateway
from juggler.ids import InstanceId
from juggler.keeper import MemoryKeeper
from juggler.leases import EndpointPolicy
from juggler.lifecycle.launcher import Launcher
from juggler.lifecycle.local import LocalLauncher
from juggler.lifecycle.supervisor import Supervisor
from juggler.memory.store import LearnedStore
from juggler.page_waits import PageWaits
from juggler.proxy.limits import Limits
from juggler.proxy.listener import Listener, start_listener
from juggler.proxy.replies import Replies
from juggler.proxy.tls import Certificate
from juggler.routing.table import Entry, RoutingTable
from juggler.routing.traffic import TrafficTable
from juggler.scheduler.core import Scheduler
from juggler.scheduler.ledger import EXCLUSIVE_POOL, Amounts
from juggler.scheduler.state import InstanceSpec
from juggler.tls import BadPair
from juggler.warmup import Warmup

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
    engine: Engine = field(init=False)
    keeper: MemoryKeeper = field(init=False)
    warmup: Warmup = field(init=False)
    listeners: dict[str, Listener] = field(init=False, default_factory=dict)
    """By server name."""
    control: Listener | None = field(init=False, default=None)
    _pages: PageWaits | None = field(init=False, default=None)
    _stopping: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    async def run(self) -> None:
        """Serve until ``stop`` is called; returns with every child gone.

        Raises:
            ConfigError: An address of a server cannot be listened on.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(told_in_moderation(loop.time))
        self._prepare_directories()
        clock = SystemClock()
        launcher: Launcher
        if self.launcher is not None:
            launcher = self.launcher
        else:
            launcher = LocalLauncher()
        backends = {one.id: create(one.settings) for one in self.config.instances}
        self.engine = _make_engine(self.config, backends, clock)
        self.keeper = MemoryKeeper(
            self.engine.scheduler,
            {one.id: (one, backends[one.id]) for one in self.config.instances},
            launcher,
            LearnedStore(self.config.state_dir / "learned.json"),
            clock,
            self.engine.post,
            declared=self.config.pools,
            automatic=self.config.auto_pools,
        )
        self.engine.keeper = self.keeper
        self.warmup = Warmup(self.config.warmup)
        for instance, backend in backends.items():
            self.engine.supervisors[instance] = Supervisor(
                instance, backend, launcher, self.engine, clock, dict(os.environ)
            )
        try:
            async with asyncio.TaskGroup() as tasks:
                certificates = await self._listen()
                owners = [tasks.create_task(self._keep_memory(), name="memory")]
                owners += [tasks.create_task(one.watch(), name="certificate") for one in certificates]
                owners += [
                    tasks.create_task(self._own(supervisor), name=f"supervisor {instance}")
                    for instance, supervisor in self.engine.supervisors.items()
                ]
                try:
                    await self._serve(tasks, launcher)
                finally:
                    for owner in owners:
                        owner.cancel()
                    await self.keeper.save()
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            for listener in self._all_listeners():
                listener.abort()
            await launcher.close()

    async def _keep_memory(self) -> None:
        """Find the memory, let requests in, and watch it from then on."""
        try:
            await self.keeper.open()
        finally:
            self.engine.opened.set()
        await self.keeper.run()

    async def _own(self, supervisor: Supervisor) -> None:
        """An owner looks for servers to attach to as soon as it runs: not before the memory is known."""
        await self.engine.opened.wait()
        await supervisor.run()

    async def _serve(self, tasks: asyncio.TaskGroup, launcher: Launcher) -> None:
        if isinstance(launcher, LocalLauncher):
            launcher.prepare()  # the first start finds a guardian ready
        warming = tasks.create_task(self.warmup.run(self.engine), name="warm-up")
        if self.on_listening is not None:
            self.on_listening(self)
        await self._stopping.wait()
        warming.cancel()
        closing = [
            tasks.create_task(listener.close(self.drain_s), name="close listener") for listener in self._all_listeners()
        ]
        try:
            async with asyncio.timeout(self.drain_s + LAST_RESORT_S):
                await self.engine.finished.wait()
        except TimeoutError:
            _log.error("some processes did not end in time; they are killed")
        # What was answered may still be on its way to a slow client; closing is bounded by the drain itself.
        await asyncio.wait(closing, timeout=self.drain_s + CLOSE_SLACK_S)
        for task in closing:
            task.cancel()

    def stop(self) -> None:
        """First call: drain. Second call: hurry."""
        if self._pages is not None:
            self._pages.close()
        if not self._stopping.is_set():
            _log.info("shutting down; running requests have %.0f s (again: at once)", self.drain_s)
            self._stopping.set()
            self.engine.shut_down(self.drain_s)
        else:
            _log.warning("shutting down at once")
            for listener in self._all_listeners():
                listener.abort()
            self.engine.hurry()

    def install_signal_handlers(self) -> None:
        """SIGTERM and Ctrl-C stop the app, a second one hurries it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
                loop.add_signal_handler(number, self.stop)

    def _all_listeners(self) -> list[Listener]:
        return [*self.listeners.values(), *([self.control] if self.control is not None else [])]

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

    async def _listen(self) -> list[Certificate]:
        """Open all listeners; returns the certificates in use."""
        certificates: list[Certificate] = []
        replies = Replies()
        if self.config.page_after_s is not None:
            self._pages = PageWaits(self.engine, self.config.page_after_s)
        connections = make_room([one.limits.connections for one in self.config.servers])
        for server in self.config.servers:
            entries = [
                Entry(one.id, one.name, one.prefix, one.strip_prefix, _traffic(one), api_for(one.type))
                for one in server.endpoints
            ]
            certificate = _certificate(server)
            if certificate is not None:
                certificates.append(certificate)
            gateway = EndpointGateway(RoutingTable(server.name, entries), self.engine, self._pages)
            limits = _limits(self.config, server, connections)
            try:
                listener = await start_listener(gateway, server.host, server.port, limits, replies, certificate)
            except OSError as error:
                raise ConfigError(
                    f"server {server.name!r} {error.strerror or error}",  # "cannot listen on ..."
                    hint="another program has the port, or the address is not one of this machine's",
                ) from error
            self.listeners[server.name] = listener
            where = ", ".join(f"{host}:{port}" for host, port in listener.addresses)
            _log.info("%s listens on %s%s", server.name, where, " with HTTPS" if listener.secure else "")
        control = self.config.control
        if control is None:
            return certificates
        gateway_of_control = ControlGateway(self.engine, self.warmup, SystemClock(), control.host)
        try:
            self.control = await start_listener(gateway_of_control, control.host, control.port)
        except OSError as error:
            _log.warning(
                "no status API: %s; set `control` in the configuration",
                error.strerror or error,
            )
        return certificates


def _limits(config: ResolvedConfig, server: ResolvedServer, connections: int | None) -> Limits:
    """The bounds of a server's listener, with as many connections as there are descriptors for."""
    comments_s = config.comments_every_s
    return replace(
        server.limits,
        connections=server.limits.connections if connections is None else min(server.limits.connections, connections),
        comment_after_s=comments_s,
        comment_every_s=comments_s or Limits().comment_every_s,
        send_processing=config.processing,
        page_after_s=config.page_after_s,
        answer_half_closed=config.answer_half_closed,
    )


def _certificate(server: ResolvedServer) -> Certificate | None:
    """What a server proves itself with; None: it speaks plain HTTP.

    Raises:
        ConfigError: Its files cannot be used.
    """
    if server.tls is None:
        return None
    try:
        return Certificate(server.tls.cert, server.tls.key)
    except BadPair as error:
        raise ConfigError(f"server {server.name!r}: {error.message}", hint=error.hint) from error


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


def _make_engine(config: ResolvedConfig, backends: Mapping[InstanceId, Backend], clock: SystemClock) -> Engine:
    capacity: Amounts = config.pools if config.pools is not None else {EXCLUSIVE_POOL: 1}
    specs = [_spec(config, one, backends[one.id]) for one in config.instances]
    endpoints = [endpoint for server in config.servers for endpoint in server.endpoints]
    return Engine(
        Scheduler(specs, capacity, config.policy),
        {
            one.id: EndpointPolicy(
                one.name, one.instance, one.priority, one.max_wait_s, config.queue_timeout_s, one.max_priority
            )
            for one in endpoints
        },
        clock,
    )


def _spec(config: ResolvedConfig, instance: ResolvedInstance, backend: Backend) -> InstanceSpec:
    settings, capabilities = instance.settings, backend.capabilities
    footprint = _footprint(config, instance)
    attaches = settings.attach_to is not None
    return InstanceSpec(
        id=instance.id,
        name=instance.name,
        footprint=footprint,
        footprint_kept=footprint if instance.memory is not None else {},
        slots=instance.concurrency or backend.default_concurrency,
        queue_limit=instance.queue_limit,
        soft_unload=settings.model_unloading and capabilities.unload != "none",
        attaches=attaches,
        starts=settings.binary is not None or not attaches,
        pinned=instance.pinned,
        loads_alone=capabilities.loads_alone,
        probes_busy=capabilities.work_outlives_request or (attaches and capabilities.unload_needs_idle),
        answers_when_unloaded=capabilities.answers_when_unloaded,
        idle_unload_s=instance.idle_unload_s,
    )


def _footprint(config: ResolvedConfig, instance: ResolvedInstance) -> Amounts:
    """Until more is known (``MemoryKeeper.open``): what is declared, else all of every pool."""
    if config.pools is None:
        return {EXCLUSIVE_POOL: 1}
    return instance.memory if instance.memory is not None else dict(config.pools)


def _traffic(endpoint: ResolvedEndpoint) -> TrafficTable:
    return traffic_for(endpoint.type).extended_by(endpoint.traffic_rules)
