"""llama-swap at 0bdb372 (``internal/router/scheduler/fifo.go``): one FIFO, evict sets from static configuration."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations

from bench.schedsim.model import Request
from bench.schedsim.policy import Policy
from bench.schedsim.world import World

CONCURRENCY_LIMIT = 10
"""``concurrencyLimit``: requests queued or running per model, beyond which it answers 429."""


@dataclass(slots=True)
class _Swap:
    """A swap under way: its victims are being stopped, or its target loads."""

    evict: frozenset[str]
    leaving: set[str]
    waiters: list[Request] = field(default_factory=list)


class LlamaSwap(Policy):
    """A matrix of every set that fits, evict cost 1 each, no 429."""

    name = "llama-swap"
    concurrency_limit: int | None = None

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._sets = self.allowed_sets()
        self._queue: list[Request] = []
        self._swaps: dict[str, _Swap] = {}
        self._in_flight: Counter[str] = Counter()
        self._known: dict[tuple[str, frozenset[str]], frozenset[str]] = {}

    def allowed_sets(self) -> list[frozenset[str]]:
        """Every set that fits and is part of no other, in the order of the configuration."""
        models = self.world.models.values()
        found: list[frozenset[str]] = []
        for size in range(len(models), 0, -1):
            for chosen in combinations(models, size):
                names = frozenset(one.name for one in chosen)
                fits = sum(one.memory_bytes for one in chosen) <= self.world.machine.memory_bytes
                if fits and not any(names < larger for larger in found):
                    found.append(names)
        return found

    def evict_cost(self, model: str) -> float:
        """Configured cost of evicting a model."""
        return 1.0

    def arrived(self, request: Request) -> None:
        limit = self.concurrency_limit
        if limit is not None and self._in_flight[request.model] + self._pending(request.model) >= limit:
            self.world.refuse(request)
        elif not self._try(request):
            self._queue.append(request)

    def _pending(self, model: str) -> int:
        swap = self._swaps.get(model)
        return sum(one.model == model for one in self._queue) + (len(swap.waiters) if swap else 0)

    def _try(self, request: Request) -> bool:
        """Rules 2 to 6 of scheduling.md section 2; False: it stays in the queue."""
        model = request.model
        if model in self._swaps:
            self._swaps[model].waiters.append(request)
            return True
        evict = self._evict_set(model)
        leaving = any(model in swap.evict for swap in self._swaps.values())
        if model in self.world.processes and not evict and not leaving:
            self._serve(request)
            return True
        collides = leaving or any(
            target in evict or not swap.evict.isdisjoint(evict) for target, swap in self._swaps.items()
        )
        if collides or any(self._in_flight[victim] for victim in evict):
            return False
        self._swaps[model] = _Swap(evict, set(evict), [request])
        for victim in sorted(evict):
            self.world.stop(victim)
        self._start_if_clear(model)
        return True

    def _evict_set(self, model: str) -> frozenset[str]:
        """Whoever runs and is not in the set that costs least; the first such set."""
        running = frozenset([*self.world.processes, *self._swaps])
        known = self._known.get((model, running))
        if known is None:
            costs = [
                (sum(self.evict_cost(one) for one in sorted(running - allowed)), number)
                for number, allowed in enumerate(self._sets)
                if model in allowed
            ]
            known = self._known[model, running] = running - self._sets[min(costs)[1]]
        return known

    def _start_if_clear(self, model: str) -> None:
        if not self._swaps[model].leaving and model not in self.world.processes:
            self.world.start(model)

    def _serve(self, request: Request) -> None:
        self._in_flight[request.model] += 1
        self.world.hand(request)

    def gone(self, model: str) -> None:
        for target, swap in list(self._swaps.items()):
            if model in swap.leaving:
                swap.leaving.discard(model)
                self._start_if_clear(target)

    def ready(self, model: str) -> None:
        for request in self._swaps.pop(model).waiters:
            self._serve(request)
        self._walk()

    def ended(self, request: Request) -> None:
        self._in_flight[request.model] -= 1
        if not self._in_flight[request.model]:
            self._walk()

    def _walk(self) -> None:
        """The queue once in order; a blocked entry reserves nothing."""
        waiting, self._queue = self._queue, []
        left = [request for request in waiting if not self._try(request)]
        self._queue = left + self._queue


class LlamaSwapCosts(LlamaSwap):
    """The same with evict costs configured: the seconds that a reload takes from disk."""

    name = "llama-swap-costs"

    def evict_cost(self, model: str) -> float:
        one = self.world.models[model]
        return one.start_s + one.file_bytes / self.world.machine.disk_bps


class LlamaSwapDefault(LlamaSwap):
    """No matrix: the default group swaps one model at a time; 429 beyond ten requests per model."""

    name = "llama-swap-default"
    concurrency_limit = CONCURRENCY_LIMIT

    def allowed_sets(self) -> list[frozenset[str]]:
        return [frozenset([name]) for name in self.world.models]
