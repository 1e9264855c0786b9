"""large-model-proxy at d07fa21 (``resources.go``, ``service.go``): least recently used, idle, one at a time."""

import random
from collections import Counter, defaultdict

from bench.schedsim.model import Request
from bench.schedsim.policy import Policy
from bench.schedsim.world import Phase, World


class LargeModelProxy(Policy):
    """No limit on waiting, idle services stay."""

    name = "large-model-proxy"
    give_up_s: float | None = None
    idle_stop_s: float | None = None

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._waiting: dict[str, list[Request]] = defaultdict(list)
        self._stopping_for: dict[str, str] = {}
        """Service that waits to the one that it stops."""
        self._open: Counter[str] = Counter()
        self._last_used: dict[str, float] = defaultdict(float)
        self._race = random.Random("large-model-proxy")  # who of the waiting gets the lock first

    def arrived(self, request: Request) -> None:
        model = request.model
        self._last_used[model] = self.world.now
        if self._is_up(model):
            self._serve(request)
            return
        self._waiting[model].append(request)
        if self.give_up_s is not None:
            self.world.at(self.world.now + self.give_up_s, self._give_up, request)
        self._try_start(model)

    def _is_up(self, model: str) -> bool:
        process = self.world.processes.get(model)
        return process is not None and process.phase is Phase.UP

    def _serve(self, request: Request) -> None:
        self._open[request.model] += 1
        self.world.hand(request)

    def _try_start(self, model: str) -> None:
        """One round of the loop that waits for resources."""
        world = self.world
        if model in world.processes or model in self._stopping_for or not self._waiting[model]:
            return
        if world.models[model].memory_bytes <= world.free_bytes:
            world.start(model)
            return
        idle = [one for one in world.processes if self._is_up(one) and not self._open[one]]
        if idle:
            victim = min(idle, key=lambda one: (self._last_used[one], one))
            self._stopping_for[model] = victim
            world.stop(victim)

    def _wake_all(self) -> None:
        waiting = [model for model, requests in self._waiting.items() if requests]
        if len(waiting) > 1:
            self._race.shuffle(waiting)
        for model in waiting:
            self._try_start(model)

    def _give_up(self, request: Request) -> None:
        if request in self._waiting[request.model]:
            self._waiting[request.model].remove(request)
            self.world.refuse(request)

    def ready(self, model: str) -> None:
        for request in self._waiting.pop(model, []):
            self._serve(request)
        if not self._open[model]:
            self._idle(model)

    def gone(self, model: str) -> None:
        self._stopping_for = {who: victim for who, victim in self._stopping_for.items() if victim != model}
        self._wake_all()

    def ended(self, request: Request) -> None:
        model = request.model
        self._last_used[model] = self.world.now
        self._open[model] -= 1
        if not self._open[model]:
            self._wake_all()
            self._idle(model)

    def _idle(self, model: str) -> None:
        if self.idle_stop_s is not None:
            self.world.at(self.world.now + self.idle_stop_s, self._stop_idle, model, self.world.now)

    def _stop_idle(self, model: str, since: float) -> None:
        if self._is_up(model) and not self._open[model] and self._last_used[model] <= since:
            self.world.stop(model)


class LargeModelProxyDefault(LargeModelProxy):
    """Connections are closed after 120 s of waiting, idle services stop after two minutes."""

    name = "large-model-proxy-default"
    give_up_s = 120.0
    idle_stop_s = 120.0
