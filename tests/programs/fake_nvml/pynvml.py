# ruff: noqa: N802, N816  # the library's own names
"""Stands in for the module of nvidia-ml-py: replays what a JSON file says, misbehaviour included.

``FAKE_NVML`` names the file: ``{"driver": ..., "devices": [{"name", "uuid", "total", "free", "used", "reserved",
"processes": [[pid, bytes]], "graphics": [[pid, bytes]], "errors": {"function": code}, "raise": "function"}],
"errors": {"function": code}, "init_error": code, "hang": "function", "crash": "function", "garbage": "function"}``.
It is read anew for every count of devices, as a driver would be. Codes as in ``nvml.h``. Without ``used`` it is what is
neither free nor reserved; ``raise`` fails in Python, as a name that is no UTF-8 does.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_GPU_IS_LOST = 15
nvmlMemory_v2 = 0x02000028

_NAMES = {
    3: "Not Supported",
    4: "Insufficient Permissions",
    9: "Driver Not Loaded",
    12: "NVML Shared Library Not Found",
    15: "GPU is lost",
}


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(_NAMES.get(value, "Unknown Error"))
        self.value = value


_document: dict[str, Any] = {}


def _read(function: str) -> dict[str, Any]:
    global _document
    _document = json.loads(Path(os.environ["FAKE_NVML"]).read_text())
    _asked(function, _document)
    return _document


def _asked(function: str, plan: dict[str, Any]) -> None:
    if _document.get("hang") == function:
        time.sleep(3600)
    if _document.get("crash") == function:
        os._exit(139)
    if _document.get("garbage") == function:
        sys.stdout.write("not JSON\n")
        sys.stdout.flush()
    if plan.get("raise") == function:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    code = plan.get("errors", {}).get(function)
    if code:
        raise NVMLError(code)


def nvmlInit() -> None:
    document = _read("nvmlInit")
    if document.get("init_error"):
        raise NVMLError(document["init_error"])


def nvmlSystemGetDriverVersion() -> str:
    return str(_document["driver"])


def nvmlDeviceGetCount() -> int:
    return len(_read("nvmlDeviceGetCount")["devices"])


def nvmlDeviceGetHandleByIndex(index: int) -> dict[str, Any]:
    device: dict[str, Any] = _document["devices"][index]
    _asked("nvmlDeviceGetHandleByIndex", device)
    return device


def nvmlDeviceGetName(handle: dict[str, Any]) -> str:
    _asked("nvmlDeviceGetName", handle)
    return str(handle["name"])


def nvmlDeviceGetUUID(handle: dict[str, Any]) -> bytes:
    _asked("nvmlDeviceGetUUID", handle)
    return str(handle["uuid"]).encode()  # older versions of the package answer bytes


def nvmlDeviceGetMemoryInfo(handle: dict[str, Any], version: int | None = None) -> SimpleNamespace:
    _asked("nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo", handle)
    total, free, reserved = handle["total"], handle["free"], handle.get("reserved", 0)
    used = handle.get("used", total - free - reserved)
    if version:
        return SimpleNamespace(total=total, free=free, used=used, reserved=reserved)
    return SimpleNamespace(total=total, free=free, used=used + reserved)


def nvmlDeviceGetComputeRunningProcesses(handle: dict[str, Any]) -> list[SimpleNamespace]:
    _asked("nvmlDeviceGetComputeRunningProcesses", handle)
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.get("processes", [])]


def nvmlDeviceGetGraphicsRunningProcesses(handle: dict[str, Any]) -> list[SimpleNamespace]:
    _asked("nvmlDeviceGetGraphicsRunningProcesses", handle)
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.get("graphics", [])]
