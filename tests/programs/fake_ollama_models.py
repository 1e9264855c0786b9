"""The models of the stand-in for ollama: their runner processes, and who loads and unloads when (server/sched.go)."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

RUNNER = """
import os, signal, time
if os.environ.get("FAKE_DEAF_RUNNERS"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(120)
"""
LOOK_S = 0.25
"""A load looks this often whether its client is still there (llm/llama_server.go, WaitUntilRunning)."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


def pairs(name: str, default: str = "") -> dict[str, str]:
    """Of ``"a=1,b=2"``."""
    return dict(part.split("=", 1) for part in os.environ.get(name, default).split(",") if part)


def variable(name: str) -> str:
    """As envconfig.Var: without surrounding spaces and quotes."""
    return os.environ.get(name, "").strip().strip("\"'")


def keep_alive_s(value: object, default: float = 300.0) -> float:
    """As api.Duration: a number of seconds or ``"5m"``; negative is for ever."""
    if isinstance(value, str):
        match = re.fullmatch(r"(-?[0-9.]+)(ms|s|m|h)?", value)
        value = float(match.group(1)) * _UNITS_S[match.group(2) or "s"] if match else None
    if not isinstance(value, int | float):
        return default
    return float("inf") if value < 0 else float(value)


def log(message: str) -> None:
    print(f'time={time.time():.3f} level=INFO source=routes.go msg="{message}"', file=sys.stderr, flush=True)


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


class Runner:
    """One loaded model and its process: a child in the same group, which nothing ends but a signal."""

    def __init__(self, name: str, size_mb: int, vram_mb: int, keep_s: float) -> None:
        self.name, self.size_mb, self.vram_mb, self.keep_s = name, size_mb, vram_mb, keep_s
        self.users = 0
        self.loading = True
        self.idle_since = time.monotonic()
        self.slots = threading.Semaphore(max(1, int(variable("OLLAMA_NUM_PARALLEL") or 1)))
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", RUNNER], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def due(self) -> bool:
        """Whether its time is over. A busy one's never is."""
        return not self.users and not self.loading and time.monotonic() - self.idle_since >= self.keep_s

    def end(self) -> None:
        """Kill and reap, as llama_server.go's stopProcess."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Scheduler:
    """Who is loaded; one load at a time, and one unload at a time with its wait for the memory."""

    def __init__(self) -> None:
        store = pairs("FAKE_MODELS", "small:latest=300,big:latest=600,embed:latest=100")
        self.store = {name: int(size) for name, size in store.items()}
        self.habits = pairs("FAKE_UNLOAD")
        self.foreign = os.environ.get("FAKE_FOREIGN", "")
        self.max_queue = int(variable("OLLAMA_MAX_QUEUE") or 512)
        self.default_keep_s = keep_alive_s(variable("OLLAMA_KEEP_ALIVE") or "5m")
        self.changed = threading.Condition()
        self.load_turn = threading.Lock()
        self.loaded: dict[str, Runner] = {}
        self.active: Runner | None = None
        """Being loaded; not listed, unless FAKE_LISTS_LOADING."""
        self.pending = 0
        self.vram_used_mb = 0
        self.loads: list[str] = []
        self.orders: list[str] = []
        threading.Thread(target=self._unload_for_ever, daemon=True).start()

    def full_name(self, name: object) -> str:
        text = str(name or "")
        text = text if ":" in text else text + ":latest"
        if text not in self.store:
            raise Refused(404, f"model '{name}' not found")
        return text

    @contextlib.contextmanager
    def using(self, name: object, keep_alive: object, wanted: Callable[[], bool]) -> Iterator[Runner]:
        """A runner for one request; loads it first if need be, as long as it is ``wanted``."""
        runner = self._acquire(self.full_name(name), keep_alive, wanted)
        try:
            with runner.slots:
                yield runner
        finally:
            with self.changed:
                runner.users -= 1
                runner.idle_since = time.monotonic()
                self.changed.notify_all()

    def _acquire(self, name: str, keep_alive: object, wanted: Callable[[], bool]) -> Runner:
        with self.changed:
            if (runner := self._usable(name, keep_alive)) is not None:
                return runner
            if self.pending >= self.max_queue:
                raise Refused(503, "server busy, please try again.  maximum pending requests exceeded")
            self.pending += 1
        try:
            with self.load_turn:
                with self.changed:
                    if (runner := self._usable(name, keep_alive)) is not None:
                        return runner
                return self._load(name, keep_alive, wanted)
        finally:
            with self.changed:
                self.pending -= 1

    def _usable(self, name: str, keep_alive: object) -> Runner | None:
        runner = self.loaded.get(name)
        if runner is None or runner.loading:
            return None
        if not runner.alive:  # needsReload: it does not answer any more
            self._forget(runner)
            return None
        runner.users += 1
        if keep_alive is not None:
            runner.keep_s = keep_alive_s(keep_alive)
        return runner

    def _forget(self, runner: Runner) -> None:
        runner.end()
        if self.loaded.get(runner.name) is runner:
            del self.loaded[runner.name]
        self.vram_used_mb -= runner.vram_mb
        self.changed.notify_all()

    def _load(self, name: str, keep_alive: object, wanted: Callable[[], bool]) -> Runner:
        keep_s = self.default_keep_s if keep_alive is None else keep_alive_s(keep_alive)
        size = self.store[name]
        with self.changed:
            vram = max(0, min(size, int(seconds("FAKE_VRAM_MB", 1000)) - self.vram_used_mb))
            self.vram_used_mb += vram
            self.loads.append(name)
            self.active = runner = Runner(name, size, vram, keep_s)
            if os.environ.get("FAKE_LISTS_LOADING"):
                self.loaded[name] = runner
        end = time.monotonic() + seconds("FAKE_LOAD_S", 0.1)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))
            if not wanted():
                log("client connection closed before llama-server finished loading, aborting load")
                with self.changed:
                    self.active = None
                    self._forget(runner)
                raise Refused(499, "request canceled")
        with self.changed:
            self.active = None
            runner.loading = False
            runner.users += 1
            self.loaded[name] = runner
            self.changed.notify_all()
        return runner

    def expire(self, name: str) -> None:
        """The order to unload: noted and answered. It waits only for a load that is listed."""
        with self.changed:
            self.orders.append(name)
            habit = self.habits.get(name)
            if habit in ("404", "500"):
                raise Refused(int(habit), f"model '{name}' not found" if habit == "404" else "something broke")
            if habit == "ignored":
                return
            while (runner := self.loaded.get(name)) is not None and runner.loading:
                self.changed.wait()
            if runner is not None:
                runner.keep_s = 0.0
            self.changed.notify_all()

    def _unload_for_ever(self) -> None:
        """processCompleted: kill, take it off the list, and only then see its memory come back."""
        while True:
            with self.changed:
                runner = next((one for one in self.loaded.values() if one.due), None)
                if runner is None:
                    self.changed.wait(0.05)
                    continue
                runner.end()
                del self.loaded[runner.name]
                foreign, self.foreign = self.foreign, ""
            if foreign:
                threading.Thread(target=self._serve_somebody_else, args=(foreign,), daemon=True).start()
            time.sleep(seconds("FAKE_RECOVERY_S", 0.1))
            with self.changed:
                self.vram_used_mb -= runner.vram_mb

    def _serve_somebody_else(self, name: str) -> None:
        with self.using(name, -1, lambda: True):
            pass

    def end(self) -> None:
        """unloadAllRunners."""
        with self.changed:
            for runner in {*self.loaded.values(), *([self.active] if self.active else [])}:
                runner.end()
