"""Everything behind the listeners: the engine, the owners of the instances, and what is known of their memory.

It is made from a configuration, and changed by another one in one turn of the loop (``change``); what takes time, such
as a look at model files, comes before (``prepare``). An instance whose process has to be another one gets its new owner
only when the scheduler says that nothing of the old one runs (``InstanceRetired``).
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from juggler.backends.base import Backend
from juggler.backends.registry import create
from juggler.clock import Clock
from juggler.config.resolve import ResolvedConfig, ResolvedInstance, endpoint_id, instances_of
from juggler.engine import Engine
from juggler.ids import EndpointId, InstanceId, RequestId
from juggler.keeper import MemoryKeeper
from juggler.known import Known
from juggler.leases import EndpointPolicy
from juggler.lifecycle.launcher import Launcher
from juggler.lifecycle.supervisor import Supervisor
from juggler.logs.book import Logs
from juggler.memory.store import LearnedStore
from juggler.reload.plan import ReloadPlan
from juggler.renames import gone
from juggler.scheduler.core import Scheduler
from juggler.scheduler.events import Reconfigured
from juggler.scheduler.ledger import EXCLUSIVE_POOL, Amounts
from juggler.scheduler.state import InstanceSpec

_log = logging.getLogger("juggler.app")


@dataclass(frozen=True, slots=True)
class Successor:
    """An instance that is to come, and what could be found out about it."""

    backend: Backend
    known: Known
    spec: InstanceSpec


class World:
    """See the module.

    Args:
        config: What to run.
        launcher: Where processes run.
        clock: For everything in here.
        logs: Where what processes print is kept.
    """

    def __init__(self, config: ResolvedConfig, launcher: Launcher, clock: Clock, logs: Logs) -> None:
        self._launcher, self._clock, self._logs = launcher, clock, logs
        self._backends = {one.id: create(one.settings) for one in config.instances}
        capacity: Amounts = config.pools if config.pools is not None else {EXCLUSIVE_POOL: 1}
        specs = [_spec(config, one, self._backends[one.id]) for one in config.instances]
        self.engine = Engine(Scheduler(specs, capacity, config.policy), _policies(config), clock)
        self.keeper = MemoryKeeper(
            self.engine.scheduler,
            {one.id: (one, self._backends[one.id]) for one in config.instances},
            launcher,
            LearnedStore(config.state_dir / "learned.json"),
            clock,
            self.engine.post,
            declared=config.pools,
            automatic=config.auto_pools,
        )
        self.engine.keeper = self.keeper
        self.engine.on_retired = self._on_retired
        self._tasks: asyncio.TaskGroup | None = None
        self._remembering: asyncio.Task[None] | None = None
        self._owners: dict[InstanceId, asyncio.Task[None]] = {}
        self._successors: dict[InstanceId, Successor] = {}
        """Of instances that are on their way out."""
        for name, backend in self._backends.items():
            self.engine.supervisors[name] = self._supervisor(name, backend)

    # -- its life ------------------------------------------------------------------------------------------------

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Find the memory, and have the instances looked after from then on."""
        self._tasks = tasks
        self._remembering = tasks.create_task(self._keep_memory(), name="memory")
        for name, supervisor in self.engine.supervisors.items():
            self._own(name, supervisor)

    async def stop(self) -> None:
        """End all tasks, and with them what still runs."""
        for owner in (self._remembering, *self._owners.values()):
            if owner is not None:
                owner.cancel()
        await self.keeper.save()

    async def _keep_memory(self) -> None:
        """Find the memory, let requests in, and watch it from then on."""
        try:
            await self.keeper.open()
        finally:
            self.engine.opened.set()
        await self.keeper.run()

    def _supervisor(self, name: InstanceId, backend: Backend) -> Supervisor:
        printed = self._logs.of(name, backend)
        return Supervisor(name, backend, self._launcher, self.engine, self._clock, dict(os.environ), printed)

    def _own(self, name: InstanceId, supervisor: Supervisor) -> None:
        async def own() -> None:
            # An owner looks for servers to attach to as soon as it runs: not before the memory is known.
            await self.engine.opened.wait()
            await supervisor.run()

        assert self._tasks is not None
        self._owners[name] = self._tasks.create_task(own(), name=f"supervisor {name}")

    # -- a new configuration -------------------------------------------------------------------------------------

    async def prepare(self, plan: ReloadPlan) -> Mapping[InstanceId, Successor]:
        """Find out about the instances that are to come; changes nothing."""
        await self.engine.opened.wait()
        coming = {*plan.added, *(one.name for one in plan.changed)}
        found = [one for one in plan.config.instances if one.id in coming]
        successors = await asyncio.gather(*(self._successor(plan.config, one) for one in found))
        return dict(zip((one.id for one in found), successors, strict=True))

    async def _successor(self, config: ResolvedConfig, instance: ResolvedInstance) -> Successor:
        backend = create(instance.settings)
        known = await self.keeper.look(instance, backend)
        spec = _spec(config, instance, backend)
        return self._for_its_place(config, instance, Successor(backend, known, spec))

    def change(self, plan: ReloadPlan, coming: Mapping[InstanceId, Successor]) -> None:
        """Take up a new configuration, in one turn of the loop."""
        config, engine = plan.config, self.engine
        state = engine.scheduler.state
        kept = {one.id: one for one in config.instances if one.id not in coming}
        changing = {InstanceId(one.name) for one in plan.updated}
        for name in plan.removed:
            self._successors.pop(name, None)
        resized = config.pools if config.pools is not None and config.pools != state.ledger.capacity else None
        if resized is not None:
            self.keeper.resize(resized)
            whole = {one.id: one for one in config.instances}
            coming = {name: self._for_its_place(config, whole[name], one) for name, one in coming.items()}
            changing |= self._successors.keys() & kept.keys()
        updated = [self._updated(config, one) for name, one in kept.items() if name in changing]
        fresh: list[InstanceId] = []
        for name, successor in coming.items():
            if name in state.instances:
                self._successors[name] = successor
            else:
                fresh.append(name)
                self._take(name, successor)
        renamed = _renamed(plan, engine.endpoints)
        engine.endpoints = _policies(config)
        engine.renames.add(renamed)
        for waiter in engine.waiters.values():
            waiter.endpoint = renamed.get(waiter.endpoint, waiter.endpoint)
        engine.post(
            Reconfigured(
                engine.now(),
                config.policy,
                added=tuple(coming[name].spec for name in plan.added),
                updated=tuple(updated),
                replaced=tuple(coming[InstanceId(one.name)].spec for one in plan.changed),
                removed=plan.removed,
                moved=self._moved(),
                capacity=resized,
            )
        )
        for name in fresh:
            self.keeper.recall(name)
        for one in plan.updated:
            name = InstanceId(one.name)
            if name not in self._successors:
                self.keeper.change(name, kept[name])
        if resized is not None:
            self.keeper.resized()
            engine.measure_pools()

    def _updated(self, config: ResolvedConfig, instance: ResolvedInstance) -> InstanceSpec:
        """The spec of an instance whose process stays, or of the one that follows it."""
        successor = self._successors.get(instance.id)
        if successor is not None:
            _change_settings(successor.backend, instance)
            successor.known.config = instance
            successor = self._successors[instance.id] = self._for_its_place(config, instance, successor)
            return successor.spec
        backend = self._backends[instance.id]
        _change_settings(backend, instance)
        return self.keeper.updated(_spec(config, instance, backend), instance)

    def _for_its_place(self, config: ResolvedConfig, instance: ResolvedInstance, successor: Successor) -> Successor:
        """With the memory that it will need in the pools as they are to be."""
        spec = _spec(config, instance, successor.backend)
        return replace(successor, spec=self.keeper.informed(spec, successor.known))

    def _moved(self) -> dict[RequestId, InstanceId]:
        """Where requests that wait go from now on; those whose endpoint is gone stay as long as their instance."""
        engine = self.engine
        return {
            request: engine.endpoints[waiter.endpoint].instance
            for request, waiter in engine.waiters.items()
            if waiter.answer is None and waiter.endpoint in engine.endpoints
        }

    def _take(self, name: InstanceId, successor: Successor) -> None:
        self._backends[name] = successor.backend
        supervisor = self.engine.supervisors[name] = self._supervisor(name, successor.backend)
        self._own(name, supervisor)
        self.keeper.take(name, successor.known)  # before any start: that asks where it is placed

    def _on_retired(self, name: InstanceId, replaced: bool) -> None:
        """Nothing of it runs: its owner goes, and another comes or all is forgotten."""
        self._owners.pop(name).cancel()
        del self.engine.supervisors[name], self._backends[name]
        if replaced:
            successor = self._successors.pop(name)
            self._take(name, successor)
        else:
            self.keeper.forget(name)


