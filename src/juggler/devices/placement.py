"""Which GPUs become pools, and the environment that makes a program see one of them alone. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from juggler.devices.reading import Device
from juggler.ids import PoolId
from juggler.survey.gpu import POOL_BYTES_LEAST, Gpu, pooled


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU of this machine."""

    gpu: Gpu
    uuid: str = ""
    slot: str = ""
    """PCI address; empty: not known."""


def devices_among(candidates: Sequence[Candidate]) -> dict[PoolId, tuple[Device, Candidate]]:
    """``gpu0``, ``gpu1`` ... in the order of ``survey.gpus.pooled``: those of one vendor, in PCI order."""
    by_gpu = {(one.gpu.vendor, one.gpu.index): one for one in candidates}
    chosen = [by_gpu[gpu.vendor, gpu.index] for gpu in pooled([one.gpu for one in candidates])]
    sorted_by_vulkan = _sorted_by_vulkan(candidates, chosen)
    devices = {}
    for number, one in enumerate(chosen):
        gpu, pool = one.gpu, PoolId(f"gpu{number}")
        placement = {**_placement(one), **(_vulkan(number) if sorted_by_vulkan else {})}
        uuid = one.uuid or one.slot
        device = Device(pool, gpu.vendor, gpu.index, gpu.name, gpu.memory_bytes or 0, uuid, gpu.driver or "", placement)
        devices[pool] = device, one
    return devices


def _placement(candidate: Candidate) -> Mapping[str, str]:
    """For what computes by the vendor's own interface.

    CUDA (Programming Guide, "CUDA Environment Variables"): a UUID, or a number in PCI order, which NVML's numbers are
    in too. ROCm ("GPU isolation techniques"): on Linux ``ROCR_VISIBLE_DEVICES`` alone; with ``HIP_VISIBLE_DEVICES``
    beside it the latter counts among what the former has left.
    """
    if candidate.gpu.vendor == "NVIDIA":
        visible = candidate.uuid or str(candidate.gpu.index)
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}
    if candidate.gpu.vendor == "AMD":
        return {"ROCR_VISIBLE_DEVICES": str(candidate.gpu.index)}
    return {}


def _vulkan(number: int) -> Mapping[str, str]:
    """For llama.cpp and its kin, which count in the loader's order; Mesa's own layer would reorder it."""
    return {"GGML_VK_VISIBLE_DEVICES": str(number), "NODEVICE_SELECT": "1"}


def _sorted_by_vulkan(candidates: Sequence[Candidate], chosen: Sequence[Candidate]) -> bool:
    """Whether the numbers of Vulkan's devices are known, and of use: for AMD's cards, which it is often used with.

    Its loader on Linux sorts discrete cards before others, then by PCI address (Vulkan-Loader, 2022,
    ``loader_linux.c``). So they are known if all discrete cards are pools of ours; of use only with several.
    """
    of_use = len(chosen) > 1 and chosen[0].gpu.vendor == "AMD"
    return of_use and [one for one in candidates if _is_discrete(one)] == list(chosen)


def _is_discrete(candidate: Candidate) -> bool:
    """AMD's graphics of a processor own a scrap of memory; Intel's sit on the first bus."""
    if candidate.gpu.vendor == "AMD":
        return (candidate.gpu.memory_bytes or 0) >= POOL_BYTES_LEAST
    return candidate.gpu.vendor != "Intel" or not candidate.slot.startswith("0000:00:")
