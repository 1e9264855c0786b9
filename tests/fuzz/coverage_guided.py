"""The long fuzzing of ``make fuzz``: ``python -m tests.fuzz.coverage_guided [--seconds N] [--keep] [TARGET ...]``.

Each target runs in a process of its own and grows a corpus in ``build/fuzz``, from where it goes on the next time.
What fails lies there as ``crash-...``: once it is fixed, the file belongs into ``tests/fuzz/corpus/TARGET``. With
``--keep`` nothing is fuzzed: inputs that reach code which the kept corpus does not reach are copied into it.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import atheris

with atheris.instrument_imports(include=["juggler.proxy", "juggler.survey", "juggler.config", "h11"]):
    from tests.fuzz.seeds import dictionary
    from tests.fuzz.targets import CORPUS, TARGETS, corpus

_WORK = Path("build") / "fuzz"
_LENGTH_MAX = 2048
_RUN_S_MAX = 20
_ONE = "--in-this-process"


def main() -> int:
    """Fuzz every named target; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description="Fuzz the parsers, guided by coverage.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--seconds", type=int, default=300, help="for each target")
    parser.add_argument("--keep", action="store_true", help="do not fuzz: add to the kept corpus what it lacks")
    parser.add_argument("--list", action="store_true", help="print the targets and end")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(TARGETS))
        return 0
    names = arguments.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}")
    failed = []
    for name in names:
        if arguments.keep:
            print(f"{name}: {_keep(name)} more")
            continue
        print(f"== {name}, {arguments.seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz.coverage_guided", _ONE, name, str(arguments.seconds)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}; the inputs lie in {_WORK}")
    return 1 if failed else 0


def _keep(name: str) -> int:
    """Copy the smallest new inputs that take steps from line to line which no kept one takes; returns how many."""
    known: set[tuple[str, int, int]] = set()
    for path in corpus(name):
        known |= _steps(name, path.read_bytes())
    added = 0
    for path in sorted((_WORK / name).glob("[0-9a-f]*"), key=lambda path: path.stat().st_size):
        data = path.read_bytes()
        if new := _steps(name, data) - known:
            known |= new
            added += 1
            (CORPUS / name / f"found-{path.name[:10]}").write_bytes(data)
    return added


def _steps(name: str, data: bytes) -> set[tuple[str, int, int]]:
    """Which steps from one line of ours to the next an input takes."""
    steps: set[tuple[str, int, int]] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        file = frame.f_code.co_filename
        if "juggler" not in file:
            return None
        before = frame.f_lineno

        def step(inner: FrameType, kind: str, value: object) -> Callable[..., Any]:
            nonlocal before
            if kind == "line":
                steps.add((file, before, inner.f_lineno))
                before = inner.f_lineno
            return step

        return step

    sys.settrace(trace)
    try:
        TARGETS[name](data)
    finally:
        sys.settrace(None)
    return steps


def _fuzz(name: str, seconds: str) -> None:
    """Hand over to libFuzzer, which ends the process."""
    work = _WORK / name
    work.mkdir(parents=True, exist_ok=True)
    words = _WORK / "dictionary"
    words.write_text(dictionary())
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_LENGTH_MAX}",
        f"-timeout={_RUN_S_MAX}",
        f"-dict={words}",
        f"-artifact_prefix={work}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(work), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == [_ONE]:
        _fuzz(sys.argv[2], sys.argv[3])
    else:
        sys.exit(main())
