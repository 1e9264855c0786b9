"""The marks to meet (scheduling.md section 9), each judged from a study."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.schedsim.juggler_policy import Juggler
from bench.schedsim.rivals.large_model_proxy import LargeModelProxy
from bench.schedsim.study import Study
from bench.schedsim.workloads import DRAWN, STARVATION_MINUTES

US = Juggler.name

RATIO_MARKS: tuple[tuple[str, str, tuple[tuple[str, float], ...]], ...] = (
    ("no starvation", "starvation", (("longest", 0.1),)),
    ("interactive beside batch", "chat-batch", (("i.p95", 0.3), ("makespan", 1.0))),
    ("agents, little RAM", "agents-ram", (("mean", 0.55), ("makespan", 0.65), ("swaps", 0.7))),
    ("agents, long prompts", "agents-prompt", (("mean", 0.75), ("makespan", 0.8))),
    ("agent swarm", "swarm", (("mean", 0.75), ("makespan", 0.95))),
    ("large models", "big", (("mean", 0.7), ("makespan", 0.85))),
    ("many models", "zipf24", (("mean", 0.65),)),
    ("soft unload", "light-soft", (("mean", 0.85),)),
)
"""Claim, workload, and the most that each measure may be of llama-swap's."""

NOTHING_LOST = ("burst", "rag", "ping-pong", "adversary", "mix")
NOTHING_LOST_MOST = 1.05
MANY_MODELS_LMP_MOST = 0.95
OVERALL = (("mean", 0.85), ("longest", 0.75), ("makespan", 0.95))
REFUSALS = ("burst", "overload")
GROWTH_MOST = 2.0
"""Longest wait of the longest run, over that of the shortest, eight times as short: it does not grow with the run."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark and what was found."""

    claim: str
    what: str
    found: float
    most: float

    @property
    def met(self) -> bool:
        return self.found <= self.most + 1e-9


def starvation_runs() -> list[str]:
    """Names of the workloads of the table of longest waits over run lengths."""
    return [f"starvation-{minutes}" for minutes in STARVATION_MINUTES]


def judge(study: Study) -> list[Mark]:
    """Every mark whose workloads were run."""
    if not any(study.has(name, US) for name in (*DRAWN, "light-soft")):
        return []
    return list(_marks(study))


def _marks(study: Study) -> Iterator[Mark]:
    for claim, workload, most in RATIO_MARKS:
        if _compared(study, [workload]):
            for measure, limit in most:
                yield Mark(claim, f"{workload}: {measure}", study.ratio(workload, US, measure), limit)
    runs = starvation_runs()
    if _compared(study, runs):
        longest = [study.median(name, US, "i.longest") for name in (runs[0], runs[-1])]
        what = f"longest wait, {STARVATION_MINUTES[-1]} min over {STARVATION_MINUTES[0]} min"
        yield Mark("no starvation", what, longest[1] / longest[0], GROWTH_MOST)
    if study.has("zipf24", US) and study.has("zipf24", LargeModelProxy.name):
        found = study.ratio("zipf24", US, "mean", LargeModelProxy.name)
        yield Mark("many models", f"zipf24: mean / {LargeModelProxy.name}", found, MANY_MODELS_LMP_MOST)
    for workload in NOTHING_LOST:
        if _compared(study, [workload]):
            for measure in ("mean", "makespan"):
                found = study.ratio(workload, US, measure)
                yield Mark("nothing lost", f"{workload}: {measure}", found, NOTHING_LOST_MOST)
    if _compared(study, list(DRAWN)):
        for measure, limit in OVERALL:
            yield Mark("overall", f"geometric mean: {measure}", study.overall(list(DRAWN), US, measure), limit)
    for workload in REFUSALS:
        if study.has(workload, US):
            yield Mark("refusals", f"{workload}: refused", study.median(workload, US, "refused"), 0.0)


def _compared(study: Study, workloads: Sequence[str]) -> bool:
    return all(study.has(one) and study.has(one, US) for one in workloads)
