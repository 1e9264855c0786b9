"""GPUs: what nvidia-smi, NVML and the kernel say of them."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from juggler.survey import gpus
from juggler.survey.gpu import Gpu, pooled
from juggler.survey.gpus import Gpus, find_gpus, read_nvidia_smi, read_nvml, read_sysfs
from juggler.units import GIB, MIB

NONE = Path("/nonexistent/drm")


def with_smi(tmp_path: Path, script: str) -> dict[str, str]:
    """An environment whose nvidia-smi is a shell script."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:/usr/bin:/bin"}


def test_rows_of_nvidia_smi() -> None:
    """Sizes in MiB; words in brackets where a device does not tell; other lines are passed over."""
    text = (
        "0, NVIDIA GeForce RTX 3090, 24576, 1200, 570.86.15\n"
        "1, NVIDIA GB10, [N/A], [N/A], 580.95.05\n"
        "2, NVIDIA A100-SXM4-80GB, [Insufficient Permissions], [Insufficient Permissions], 535.161.08\n"
        "\nsomething else\n, , , ,\n"
    )
    assert read_nvidia_smi(text) == [
        Gpu("NVIDIA", 0, "NVIDIA GeForce RTX 3090", 24 * GIB, 1200 * MIB, "570.86.15"),
        Gpu("NVIDIA", 1, "NVIDIA GB10", None, None, "580.95.05"),
        Gpu("NVIDIA", 2, "NVIDIA A100-SXM4-80GB", None, None, "535.161.08"),
    ]


def test_nvidia_smi_is_run(tmp_path: Path) -> None:
    """Found in the PATH that is looked through, asked for the fields that are read."""
    environ = with_smi(tmp_path, f'echo "$@" > {tmp_path}/asked; echo "0, NVIDIA X, 8192, 1, 1.2"')
    found = asyncio.run(find_gpus(environ, NONE))
    assert found.found == (Gpu("NVIDIA", 0, "NVIDIA X", 8 * GIB, MIB, "1.2"),)
    assert "memory.total" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("exit 9", "status 9"),
        ("sleep 100", "does not answer"),
    ],
)
def test_a_broken_driver_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    """It fails, or it hangs: a sentence, within the limit."""
    monkeypatch.setattr(gpus, "NVIDIA_LIMIT_S", 1.0 if words == "does not answer" else 20.0)
    found = asyncio.run(find_gpus(with_smi(tmp_path, script), NONE))
    assert found.found == ()
    assert words in found.troubles[0]


def card(drm: Path, name: str, vendor: str, **files: str) -> None:
    device = drm / name / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    for file, text in files.items():
        (device / file).write_text(text + "\n")


def test_cards_of_the_kernel(tmp_path: Path) -> None:
    """AMD with its memory, Intel without, and neither connectors nor virtual displays."""
    card(tmp_path, "card1", "0x1002", mem_info_vram_total=str(16 * GIB), mem_info_vram_used="5", device="0x744c")
    card(tmp_path, "card0", "0x8086", product_name="Arc \x07")
    card(tmp_path, "card2", "0x1234")
    card(tmp_path, "card1-DP-1", "0x1002")
    (tmp_path / "version").write_text("drm 1.1.0")
    assert read_sysfs(tmp_path) == (
        Gpu("Intel", 0, "Arc", None, None),
        Gpu("AMD", 0, "AMD GPU 0x744c", 16 * GIB, 5),
    )


def test_a_card_is_not_listed_twice(tmp_path: Path) -> None:
    """The kernel knows NVIDIA's cards too; nvidia-smi knows them better, and counts if it is broken."""
    card(tmp_path / "drm", "card0", "0x10de")
    environ = with_smi(tmp_path, 'echo "0, NVIDIA X, 8192, 1, 1.2"')
    assert [gpu.name for gpu in asyncio.run(find_gpus(environ, tmp_path / "drm")).found] == ["NVIDIA X"]
    broken = asyncio.run(find_gpus(with_smi(tmp_path, "echo no; exit 1"), tmp_path / "drm"))
    assert (broken.found, broken.troubles) == ((), ("no",))
    alone = asyncio.run(find_gpus({"PATH": "/nonexistent"}, tmp_path / "drm"))
    assert [gpu.vendor for gpu in alone.found] in ([], ["NVIDIA"])  # [] where NVML can be asked instead


def test_nvml_where_there_is_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a program of its own, with whatever answers to the name pynvml; one GPU does not tell its memory."""
    (tmp_path / "pynvml.py").write_text(
        "class NVMLError(Exception): pass\n"
        "class M: total, used = 8 << 30, 1 << 30\n"
        "def nvmlInit(): pass\n"
        "def nvmlSystemGetDriverVersion(): return b'570.1'\n"
        "def nvmlDeviceGetCount(): return 2\n"
        "def nvmlDeviceGetHandleByIndex(i): return i\n"
        "def nvmlDeviceGetName(i): return f'NVIDIA {i}'\n"
        "def nvmlDeviceGetMemoryInfo(i):\n"
        "    if i: raise NVMLError('Not Supported')\n"
        "    return M\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = str(Path(gpus.__file__).parents[2])
    environ = {"PATH": "/nonexistent", "PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"}
    assert asyncio.run(find_gpus(environ, NONE)).found == (
        Gpu("NVIDIA", 0, "NVIDIA 0", 8 * GIB, GIB, "570.1"),
        Gpu("NVIDIA", 1, "NVIDIA 1", None, None, "570.1"),
    )


def test_nvml_that_fails(tmp_path: Path) -> None:
    """One sentence and status 1, no traceback."""
    (tmp_path / "pynvml.py").write_text(
        "class NVMLError(Exception): pass\ndef nvmlInit(): raise NVMLError('Driver Not Loaded')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "juggler.survey.nvml"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "NVML does not answer: Driver Not Loaded\n", "")


@pytest.mark.parametrize("signs", [False, True])
def test_nvml_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signs: bool) -> None:
    """A machine that never had one has no trouble; one that shows signs of a driver has."""
    (tmp_path / "pynvml.py").write_text(
        "class NVMLError(Exception): value = 12\ndef nvmlInit(): raise NVMLError('NVML Shared Library Not Found')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(gpus, "driver_is_there", lambda: signs)
    source = str(Path(gpus.__file__).parents[2])
    found = asyncio.run(find_gpus({"PATH": "/nonexistent", "PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"}, NONE))
    if signs:
        assert found == Gpus(troubles=("NVML does not answer: NVML Shared Library Not Found",))
    else:
        assert found == Gpus(no_driver=True)


def test_noise_before_the_answer() -> None:
    """Libraries may print when they are loaded."""
    row = {"index": 0, "name": "X", "total": None, "used": None, "driver": "1"}
    assert read_nvml("a warning\n" + json.dumps([row])) == [Gpu("NVIDIA", 0, "X", None, None, "1")]


def test_which_gpus_make_pools() -> None:
    """Those of the vendor with more memory; not the graphics of a processor."""
    big = Gpu("NVIDIA", 0, "a", 24 * GIB, 0)
    small = Gpu("NVIDIA", 1, "b", 8 * GIB, 0)
    amd = Gpu("AMD", 1, "c", 16 * GIB, 0)
    scrap = Gpu("AMD", 0, "d", GIB // 2, 0)
    blind = Gpu("NVIDIA", 2, "e", None, None)
    assert pooled([big, small, amd, scrap, blind]) == [big, small]
    assert pooled([scrap, amd]) == [amd]
    assert pooled([scrap, blind]) == []
