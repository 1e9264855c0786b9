"""Judging the machine."""

import pytest

from juggler.doctor.findings import Grade
from juggler.doctor.machine import about_gpus, about_memory, about_pools, about_program, describe_gpu
from juggler.ids import PoolId
from juggler.survey.gpu import Gpu
from juggler.survey.gpus import Gpus
from juggler.survey.memory import MainMemory
from juggler.units import GIB

CARD = Gpu("NVIDIA", 0, "NVIDIA GeForce RTX 3090", 24 * GIB, GIB, "570.86")
MEMORY = MainMemory(64 * GIB, 32 * GIB)


def pools(**sizes: int) -> dict[PoolId, int]:
    return {PoolId(name): size for name, size in sizes.items()}


def test_program_and_memory() -> None:
    """What is said where nothing is wrong."""
    assert about_program().grade is Grade.OK
    assert about_memory(MEMORY).message == "main memory: 64.0 GiB, 32.0 GiB available"
    assert "limit of this container" in about_memory(MainMemory(GIB, None, limited=True)).message
    assert about_memory(None).grade is Grade.NOTE


def test_gpus() -> None:
    """Each with what is known of it."""
    assert describe_gpu(CARD) == "GPU 0: NVIDIA GeForce RTX 3090, 24.0 GiB, 1.0 GiB in use (driver 570.86)"
    assert describe_gpu(Gpu("AMD", 1, "Radeon", None, None)) == "GPU 1: AMD Radeon, memory not known"
    assert [one.grade for one in about_gpus(Gpus((CARD,)))] == [Grade.OK]
    assert [one.grade for one in about_gpus(Gpus())] == [Grade.NOTE]
    (driverless,) = about_gpus(Gpus(no_driver=True))
    assert (driverless.grade, driverless.message) == (Grade.NOTE, "no NVIDIA driver here")


@pytest.mark.parametrize(
    ("trouble", "hint"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", "reboot"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "reinstall"),
        ("strange", "by hand"),
    ],
)
def test_broken_drivers(trouble: str, hint: str) -> None:
    """A problem, with what usually helps."""
    (finding,) = about_gpus(Gpus((), (trouble,)))
    assert finding.grade is Grade.PROBLEM
    assert hint in (finding.hint or "")


def test_pools_that_agree() -> None:
    """Smaller than the device, or named after none."""
    assert about_pools(pools(gpu0=23 * GIB, ram=60 * GIB, shelf=GIB), Gpus((CARD,)), MEMORY, automatic=False) == []
    assert about_pools(None, Gpus((CARD,)), MEMORY, automatic=True) == []
    assert about_pools(None, Gpus(), MEMORY, automatic=False) == []


def test_pools_that_do_not() -> None:
    """Larger than the device, or of a device that is not there (where devices can be seen at all)."""
    large, absent = about_pools(pools(gpu0=32 * GIB, gpu1=GIB), Gpus((CARD,)), MEMORY, automatic=False)
    assert large.grade is absent.grade is Grade.WARNING
    assert large.message == 'the pool "gpu0" is declared with 32.0 GiB, and there are 24.0 GiB'
    assert '"gpu1"' in absent.message
    assert about_pools(pools(gpu0=GIB), Gpus(), MEMORY, automatic=False) == []
    assert len(about_pools(pools(ram=65 * GIB), Gpus(), MEMORY, automatic=False)) == 1


def test_no_pools() -> None:
    """A note with a line to copy, where there is a GPU."""
    (finding,) = about_pools(None, Gpus((CARD,)), None, automatic=False)
    assert finding.grade is Grade.NOTE
    assert '"pools": {"gpu0": "24.0GiB"}' in (finding.hint or "")
