"""The operator's listeners: opened at the start, and changed by a new configuration without losing a connection.

A listener that stays gets its new routes, limits and certificate in one turn of the loop. What is to be opened for a
new configuration is opened before anything else changes; requests that arrive there too early wait for the change.
"""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from juggler.backends.registry import api_for, stand_in_for, traffic_for
from juggler.config.resolve import ResolvedConfig, ResolvedServer, instances_of
from juggler.descriptors import make_room
from juggler.engine import Engine
from juggler.errors import ConfigError
from juggler.gateway import Anteroom, EndpointGateway
from juggler.ids import InstanceId
from juggler.page_waits import PageWaits
from juggler.proxy.limits import Limits
from juggler.proxy.listener import Listener, start_listener
from juggler.proxy.replies import Replies
from juggler.proxy.tls import FILES_LIMIT_S, Certificate
from juggler.reload.plan import ReloadPlan
from juggler.routing.table import Entry, RoutingTable
from juggler.survey.threads import in_thread
from juggler.tls import BadPair
from juggler.units import HOURS, SECONDS

_log = logging.getLogger("juggler.app")
_T = TypeVar("_T")

DRAIN_S = 24 * HOURS
"""For what runs on a listener that a new configuration has removed: nothing is cut off that serves somebody."""

_FREE_TRIES = 50
_FREE_PAUSE_S = 0.02
"""Until the system has let go of an address that one of our own listeners has just left."""

RETRY_AFTER_S = 5 * SECONDS
"""For an address that another program has, or a certificate that is not in order."""

OPEN_LIMIT_S = 10 * SECONDS
"""For an address; mostly to find it for a name."""

REOPEN_EVERY_S = 5 * SECONDS
"""How often a listener tries to get an address back that somebody else has taken in that moment."""


