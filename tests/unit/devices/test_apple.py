"""Apple's limit, with a system that is asked through a table."""

import sys

import pytest

from juggler.devices.apple import apple_gpu, sysctl, working_set_bytes
from juggler.survey.gpu import Gpu
from juggler.units import GIB


@pytest.mark.parametrize(
    ("memory", "limit_mb", "expected"),
    [
        (16 * GIB, 0, int(16 * GIB * 0.67)),
        (36 * GIB, None, int(36 * GIB * 0.67)),
        (64 * GIB, 0, 48 * GIB),
        (64 * GIB, 57344, 56 * GIB),
        (16 * GIB, 999_999, 16 * GIB),
    ],
)
def test_how_much_the_gpu_may_hold(memory: int, limit_mb: int | None, expected: int) -> None:
    """What was set, else a share of memory, never more than there is."""
    assert working_set_bytes(memory, limit_mb) == expected


def test_a_mac() -> None:
    """One GPU with Apple's processor; none with Intel's, or where nothing can be asked."""
    numbers = {"hw.optional.arm64": 1, "hw.memsize": 64 * GIB, "iogpu.wired_limit_mb": 0}
    assert apple_gpu(numbers.get) == [Gpu("Apple", 0, "Apple GPU", 48 * GIB, None)]
    assert apple_gpu({"hw.memsize": 64 * GIB}.get) == []
    assert apple_gpu({"hw.optional.arm64": 1}.get) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="there it knows")
def test_elsewhere() -> None:
    """Nothing is run."""
    assert sysctl("hw.memsize") is None
