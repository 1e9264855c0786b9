"""Answers questions about NVIDIA's GPUs: ``python -m juggler.devices.nvml_helper``, a line in, a line of JSON out.

A program of its own, because a broken driver can hang whoever calls it, and because an open NVML session can keep a
laptop's GPU from sleeping. Standard library and ``pynvml`` only, so that it can be started as a file. It ends when its
input ends, also in the middle of a call that hangs: the input is read by a thread that can still leave then.

Answer: ``{"driver", "devices": [{"index", "name", "uuid", "total", "free", "used", "processes"}]}``, where fields that
the driver does not tell are null, processes are ``[pid, bytes or null, name]``, and a device that does not answer at
all (NVML error 15: lost) is ``{"index", "error"}``. Or ``{"error", "code"}``: nothing can be told.
"""

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_UNKNOWN_SIZE = 2**63
"""NVML's "not available" for a size is all ones (``NVML_VALUE_NOT_AVAILABLE``)."""

_FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""What ``/proc/self/ns/pid`` points to outside of containers (Linux ``proc_ns.h``, ``PROC_PID_INIT_INO``)."""


def main(arguments: list[str]) -> int:
    """Answer until the input ends; returns the exit status.

    Args:
        arguments: Where the process file system is; nothing: ``/proc``.
    """
    proc = Path(arguments[0] if arguments else "/proc")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is meant for who asks
    answers = _own_output()
    asked = threading.Semaphore(0)
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    try:
        nvml: Any = importlib.import_module("pynvml")  # of the package nvidia-ml-py
        nvml.nvmlInit()
    except Exception as error:
        print(json.dumps(_failure(error)), file=answers, flush=True)
        return 1
    while True:
        asked.acquire()
        try:
            answer = _look(nvml, proc)
        except Exception as error:
            answer = _failure(error)
        print(json.dumps(answer), file=answers, flush=True)


def _own_output() -> Any:
    """Where answers go; what libraries print goes to stderr from here on, not between the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    return answers


def _listen(asked: threading.Semaphore) -> None:
    """Pass on one permit per line. Unbuffered: a buffer's lock, held here, would abort the end of the program."""
    try:
        while data := os.read(0, 4096):
            for _ in range(data.count(b"\n")):
                asked.release()
    finally:
        os._exit(0)  # nobody listens any more, whatever the other thread hangs in


def _failure(error: Exception) -> dict[str, Any]:
    return {"error": str(error) or type(error).__name__, "code": getattr(error, "value", None)}


def _look(nvml: Any, proc: Path) -> dict[str, Any]:
    driver = _text(_told(nvml.nvmlSystemGetDriverVersion))
    pids_are_ours = _pids_are_ours(proc)
    devices: list[dict[str, Any]] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except Exception as error:
            devices.append({"index": index, "error": _failure(error)["error"]})
            continue
        memory = _memory(nvml, handle)
        devices.append(
            {
                "index": index,
                "name": _text(_told(nvml.nvmlDeviceGetName, handle)),
                "uuid": _text(_told(nvml.nvmlDeviceGetUUID, handle)),
                **{field: _whole(getattr(memory, field, None)) for field in ("total", "free", "used")},
                "processes": _processes(nvml, handle, proc) if pids_are_ours else None,
            }
        )
    return {"driver": driver, "devices": devices}


def _memory(nvml: Any, handle: Any) -> Any:
    """With version 2 what the driver reserves counts neither as used nor as free; drivers before 510 lack it."""
    version = getattr(nvml, "nvmlMemory_v2", None)
    newer = _told(nvml.nvmlDeviceGetMemoryInfo, handle, version) if version is not None else None
    return newer if newer is not None else _told(nvml.nvmlDeviceGetMemoryInfo, handle)


def _pids_are_ours(proc: Path) -> bool:
    """Whether NVML's pids and sizes can be believed: not in a container with pids of its own.

    There the driver lists the host's pids, or none, or the container's with 0 bytes each (driver 560;
    NVIDIA/open-gpu-kernel-modules pull request 614).
    """
    try:
        return str((proc / "self" / "ns" / "pid").readlink()) == _FIRST_PID_NAMESPACE
    except OSError:
        return True  # not Linux


def _processes(nvml: Any, handle: Any, proc: Path) -> list[list[Any]] | None:
    """Pid, bytes (null: not told) and name of each process; null if neither list can be had."""
    lists = [
        _told(getattr(nvml, name), handle)
        for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        if hasattr(nvml, name)
    ]
    if all(one is None for one in lists):
        return None
    sizes: dict[int, int | None] = {}
    for one in lists:
        for process in one or ():
            used, before = _whole(getattr(process, "usedGpuMemory", None)), sizes.get(process.pid, 0)
            # A process that computes and draws is in both lists, with all it holds.
            sizes[process.pid] = None if used is None or before is None else max(used, before)
    return [[pid, size, _name(pid, proc)] for pid, size in sizes.items()]


def _name(pid: int, proc: Path) -> str:
    try:
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _told(question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this driver, device or user does not get one (NVML errors 3, 4, 13 and others)."""
    try:
        return question(*arguments)
    except Exception:
        return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _UNKNOWN_SIZE else None


def _text(value: str | bytes | None) -> str:
    """Bytes in older versions of the package."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
