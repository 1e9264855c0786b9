"""Which memory each model gets: pools, footprints, context sizes, layers. Pure.

Sizes are guesses (``estimate``), in bytes, rounded to tenths of a GiB because that is how they are written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from juggler.memory.gguf_estimate import PROCESS_BYTES
from juggler.setup.estimate import footprint_bytes, layers_that_fit, partial_bytes, trained_context
from juggler.setup.facts import Facts
from juggler.setup.models import Model
from juggler.survey.gpu import Gpu, pooled
from juggler.units import GIB, MIB, format_size

CONTEXTS = (32768, 16384, 8192, 4096)
"""Tokens, tried from the largest."""

PLAIN_CONTEXT = 8192
"""Where memory is short or only the processor computes: enough to talk, and quick to fill."""

_RAM = "ram"


@dataclass(frozen=True)
class Placed:
    """A model and where it goes."""

    model: Model
    context: int
    memory: Mapping[str, int]
    """Bytes per pool; empty where there are no pools."""
    layers: int | None = None
    """On the GPU, where not all are."""
    env: Mapping[str, str] = field(default_factory=dict)
    fast: bool = True
    """It is as fast as this machine makes it."""


class Budget:
    """The pools that this machine suggests, and what has been given to the models of each GPU."""

    def __init__(self, facts: Facts) -> None:
        self.gpus: dict[str, Gpu] = {f"gpu{number}": gpu for number, gpu in enumerate(pooled(facts.gpus.found))}
        self.pools: dict[str, tuple[int, str]] = {}
        """Bytes and the reason for them; ``ram`` only beside a GPU: without one, one model is loaded at a time."""
        for name, gpu in self.gpus.items():
            total = gpu.memory_bytes or 0
            used = f", {format_size(gpu.used_bytes)} in use when this was written" if gpu.used_bytes else ""
            reason = f"{name}: {gpu.name}, {format_size(total)}{used}; a little is left to driver and desktop."
            self.pools[name] = (_floor(total - max(512 * MIB, total * 3 // 100)), reason)
        self.gpu_bytes = sum(size for size, _ in self.pools.values())
        self.ram_bytes: int | None = None
        """None: not known."""
        if facts.memory is not None:
            total = facts.memory.total_bytes
            self.ram_bytes = _floor(max(0, total - max(4 * GIB, total // 10)))
        if self.gpus and self.ram_bytes:
            self.pools[_RAM] = (self.ram_bytes, f"{_RAM}: main memory; 10 % of it, at least 4 GiB, are the system's.")
        self._given = dict.fromkeys(self.gpus, 0)

    def take(self, wanted_bytes: int) -> str | None:
        """The GPU for a model of that size: of those on which it fits, the one with the least given to it so far."""
        fitting = [name for name in self.gpus if self.pools[name][0] >= wanted_bytes]
        if not fitting:
            return None
        name = min(fitting, key=lambda one: self._given[one])
        self._given[name] += wanted_bytes
        return name

    def spread(self, wanted_bytes: int) -> dict[str, int]:
        """A model over all GPUs, as llama.cpp spreads it: by their memory."""
        shares = {name: wanted_bytes * self.pools[name][0] // self.gpu_bytes for name in self.gpus}
        return {name: min(_ceil(share), self.pools[name][0]) for name, share in shares.items()}


def place(model: Model, budget: Budget, *, on_gpu: bool) -> Placed | None:
    """Whole on a GPU with the largest context that fits, else spread, else in part, else in main memory.

    Args:
        on_gpu: The program can use GPUs.

    Returns:
        None if the machine is too small.
    """
    trained = trained_context(model)
    contexts = [context for context in CONTEXTS if context <= trained] or [trained]
    if model.is_embedding:
        contexts = [min(trained, PLAIN_CONTEXT)]
    if budget.gpus and on_gpu:
        return _on_gpus(model, contexts, budget)
    context = min(PLAIN_CONTEXT, contexts[0])
    wanted = _ceil(footprint_bytes(model, context))
    if budget.ram_bytes is not None and wanted > budget.ram_bytes:
        return None
    return Placed(model, context, {_RAM: wanted} if _RAM in budget.pools else {})


def _on_gpus(model: Model, contexts: list[int], budget: Budget) -> Placed | None:
    further = (len(budget.gpus) - 1) * PROCESS_BYTES
    for context in contexts:
        wanted = _ceil(footprint_bytes(model, context))
        name = budget.take(wanted)
        if name is not None:
            env = _visible(budget.gpus[name]) if len(budget.gpus) > 1 else {}
            return Placed(model, context, {name: wanted}, env=env)
        if len(budget.gpus) > 1 and wanted + further <= budget.gpu_bytes:
            return Placed(model, context, budget.spread(wanted + further))
    context = min(PLAIN_CONTEXT, contexts[0])
    layers = layers_that_fit(model, context, budget.gpu_bytes - further)
    on_gpus, in_ram = partial_bytes(model, context, layers)
    if layers < 1 or _ceil(in_ram) > (budget.ram_bytes or 0):
        return None
    memory = {**budget.spread(on_gpus + further), _RAM: _ceil(in_ram)}
    return Placed(model, context, memory, layers=layers, fast=False)


def _visible(gpu: Gpu) -> dict[str, str]:
    """Variables that show one GPU to a process; CUDA counts as nvidia-smi does once it is told to."""
    if gpu.vendor == "NVIDIA":
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu.index)}
    return {"HIP_VISIBLE_DEVICES": str(gpu.index)} if gpu.vendor == "AMD" else {}


def _ceil(size_bytes: int) -> int:
    """Up to a tenth of a GiB."""
    tenth = GIB // 10
    return (size_bytes + tenth - 1) // tenth * tenth


def _floor(size_bytes: int) -> int:
    tenth = GIB // 10
    return size_bytes // tenth * tenth
