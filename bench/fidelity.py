"""What a proxy changes, and whom it tells that a client has left. Run: ``python bench/fidelity.py [--tries 20]``.

The same raw exchanges go through the juggler (``juggler serve``, on uvloop and on stock asyncio), a bare Go
ReverseProxy and nginx to a backend that is scripted to the byte (dataplane.md sections 4 and 6). First the probes, as a
table of what each one did; then how long after a client's close the backend, or the queue, is rid of its request. Exit
status 1 if a probe fails for the juggler or a median is above the target, 2 if it cannot run.

Linux only. Go and nginx are found as for ``dataplane.py``; who is missing is left out.
"""

import argparse
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.dataplane_parts import leaving, probes
from bench.dataplane_parts.contenders import ASYNCIO, DIRECT, MANY, UVLOOP, Contender, start_all, start_juggler
from bench.dataplane_parts.processes import CannotRun
from bench.dataplane_parts.scripted import ScriptedBackend

LEFT_TARGET_MS = 20.0
JUGGLERS = (UVLOOP, ASYNCIO)
_LABEL_WIDTH, _WIDTH = 40, 26


def row(label: str, cells: list[str]) -> None:
    print(f"{label:<{_LABEL_WIDTH}}" + "".join(f"{cell[: _WIDTH - 1]:<{_WIDTH}}" for cell in cells), flush=True)


def probe(contenders: list[Contender], backend: ScriptedBackend) -> bool:
    """The table of the probes; returns whether the juggler passes all."""
    row("", [one.name for one in contenders])
    passed = True
    asked = [probes.Prober(one.port, backend) for one in contenders]
    for label in asked[0].probes():
        answers = [one.probes()[label]() for one in asked]
        row(label, answers)
        for contender, answer in zip(contenders, answers, strict=True):
            passed = passed and (answer == probes.OK or contender.name not in JUGGLERS)
    leaks = [one.malformed() for one in asked]
    count = len(probes.MALFORMED)
    row(f"malformed requests refused, of {count}", [str(count - len(names)) for names in leaks])
    for contender, names in zip(contenders, leaks, strict=True):
        if names:
            print(f"  {contender.name} takes: {'; '.join(names)}")
            passed = passed and contender.name not in JUGGLERS
    return passed


def leave(contenders: list[Contender], backend: ScriptedBackend, tries: int) -> bool:
    """The table of delays; returns whether the juggler meets the target."""
    print(f"\nmilliseconds from a client's close, median (most) of {tries}; target of a median <= {LEFT_TARGET_MS:g}")
    row("", [one.name for one in contenders])
    passed = True
    for label, measure in (("waiting for the head", leaving.waiting_for_head), ("streaming", leaving.streaming)):
        found: dict[str, list[float]] = {one.name: [] for one in contenders}
        for _ in range(tries):
            for one in contenders:
                found[one.name].append(measure(one.port, backend))
        row(label, [_told(found[one.name]) for one in contenders])
        passed = passed and all(_meets(found[name]) for name in JUGGLERS if name in found)
    return passed


def leave_queue(loops: list[str], backend: ScriptedBackend, directory: Path, tries: int) -> bool:
    """The same for a request that waits in the queue."""
    told, passed = [], True
    for loop in loops:
        juggler, control_port = start_juggler(loop, 100, backend, directory / f"queue-{loop}")
        try:
            # Its program says nothing for as many seconds as its number tells.
            found = [leaving.queued(juggler.port, control_port, "/other-98/x") for _ in range(tries)]
        finally:
            juggler.stop()
        told.append(_told(found))
        passed = passed and _meets(found)
    row("leaving the queue while held", told)
    return passed


def _told(found: list[float]) -> str:
    return f"{statistics.median(found):.1f} ({max(found):.1f})"


def _meets(found: list[float]) -> bool:
    return statistics.median(found) <= LEFT_TARGET_MS


def run(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fidelity-")))
        kept = options.keep or directory
        kept.mkdir(parents=True, exist_ok=True)
        backend = ScriptedBackend(probes.ACTIONS | leaving.ACTIONS)
        stack.callback(backend.close)
        contenders, missing = start_all(stack, backend, directory, kept)
        contenders = [one for one in contenders if one.name not in (DIRECT, MANY)]
        loops = [one.name for one in contenders if one.name in JUGGLERS]
        results = [probe(contenders, backend), leave(contenders, backend, options.tries)]
        results.append(leave_queue(loops, backend, directory, options.tries))
        for sentence in missing:
            print(sentence)
        print("PASS" if all(results) else "MISS")
        return 0 if all(results) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, help="clients that leave, per contender and way")
    parser.add_argument("--keep", type=Path, help="directory for the built Go proxy, used again next time")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(parser.parse_args())
    except CannotRun as reason:
        print(f"cannot run: {reason}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
