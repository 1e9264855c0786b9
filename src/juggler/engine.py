"""Feeds events to the scheduler and runs its commands: the one place where the pure core meets the world.

``post`` is synchronous: it handles the event and runs the commands before it returns, so that a request for a ready
backend costs no turn of the loop. An event posted while commands run is handled after them, never inside.
"""

import asyncio
import copy
import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from juggler.backends.base import Address
from juggler.clock import Clock
from juggler.doubts import Doubts
from juggler.ended import EndedRequest, EndedRequests
from juggler.errors import BackendError, InvalidTransition, JugglerError
from juggler.ids import EndpointId, InstanceId, RequestId
from juggler.keeper import MemoryKeeper
from juggler.leases import NOT_WAITED, EndpointPolicy, EngineLease, Waiter
from juggler.lifecycle.supervisor import Supervisor
from juggler.looks import Looks
from juggler.proxy.contract import LeaseTiming, RequestInfo, Route
from juggler.proxy.upstream import UpstreamPool
from juggler.proxy.wishes import NO_WISHES, Wishes
from juggler.renames import Named, Renames, last_name
from juggler.routing.traffic import TrafficClass
from juggler.scheduler import commands, events
from juggler.scheduler.admission import answers_light, removed_error
from juggler.scheduler.core import Scheduler
from juggler.scheduler.explain import Outlook, outlook
from juggler.scheduler.telling import log_line
from juggler.scheduler.transitions import Residency

_log = logging.getLogger("juggler.engine")

GRANTS_MOST = 3
"""How often a request is let in to a backend that ended in the same moment, before it is told so."""

_KINDS = {
    TrafficClass.WORK: events.Kind.WORK,
    TrafficClass.START: events.Kind.WORK,
    TrafficClass.LIGHT: events.Kind.LIGHT,
    TrafficClass.HELD_OPEN: events.Kind.HELD_OPEN,
}


