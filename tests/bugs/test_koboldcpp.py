"""Bugs 21 to 23 of the prototype (backends.md section 11): koboldcpp. Each test would fail with its bug."""

import json
from pathlib import Path
from typing import Any

import pytest

from juggler.backends.base import Address, BackendSettings, LaunchPlan
from juggler.backends.koboldcpp import KoboldCppBackend
from juggler.lifecycle.guardian import remove_paths
from tests.unit.backends.fake_caller import settings

HERE = Address("127.0.0.1", 5555)


def planned(tmp_path: Path, *parameters: str) -> LaunchPlan:
    from dataclasses import replace

    binary = tmp_path / "koboldcpp"
    binary.touch(mode=0o755)
    (tmp_path / "temp").mkdir(exist_ok=True)
    plain: BackendSettings = settings("koboldcpp", *parameters, binary=str(binary))
    return KoboldCppBackend(replace(plain, temp_dir=tmp_path / "temp", cwd=str(tmp_path))).plan(HERE, {"PATH": "/bin"})


def write(tmp_path: Path, name: str, **content: Any) -> str:
    (tmp_path / name).write_text(json.dumps(content))
    return str(tmp_path / name)


def config_of(plan: LaunchPlan) -> Path:
    return Path(plan.argv[plan.argv.index("--config") + 1])


def test_bug_21_other_arguments_survive_a_config(tmp_path: Path) -> None:
    """The program honours them beside ``--config``, so they are handed over."""
    file = write(tmp_path, "a.kcpps", model_param="a.gguf")
    plan = planned(tmp_path, "--config", file, "--contextsize", "8192", "--usecublas")
    assert "8192" in plan.argv
    assert "--usecublas" in plan.argv
    remove_paths(list(plan.temp_files))


def test_bug_22_the_copy_is_private_unique_and_removed(tmp_path: Path) -> None:
    """Nobody else can read the passwords in it, two starts do not share it, its folder is made, and it goes."""
    file = write(tmp_path, "a.kcpps", model_param="a.gguf", password="geheim")
    plans = [planned(tmp_path, "--config", file) for _ in range(2)]
    copies = [config_of(plan) for plan in plans]
    assert copies[0] != copies[1]
    for copy in copies:
        assert copy.stat().st_mode & 0o077 == 0
        assert ".." not in copy.name
        assert copy.suffix == ".kcpps"
    for plan in plans:
        remove_paths(list(plan.temp_files))
    assert not any(copy.exists() for copy in copies)


@pytest.mark.parametrize(
    "parameters",
    [
        ("model.gguf", "6000"),
        ("--model", "FILE"),
        ("FILE", "6000"),
        ("-m", "FILE", "--por=6000"),
        ("--config=FILE", "--port", "6000", "--host", ""),
        ("--config", "FILE", "--hos=0.0.0.0"),
    ],
)
def test_bug_23_the_address_is_ours_in_every_form(tmp_path: Path, parameters: tuple[str, ...]) -> None:
    """Positional port, settings file in any place, abbreviations, and no address at all: ours, and this machine's."""
    file = write(tmp_path, "a.kcpps", model_param="a.gguf", port=7000, port_param=7000, host="")
    (tmp_path / "model.gguf").touch()
    plan = planned(tmp_path, *(word.replace("FILE", file) for word in parameters))
    argv = list(plan.argv)
    assert argv[argv.index("--port") + 1] == "5555"
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert not {"6000", "7000", "0.0.0.0", "--por=6000"} & set(argv)
    if "--config" in argv:
        content = json.loads(config_of(plan).read_text())
        assert (content["port"], content["port_param"], content["host"]) == (5555, 5555, "127.0.0.1")
    remove_paths(list(plan.temp_files))
