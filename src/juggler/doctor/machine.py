"""The machine: interpreter, memory, GPUs, and whether the configured pools agree with them."""

import platform
import re
from collections.abc import Mapping

from juggler import __version__
from juggler.doctor.findings import Finding, note, ok, problem, warning
from juggler.ids import PoolId
from juggler.survey.gpu import Gpu, pooled
from juggler.survey.gpus import Gpus
from juggler.survey.memory import MainMemory
from juggler.units import format_size

_GPU_POOL = re.compile(r"gpu([0-9]+)\Z")


def about_program() -> Finding:
    """What runs here."""
    where = f"Python {platform.python_version()} on {platform.system()} {platform.release()} ({platform.machine()})"
    if platform.system() == "Windows":
        return problem(f"Model Juggler {__version__}, {where}", "backends cannot be started on Windows: use WSL 2")
    return ok(f"Model Juggler {__version__}, {where}")


def about_memory(memory: MainMemory | None) -> Finding:
    if memory is None:
        return note("main memory: not known")
    limit = " (the limit of this container or unit)" if memory.limited else ""
    free = f", {format_size(memory.available_bytes)} available" if memory.available_bytes is not None else ""
    return ok(f"main memory: {format_size(memory.total_bytes)}{limit}{free}")


def about_gpus(gpus: Gpus) -> list[Finding]:
    findings = [problem(trouble, _driver_hint(trouble)) for trouble in gpus.troubles]
    findings += [ok(describe_gpu(gpu)) for gpu in gpus.found]
    if gpus.no_driver:
        findings.append(note("no NVIDIA driver here"))
    return findings or [note("no GPU is seen")]


def describe_gpu(gpu: Gpu) -> str:
    """``GPU 0: NVIDIA H100, 80.0 GiB, 1.2 GiB in use (driver 570.86)``."""
    name = gpu.name if gpu.name.startswith(gpu.vendor) else f"{gpu.vendor} {gpu.name}"
    memory = format_size(gpu.memory_bytes) if gpu.memory_bytes is not None else "memory not known"
    used = f", {format_size(gpu.used_bytes)} in use" if gpu.used_bytes is not None else ""
    driver = f" (driver {gpu.driver})" if gpu.driver else ""
    return f"GPU {gpu.index}: {name}, {memory}{used}{driver}"


def _driver_hint(trouble: str) -> str:
    text = trouble.lower()
    if "version mismatch" in text:
        return "the driver was updated while it was loaded: reboot"
    if "couldn't communicate" in text or "driver" in text:
        return "load or reinstall the NVIDIA driver; after a new kernel it must be built again"
    return "run nvidia-smi by hand and see what it says"


def about_pools(
    pools: Mapping[PoolId, int] | None, gpus: Gpus, memory: MainMemory | None, *, automatic: bool
) -> list[Finding]:
    """Pools that are larger than what they are named after.

    Args:
        automatic: The configuration says ``"auto"``.
    """
    if automatic:
        return []
    if pools is None:
        seen = pooled(gpus.found)
        if not seen:
            return []
        size = format_size(seen[0].memory_bytes or 0).replace(" ", "")
        hint = f'declare it: "memory": {{"pools": {{"gpu0": "{size}"}}}}, and the `memory` of each endpoint'
        return [note("no memory pools are configured: one endpoint is loaded at a time", hint)]
    real: dict[str, int | None] = {"ram": memory.total_bytes if memory else None}
    real |= {f"gpu{number}": gpu.memory_bytes for number, gpu in enumerate(pooled(gpus.found))}
    findings = []
    for name, declared_bytes in pools.items():
        has = real.get(name)
        if has is not None and declared_bytes > has:
            there = f"{format_size(declared_bytes)}, and there are {format_size(has)}"
            message = f'the pool "{name}" is declared with {there}'
            findings.append(warning(message, "declare less, or models that do not fit together are loaded together"))
        elif _GPU_POOL.match(name) and name not in real and gpus.found:
            hint = "see the GPUs above; pools that stand for none may have any other name"
            findings.append(warning(f'there is no GPU for the pool "{name}"', hint))
    return findings
