"""Events in, commands out: a scheduler on a script, invariants checked after each step."""

from collections.abc import Sequence

from juggler.errors import StartFailed as StartFailedError
from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.core import Scheduler
from juggler.scheduler.invariants import check
from juggler.scheduler.ledger import EXCLUSIVE_POOL, Amounts
from juggler.scheduler.policy import Policy
from juggler.scheduler.state import Instance, InstanceSpec

A, B, C = InstanceId("a"), InstanceId("b"), InstanceId("c")


def exclusive(name: InstanceId, **more: object) -> InstanceSpec:
    """An instance that excludes all others."""
    return InstanceSpec(name, str(name), {EXCLUSIVE_POOL: 1}, **more)  # type: ignore[arg-type]


class Script:
    """Drives one scheduler by hand."""

    def __init__(
        self, *specs: InstanceSpec, capacity: dict[PoolId, int] | None = None, policy: Policy | None = None
    ) -> None:
        self.scheduler = Scheduler(specs, capacity or {EXCLUSIVE_POOL: 1}, policy)
        self.now = 0.0
        self.requests = 0
        self.timer: float | None = None
        self.placed: dict[InstanceId, Amounts] = {}
        """Where each instance was placed by its last start."""

    def post(self, event: e.Event) -> list[c.Command]:
        """Handle one event; timers, records and read-aheads are kept out of the result."""
        out = self.scheduler.handle(event)
        check(self.scheduler.state)
        for command in out:
            if isinstance(command, c.SetTimer):
                self.timer = command.at
            elif isinstance(command, c.StartInstance):
                self.placed[command.instance] = command.placed
        shown = (command for command in out if not isinstance(command, c.SetTimer | c.Record | c.ReadAhead))
        return [_without_amounts(command) for command in shown]

    def arrive(self, name: InstanceId, kind: e.Kind = e.Kind.WORK, **more: object) -> list[c.Command]:
        self.requests += 1
        return self.post(e.RequestArrived(self.now, RequestId(self.requests), name, kind, **more))  # type: ignore[arg-type]

    def end(self, request: int) -> list[c.Command]:
        return self.post(e.RequestEnded(self.now, RequestId(request)))

    def leave(self, request: int) -> list[c.Command]:
        return self.post(e.ClientLeft(self.now, RequestId(request)))

    def ready(self, name: InstanceId) -> list[c.Command]:
        return self.post(e.InstanceReady(self.now, name, self.at(name).generation))

    def gone(self, name: InstanceId) -> list[c.Command]:
        return self.post(e.InstanceGone(self.now, name, self.at(name).generation))

    def unloaded(self, name: InstanceId) -> list[c.Command]:
        return self.post(e.InstanceUnloaded(self.now, name, self.at(name).generation))

    def fail(self, name: InstanceId) -> list[c.Command]:
        error = StartFailedError("boom", exit_status=3)
        return self.post(e.StartFailed(self.now, name, self.at(name).generation, error))

    def tick(self, seconds: float) -> list[c.Command]:
        """Let time pass; the timer fires if it falls into it."""
        end = self.now + seconds
        out: list[c.Command] = []
        while self.timer is not None and self.timer <= end:
            self.now, self.timer = max(self.timer, self.now), None
            out += self.post(e.TimerFired(self.now))
        self.now = end
        return out

    def load(self, name: InstanceId) -> None:
        """Bring an instance up, idle."""
        for command in self.arrive(name, e.Kind.LOAD):
            assert isinstance(command, c.StartInstance | c.WakeInstance)
        self.ready(name)

    def at(self, name: InstanceId) -> Instance:
        return self.scheduler.state.instances[name]


def _without_amounts(command: c.Command) -> c.Command:
    """Starts and wakes as most scripts compare them."""
    if isinstance(command, c.StartInstance):
        return c.StartInstance(command.instance, command.generation)
    if isinstance(command, c.WakeInstance):
        return c.WakeInstance(command.instance, command.generation)
    return command


def kinds(commands: Sequence[c.Command]) -> list[str]:
    """Names of the commands, for short assertions."""
    return [type(command).__name__ for command in commands]
