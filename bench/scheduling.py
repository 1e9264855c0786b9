"""The shipped scheduler against models of other programs, simulated. Run: ``python bench/scheduling.py [--seeds 20]``.

A deterministic discrete-event simulation (``schedsim``): equal seeds give equal tables on every machine. Printed are

* ratios to llama-swap in its best configuration, per workload: medians over the seeds of paired ratios;
* the same for the other programs, at their best and at their defaults, and for the first prototype;
* the longest wait of an occasional user beside a batch class that is never idle, over the length of the run;
* the marks, and where we lose.

Exit status 1 if a mark is missed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.schedsim import report
from bench.schedsim.marks import US, judge, starvation_runs
from bench.schedsim.policies import BASE, POLICIES, maker
from bench.schedsim.study import Study, Task
from bench.schedsim.workloads import DRAWN

FIRST_SEED = 1000
"""The parameters of the workloads were chosen on seeds below 100: the marks are judged on others."""

STARVATION_POLICIES = (BASE, US, "large-model-proxy", "ollama")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each workload (default: 20)")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help=f"default: {FIRST_SEED}")
    parser.add_argument("--workload", action="append", choices=list(DRAWN), help="only this; repeatable")
    parser.add_argument(
        "--policy", action="append", choices=list(POLICIES), help="only this and llama-swap; repeatable"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of our policy")
    parser.add_argument("--processes", type=int, help="at a time (default: one per core)")
    parser.add_argument("--json", action="store_true", help="every number of every run instead of tables")
    parser.add_argument("--digest", action="store_true", help="also a checksum of every number")
    chosen = parser.parse_args(argv)
    if chosen.seeds < 1:
        parser.error("--seeds: at least one")
    return chosen


def plan(chosen: argparse.Namespace) -> list[Task]:
    """What is to be run, the longest first.

    Raises:
        ValueError: A parameter of the policy is not what was given.
    """
    changes = tuple((name, value) for name, _, value in (one.partition("=") for one in chosen.set))
    policies = tuple(dict.fromkeys((BASE, *(chosen.policy or POLICIES))))
    maker(US, dict(changes))
    wanted = [(name, policies) for name in chosen.workload or DRAWN]
    if not chosen.workload:
        few = tuple(name for name in policies if name in STARVATION_POLICIES)
        wanted += [(name, few) for name in starvation_runs()]
        wanted.append(("light-soft", tuple(name for name in policies if name in (BASE, US))))
    wanted.sort(key=lambda one: not one[0].startswith(("starvation", "zipf")))
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    return [Task(name, seed, some, changes) for name, some in wanted for seed in seeds]


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    study = Study()
    try:
        study.run(plan(chosen), chosen.processes)
    except ValueError as wrong:
        print(wrong, file=sys.stderr)
        return 2
    marks = judge(study)
    if chosen.json:
        found = [{"claim": one.claim, "what": one.what, "found": one.found, "most": one.most} for one in marks]
        print(json.dumps({"runs": study.export(), "marks": found, "digest": study.digest()}))
    else:
        workloads = chosen.workload or list(DRAWN)
        ours = study.has(workloads[0], US)
        lines = [*report.ratio_table(study, US, workloads), ""] if ours else []
        lines += [*report.duels(study, workloads), ""] if ours else []
        lines += [*report.rivals_table(study, workloads), "", *report.starvation_table(study), ""]
        lines += [*report.marks_table(marks), "", *report.losses(study, workloads)] if ours else []
        print("\n".join(lines))
        if chosen.digest:
            print(f"digest {study.digest()}")
    return 0 if all(mark.met for mark in marks) else 1


if __name__ == "__main__":
    sys.exit(main())
