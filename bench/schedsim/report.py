"""Tables of a study, as plain text. Every ratio is the median over the seeds of ratios to llama-swap at its best."""

from collections.abc import Callable, Iterator, Sequence

from bench.schedsim.marks import US, Mark, starvation_runs
from bench.schedsim.policies import BASE, POLICIES
from bench.schedsim.study import Study
from bench.schedsim.workloads import DRAWN, STARVATION_MINUTES

COLUMNS = ("mean", "p95", "p99", "longest", "makespan", "swaps", "swap_s", "served", "i.mean", "i.p95")
LOST_OVER = 1.05
"""Ratios above it are listed among the places where we lose."""

RIVALS = [name for name in POLICIES if name not in (US, BASE)]


def ratio_table(study: Study, policy: str, workloads: Sequence[str]) -> Iterator[str]:
    """One row per workload, the geometric means last."""
    yield f"{policy} / {BASE} (its mean in s; i.: interactive class)"
    yield f"{'workload':<52}" + "".join(f"{name:>9}" for name in COLUMNS)
    for name in workloads:
        title = f"{DRAWN[name][0]} ({study.median(name, BASE, 'mean'):.3g})"
        cells = (study.ratio(name, policy, column) for column in COLUMNS)
        yield f"{title:<52}" + "".join(f"{cell:9.2f}" for cell in cells)
    if len(workloads) > 1:
        cells = (study.overall(workloads, policy, column) for column in COLUMNS)
        yield f"{'geometric mean':<52}" + "".join(f"{cell:9.2f}" for cell in cells)


def rivals_table(study: Study, workloads: Sequence[str]) -> Iterator[str]:
    """Mean of every other policy, and the part of the requests that it turns away or cuts off."""
    rivals = [name for name in RIVALS if study.has(workloads[0], name)]
    if not rivals:
        return
    yield f"mean / {BASE} at its best; that of the rest, where requests were refused or cut off"
    yield from _matrix(workloads, rivals, lambda one, name: f"{study.ratio(one, name, 'mean'):.2f}")
    for column in ("mean", "longest", "makespan") if len(workloads) > 1 else ():
        cells = (f"{study.overall(workloads, name, column):.2f}" for name in rivals)
        yield f"{f'geometric mean: {column}':<52}" + "".join(f"{cell:>19}" for cell in cells)
    refusing = [one for one in workloads if any(study.median(one, name, "refused") for name in rivals)]
    if refusing:
        yield ""
        yield "part of the requests refused or cut off"
        yield from _matrix(refusing, rivals, lambda one, name: f"{study.median(one, name, 'refused'):.0%}")


def _matrix(workloads: Sequence[str], policies: Sequence[str], cell: Callable[[str, str], str]) -> Iterator[str]:
    yield f"{'workload':<52}" + "".join(f"{_short(name):>19}" for name in policies)
    for one in workloads:
        yield f"{DRAWN[one][0]:<52}" + "".join(f"{cell(one, name):>19}" for name in policies)


def _short(policy: str) -> str:
    return policy.replace("large-model-proxy", "lmp")


def duels(study: Study, workloads: Sequence[str]) -> Iterator[str]:
    """Ours against every other that serves all requests, over all workloads."""
    for name in (BASE, *RIVALS):
        both = len(workloads) > 1 and all(study.has(one, name) and study.has(one, US) for one in workloads)
        if both and not any(study.median(one, name, "refused") for one in workloads):
            cells = (f"{one} {study.overall(workloads, US, one, name):.2f}" for one in ("mean", "longest", "makespan"))
            yield f"{US} / {name:<28}" + ", ".join(cells)


def starvation_table(study: Study) -> Iterator[str]:
    """Longest wait of the occasional user over the length of the run."""
    runs = starvation_runs()
    policies = [name for name in POLICIES if all(study.has(run, name) for run in runs)]
    if not policies:
        return
    yield "longest wait in s of an occasional user beside a batch class that is never idle"
    yield f"{'':<20}" + "".join(f"{minutes:>6} min" for minutes in STARVATION_MINUTES)
    for name in policies:
        yield f"{name:<20}" + "".join(f"{study.median(run, name, 'i.longest'):10.0f}" for run in runs)


def marks_table(marks: Sequence[Mark]) -> Iterator[str]:
    """PASS or MISS per mark."""
    for mark in marks:
        verdict = "PASS" if mark.met else "MISS"
        yield f"{verdict}  {mark.claim:<26}{mark.what:<44}{mark.found:7.3f}  mark <= {mark.most:g}"


def losses(study: Study, workloads: Sequence[str]) -> Iterator[str]:
    """Where a measure is worse than llama-swap's."""
    yield f"where we lose (ratio above {LOST_OVER})"
    found = False
    for name in workloads:
        lost = [(one, study.ratio(name, US, one)) for one in COLUMNS if one not in ("served", "swaps", "swap_s")]
        worse = ", ".join(f"{one} {value:.2f}" for one, value in lost if value > LOST_OVER)
        if worse:
            found = True
            yield f"  {DRAWN[name][0]}: {worse}"
    if not found:
        yield "  nowhere"
