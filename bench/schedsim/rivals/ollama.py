"""ollama at fb30760 (``server/sched.go``): one FIFO, handled head first to the end; loaded models bypass it."""

from collections import deque
from dataclasses import dataclass, field

from bench.schedsim.model import Request
from bench.schedsim.policy import Policy
from bench.schedsim.world import Phase, World


@dataclass(slots=True)
class _Runner:
    waiters: list[Request] = field(default_factory=list)
    """Requests that came while it loads."""
    in_flight: int = 0
    expired: bool = False
    """It is to unload as soon as it is idle."""
    unloading: bool = False
    idle_since: float = 0.0

    @property
    def idle(self) -> bool:
        return not self.in_flight and not self.waiters


class Ollama(Policy):
    """Our parallelism, exact memory, no limit of runners, idle runners stay."""

    name = "ollama"
    most_runners: int | None = None
    queue_limit: int | None = None
    keep_alive_s: float | None = None
    believed_free = 1.0
    """Part of the free memory that a prediction may take beside other runners."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._queue: deque[Request] = deque()
        self._runners: dict[str, _Runner] = {}
        self._blocked = False
        """The head of the queue waits until some runner has unloaded."""

    def arrived(self, request: Request) -> None:
        if self._use(request):
            return
        if self.queue_limit is not None and len(self._queue) >= self.queue_limit:
            self.world.refuse(request)
            return
        self._queue.append(request)
        self._pump()

    def _use(self, request: Request) -> bool:
        """Hand it to a runner that is loaded or loading."""
        runner = self._runners.get(request.model)
        if runner is None or runner.unloading:
            return False
        if self.world.processes[request.model].phase is Phase.UP:
            runner.in_flight += 1
            self.world.hand(request)
        else:
            runner.waiters.append(request)
        return True

    def _pump(self) -> None:
        """Handle the queue in order, until its head has to wait."""
        while self._queue and not self._blocked:
            request = self._queue[0]
            if not self._use(request):
                if not self._fits(request.model):
                    self._expire_one()
                    self._blocked = True
                    return
                self.world.start(request.model)
                self._runners[request.model] = _Runner([request])
            self._queue.popleft()

    def _fits(self, model: str) -> bool:
        runners = self._runners
        if model in runners or (self.most_runners is not None and len(runners) >= self.most_runners):
            return False
        usable = self.world.free_bytes * (self.believed_free if runners else 1.0)
        return self.world.models[model].memory_bytes <= usable

    def _expire_one(self) -> None:
        """The first idle runner by keep-alive (all alike here), then name; none idle: the first."""
        present = sorted(name for name, runner in self._runners.items() if not runner.unloading)
        if any(runner.unloading for runner in self._runners.values()) or not present:
            return  # one unloads at this moment: that is waited for
        victim = next((name for name in present if self._runners[name].idle), present[0])
        self._runners[victim].expired = True
        self._unload_if_due(victim)

    def _unload_if_due(self, model: str) -> None:
        runner = self._runners[model]
        if runner.expired and runner.idle and not runner.unloading:
            runner.unloading = True
            self.world.stop(model)

    def ready(self, model: str) -> None:
        runner = self._runners[model]
        for request in runner.waiters:
            runner.in_flight += 1
            self.world.hand(request)
        runner.waiters.clear()

    def ended(self, request: Request) -> None:
        runner = self._runners[request.model]
        runner.in_flight -= 1
        if runner.idle:
            runner.idle_since = self.world.now
            self._unload_if_due(request.model)
            if self.keep_alive_s is not None:
                self.world.at(self.world.now + self.keep_alive_s, self._keep_alive_over, request.model, runner)

    def _keep_alive_over(self, model: str, runner: _Runner) -> None:
        due = self.keep_alive_s is not None and runner.idle_since + self.keep_alive_s <= self.world.now
        if self._runners.get(model) is runner and runner.idle and due:
            runner.expired = True
            self._unload_if_due(model)

    def gone(self, model: str) -> None:
        del self._runners[model]
        self._blocked = False
        self._pump()


class OllamaDefault(Ollama):
    """One request at a time per model, three runners, a queue of 512, idle runners unload after five minutes."""

    name = "ollama-default"
    slots = 1
    most_runners = 3
    queue_limit = 512
    keep_alive_s = 300.0
    believed_free = 0.8
