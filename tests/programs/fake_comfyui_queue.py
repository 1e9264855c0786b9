"""The working half of the ComfyUI stand-in: its queue, the thread that runs the prompts, its pretended memory.

The order of things in the thread is that of main.py's prompt_worker: take a prompt and run it, then look at the flags
that ``POST /free`` has set, then wait for the next prompt. While it waits it does not look at the flags by itself.
"""

import heapq
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

MIB = 1024**2
GIB = 1024**3
CONTEXT_BYTES = 300 * MIB
"""Of the driver; on no allocator's books."""

VRAM_BYTES = 24 * GIB
HISTORY_MAX = 10000

Json = dict[str, Any]
Announce = Callable[[str, Json | bytes, str | None], None]


def variable(name: str, default: str = "") -> str:
    """One of the switches in the environment."""
    return os.environ.get(f"FAKE_{name}", default)


def seconds(name: str, default: float) -> float:
    return float(variable(name, str(default)))


def log(line: str) -> None:
    """As ComfyUI's logger: on stderr, without a level."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def record(what: str) -> None:
    """One line with our pid in the file that ``FAKE_RECORD`` names."""
    path = variable("RECORD")
    if path:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, f"{os.getpid()} {what}\n".encode())
        os.close(handle)


class Memory:
    """What is pretended to lie on the device, in bytes."""

    def __init__(self) -> None:
        self.model_bytes = int(variable("MODEL_MIB", "4096")) * MIB
        self.dynamic = bool(variable("DYNAMIC_VRAM"))
        """Weights are managed beside PyTorch's allocator, as 2026 builds do on NVIDIA."""
        self.weights = 0
        self.cached = 0
        """Results of nodes, the models among them."""
        self.kept = int(variable("KEPT_MIB", "0")) * MIB
        """By custom nodes, for good."""

    def load(self) -> None:
        if not self.weights:
            record("load")
            time.sleep(seconds("LOAD_S", 0.05))
        self.weights = self.model_bytes
        self.cached = int(variable("CACHE_MIB", "2048")) * MIB

    def devices(self, *, every_one: bool) -> list[Json]:
        """As in ``/system_stats``; builds before 2026 list the first device only."""
        types = variable("DEVICES", "cuda").split(",")
        return [self._device(kind, at) for at, kind in enumerate(types if every_one else types[:1])]

    def _device(self, kind: str, index: int) -> Json:
        if kind in ("cpu", "mps"):
            numbers = (32 * GIB, 20 * GIB, 32 * GIB, 20 * GIB)
        elif kind == "privateuseone":
            numbers = (GIB, GIB, GIB, GIB)
        else:
            held = self.kept + self.cached + (0 if self.dynamic else self.weights) if index == 0 else 0
            used = CONTEXT_BYTES + held + (self.weights if self.dynamic and index == 0 else 0)
            idle = held // 10
            numbers = (VRAM_BYTES, VRAM_BYTES - used + idle, held, idle)
        names = ("vram_total", "vram_free", "torch_vram_total", "torch_vram_free")
        return {
            "name": f"{kind}:{index} Fake 4090 : native" if kind == "cuda" else kind,
            "type": kind,
            "index": index if kind == "cuda" else None,
            **dict(zip(names, numbers, strict=True)),
        }