class Engine:
    """Owns the scheduler, the supervisors' orders, the upstream pools and the timer.

    Args:
        scheduler: The pure core.
        endpoints: What to tell it of each endpoint's requests.
        clock: Monotonic time for every event.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        endpoints: Mapping[EndpointId, EndpointPolicy],
        clock: Clock,
    ) -> None:
        self.scheduler = scheduler
        self.endpoints = dict(endpoints)
        self.renames = Renames()
        self.supervisors: dict[InstanceId, Supervisor] = {}
        self.keeper: MemoryKeeper | None = None
        """Knows the memory; None: only what was declared."""
        self.opened = asyncio.Event()
        """The memory is known, or known not to be: from now on requests are decided on."""
        self.finished = asyncio.Event()
        """Set when a shutdown has ended every process."""
        self._clock = clock
        self._events: deque[events.Event] = deque()
        self._handling = False
        self.waiters: dict[RequestId, Waiter] = {}
        """Who has asked and is not answered yet."""
        self.leases: dict[RequestId, EngineLease] = {}
        """Who is let in and not over."""
        self.ended_requests = EndedRequests()
        self.on_first_lease: Callable[[], None] | None = None
        """Called when ``leases`` was empty and is no longer. Must be quick."""
        self._orders: dict[int, asyncio.Future[str]] = {}
        self._requests = itertools.count(1)
        self._order_ids = itertools.count(1)
        self._pools: dict[InstanceId, UpstreamPool] = {}
        self._addresses: dict[InstanceId, Address] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._looks = Looks(self.supervisors, self.post)
        self._doubts = Doubts(self._has_ended)
        self.on_retired: Callable[[InstanceId, bool], None] | None = None
        """Called when nothing runs of an instance that was replaced (true) or removed by a new configuration."""
        self._run = {
            commands.Forward: self._on_forward,
            commands.Loaded: self._on_loaded,
            commands.Reject: self._on_reject,
            commands.StartInstance: self._on_start,
            commands.AttachInstance: self._on_attach,
            commands.WakeInstance: self._on_wake,
            commands.UnloadInstance: self._on_unload,
            commands.StopInstance: self._on_stop,
            commands.ReadAhead: self._on_read_ahead,
            commands.MeasurePools: self.measure_pools,
            commands.ProbeBusy: self._on_probe_busy,
            commands.OrderDone: self._on_order_done,
            commands.InstanceRetired: self._on_instance_retired,
            commands.SetTimer: self._on_set_timer,
            commands.Record: self._on_record,
            commands.FinishShutdown: self._on_finish_shutdown,
        }

    # -- requests ----------------------------------------------------------------------------------------------

    def try_acquire(self, route: Route, request: RequestInfo) -> EngineLease | None:
        """A lease at once, if the instance is ready and has a free slot for it; else None: ``acquire`` waits."""
        policy = self.endpoints[route.endpoint]
        pool = self._pools.get(policy.instance)
        if pool is None or self._handling or self._doubts.about(policy.instance):
            return None
        kind = _KINDS[route.traffic]
        if route.traffic is TrafficClass.START and self.answers(route.endpoint):
            kind = events.Kind.LIGHT
        client = request.who if kind is events.Kind.WORK else ""
        now = self._clock.monotonic()
        request_id = RequestId(next(self._requests))
        priority = policy.priority if request.wishes is NO_WISHES else policy.priority_of(request.wishes)
        if not self.scheduler.forward_at_once(now, request_id, policy.instance, kind, priority, client):
            return None
        self._wake_keeper()
        lease = EngineLease(self, request_id, policy.instance, pool, route, request, NOT_WAITED, now, now)
        self._let_in(lease)
        return lease

    def _let_in(self, lease: EngineLease) -> None:
        self.leases[lease.request] = lease
        if len(self.leases) == 1 and self.on_first_lease is not None:
            self.on_first_lease()

    async def acquire(self, route: Route, request: RequestInfo) -> EngineLease:
        """Wait until the scheduler lets the request through.

        Raises:
            JugglerError: It is refused; the error says why and whether to come back.
        """
        asked_at, named = self.now(), Named(self.renames, route.endpoint)
        try:
            return await self._acquire(route, named, request, asked_at)
        except JugglerError as error:
            self._refused(named, route, request, asked_at, error.code)
            raise
        except asyncio.CancelledError:
            self._refused(named, route, request, asked_at, None)
            raise

    async def _acquire(self, route: Route, named: Named, request: RequestInfo, asked_at: float) -> EngineLease:
        kind = _KINDS[route.traffic]
        if route.traffic is TrafficClass.START and self.answers(route.endpoint):
            kind = events.Kind.LIGHT
        if not self.opened.is_set():
            await self.opened.wait()
        client = request.who if kind is events.Kind.WORK else ""
        for _ in range(GRANTS_MOST):
            served_by = self._policy(named.id).instance
            if self.scheduler.state.instances[served_by].residency is Residency.READY:
                await self._doubts.cleared(served_by)
            request_id, instance = await self._ask(named.id, kind, request, request.wishes, client)
            pool = await self._pool_of(instance, request_id)
            if pool is not None:
                timing, now, route = self._timing(instance, asked_at), self.now(), named.on(route)
                lease = EngineLease(self, request_id, instance, pool, route, request, timing, asked_at, now)
                self._let_in(lease)
                return lease
        raise BackendError(f"{route.endpoint_name!r} ended just now", endpoint=route.endpoint_name, retry_after_s=1)

    async def _pool_of(self, instance: InstanceId, request: RequestId) -> UpstreamPool | None:
        """Where a request that was just let in is to be sent; None, and its place given up, if the backend has ended.

        Whoever waited for a slot gets it from the one before, whose connection may have broken with the backend.
        """
        try:
            await self._doubts.cleared(instance)
        except asyncio.CancelledError:
            self.ended(request)
            raise
        pool = self._pools.get(instance)
        if pool is None:
            self.ended(request)
        return pool

    def _timing(self, instance_id: InstanceId, asked_at: float) -> LeaseTiming:
        """How long a request that asked at ``asked_at`` and is let in now has waited, and for what."""
        instance = self.scheduler.state.instances[instance_id]
        waited_s = self.now() - asked_at
        loading_s = instance.loaded_at - max(instance.load_began_at, asked_at)
        load_s = min(waited_s, loading_s) if instance.loaded_at > asked_at else 0.0
        return LeaseTiming(queue_s=waited_s - load_s, load_s=load_s, loaded=instance.loaded_at > asked_at)

    def now(self) -> float:
        """Monotonic seconds, as in every event."""
        return self._clock.monotonic()

    def _policy(self, endpoint: EndpointId) -> EndpointPolicy:
        """Of an endpoint by its name of today.

        Raises:
            EndpointRemoved: A new configuration does not have it any more.
        """
        policy = self.endpoints.get(endpoint)
        if policy is None:
            raise removed_error(last_name(endpoint).partition("/")[2])
        return policy

    def answers(self, endpoint: EndpointId) -> bool:
        """Whether a light request of the endpoint would be forwarded now.

        Raises:
            EndpointRemoved: There is no such endpoint any more.
        """
        return answers_light(self.scheduler.state.instances[self._policy(endpoint).instance])

    def outlook(self, endpoint: EndpointId) -> Outlook:
        """What those who wait for the endpoint wait for, and for how long."""
        state = self.scheduler.state
        return outlook(state, state.instances[self._policy(endpoint).instance], self.now())

    def asks(self, instance: InstanceId) -> bool:
        """Whether the backend is asked if it works before its memory is taken."""
        return self.scheduler.state.instances[instance].spec.probes_busy

    async def load(self, endpoint: EndpointId, asker: str = "juggler load", patience_s: float | None = None) -> None:
        """Have the endpoint's instance loaded, waiting as any request would.

        Args:
            asker: Who wants it, for the decision log.
            patience_s: How long to wait for it; None: as long as any request.

        Raises:
            JugglerError: It cannot be loaded.
        """
        named = Named(self.renames, endpoint)
        await self.opened.wait()
        await self._ask(named.id, events.Kind.LOAD, None, NO_WISHES, asker, patience_s)

    async def _ask(
        self,
        endpoint: EndpointId,
        kind: events.Kind,
        info: RequestInfo | None,
        wishes: Wishes,
        client: str,
        patience_s: float | None = None,
    ) -> tuple[RequestId, InstanceId]:
        named, policy = Named(self.renames, endpoint), self._policy(endpoint)
        if kind in (events.Kind.WORK, events.Kind.LOAD):
            await self._looks.for_program(self.scheduler.state.instances[policy.instance])
            policy = self._policy(named.id)  # a new configuration may have come meanwhile
        priority = policy.priority_of(wishes)
        timeout_s = policy.timeout_s if patience_s is None else patience_s
        if wishes.max_wait_s is not None:
            timeout_s = min(timeout_s, wishes.max_wait_s)
        request_id = RequestId(next(self._requests))
        waiter = self.waiters[request_id] = Waiter(named.id, info, client, self._clock.monotonic())
        self.post(
            events.RequestArrived(
                self._clock.monotonic(),
                request_id,
                policy.instance,
                kind,
                priority,
                policy.max_wait_s,
                timeout_s,
                client,
                own_limit=wishes.max_wait_s is not None and wishes.max_wait_s < policy.timeout_s,
            )
        )
        if waiter.answer is None:
            waiter.future = asyncio.get_running_loop().create_future()
            try:
                await waiter.future
            except asyncio.CancelledError:
                # The answer may have come in the same turn: the scheduler knows both cases by the request's state.
                del self.waiters[request_id]
                self.post(events.ClientLeft(self._clock.monotonic(), request_id))
                raise
        del self.waiters[request_id]
        answer = waiter.answer
        if isinstance(answer, JugglerError):
            raise copy.copy(answer)  # one failure may answer many requests; a traceback belongs to one
        assert answer is not None
        return request_id, answer

    def suspect(self, instance: InstanceId) -> None:
        """It broke a connection, or took none: is it still there?"""
        supervisor = self.supervisors.get(instance)
        if supervisor is not None:  # a tunnel may outlive its instance by a moment
            self._doubts.begin(instance)
            supervisor.suspect()

    def _has_ended(self, instance: InstanceId) -> bool:
        supervisor = self.supervisors.get(instance)
        return supervisor is not None and supervisor.ends

    def _refused(self, named: Named, route: Route, info: RequestInfo, asked_at: float, code: str | None) -> None:
        policy, route, now = self.endpoints.get(named.id), named.on(route), self.now()
        if policy is not None:
            instance, timing = policy.instance, self._timing(policy.instance, asked_at)
        else:  # it was removed while the request waited
            instance, timing = InstanceId(route.endpoint), LeaseTiming(queue_s=now - asked_at)
        self.ended_requests.add(EndedRequest(instance, route, info, asked_at, now, timing, code))

    def over(self, lease: EngineLease) -> None:
        """A lease is given back; ``ended`` follows, unless that was said before."""
        self.leases.pop(lease.request, None)
        lease.ended_at = self._clock.monotonic()
        self.ended_requests.add(lease)

    def ended(self, request: RequestId, first_byte_at: float | None = None) -> None:
        """A forwarded request is over; its answer began at ``first_byte_at``, if it did."""
        now = self._clock.monotonic()
        if self._handling:
            if first_byte_at is not None:
                self.post(events.FirstByte(first_byte_at, request))
            self.post(events.RequestEnded(now, request))
            return
        self._handling = True
        try:
            orders = self.scheduler.request_done(now, request, first_byte_at)
            if orders:
                self._carry_out(orders)
            while self._events:
                self._handle(self._events.popleft())
        except InvalidTransition as impossible:
            _log.critical("this is a bug in the juggler: %s", impossible)
        finally:
            self._handling = False

    # -- operator and shutdown ---------------------------------------------------------------------------------

    async def order(self, instance: InstanceId, kind: events.OrderKind) -> str:
        """Unload or stop an instance once its running requests have ended; returns how it went.

        Waits as long as those requests run; cancelling the call leaves the order standing.
        """
        order = next(self._order_ids)
        done = self._orders[order] = asyncio.get_running_loop().create_future()
        self.post(events.OrderGiven(self._clock.monotonic(), order, instance, kind))
        try:
            return await asyncio.shield(done)
        finally:
            if not done.done():
                done.cancel()

    def shut_down(self, drain_s: float) -> None:
        """Refuse new work, let running requests end for ``drain_s`` seconds, then stop everything.

        A second call can only shorten the drain.
        """
        now = self._clock.monotonic()
        self.post(events.ShutdownRequested(now, now + drain_s))

    def hurry(self) -> None:
        """From now on no grace for anybody: running requests are cut, processes killed."""
        for supervisor in self.supervisors.values():
            supervisor.hurry()
        self.shut_down(0.0)

    # -- reports of the supervisors ----------------------------------------------------------------------------

    def instance_ready(
        self,
        instance: InstanceId,
        generation: int,
        upstream_address: Address,
        *,
        attached: bool = False,
        soft_unload: bool | None = None,
    ) -> None:
        if self._addresses.get(instance) != upstream_address or instance not in self._pools:
            self._close_pool(instance)
            self._addresses[instance] = upstream_address
            self._pools[instance] = UpstreamPool(upstream_address.host, upstream_address.port, tls=upstream_address.tls)
        self.post(events.InstanceReady(self._clock.monotonic(), instance, generation, attached, soft_unload))
        if self.keeper is not None:
            self.keeper.wake()
            self._background(self.keeper.files.look(), "look at the page cache")

    def attachable(self, instance: InstanceId) -> None:
        self.post(events.AttachOffered(self._clock.monotonic(), instance))

    def not_attached(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        self._close_pool(instance)
        self.post(events.AttachMissed(self._clock.monotonic(), instance, generation, error))

    def start_failed(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        self._close_pool(instance)
        self.post(events.StartFailed(self._clock.monotonic(), instance, generation, error))

    def unloaded(self, instance: InstanceId, generation: int) -> None:
        if self.keeper is None or not self.keeper.measures:
            self.post(events.InstanceUnloaded(self._clock.monotonic(), instance, generation))
        else:
            self._background(self._verify_unload(instance, generation, self.keeper), f"verify unload of {instance}")

    async def _verify_unload(self, instance: InstanceId, generation: int, keeper: MemoryKeeper) -> None:
        """The backend says that its memory is free; believe what is measured."""
        try:
            problem = await keeper.unload_failure(instance)
        except Exception:
            _log.exception("%s: the memory that it freed could not be looked at", instance)
            problem = None  # nobody can tell: the backend's own word counts
        now = self.scheduler.state.instances.get(instance)
        if now is None or now.generation != generation or now.residency is not Residency.UNLOADING:
            return  # it ended, or was stopped, meanwhile
        if problem is None:
            self.post(events.InstanceUnloaded(self._clock.monotonic(), instance, generation))
        else:
            _log.warning("%s could not be unloaded: %s", instance, problem)
            self.unload_failed(instance, generation, problem)

    def unload_failed(self, instance: InstanceId, generation: int, detail: str) -> None:
        self.post(events.UnloadFailed(self._clock.monotonic(), instance, generation, detail))

    def stopped(self, instance: InstanceId, generation: int) -> None:
        self._close_pool(instance)
        self._looks.give_up(instance)
        if self.keeper is not None:
            self.keeper.gave_back(instance)
        self.post(events.InstanceGone(self._clock.monotonic(), instance, generation))
        if self.keeper is not None:
            self.keeper.expect_again(instance)
        self._doubts.end(instance)

    def exited(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        self._close_pool(instance)
        self._looks.give_up(instance)
        self.post(events.ProcessExited(self._clock.monotonic(), instance, generation, error))
        self._doubts.end(instance)

    def busy_probed(self, instance: InstanceId, generation: int, busy: bool) -> None:
        self.post(events.BusyProbed(self._clock.monotonic(), instance, generation, busy))

    def _close_pool(self, instance: InstanceId) -> None:
        self._addresses.pop(instance, None)
        pool = self._pools.pop(instance, None)
        if pool is not None:
            pool.close()

    # -- events in, commands out -------------------------------------------------------------------------------

    def post(self, event: events.Event) -> None:
        """Handle an event and run what the scheduler orders. Never waits, never raises."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        finally:
            self._handling = False

    def _handle(self, event: events.Event) -> None:
        try:
            orders = self.scheduler.handle(event)
        except InvalidTransition as impossible:
            _log.critical("this is a bug in the juggler: %s", impossible)
            if isinstance(event, events.RequestArrived):
                self._answer(event.request, JugglerError("a bug in the juggler; its log tells the story"))
            return
        self._carry_out(orders)

    def _carry_out(self, orders: list[commands.Command]) -> None:
        for order in orders:
            try:
                self._run[type(order)](order)  # type: ignore[operator]  # each handler takes its own command
            except Exception:  # the orders beside it are carried out all the same
                _log.exception("this is a bug in the juggler: %s could not be carried out", type(order).__name__)

    def _answer(self, request: RequestId, answer: InstanceId | JugglerError) -> None:
        waiter = self.waiters.get(request)
        if waiter is not None:
            waiter.resolve(answer)

    def _on_forward(self, command: commands.Forward) -> None:
        self._answer(command.request, command.instance)
        if self.keeper is not None:
            self.keeper.wake()

    def _on_loaded(self, command: commands.Loaded) -> None:
        self._answer(command.request, command.instance)

    def _on_reject(self, command: commands.Reject) -> None:
        self._answer(command.request, command.error)

    def _on_start(self, command: commands.StartInstance) -> None:
        if self.keeper is None or not self.keeper.measures:
            self._start(command)
        else:
            needed, go_on = command.placed, functools.partial(self._start, command)
            self._looks.begin(self.keeper, command.instance, command.generation, needed, go_on)

    def _start(self, command: commands.StartInstance) -> None:
        environment = self.keeper.environment(command.instance, command.placed) if self.keeper is not None else {}
        self.supervisors[command.instance].start(command.generation, environment)
        self._wake_keeper()

    def _wake_keeper(self) -> None:
        if self.keeper is not None:
            self.keeper.wake()

    def _on_attach(self, command: commands.AttachInstance) -> None:
        self.supervisors[command.instance].attach(command.generation)

    def _on_wake(self, command: commands.WakeInstance) -> None:
        attached = self.scheduler.state.instances[command.instance].attached
        if self.keeper is None or not self.keeper.measures or attached:
            self.supervisors[command.instance].wake(command.generation)
        else:
            needed, go_on = command.needed, functools.partial(self._wake, command)
            self._looks.begin(self.keeper, command.instance, command.generation, needed, go_on)

    def _wake(self, command: commands.WakeInstance) -> None:
        self.supervisors[command.instance].wake(command.generation)
        self._wake_keeper()

    def _on_unload(self, command: commands.UnloadInstance) -> None:
        self.supervisors[command.instance].unload(command.generation)

    def _on_stop(self, command: commands.StopInstance) -> None:
        # Held-open sockets and leftovers end here: a llama-server with an open connection never exits by itself.
        self._close_pool(command.instance)
        begins = self._looks.give_up(command.instance)
        supervisor = self.supervisors[command.instance]
        if begins and supervisor.generation != command.generation:
            self.post(events.InstanceGone(self._clock.monotonic(), command.instance, command.generation))
        else:
            supervisor.stop(command.generation)

    def _on_read_ahead(self, command: commands.ReadAhead) -> None:
        if self.keeper is not None:
            self.keeper.files.read_ahead(command.instance)
        else:
            self.post(events.FilesSeen(self._clock.monotonic(), command.instance, 0.0, finished=True))

    def measure_pools(self, command: commands.MeasurePools | None = None) -> None:
        """Look anew at what others hold of the pools; also when these have other sizes."""
        if self.keeper is not None:
            self._background(self.keeper.measure_pools(), "measure pools")
        else:
            self.post(events.PoolsMeasured(self._clock.monotonic(), {}, {}))

    def _background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_probe_busy(self, command: commands.ProbeBusy) -> None:
        self.supervisors[command.instance].probe_busy(command.generation)

    def _on_order_done(self, command: commands.OrderDone) -> None:
        done = self._orders.pop(command.order, None)
        if done is not None and not done.done():
            done.set_result(command.detail)

    def _on_instance_retired(self, command: commands.InstanceRetired) -> None:
        self._close_pool(command.instance)
        self._looks.forget(command.instance)
        self._doubts.end(command.instance)
        if self.on_retired is not None:
            self.on_retired(command.instance, command.replaced)

    def _on_set_timer(self, command: commands.SetTimer) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if command.at is not None:
            delay_s = max(0.0, command.at - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.post(events.TimerFired(self._clock.monotonic()))

    def _on_record(self, command: commands.Record) -> None:
        _log.info("%s", log_line(command.decision))

    def _on_finish_shutdown(self, command: commands.FinishShutdown) -> None:
        self.finished.set()
