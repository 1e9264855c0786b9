"""Answers questions about NVIDIA's GPUs: ``python -m juggler.devices.nvml_helper``, a line in, a line of JSON out.

A program of its own, because a broken driver can hang whoever calls it, and because an open NVML session can keep a
laptop's GPU from sleeping: it ends when its input ends. Fields that a driver does not tell are null; a GPU that was
lost (NVML error 15) is left out, the others stay.
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

_UNKNOWN_SIZE = 2**63
"""NVML's "not available" for a size is all ones (``NVML_VALUE_NOT_AVAILABLE``)."""


def main() -> int:
    """Answer until the input ends; returns the exit status."""
    try:
        nvml: Any = importlib.import_module("pynvml")  # of the package nvidia-ml-py
        nvml.nvmlInit()
    except Exception as error:
        print(json.dumps({"error": f"NVML does not answer: {error}"}), flush=True)
        return 1
    for _ in sys.stdin:
        try:
            answer = _look(nvml)
        except Exception as error:
            answer = {"error": f"NVML does not answer: {error}"}
        print(json.dumps(answer), flush=True)
    return 0


def _look(nvml: Any) -> dict[str, Any]:
    driver = _text(_told(nvml, nvml.nvmlSystemGetDriverVersion) or "")
    devices = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = _told(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        memory = _memory(nvml, handle)
        devices.append(
            {
                "index": index,
                "name": _text(_told(nvml, nvml.nvmlDeviceGetName, handle) or ""),
                "uuid": _text(_told(nvml, nvml.nvmlDeviceGetUUID, handle) or ""),
                "total": memory.total if memory is not None else None,
                "free": memory.free if memory is not None else None,
                "processes": _processes(nvml, handle),
            }
        )
    return {"driver": driver, "devices": devices}


def _memory(nvml: Any, handle: Any) -> Any:
    """With version 2 what the driver reserves counts neither as used nor as free; drivers before 510 lack it."""
    version = getattr(nvml, "nvmlMemory_v2", None)
    if version is not None:
        newer = _told(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=version))
        if newer is not None:
            return newer
    return _told(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)


def _processes(nvml: Any, handle: Any) -> list[list[Any]] | None:
    """Pid and bytes (null: not told) of each process; null if neither list can be had."""
    lists = [
        _told(nvml, getattr(nvml, name), handle)
        for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        if hasattr(nvml, name)
    ]
    if all(one is None for one in lists):
        return None
    sizes: dict[int, int | None] = {}
    for one in lists:
        for process in one or ():
            used = getattr(process, "usedGpuMemory", None)
            known = used if isinstance(used, int) and 0 <= used < _UNKNOWN_SIZE else None
            before = sizes.get(process.pid, 0)
            sizes[process.pid] = None if known is None or before is None else max(known, before)
    return [[pid, size] for pid, size in sizes.items()]


def _told(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this driver, device or user does not get one."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    """Bytes in older versions of the package."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


if __name__ == "__main__":
    sys.exit(main())
