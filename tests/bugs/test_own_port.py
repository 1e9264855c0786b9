"""Bug 10 of the prototype for every type that has a port option: the operator's own port never survives."""

import os
from pathlib import Path

import pytest

from juggler.backends.base import Address
from juggler.backends.registry import BACKENDS
from juggler.lifecycle.guardian import remove_paths
from tests.unit.backends.fake_caller import settings


@pytest.mark.parametrize("form", [("--port", "6543"), ("--port=6543",), ("--por", "6543"), ("--por=6543",)])
@pytest.mark.parametrize("type_name", ["llamacpp", "sdwebui", "koboldcpp", "comfyui", "vllm"])
def test_bug_10_a_port_of_the_operator_does_not_survive(
    tmp_path: Path, type_name: str, form: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no form its parser takes, nor in the environment; llama.cpp takes one form and refuses the others itself."""
    if type_name == "llamacpp" and form != ("--port", "6543"):
        pytest.skip("llama.cpp ends with an error at this form")
    binary = tmp_path / {"sdwebui": "webui.sh"}.get(type_name, "program")
    binary.touch(mode=0o755)
    env = {"COMMANDLINE_ARGS": "--port 6543"} if type_name == "sdwebui" else {}
    made = settings(type_name, *form, binary=str(binary), env=env, cwd=str(tmp_path))
    plan = BACKENDS[type_name](made).plan(Address("127.0.0.1", 5555), {"PATH": os.environ["PATH"]})
    try:
        assert not [word for word in plan.argv if "6543" in word]
        assert "5555" in plan.argv
        assert "6543" not in plan.env.get("COMMANDLINE_ARGS", "")
    finally:
        remove_paths(list(plan.temp_files))
