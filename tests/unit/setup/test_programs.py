"""Installed programs: in PATH and where people put them."""

import sys
from pathlib import Path

import pytest

from juggler.setup.places import Surroundings
from juggler.setup.programs import Program, find_programs


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    """A home and a PATH that are empty; without the wheel beside this interpreter."""
    monkeypatch.setattr("juggler.setup.programs.importlib.util.find_spec", lambda name: None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    return Surroundings({"PATH": str(tmp_path / "bin")}, tmp_path / "home", system=False)


def program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def webui(folder: Path) -> Path:
    (folder / "modules").mkdir(parents=True)
    (folder / "launch.py").write_text("")
    return program(folder / "webui.sh")


def comfyui(folder: Path) -> None:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "nodes.py").write_text("")


def found(around: Surroundings) -> list[tuple[str, str]]:
    return [(one.type, one.path) for one in find_programs(around)]


def test_an_empty_machine(around: Surroundings) -> None:
    """Nothing, and folders that are not there are no error."""
    assert find_programs(around) == []
    assert find_programs(Surroundings({}, Path("/nonexistent"), system=False)) == []


def test_programs_in_path(around: Surroundings, tmp_path: Path) -> None:
    """By their names; what cannot be executed, and what only begins like one, does not count."""
    names = ("llama-server", "ollama", "vllm", "koboldcpp-linux-x64-cuda1210")
    for name in names:
        program(tmp_path / "bin" / name)
    program(tmp_path / "bin" / "koboldcpp-rocm", 0o644)
    for name in ("koboldcpp.sh", "koboldcpp_default.so", "koboldcpp.kcpps", "my-koboldcpp"):
        program(tmp_path / "bin" / name)
    assert found(around) == [
        ("llamacpp", str(tmp_path / "bin" / "llama-server")),
        ("koboldcpp", str(tmp_path / "bin" / "koboldcpp-linux-x64-cuda1210")),
        ("ollama", str(tmp_path / "bin" / "ollama")),
        ("vllm", str(tmp_path / "bin" / "vllm")),
    ]


def test_builds_below_home(around: Surroundings) -> None:
    """Where a clone of llama.cpp puts its server, downloads of koboldcpp, an environment of vLLM."""
    home = around.home
    program(home / "src" / "llama.cpp" / "build" / "bin" / "llama-server")
    program(home / "Downloads" / "koboldcpp-linux-x64")
    program(home / "vllm" / ".venv" / "bin" / "vllm")
    assert [kind for kind, _ in found(around)] == ["llamacpp", "koboldcpp", "vllm"]


def test_one_program_by_two_names(around: Surroundings, tmp_path: Path) -> None:
    """A link in PATH to the build below home is one program; the better name wins."""
    built = program(around.home / "llama.cpp" / "build" / "bin" / "llama-server")
    (tmp_path / "bin" / "llama-server").symlink_to(built)
    assert found(around) == [("llamacpp", str(tmp_path / "bin" / "llama-server"))]


def test_checkouts_whatever_they_are_called(around: Surroundings) -> None:
    """A1111 and Forge by their files; ComfyUI with the Python of its own environment."""
    home = around.home
    webui(home / "stable-diffusion-webui-forge")
    webui(home / "AI" / "pictures")
    comfyui(home / "comfy" / "ComfyUI")
    python = home / "comfy" / "ComfyUI" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    programs = find_programs(around)
    assert [(one.type, one.path) for one in programs] == [
        ("sdwebui", str(home / "stable-diffusion-webui-forge" / "webui.sh")),
        ("sdwebui", str(home / "AI" / "pictures" / "webui.sh")),
        ("comfyui", str(python)),
    ]
    assert programs[2].parameters == ("main.py",)
    assert programs[2].folder == home / "comfy" / "ComfyUI"


def test_comfyui_without_an_environment(around: Surroundings, tmp_path: Path) -> None:
    """The Python in PATH then; without one it cannot be started."""
    comfyui(around.home / "ComfyUI")
    assert found(around) == []
    python = program(tmp_path / "bin" / "python3")
    assert found(around) == [("comfyui", str(python))]


def test_other_folders_are_no_checkouts(around: Surroundings) -> None:
    """A main.py or a webui.sh alone prove nothing."""
    (around.home / "project").mkdir()
    (around.home / "project" / "main.py").write_text("")
    program(around.home / "tool" / "webui.sh")
    assert found(around) == []


def test_names_that_no_configuration_can_hold(around: Surroundings) -> None:
    """Passed over."""
    webui(around.home / "line\nend")
    assert found(around) == []


def test_not_more_than_a_few(around: Surroundings) -> None:
    """Of one type; a folder with a thousand entries is looked at in part."""
    for number in range(6):
        webui(around.home / f"webui{number}")
    assert len(found(around)) == 3


def test_the_wheel_beside_this_interpreter(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last resort for llama.cpp, known to compute on the processor."""
    monkeypatch.setattr("juggler.setup.programs.importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("juggler.setup.programs.sysconfig.get_path", lambda name: str(tmp_path / "scripts"))
    own = program(tmp_path / "scripts" / "juggler-llama-server")
    (only,) = find_programs(around)
    assert isinstance(only, Program)
    assert (only.path, only.cpu_only) == (str(own), True)
    program(tmp_path / "bin" / "llama-server")
    assert [one.cpu_only for one in find_programs(around)] == [False, True]
