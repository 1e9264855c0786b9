"""Pools and how programs are kept on them."""

from juggler.devices.placement import Candidate, devices_among
from juggler.survey.gpu import Gpu
from juggler.units import GIB, MIB

CUDA_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def one(vendor: str, index: int, size: int | None = 16 * GIB, uuid: str = "", slot: str = "") -> Candidate:
    return Candidate(Gpu(vendor, index, f"{vendor} {index}", size, None, "1.2"), uuid, slot)


def placements(*candidates: Candidate) -> dict[str, dict[str, str]]:
    return {pool: dict(device.placement) for pool, (device, _) in devices_among(candidates).items()}


def test_of_one_nvidia() -> None:
    """By its UUID; with nothing for Vulkan, because there is no other."""
    assert placements(one("NVIDIA", 0, uuid="GPU-a")) == {"gpu0": {**CUDA_ORDER, "CUDA_VISIBLE_DEVICES": "GPU-a"}}


def test_without_uuid() -> None:
    """By its number in PCI order."""
    assert placements(one("NVIDIA", 3))["gpu0"] == {**CUDA_ORDER, "CUDA_VISIBLE_DEVICES": "3"}


def test_of_several_amd_beside_graphics_of_a_processor() -> None:
    """ROCm counts all of AMD's; Vulkan counts discrete cards first, so that the small one does not matter."""
    found = placements(
        one("AMD", 0, slot="0000:03:00.0"),
        one("AMD", 1, 512 * MIB, slot="0000:0c:00.0"),
        one("AMD", 2, slot="0000:41:00.0"),
        one("Intel", 0, None, slot="0000:00:02.0"),
    )
    assert found == {
        "gpu0": {"ROCR_VISIBLE_DEVICES": "0", "GGML_VK_VISIBLE_DEVICES": "0", "NODEVICE_SELECT": "1"},
        "gpu1": {"ROCR_VISIBLE_DEVICES": "2", "GGML_VK_VISIBLE_DEVICES": "1", "NODEVICE_SELECT": "1"},
    }


def test_vulkan_numbers_that_are_not_known() -> None:
    """Another discrete card, small or of another vendor, may come anywhere among them: then nothing is said."""
    two = [one("AMD", 0, slot="0000:03:00.0"), one("AMD", 1, slot="0000:41:00.0")]
    assert "GGML_VK_VISIBLE_DEVICES" in placements(*two)["gpu1"]
    for other in (one("NVIDIA", 0, 2 * GIB), one("NVIDIA", 0, None), one("Intel", 0, None, slot="0000:05:00.0")):
        assert "GGML_VK_VISIBLE_DEVICES" not in placements(*two, other)["gpu1"]


def test_several_nvidia_are_told_apart_by_cuda_alone() -> None:
    """Vulkan is not what their programs use."""
    found = placements(one("NVIDIA", 0, uuid="a"), one("NVIDIA", 1, uuid="b"))
    assert found["gpu1"] == {**CUDA_ORDER, "CUDA_VISIBLE_DEVICES": "b"}


def test_of_one_vendor_only() -> None:
    """The one with more memory; the others are no pools."""
    found = devices_among([one("NVIDIA", 0, 8 * GIB), one("AMD", 0), one("AMD", 1, slot="0000:09:00.0")])
    assert [(device.vendor, device.index) for device, _ in found.values()] == [("AMD", 0), ("AMD", 1)]
    device, candidate = found[next(reversed(found))]
    assert (device.uuid, device.driver, device.total_bytes) == ("0000:09:00.0", "1.2", 16 * GIB)
    assert candidate.slot == "0000:09:00.0"


def test_intel_and_apple_have_no_placement() -> None:
    """One program there sees what there is."""
    assert placements(one("Intel", 0, slot="0000:03:00.0")) == {"gpu0": {}}
    assert placements(one("Apple", 0)) == {"gpu0": {}}


def test_of_nothing() -> None:
    """No GPU with memory of its own, no pool."""
    assert devices_among([]) == {}
    assert devices_among([one("AMD", 0, 512 * MIB), one("Intel", 0, None)]) == {}
