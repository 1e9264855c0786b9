"""Records what NVML tells of a GPU before, while and after a process holds memory of it, as a fixture for tests.

Run on a machine with an NVIDIA GPU: ``python bench/record_nvml.py [--mib 4096] [--device 0] > h100.json``. Needs the
driver and nvidia-ml-py, nothing else: memory is taken through ``libcuda`` by a child of this program. The scenes have
the form that ``tests/programs/fake_nvml`` replays. Beside them ``times``: how long the child took, and when its memory
was seen free after it was killed. Exit status 1 with one sentence where that is not possible.
"""

import argparse
import ctypes
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

MIB = 2**20
START_LIMIT_S = 60.0
"""CUDA's first call can take seconds, minutes where kernels are compiled."""
FREE_LIMIT_S = 5.0
POLL_S = 0.01
SHARES = (0.5, 0.75, 0.95, 1.0)
"""Of what the process held: the times at which so much was free again."""

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def hold(mib: int) -> int:
    """In the child: take memory of the first GPU that can be seen, tell, and keep it until the input ends."""
    try:
        cuda = ctypes.CDLL(os.environ.get("LIBCUDA", LIBRARY))
    except OSError as error:
        print(json.dumps({"error": f"CUDA's library cannot be loaded: {error}"}), flush=True)
        return 1
    began = time.perf_counter()
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    calls: list[tuple[str, Callable[[], int]]] = [
        ("cuInit", lambda: cuda.cuInit(0)),
        ("cuDeviceGet", lambda: cuda.cuDeviceGet(ctypes.byref(device), 0)),
        ("cuCtxCreate", lambda: cuda.cuCtxCreate_v2(ctypes.byref(context), ctypes.c_uint(0), device)),
        ("cuMemAlloc", lambda: cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(mib * MIB))),
    ]
    times = {}
    for name, call in calls:
        code = call()
        if code != 0:
            print(json.dumps({"error": f"{name} fails with CUDA error {code}"}), flush=True)
            return 1
        times[f"{name}_s"] = round(time.perf_counter() - began, 4)
    print(json.dumps(times), flush=True)
    sys.stdin.read()
    return 0


def scene(nvml: Any) -> dict[str, Any]:
    """Everything that the helper of the juggler asks, of all GPUs."""
    devices = [device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    return {"driver": text(nvml.nvmlSystemGetDriverVersion()), "devices": devices}


def device(nvml: Any, index: int) -> dict[str, Any]:
    """One GPU; what fails is listed under ``errors`` with NVML's code."""
    errors: dict[str, int] = {}

    def told(name: str, *arguments: Any, call: str = "") -> Any:
        try:
            return getattr(nvml, call or name)(*arguments)
        except nvml.NVMLError as error:
            errors[name] = error.value
            return None

    handle = told("nvmlDeviceGetHandleByIndex", index)
    found: dict[str, Any] = {"name": "", "uuid": "", "total": 0, "free": 0, "errors": errors}
    if handle is None:
        return found
    older = told("nvmlDeviceGetMemoryInfo", handle)
    newer = told("nvmlDeviceGetMemoryInfo_v2", handle, nvml.nvmlMemory_v2, call="nvmlDeviceGetMemoryInfo")
    memory = newer or older
    found["name"] = text(told("nvmlDeviceGetName", handle) or "")
    found["uuid"] = text(told("nvmlDeviceGetUUID", handle) or "")
    if memory is not None:
        fields = ("total", "free", "used", "reserved")
        found.update({name: getattr(memory, name) for name in fields if hasattr(memory, name)})
    for kind, name in (("processes", "Compute"), ("graphics", "Graphics")):
        listed = told(f"nvmlDeviceGet{name}RunningProcesses", handle)
        found[kind] = [[process.pid, process.usedGpuMemory] for process in listed or ()]
    return found


def text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def record(nvml: Any, index: int, mib: int) -> dict[str, Any]:
    """The three scenes and the times between them.

    Raises:
        SystemExit: The child cannot hold memory.
    """
    idle = scene(nvml)
    if index >= len(idle["devices"]):
        raise SystemExit(f"There is no GPU {index}: NVML tells of {len(idle['devices'])}.")
    visible = idle["devices"][index]["uuid"] or str(index)
    child = subprocess.Popen(
        [sys.executable, __file__, "--hold", str(mib)],
        env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        times = words_of(child)
        holding = scene(nvml)
        pid = child.pid
        freed = end_and_watch(nvml, index, child, idle["devices"][index]["free"], holding["devices"][index]["free"])
    finally:
        child.kill()
        child.communicate()
    return {
        "note": f"Recorded by bench/record_nvml.py: pid {pid} took {mib} MiB of device {index} and was killed.",
        "recorded": True,
        "scenes": {"idle": idle, "holding": holding, "ended": scene(nvml)},
        "times": {"start": times, **freed},
    }


def words_of(child: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """What the child says once it holds its memory.

    Raises:
        SystemExit: It fails, or says nothing for ``START_LIMIT_S``.
    """
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    end, said = time.monotonic() + START_LIMIT_S, b""
    while not said.endswith(b"\n"):
        said += child.stdout.read() or b""
        if child.poll() is not None and not said.endswith(b"\n"):
            raise SystemExit(f"The child ended with status {child.returncode} before it held memory.")
        if time.monotonic() > end:
            raise SystemExit(f"The child holds no memory after {START_LIMIT_S:.0f} s.")
        time.sleep(POLL_S)
    words: dict[str, Any] = json.loads(said)
    if "error" in words:
        raise SystemExit(words["error"])
    return words


def end_and_watch(nvml: Any, index: int, child: "subprocess.Popen[bytes]", before: int, held: int) -> dict[str, Any]:
    """Kill the child; when it was gone, from the list and as a process, and when how much was free again, in s."""
    handle, taken = nvml.nvmlDeviceGetHandleByIndex(index), before - held
    seen: dict[str, Any] = {"taken_bytes": taken, "gone_s": None, "unlisted_s": None}
    shares: dict[str, float | None] = {str(share): None for share in SHARES}
    child.kill()
    began = time.perf_counter()
    while time.perf_counter() - began < FREE_LIMIT_S:
        free = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).free
        pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        now = round(time.perf_counter() - began, 4)
        if seen["gone_s"] is None and child.poll() is not None:
            seen["gone_s"] = now
        if seen["unlisted_s"] is None and child.pid not in pids:
            seen["unlisted_s"] = now
        for share in SHARES:
            if shares[str(share)] is None and free - held >= taken * share:
                shares[str(share)] = now
        if None not in (*shares.values(), seen["gone_s"], seen["unlisted_s"]):
            break
        time.sleep(POLL_S)
    return {**seen, "freed_s": shares}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=4096, help="how much the child takes")
    parser.add_argument("--device", type=int, default=0, help="NVML's number of the GPU")
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold is not None:
        return hold(arguments.hold)
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        print("nvidia-ml-py is not installed.", file=sys.stderr)
        return 1
    try:
        nvml.nvmlInit()
        print(json.dumps(record(nvml, arguments.device, arguments.mib), indent=1))
    except nvml.NVMLError as error:
        print(f"NVML does not answer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