class Worker:
    """The queue and its thread.

    Args:
        announce: Sends an event to the page of a client, or to all.
    """

    def __init__(self, announce: Announce) -> None:
        self.memory = Memory()
        self.history: Json = {}
        self.images: dict[str, bytes] = {}
        self._announce = announce
        self._changed = threading.Condition()
        self._pending: list[tuple[float, str, Json, Json]] = []
        self._running: list[tuple[float, str, Json, Json]] = []
        self._flags: set[str] = set()
        self._interrupted = threading.Event()
        self._numbers = itertools.count(1)
        self._lose_next = variable("FREE") == "lost"

    def start(self) -> None:
        threading.Thread(target=self._run, name="prompts", daemon=True).start()

    # -- asked by the routes -------------------------------------------------------------------------------------

    def put(self, number: float, prompt_id: str, prompt: Json, extra: Json) -> None:
        with self._changed:
            heapq.heappush(self._pending, (number, prompt_id, prompt, extra))
            self._changed.notify()
        self._tell_status()

    def remaining(self) -> int:
        with self._changed:
            return len(self._pending) + len(self._running)

    def queues(self) -> tuple[list[Any], list[Any]]:
        """Running and pending, as in ``/queue``: number, id, workflow, extra data, outputs."""
        with self._changed:
            running, pending = ([[*item, ["9"]] for item in items] for items in (self._running, self._pending))
        return running, pending

    def clear(self) -> None:
        with self._changed:
            self._pending.clear()
        self._tell_status()

    def delete(self, prompt_ids: list[str]) -> None:
        with self._changed:
            self._pending = [item for item in self._pending if item[1] not in prompt_ids]
            heapq.heapify(self._pending)
        self._tell_status()

    def interrupt(self) -> None:
        self._interrupted.set()

    def free(self, flags: set[str]) -> None:
        """Set flags and wake the thread; nothing has happened when this returns."""
        record("free " + "+".join(sorted(flags)))
        with self._changed:
            self._flags |= flags
            if self._lose_next:  # it looked at the flags just before, and has not begun to wait yet
                self._lose_next = False
                return
            self._changed.notify()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            item = self._take()
            if item is not None:
                self._execute(*item)
                with self._changed:
                    self._running.clear()
                self._tell_status()
                self._announce("executing", {"node": None, "prompt_id": item[1]}, item[3].get("client_id"))
            with self._changed:
                flags, self._flags = self._flags, set()
            if flags and variable("FREE") != "ignored":
                self._let_go(flags)

    def _take(self) -> tuple[float, str, Json, Json] | None:
        with self._changed:
            if not self._pending:
                self._changed.wait(1000.0)
            if not self._pending:
                return None
            item = heapq.heappop(self._pending)
            self._running.append(item)
            self._interrupted.clear()
        self._tell_status()
        return item

    def _let_go(self, flags: set[str]) -> None:
        time.sleep(seconds("FREE_S", 0.05))
        self.memory.weights = 0
        if "free_memory" in flags:
            self.memory.cached = 0
        record("freed")

    def _execute(self, number: float, prompt_id: str, prompt: Json, extra: Json) -> None:
        client = extra.get("client_id")
        nodes = {str(node.get("class_type")): node.get("inputs", {}) for node in prompt.values()}
        self._announce("execution_start", {"prompt_id": prompt_id}, client)
        self.memory.load()
        record(f"job {prompt_id}")
        if "Die" in nodes:
            os._exit(9)
        duration_s = float(nodes.get("Sleep", {}).get("seconds", seconds("JOB_S", 0.02)))
        steps = 10
        for step in range(steps):
            if self._interrupted.wait(duration_s / steps):
                break
            progress = {"value": step + 1, "max": steps, "prompt_id": prompt_id, "node": "3"}
            self._announce("progress", progress, client)
            if "Preview" in nodes:
                self._announce("preview", b"\0\0\0\1\0\0\0\2" + bytes(int(nodes["Preview"]["bytes"])), client)
        failed = "Fail" in nodes or self._interrupted.is_set()
        outputs = {} if failed else {"9": {"images": [self._save()]}}
        if not failed:
            self._announce("executed", {"node": "9", "output": outputs["9"], "prompt_id": prompt_id}, client)
        status: Json = {"status_str": "error" if failed else "success", "completed": not failed, "messages": []}
        with self._changed:
            if len(self.history) > HISTORY_MAX:
                self.history.pop(next(iter(self.history)))
            work = [number, prompt_id, prompt, extra, ["9"]]
            self.history[prompt_id] = {"prompt": work, "outputs": outputs, "status": status}
        record(f"done {prompt_id}")

    def _save(self) -> Json:
        name = f"ComfyUI_{next(self._numbers):05}_.png"
        self.images[name] = b"\x89PNG\r\n\x1a\n" + name.encode()
        return {"filename": name, "subfolder": "", "type": "output"}

    def _tell_status(self) -> None:
        self._announce("status", {"status": {"exec_info": {"queue_remaining": self.remaining()}}}, None)
