"""Main memory, from files as the kernel writes them."""

from pathlib import Path

import pytest

from juggler.survey.memory import MainMemory, main_memory
from juggler.units import GIB, KIB

MEMINFO = (
    "MemTotal:       67108864 kB\nMemFree:         1024 kB\nMemAvailable:   33554432 kB\nHugePages_Total:       0\n"
)


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def test_of_the_machine(meminfo: Path, tmp_path: Path) -> None:
    """Without a limit, or with one above what there is."""
    assert main_memory(meminfo, tmp_path) == MainMemory(64 * GIB, 32 * GIB)
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory(meminfo, tmp_path) == MainMemory(64 * GIB, 32 * GIB)
    (tmp_path / "memory.max").write_text(f"{80 * GIB}\n")
    assert main_memory(meminfo, tmp_path) == MainMemory(64 * GIB, 32 * GIB)


def test_of_a_container(meminfo: Path, tmp_path: Path) -> None:
    """The limit of the control group, less what it uses already."""
    (tmp_path / "memory.max").write_text(f"{8 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    assert main_memory(meminfo, tmp_path) == MainMemory(8 * GIB, 5 * GIB, limited=True)


def test_page_cache_of_a_container_can_be_had_back(meminfo: Path, tmp_path: Path) -> None:
    """A container that has read large model files is full of them; that is not memory which is taken."""
    (tmp_path / "memory.max").write_text(f"{8 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{8 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {GIB}\nactive_file 0\ninactive_file {6 * GIB}\nslab 7\n")
    assert main_memory(meminfo, tmp_path) == MainMemory(8 * GIB, 6 * GIB, limited=True)
    for junk in ("inactive_file\n", "inactive_file x\n", f"inactive_file {'9' * 5000}\n"):
        (tmp_path / "memory.stat").write_text(junk)
        assert main_memory(meminfo, tmp_path) == MainMemory(8 * GIB, 0, limited=True)
    (tmp_path / "memory.stat").write_text(f"inactive_file {90 * GIB}\n")
    assert main_memory(meminfo, tmp_path) == MainMemory(8 * GIB, 8 * GIB, limited=True)


def test_elsewhere(tmp_path: Path) -> None:
    """Without /proc what the system's own call says, or nothing; never an error."""
    found = main_memory(tmp_path / "none", tmp_path / "none")
    assert found is None or found.total_bytes > KIB
