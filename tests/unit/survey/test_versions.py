"""Finding the version among what programs print around it."""

import pytest

from juggler.survey.versions import CHARACTERS_MAX, find_version, shortened


@pytest.mark.parametrize(
    ("lines", "version"),
    [
        (
            ["ggml_cuda_init: found 1 CUDA devices:", "version: 6200 (a1b2c3d)", "built with cc 12.2.0"],
            "version: 6200 (a1b2c3d)",
        ),
        (
            ["Warning: could not connect to a running Ollama instance", "Warning: client version is 0.12.3"],
            "Warning: client version is 0.12.3",
        ),
        (["ollama version is 0.12.3"], "ollama version is 0.12.3"),
        (["INFO 11-22 12:00:01 importing.py:10 Triton 3.0 is there", "0.11.0"], "0.11.0"),
        (["1.116.1"], "1.116.1"),
        (["0.6.3.post1+cu121"], "0.6.3.post1+cu121"),
        (["ComfyUI 0.3.64"], "ComfyUI 0.3.64"),
        (["error: no such option"], None),
        (["runs", "built with cc (Debian 12.2.0) for x86_64-linux-gnu"], None),
        ([], None),
    ],
)
def test_versions(lines: list[str], version: str | None) -> None:
    """As llama.cpp, ollama, vLLM and koboldcpp print them."""
    assert find_version(lines) == version


def test_errors_are_no_versions() -> None:
    """Of a program that failed only what is plainly a version counts."""
    assert find_version(["libcudart.so 12.4 is missing"], strict=True) is None
    assert find_version(["version: 7 (a)"], strict=True) == "version: 7 (a)"


def test_lines_are_made_fit_for_a_report() -> None:
    """Neither a control character nor a novel."""
    assert shortened("a\x1b[2Jb") == "a [2Jb"
    assert len(shortened("1.2 " * 100)) == CHARACTERS_MAX
