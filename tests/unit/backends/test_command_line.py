"""Finding programs and reading command lines as llama.cpp does."""

import os
from pathlib import Path

import pytest

from juggler.backends.command_line import (
    canonical,
    find_executable,
    has_option,
    option_value,
    option_values,
    without_options,
    without_variables,
)
from juggler.errors import StartFailed


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "bin" / "tool"
    file.parent.mkdir()
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def refusal(binary: str, cwd: Path | None = None, path: str = "") -> StartFailed:
    with pytest.raises(StartFailed) as caught:
        find_executable(binary, endpoint="end", cwd=None if cwd is None else str(cwd), path=path)
    return caught.value


def test_program_is_found_by_name_and_by_path(program: Path) -> None:
    """A bare name is looked up on PATH; a path may be absolute or start at ``cwd``."""
    folder, base = str(program.parent), str(program.parent.parent)
    assert find_executable("tool", endpoint="end", cwd=None, path=folder) == str(program)
    assert find_executable(str(program), endpoint="end", cwd="/", path="") == str(program)
    assert find_executable("bin/tool", endpoint="end", cwd=base, path="") == str(program)


def test_what_cannot_run_is_refused_with_a_hint(program: Path) -> None:
    """Missing, a directory and not executable are told apart, and each says what to do."""
    missing, folder = refusal("tool", path="/nowhere"), refusal(str(program.parent))
    assert "PATH" in missing.message
    assert "full path" in (missing.hint or "")
    assert "is a directory" in folder.message
    assert "does not exist" in refusal("bin/none", program.parent.parent).message
    program.chmod(0o644)
    if os.geteuid() != 0 or not os.access(program, os.X_OK):
        assert "chmod +x" in (refusal(str(program)).hint or "")


def test_options_go_with_their_values() -> None:
    """Each removed option takes its value along; everything else stays in order, underscores or not."""
    words = ["-m", "a", "--host", "0.0.0.0", "--reuse_port", "-p", "9", "--port", "8081", "-c", "1"]
    kept = without_options(words, with_value={"--host", "--port"}, flags={"--reuse-port"})
    assert kept == ["-m", "a", "-p", "9", "-c", "1"]


def test_equals_form_is_left_for_the_program_to_refuse() -> None:
    """llama.cpp rejects ``--port=1`` itself; rewriting it would hide the mistake."""
    assert without_options(["--port=1"], with_value={"--port"}) == ["--port=1"]


def test_option_at_the_end_without_value() -> None:
    """A cut-off command line loses the option and nothing else."""
    assert without_options(["-m", "a", "--port"], with_value={"--port"}) == ["-m", "a"]


def test_reading_values() -> None:
    """The last one wins; repeated ones can be had all; flags are seen."""
    words = ["--api_prefix", "/a", "--api-prefix", "/b", "--metrics", "--lora", "x", "--lora", "y"]
    assert option_value(words, {"--api-prefix"}) == "/b"
    assert option_value(words, {"--none"}) is None
    assert option_value(["--api-prefix"], {"--api-prefix"}) is None
    assert option_values(words, {"--lora"}) == [("x",), ("y",)]
    assert has_option(words, {"--metrics"})
    assert not has_option(words, {"--slots"})
    assert canonical("-a_b") == "-a_b"


def test_environment_without_some() -> None:
    """A copy: the original keeps its variables."""
    environ = {"A": "1", "B": "2"}
    assert without_variables(environ, {"A"}) == {"B": "2"}
    assert environ == {"A": "1", "B": "2"}
