"""Cards as the kernel lists them."""

from pathlib import Path

import pytest

from juggler.devices.sysfs import Card, read_cards
from juggler.survey.gpus import read_sysfs
from juggler.units import GIB, MIB
from tests.unit.devices.support import AMD_16G, SCRAP, card, machine


def drm(root: Path) -> Path:
    return root / "sys" / "class" / "drm"


def test_amd(tmp_path: Path) -> None:
    """Sizes, name, identity and driver; numbers in PCI order, not in that of the names; what is no card is left out."""
    machine(tmp_path)
    device = card(tmp_path, 0, "0x1002", "0000:0c:00.0", **SCRAP)
    card(tmp_path, 1, "0x1002", "0000:03:00.0", **AMD_16G, product_name="Radeon \x07Pro", unique_id="beef")
    card(tmp_path, 2, "0x10de", "0000:04:00.0")
    (drm(tmp_path) / "card1-DP-1").mkdir()
    (drm(tmp_path) / "version").write_text("drm 1.1.0")
    driver = tmp_path / "sys" / "bus" / "pci" / "drivers" / "amdgpu"
    (driver / "module").mkdir(parents=True)
    (driver / "module" / "version").write_text("6.8.5\n")
    (device / "driver").symlink_to(driver)
    assert read_cards(drm(tmp_path)) == [
        Card("AMD", 0, "0000:03:00.0", "Radeon  Pro", 16 * GIB, 2 * GIB, "beef"),
        Card("AMD", 1, "0000:0c:00.0", "AMD GPU", 512 * MIB, 100 * MIB, "", "amdgpu 6.8.5"),
    ]


def test_intel(tmp_path: Path) -> None:
    """The memory of all tiles where the driver (xe) tells, else none."""
    machine(tmp_path)
    card(tmp_path, 0, "0x8086", "0000:00:02.0", device="0x46a6")
    device = card(tmp_path, 1, "0x8086", "0000:03:00.0")
    for tile in ("tile0", "tile1"):
        (device / tile).mkdir()
        (device / tile / "physical_vram_size_bytes").write_text(f"{8 * GIB}\n")
    assert read_cards(drm(tmp_path)) == [
        Card("Intel", 0, "0000:00:02.0", "Intel GPU 0x46a6", None, None),
        Card("Intel", 1, "0000:03:00.0", "Intel GPU", 16 * GIB, None),
    ]


def test_numbers_are_those_of_the_survey(tmp_path: Path) -> None:
    """Both count the cards of a vendor alike, so that a configuration drafted by one fits the other."""
    machine(tmp_path)
    for number, slot in enumerate(("0000:41:00.0", "0000:03:00.0", "0000:0c:00.0")):
        card(tmp_path, number, "0x1002", slot, **AMD_16G, product_name=slot)
    ours = [(one.index, one.name) for one in read_cards(drm(tmp_path))]
    assert ours == [(one.index, one.name) for one in read_sysfs(drm(tmp_path))]
    assert ours[0] == (0, "0000:03:00.0")


@pytest.mark.parametrize("text", ["", "-1", "12x", "9" * 19, "9" * 5000, "²", "\xff"])
def test_lies(tmp_path: Path, text: str) -> None:
    """What is no size is not told."""
    machine(tmp_path)
    card(tmp_path, 0, "0x1002", "0000:03:00.0", mem_info_vram_total=text, mem_info_vram_used=text)
    found = read_cards(drm(tmp_path))[0]
    assert (found.total_bytes, found.used_bytes) == (None, None)


def test_without_drm(tmp_path: Path) -> None:
    """An error, which the caller takes for no cards."""
    with pytest.raises(OSError, match="none"):
        read_cards(tmp_path / "none")
