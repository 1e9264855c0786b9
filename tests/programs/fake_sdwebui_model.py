"""The inside of the stand-in for A1111 and Forge: one checkpoint, one lock, one job at a time (backends.md 3.3, 3.4).

See ``fake_sdwebui`` for what the variables do.
"""

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
DEVICE_MIB = 24 * 1024
MISMATCH = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


def variable(name: str, default: str = "") -> str:
    return os.environ.get(f"FAKE_{name}", default)


def seconds(name: str, default: float) -> float:
    return float(variable(name, str(default)))


def record(what: str) -> None:
    """One line, in one write, of what happened."""
    if path := variable("RECORD"):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()} {what}\n")


class WebuiError(Exception):
    """What the API answers with status 500."""


class Model:
    """The checkpoint and what is on the GPU.

    Args:
        is_forge: Loads for the first job, and brings everything back by itself.
        split: ``--medvram``: parts are moved as they are needed, wherever the rest is.
    """

    def __init__(self, *, is_forge: bool, split: bool) -> None:
        self._is_forge = is_forge
        self._split = split
        self._loading = threading.Lock()
        self.exists = False
        self.on_gpu = False
        self.moved = 0
        """How often weights were taken from the GPU: a job that sees it change breaks."""
        self.peak_mib = 0

    def get(self) -> None:
        """What reading the model does in A1111: the first to ask loads it, all others wait."""
        with self._loading:
            if not self.exists:
                time.sleep(seconds("LOAD_S", 0.05))
                self.exists = True
                self._to_gpu()
                record("loaded")
                print("Model loaded in 0.1s", flush=True)

    def unload(self) -> None:
        if variable("UNLOAD") == "error":
            raise WebuiError("cannot move it")
        if variable("UNLOAD") == "hang":
            time.sleep(3600)
        if not self._is_forge:
            self.get()
        if self.on_gpu and variable("UNLOAD") != "ignored":
            self.on_gpu = False
            self.moved += 1
        record("unloaded")

    def reload(self) -> None:
        if variable("RELOAD") == "error":
            raise WebuiError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if variable("RELOAD") == "hang":
            time.sleep(3600)
        record("reloaded")
        if not self._is_forge:
            self.get()
            self._to_gpu()

    def before_job(self, *, other_checkpoint: bool) -> None:
        """Bring the model where a job needs it.

        Raises:
            WebuiError: A1111, which does not look where it is.
        """
        self.get()
        if self._is_forge or other_checkpoint:
            self._to_gpu()
        elif not self.on_gpu and not self._split:
            raise WebuiError(MISMATCH)

    def _to_gpu(self) -> None:
        if not self.on_gpu:
            time.sleep(seconds("MOVE_S", 0.01))
            self.on_gpu = True
            self.peak_mib = self.reserved_mib

    @property
    def reserved_mib(self) -> int:
        kept = int(variable("KEPT_MIB", "0")) if self.exists else 0
        return kept + (int(variable("MODEL_MIB", "6000")) if self.on_gpu else 0)

    def memory(self) -> dict[str, Any]:
        """``/sdapi/v1/memory``."""
        ram = {"free": 8e9, "used": 2e9, "total": 10e9}
        if variable("CUDA", "1") == "0":
            return {"ram": ram, "cuda": {"error": "unavailable"}}
        held, peak = self.reserved_mib * MIB, self.peak_mib * MIB
        used = held + 400 * MIB
        pair = {"current": held, "peak": peak}
        return {
            "ram": ram,
            "cuda": {
                "system": {"free": DEVICE_MIB * MIB - used, "used": used, "total": DEVICE_MIB * MIB},
                **{name: dict(pair) for name in ("active", "allocated", "reserved")},
                "inactive": {"current": 0, "peak": 0},
                "events": {"retries": 0, "oom": 0},
            },
        }


class Jobs:
    """The queue lock, and the state that ``/sdapi/v1/progress`` shows."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._turn = threading.Lock()
        self._numbers = itertools.count(1)
        self.pending: list[str] = []
        self.job: str | None = ""
        self.count = 0
        self.timestamp = "0"
        self.steps = (0, 0)
        self.interrupted = threading.Event()

    def run(self, name: str | None, *, work_s: float, other_checkpoint: bool = False) -> int:
        """One generation, in its turn; returns its number.

        Raises:
            WebuiError: It failed.
        """
        ticket = f"task({name}-{next(self._numbers)})"
        self.pending.append(ticket)
        with self._turn:
            self.pending.remove(ticket)
            self._begin(name)
            try:
                self._model.before_job(other_checkpoint=other_checkpoint)
                moved = self._model.moved
                record("job begins")
                end = time.monotonic() + work_s
                while time.monotonic() < end and not self.interrupted.is_set():
                    self.count = 1
                    time.sleep(min(0.01, work_s))
                    self.steps = (self.steps[0] + 1, 20)
                    if self._model.moved != moved:
                        raise WebuiError(MISMATCH)
                record("job ends")
            except WebuiError:
                record("job fails")
                raise
            finally:
                self.job, self.count = "", 0
        return next(self._numbers)

    def _begin(self, name: str | None) -> None:
        self.interrupted.clear()
        self.count, self.steps = -1, (0, 0)
        self.timestamp = time.strftime("%Y%m%d%H%M%S")
        self.job = name

    def progress(self) -> dict[str, Any]:
        done, of = self.steps
        return {
            "progress": done / of if of and self.count else 0.0,
            "eta_relative": 0.0,
            "state": {
                "skipped": False,
                "interrupted": self.interrupted.is_set(),
                "stopping_generation": False,
                "job": self.job,
                "job_count": self.count,
                "job_timestamp": self.timestamp,
                "job_no": 0,
                "sampling_step": done,
                "sampling_steps": of,
            },
            "current_image": None,
            "textinfo": None,
        }


def fail_to_start(text: str) -> None:
    """A traceback as Python prints it, of an error at the top level."""
    print(
        f'Traceback (most recent call last):\n  File "launch.py", line 48, in main\n{text}', file=sys.stderr, flush=True
    )
