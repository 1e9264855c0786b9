"""The first prototype: every request stops all other backends at once, whatever they do; there is no queue."""

from collections import defaultdict

from bench.schedsim.model import Request
from bench.schedsim.policy import Policy
from bench.schedsim.world import Phase, World


class Naive(Policy):
    """Requests of backends that are stopped are cut off and count as refused."""

    name = "naive"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._wanted = ""
        self._waiting: dict[str, list[Request]] = defaultdict(list)

    def arrived(self, request: Request) -> None:
        world = self.world
        self._wanted = request.model
        for name, process in list(world.processes.items()):
            if name != request.model and process.phase is not Phase.STOPPING:
                world.stop(name, cut=True)
        for name in [one for one in self._waiting if one != request.model]:
            for other in self._waiting.pop(name):
                world.refuse(other)
        present = world.processes.get(request.model)
        if present is not None and present.phase is Phase.UP:
            world.hand(request)
        else:
            self._waiting[request.model].append(request)
            self._start_if_clear()

    def _start_if_clear(self) -> None:
        if not self.world.processes and self._waiting[self._wanted]:
            self.world.start(self._wanted)

    def gone(self, model: str) -> None:
        self._start_if_clear()

    def ready(self, model: str) -> None:
        for request in self._waiting.pop(model, []):
            self.world.hand(request)
