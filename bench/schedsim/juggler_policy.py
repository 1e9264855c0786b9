"""The shipped scheduler as a policy: its events are the world's reports, its commands the world's orders."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from bench.schedsim.model import Model, Request
from bench.schedsim.policy import Policy
from bench.schedsim.world import World

from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.core import Scheduler
from juggler.scheduler.policy import Policy as Parameters
from juggler.scheduler.state import InstanceSpec

CARD = PoolId("gpu0")
HOST = PoolId("ram")

INTERACTIVE_WAIT_S = 60.0
BATCH_WAIT_S = 300.0
"""When a waiter is due, by class (scheduling.md section 3)."""


class Juggler(Policy):
    """Feeds ``juggler.scheduler.core.Scheduler``. Queue limit and time-out of requests are the shipped defaults."""

    name = "juggler"
    sees_first_bytes = True

    def __init__(self, world: World, parameters: Parameters | None = None) -> None:
        super().__init__(world)
        machine = world.machine
        specs = [_spec(model) for model in world.models.values()]
        capacity = {CARD: machine.memory_bytes, HOST: machine.ram_bytes}
        self.scheduler = Scheduler(specs, capacity, parameters)
        self._generations: dict[str, int] = {}
        self._timer_at: float | None = None
        self._shares_told: dict[str, float] = {}
        self._inbox: deque[e.Event] = deque()
        self._busy = False
        self._do: Mapping[type[Any], Callable[[Any], None]] = {
            c.Forward: self._forward,
            c.Reject: self._reject,
            c.StartInstance: self._start,
            c.WakeInstance: self._wake,
            c.UnloadInstance: self._unload,
            c.StopInstance: self._stop,
            c.ReadAhead: self._read_ahead,
            c.MeasurePools: self._measure,
            c.SetTimer: self._set_timer,
            c.Record: self._record,
        }

    def _post(self, event: e.Event) -> None:
        """One event at a time: what a command brings about at once is told after the commands beside it."""
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        while self._inbox:
            for command in self.scheduler.handle(self._inbox.popleft()):
                self._do[type(command)](command)
        self._busy = False

    # -- reports -----------------------------------------------------------------------------------------------

    def arrived(self, request: Request) -> None:
        self._tell_files(request.model)
        self._post(
            e.RequestArrived(
                self.world.now,
                RequestId(request.id),
                InstanceId(request.model),
                priority=-1 if request.client.batch else 0,
                max_wait_s=BATCH_WAIT_S if request.client.batch else INTERACTIVE_WAIT_S,
                client=request.client.name,
            )
        )

    def first_byte(self, request: Request) -> None:
        self._post(e.FirstByte(self.world.now, RequestId(request.id)))

    def ended(self, request: Request) -> None:
        self._post(e.RequestEnded(self.world.now, RequestId(request.id)))

    def ready(self, model: str) -> None:
        self._shares_told.pop(model, None)  # the scheduler takes what was loaded for cached
        self._tell_files(*self.world.models)
        self._post(e.InstanceReady(self.world.now, InstanceId(model), self._generations[model]))

    def unloaded(self, model: str) -> None:
        self._post(e.InstanceUnloaded(self.world.now, InstanceId(model), self._generations[model]))

    def gone(self, model: str) -> None:
        self._tell_files(model)
        self._post(e.InstanceGone(self.world.now, InstanceId(model), self._generations[model]))

    def read_ended(self, model: str) -> None:
        self._tell_files(*(other for other in self.world.models if other != model))
        self._shares_told[model] = share = self.world.cached_share(model)
        size = self.world.models[model].file_bytes
        self._post(e.FilesSeen(self.world.now, InstanceId(model), share, size, finished=True))

    def _tell_files(self, *models: str) -> None:
        """As the engine would after a look at the page cache: what has changed, of models that would have to load."""
        for model in models:
            share = self.world.cached_share(model)
            if model not in self.world.processes and self._shares_told.get(model) != share:
                self._shares_told[model] = share
                size = self.world.models[model].file_bytes
                self._post(e.FilesSeen(self.world.now, InstanceId(model), share, size))

    # -- commands ----------------------------------------------------------------------------------------------

    def _forward(self, command: c.Forward) -> None:
        self.world.hand(self.world.requests[command.request - 1])

    def _reject(self, command: c.Reject) -> None:
        self.world.refuse(self.world.requests[command.request - 1])

    def _start(self, command: c.StartInstance) -> None:
        self._generations[command.instance] = command.generation
        self.world.start(command.instance)

    def _wake(self, command: c.WakeInstance) -> None:
        self.world.wake(command.instance)

    def _unload(self, command: c.UnloadInstance) -> None:
        self.world.unload(command.instance)

    def _stop(self, command: c.StopInstance) -> None:
        self.world.stop(command.instance)

    def _read_ahead(self, command: c.ReadAhead) -> None:
        self.world.read_ahead(command.instance)

    def _measure(self, command: c.MeasurePools) -> None:
        self._post(e.PoolsMeasured(self.world.now, {}, {}))

    def _set_timer(self, command: c.SetTimer) -> None:
        self._timer_at = command.at
        if command.at is not None:
            self.world.at(max(command.at, self.world.now), self._fire, command.at)

    def _fire(self, at: float) -> None:
        if self._timer_at == at:
            self._timer_at = None
            self._post(e.TimerFired(self.world.now))

    def _record(self, command: c.Record) -> None:
        """Decisions are for people."""


def _spec(model: Model) -> InstanceSpec:
    return InstanceSpec(
        InstanceId(model.name),
        model.name,
        footprint={CARD: model.memory_bytes},
        footprint_unloaded={CARD: model.soft.residue_bytes, HOST: model.soft.ram_bytes} if model.soft else {},
        slots=model.slots,
        soft_unload=model.soft is not None,
    )