def _renamed(plan: ReloadPlan, endpoints: Mapping[EndpointId, EndpointPolicy]) -> dict[EndpointId, EndpointId]:
    """What those of ``endpoints`` are called now that have another name, or are gone: theirs may be another's.

    An endpoint goes with its server, where that still has one of this name, else with its process.
    """
    servers = dict(plan.listeners.kept) | {name: name for name in plan.listeners.rebound}
    after = instances_of(plan.config.servers)
    served = {instance: one for one, instance in reversed(after.items()) if instance in plan.kept}
    renamed: dict[EndpointId, EndpointId] = {}
    for one, policy in endpoints.items():
        server = one.removesuffix(f"/{policy.name}")
        name = endpoint_id(servers[server], policy.name) if server in servers else None
        if name is None or name not in after:
            name = served.get(policy.instance, gone(one))
        if name != one:
            renamed[one] = name
    return renamed


def _policies(config: ResolvedConfig) -> dict[EndpointId, EndpointPolicy]:
    timeout_s = config.queue_timeout_s
    return {
        one.id: EndpointPolicy(one.name, one.instance, one.priority, one.max_wait_s, timeout_s, one.max_priority)
        for server in config.servers
        for one in server.endpoints
    }


def _change_settings(backend: Backend, instance: ResolvedInstance) -> None:
    """What counts from its next use on; anything else would be another process."""
    backend.settings = instance.settings


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
