"""Who uses which card."""

from pathlib import Path

import pytest

from juggler.devices.fdinfo import read_users
from juggler.devices.reading import ProcessMemory
from juggler.units import GIB, KIB, MIB
from tests.unit.devices.support import fdinfo, machine, process

A, B = "0000:03:00.0", "0000:41:00.0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return machine(tmp_path)


def users(root: Path) -> dict[str, tuple[ProcessMemory, ...]]:
    return read_users(root / "proc")


@pytest.mark.parametrize(
    ("regions", "size"),
    [
        ({"memory_vram": "5 MiB", "memory_gtt": "9 MiB"}, 5 * MIB),
        ({"resident_vram": "4 KiB", "memory_vram": "5 MiB", "total_vram": "6 MiB"}, 4 * KIB),
        ({"resident_vram0": "1 GiB", "resident_vram1": "1 GiB", "resident_gtt": "7 MiB"}, 2 * GIB),
        ({"resident_local0": "123", "resident_system0": "5 MiB"}, 123),
        ({"total_vram": "6 MiB", "shared_vram": "6 MiB"}, 6 * MIB),
        ({"resident_vram": "0", "memory_vram": "5 MiB"}, None),
        ({"resident_vram": "-5 MiB"}, None),
        ({"resident_vram": "5 PiB"}, None),
        ({"resident_vram": "9" * 5000}, None),
        ({"engine_gfx": "5 ns"}, None),
    ],
)
def test_sizes(root: Path, regions: dict[str, str], size: int | None) -> None:
    """Memory of the card only, by whichever key the driver has; without a unit it is bytes; nonsense is nothing."""
    process(root, 100, "llama-server", fdinfo(1, A, **regions))
    assert users(root) == ({} if size is None else {A: (ProcessMemory(100, "llama-server", size),)})


def test_a_client_counts_once(root: Path) -> None:
    """Descriptors are duplicated and inherited: the older process has it. Numbers are per card."""
    one, two = fdinfo(7, A, resident_vram="5 MiB"), fdinfo(8, A, resident_vram="1 MiB")
    process(root, 1000, "child", one)
    process(root, 200, "parent", one, one, two, fdinfo(7, B, resident_vram="3 MiB"))
    assert users(root) == {
        A: (ProcessMemory(200, "parent", 6 * MIB),),
        B: (ProcessMemory(200, "parent", 3 * MIB),),
    }


def test_without_client_numbers(root: Path) -> None:
    """Once per process then: too little rather than too much."""
    text = f"drm-pdev: {A}\ndrm-memory-vram: 5 MiB\n"
    process(root, 100, "a", text, text)
    process(root, 101, "b", text)
    assert users(root)[A] == (ProcessMemory(100, "a", 5 * MIB), ProcessMemory(101, "b", 5 * MIB))


def test_a_sum_that_cannot_be(root: Path) -> None:
    """Two clients with more than any memory: not told."""
    process(root, 100, "a", *(fdinfo(number, A, resident_vram=str(2**50)) for number in (1, 2)))
    assert users(root)[A] == (ProcessMemory(100, "a", None),)


def test_what_is_no_descriptor_of_a_gpu(root: Path) -> None:
    """Other files are not opened, whatever they would say; nor is a card told by garbage."""
    process(root, 100, "a", fdinfo(1, A, resident_vram="5 MiB"), target="/home/x")
    process(root, 101, "b", "drm-pdev:\ndrm-client-id: 1\ndrm-resident-vram: 5 MiB", "", "\xff\x00garbage", "drm-")
    assert users(root) == {}


def test_processes_that_end_meanwhile(root: Path) -> None:
    """Their files are gone at any step: they are left out, the others stay."""
    process(root, 100, "a", fdinfo(1, A, resident_vram="5 MiB"))
    process(root, 101, "b", fdinfo(2, A, resident_vram="5 MiB"))
    (root / "proc" / "101" / "fdinfo" / "3").unlink()
    process(root, 102, "c", fdinfo(3, A, resident_vram="1 MiB"))
    (root / "proc" / "102" / "comm").unlink()
    (root / "proc" / "103").mkdir()
    assert users(root) == {A: (ProcessMemory(100, "a", 5 * MIB), ProcessMemory(102, "", MIB))}


def test_too_many_descriptors(root: Path) -> None:
    """Not told, rather than told in part."""
    process(root, 100, "a", *(fdinfo(number, A, resident_vram="1 MiB") for number in range(5)))
    assert read_users(root / "proc", 6)[A][0].used_bytes == 5 * MIB
    with pytest.raises(OSError, match="5 open descriptors"):
        read_users(root / "proc", 5)