@dataclass(slots=True, eq=False)
class _Door:
    """One open listener and what belongs to it."""

    server: ResolvedServer
    listener: Listener
    gateway: EndpointGateway
    certificate: Certificate | None
    watching: "asyncio.Task[None] | None" = None
    lost: bool = False
    """It should listen and cannot; ``reopening`` tries again."""
    reopening: "asyncio.Task[None] | None" = None
    resuming: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who makes it listen again."""


@dataclass(slots=True)
class Prepared:
    """What is open, or read, for a new configuration; nobody uses it yet."""

    routes: Mapping[str, RoutingTable]
    went_live: asyncio.Event
    """Requests that came to what was opened wait for it."""
    opened: dict[str, _Door] = field(default_factory=dict)
    """Both by the name of the server."""
    certificates: dict[str, Certificate] = field(default_factory=dict)
    """For listeners that stay."""
    paused: list[_Door] = field(default_factory=list)
    """Listeners whose address was needed; they accept nothing any more."""


class Listeners:
    """See the module.

    Args:
        engine: Whom their requests wait for.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._replies = Replies()
        self._pages: PageWaits | None = None
        self._doors: dict[str, _Door] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._closing: dict[asyncio.Task[None], Listener] = {}
        self._waited_for: asyncio.Event | None = None
        """By requests that came too early, to what was opened last."""
        self._over = False
        """Nothing is waited for any more."""
        self._retire, engine.on_retired = engine.on_retired, self._on_retired

    @property
    def by_name(self) -> dict[str, Listener]:
        """Those in use, by the name of their server."""
        return {name: door.listener for name, door in self._doors.items()}

    async def open(self, config: ResolvedConfig, tasks: asyncio.TaskGroup) -> None:
        """Open all of them, for use at once.

        Raises:
            ConfigError: An address cannot be listened on, or a certificate not be used.
        """
        self._tasks = tasks
        self._set_pages(config.page_after_s)
        routes, limits = _routes(config), _limits(config, _room_for(config))
        for server in config.servers:
            gateway = EndpointGateway(routes[server.name], self._engine, self._pages)
            door = await self._open(server, gateway, limits[server.name], await _certificate(server))
            self._doors[server.name] = door
            self._begin(door)

    # -- a new configuration -------------------------------------------------------------------------------------

    async def prepare(self, plan: ReloadPlan, went_live: asyncio.Event) -> Prepared:
        """Open and read what the new configuration needs. Requests wait until ``went_live``.

        Raises:
            ConfigError: As for ``open``; then everything is as it was.
        """
        config = plan.config
        servers = {one.name: one for one in config.servers}
        prepared = Prepared(_routes(config), went_live)
        self._waited_for = went_live
        limits = _limits(config, None)  # how many there is room for is seen to when all of it is in order
        try:
            for old, new in plan.listeners.kept:
                pair = servers[new].tls
                if pair is not None and pair != self._doors[old].server.tls:
                    certificate = await _certificate(servers[new])
                    assert certificate is not None
                    prepared.certificates[new] = certificate
            leaving = [self._doors[name] for name in (*plan.listeners.removed, *plan.listeners.rebound)]
            wanted = [servers[name] for name in (*plan.listeners.added, *plan.listeners.rebound)]
            certificates = {server.name: await _certificate(server) for server in wanted}
            # Those whose port one of ours has to give up come last: until then nothing is changed.
            wanted.sort(key=lambda server: any(_in_the_way(door, server) for door in leaving))
            for server in wanted:
                gateway = EndpointGateway(prepared.routes[server.name], Anteroom(self._engine, went_live), None)
                for door in leaving:
                    if door not in prepared.paused and (door.lost or _in_the_way(door, server)):
                        prepared.paused.append(door)
                        door.lost = False
                        door.listener.pause()
                name, patient = server.name, bool(prepared.paused)
                prepared.opened[name] = await self._open(
                    server, gateway, limits[name], certificates[name], patient=patient
                )
        except BaseException:
            await self.give_up(prepared)
            raise
        return prepared

    async def give_up(self, prepared: Prepared) -> None:
        """Close what was opened and is not in use; everything goes on as before.

        What was opened has taken requests in, which may go on: the engine knows the endpoints that there are.
        """
        in_use = set(self._doors.values())
        prepared.went_live.set()
        for door in prepared.opened.values():
            if door in in_use:
                continue
            door.listener.pause()  # its address may be wanted below
            if self._over:
                door.listener.abort()
            else:
                self._drain(door)
        shut = [door for door in prepared.paused if door in in_use]
        for done, door in enumerate(shut):
            try:
                await _patiently(partial(self._resume, door))
            except asyncio.CancelledError:
                for left in shut[done:] if not self._over else ():
                    self._reopen_later(left)
                raise
            except OSError as error:
                again = f"tried again every {REOPEN_EVERY_S:.0f} s"
                _log.error("server %r does not listen: %s; %s", door.server.name, error.strerror or error, again)
                self._reopen_later(door)

    def change(self, plan: ReloadPlan, prepared: Prepared) -> None:
        """Take up the new configuration, in one turn of the loop. The engine knows its endpoints already."""
        config = plan.config
        self._set_pages(config.page_after_s)
        servers = {one.name: one for one in config.servers}
        self._forget_replies(plan)
        limits = _limits(config, _room_for(config))
        before, doors = self._doors, dict[str, _Door]()
        kept = dict(plan.listeners.kept)
        names = {new: old for old, new in kept.items()}
        for server in config.servers:
            name = server.name
            if name in prepared.opened:
                door = prepared.opened[name]
                self._begin(door)
            else:
                door = before[names[name]]
                door.server = servers[name]
                fresh = prepared.certificates.get(name)
                if fresh is not None and door.certificate is not None:
                    door.certificate.take_over(fresh)
                    door.certificate.tell()
            door.listener.change(limits[name])
            door.gateway.change(prepared.routes[name], self._engine, self._pages)
            doors[name] = door
        self._doors = doors
        for name in (*plan.listeners.removed, *plan.listeners.rebound):
            self._drain(before[name])

    def _forget_replies(self, plan: ReloadPlan) -> None:
        """Of endpoints that lead somewhere else from now on; by what is in effect until then."""
        old = instances_of(door.server for door in self._doors.values())
        new = instances_of(plan.config.servers)
        changed = {one.name for one in plan.changed} | {*plan.added, *plan.removed}
        known = old.keys() | new.keys()
        turned = {one for one in known if old.get(one) != new.get(one) or new.get(one) in changed}
        if turned:
            self._replies.forget_endpoints(turned)

    def _on_retired(self, name: InstanceId, replaced: bool) -> None:
        """Nothing runs of a process that a new configuration has replaced: it answered until now."""
        if self._retire is not None:
            self._retire(name, replaced)
        instances = instances_of(door.server for door in self._doors.values())
        self._replies.forget_endpoints({one for one, instance in instances.items() if instance == name})

    # -- the end -------------------------------------------------------------------------------------------------

    def forget_pages(self) -> None:
        """People who wait for a page are not kept any more: the juggler goes down."""
        if self._pages is not None:
            self._pages.close()

    async def close(self, drain_s: float) -> None:
        """Let running exchanges end, ``drain_s`` seconds at most, then cut them."""
        if self._waited_for is not None:
            self._waited_for.set()  # no new configuration is taken up any more
        doors = [*self.by_name.values(), *self._closing.values()]
        async with asyncio.TaskGroup() as closing:
            for listener in doors:
                closing.create_task(listener.close(drain_s), name="close listener")

    def abort(self) -> None:
        """Cut everything now."""
        for listener in (*self.by_name.values(), *self._closing.values()):
            listener.abort()

    def stop_watching(self) -> None:
        """End the tasks that look at certificates or try to listen again, and the drains."""
        self._over = True
        for door in self._doors.values():
            for helper in (door.watching, door.reopening):
                if helper is not None:
                    helper.cancel()
        for task in list(self._closing):
            task.cancel()

    # -- helpers -------------------------------------------------------------------------------------------------

    async def _open(
        self,
        server: ResolvedServer,
        gateway: EndpointGateway,
        limits: Limits,
        certificate: Certificate | None,
        *,
        patient: bool = False,
    ) -> _Door:
        async def start() -> Listener:
            return await start_listener(gateway, server.host, server.port, limits, self._replies, certificate)

        again_s = None if patient else RETRY_AFTER_S  # each try would shut our own listener for a while
        try:
            async with asyncio.timeout(OPEN_LIMIT_S):
                listener = await (_patiently(start) if patient else start())
        except TimeoutError as error:
            raise ConfigError(
                f"server {server.name!r} cannot listen on {server.host}: it was not found within {OPEN_LIMIT_S:.0f} s",
                hint="name servers do not answer; use a numeric address",
                retry_after_s=again_s,
            ) from error
        except OSError as error:
            raise ConfigError(
                f"server {server.name!r} {error.strerror or error}",  # "cannot listen on ..."
                hint="another program (another juggler?) has the port, or the address is not one of this machine's",
                retry_after_s=again_s,
            ) from error
        return _Door(server, listener, gateway, certificate)

    def _begin(self, door: _Door) -> None:
        assert self._tasks is not None
        listener = door.listener
        if door.certificate is not None:
            door.watching = self._tasks.create_task(door.certificate.watch(), name="certificate")
            door.certificate.tell()
        where = ", ".join(f"{host}:{port}" for host, port in listener.addresses)
        _log.info("%s listens on %s%s", door.server.name, where, " with HTTPS" if listener.secure else "")

    def _reopen_later(self, door: _Door) -> None:
        door.lost = True
        if door.reopening is None or door.reopening.done():
            door.reopening = self._begin_task(self._reopen(door), "reopen listener")

    async def _reopen(self, door: _Door) -> None:
        """Try until it listens again, or need not."""
        while door.lost and not door.listener.draining:
            await asyncio.sleep(REOPEN_EVERY_S)
            try:
                listens = await self._resume(door, lambda: door.lost)
            except OSError:
                continue
            if not listens:
                return  # a new configuration, or the end, has come meanwhile
            door.lost = False
            _log.info("server %r listens again", door.server.name)

    async def _resume(self, door: _Door, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Listen again where it was paused; one that drains does not. Returns whether it does.

        Raises:
            OSError: As for ``Listener.resume``.
        """
        listener = door.listener
        async with door.resuming:
            if listener.draining or not wanted():
                return False
            await listener.resume()
            if listener.draining or not wanted():
                listener.pause()
                return False
            return True

    def _begin_task(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None] | None":
        """None: something has failed, and everything ends."""
        assert self._tasks is not None
        try:
            return self._tasks.create_task(work, name=name)
        except RuntimeError:  # from the group, which takes no further tasks
            work.close()
            return None

    def _drain(self, door: _Door) -> None:
        if door.reopening is not None:
            door.lost = False
            door.reopening.cancel()
        if door.watching is not None:
            door.watching.cancel()
        task = self._begin_task(door.listener.close(DRAIN_S), "close listener")
        if task is None:
            door.listener.abort()
            return
        self._closing[task] = door.listener
        task.add_done_callback(lambda done: self._closing.pop(done, None))

    def _set_pages(self, page_after_s: float | None) -> None:
        if page_after_s is None:
            self.forget_pages()
            self._pages = None
        elif self._pages is None:
            self._pages = PageWaits(self._engine, page_after_s)
        else:
            self._pages.page_after_s = page_after_s


def _in_the_way(door: _Door, server: ResolvedServer) -> bool:
    """Whether an open listener has to go first; which of its addresses it is, is not looked at."""
    return bool(server.port) and any(port == server.port for _, port in door.listener.addresses)


async def _patiently(work: Callable[[], Awaitable[_T]]) -> _T:
    """Do it again while the address is in use: the system takes a moment to let go of what we have just closed.

    Raises:
        OSError: It is in use for longer than that, or cannot be had at all.
    """
    for _ in range(_FREE_TRIES):
        try:
            return await work()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        await asyncio.sleep(_FREE_PAUSE_S)
    return await work()


def _routes(config: ResolvedConfig) -> Mapping[str, RoutingTable]:
    stand_ins = {one.id: stand_in_for(one.settings) for one in config.instances}
    return {
        server.name: RoutingTable(
            server.name,
            [
                Entry(
                    one.id,
                    one.name,
                    one.prefix,
                    one.strip_prefix,
                    traffic_for(one.type).extended_by(one.traffic_rules),
                    api_for(one.type),
                    stand_ins[one.instance],
                )
                for one in server.endpoints
            ],
        )
        for server in config.servers
    }


def _room_for(config: ResolvedConfig) -> int | None:
    """How many connections each listener can have; None: as many as it may."""
    return make_room([one.limits.connections for one in config.servers])


def _limits(config: ResolvedConfig, most: int | None) -> Mapping[str, Limits]:
    """The bounds of each server's listener, with ``most`` connections at most."""
    comments_s = config.comments_every_s
    return {
        server.name: replace(
            server.limits,
            connections=server.limits.connections if most is None else min(server.limits.connections, most),
            comment_after_s=comments_s,
            comment_every_s=comments_s or Limits().comment_every_s,
            send_processing=config.processing,
            page_after_s=config.page_after_s,
            answer_half_closed=config.answer_half_closed,
        )
        for server in config.servers
    }


async def _certificate(server: ResolvedServer) -> Certificate | None:
    """What a server proves itself with; None: it speaks plain HTTP.

    Raises:
        ConfigError: Its files cannot be used.
    """
    if server.tls is None:
        return None
    try:
        return await in_thread(FILES_LIMIT_S, Certificate, server.tls.cert, server.tls.key)
    except TimeoutError as error:
        raise ConfigError(
            f"server {server.name!r}: {server.tls.cert} and {server.tls.key} could not be read "
            f"within {FILES_LIMIT_S:.0f} s",
            hint="they are no ordinary files, or on a disk or network that does not answer",
        ) from error
    except BadPair as error:
        message = f"server {server.name!r}: {error.message}"
        raise ConfigError(message, hint=error.hint, retry_after_s=RETRY_AFTER_S) from error
