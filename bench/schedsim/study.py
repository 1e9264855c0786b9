"""Runs workloads, seeds and policies, and compares them seed by seed."""

import hashlib
import json
import multiprocessing
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.schedsim.measures import geometric_mean, measure, ratio
from bench.schedsim.policies import BASE, maker
from bench.schedsim.workloads import draw
from bench.schedsim.world import World

Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Task:
    """One workload of one seed under some policies."""

    workload: str
    seed: int
    policies: tuple[str, ...]
    changes: tuple[tuple[str, str], ...] = ()


def run_task(task: Task) -> dict[str, dict[str, float]]:
    """Numbers by policy."""
    drawn = draw(task.workload, task.seed)
    found = {}
    for name in task.policies:
        world = World(drawn, task.seed, maker(name, dict(task.changes)))
        world.run()
        found[name] = measure(world).numbers()
    return found


class Study:
    """The numbers of every run: by workload, policy and seed."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], list[Numbers]] = {}

    def run(self, tasks: Sequence[Task], processes: int | None = None) -> None:
        """Run all tasks, side by side; what comes out does not depend on how many at a time.

        Raises:
            RuntimeError: A policy gave an impossible order or left requests without an answer.
        """
        count = min(processes or os.cpu_count() or 1, len(tasks))
        if count <= 1:
            results = [run_task(task) for task in tasks]
        else:
            with multiprocessing.Pool(count) as pool:
                results = pool.map(run_task, tasks, chunksize=1)
        for task, found in zip(tasks, results, strict=True):
            for policy, numbers in found.items():
                self._runs.setdefault((task.workload, policy), []).append(numbers)

    def has(self, workload: str, policy: str = BASE) -> bool:
        return (workload, policy) in self._runs

    def median(self, workload: str, policy: str, measure_name: str) -> float:
        """Over the seeds."""
        return statistics.median(numbers[measure_name] for numbers in self._runs[workload, policy])

    def ratio(self, workload: str, policy: str, measure_name: str, base: str = BASE) -> float:
        """Median of the ratios of equal seeds."""
        pairs = zip(self._runs[workload, policy], self._runs[workload, base], strict=True)
        return statistics.median(ratio(mine[measure_name], theirs[measure_name]) for mine, theirs in pairs)

    def overall(self, workloads: Sequence[str], policy: str, measure_name: str, base: str = BASE) -> float:
        """Geometric mean of the ratios of some workloads."""
        return geometric_mean(self.ratio(one, policy, measure_name, base) for one in workloads)

    def digest(self) -> str:
        """Equal for equal numbers."""
        rows = [[*key, [sorted(numbers.items()) for numbers in runs]] for key, runs in sorted(self._runs.items())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def export(self) -> dict[str, dict[str, list[dict[str, float]]]]:
        """Every number, as plain JSON data."""
        out: dict[str, dict[str, list[dict[str, float]]]] = {}
        for (workload, policy), runs in self._runs.items():
            out.setdefault(workload, {})[policy] = [dict(numbers) for numbers in runs]
        return out
