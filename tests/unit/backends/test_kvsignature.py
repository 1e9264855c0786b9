"""What decides whether a saved KV cache fits."""

import os
from pathlib import Path

import pytest

from juggler.backends.kvsignature import signature_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("server", "m.gguf", "mm.gguf", "lora.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"):
        (tmp_path / name).write_text(name)
    return tmp_path


def sign(folder: Path, *parameters: str, instance: str = "a/b", **environ: str) -> str:
    return signature_of(str(folder / "server"), parameters, str(folder), environ, instance)


def test_digest_is_a_stable_file_name(folder: Path) -> None:
    """Equal inputs give the equal name, made of characters that any file system takes."""
    one = sign(folder, "-m", "m.gguf")
    assert one == sign(folder, "-m", "m.gguf")
    assert one.isalnum()


@pytest.mark.parametrize(
    "extra",
    [
        ("-c", "4096"),
        ("-ctk", "q8_0"),
        ("-ctv", "q8_0"),
        ("-fa", "off"),
        ("-np", "2"),
        ("--kv-unified",),
        ("--rope-freq-base", "10000"),
        ("--yarn-orig-ctx", "4096"),
        ("--swa-full",),
        ("--mmproj", "mm.gguf"),
        ("--lora", "lora.gguf"),
        ("--lora-scaled", "lora.gguf:0.5"),
        ("--override-kv", "x=int:1"),
    ],
)
def test_what_matters_changes_it(folder: Path, extra: tuple[str, ...]) -> None:
    """Each option that decides content or layout of the cache gives another name."""
    assert sign(folder, "-m", "m.gguf") != sign(folder, "-m", "m.gguf", *extra)


@pytest.mark.parametrize(
    "extra",
    [("--temp", "0.1"), ("--seed", "-1"), ("--api-key", "x"), ("--jinja",), ("-t", "4"), ("--chat_template", "x")],
)
def test_what_does_not_matter_keeps_it(folder: Path, extra: tuple[str, ...]) -> None:
    """Sampling, keys and templates may change without losing the saved state."""
    assert sign(folder, "-m", "m.gguf") == sign(folder, "-m", "m.gguf", *extra)


@pytest.mark.parametrize("name", ["server", "m.gguf", "mm.gguf", "lora.gguf"])
def test_changed_files_change_it(folder: Path, name: str) -> None:
    """Same names, other weights or program: told by size and time of change."""
    words = ("-m", "m.gguf", "--mmproj", "mm.gguf", "--lora-scaled", "lora.gguf:0.5")
    before = sign(folder, *words)
    os.utime(folder / name, ns=(1, 1))
    assert sign(folder, *words) != before


def test_every_part_of_a_split_model_counts(folder: Path) -> None:
    """The command line names only the first part."""
    before = sign(folder, "-m", "big-00001-of-00002.gguf")
    (folder / "big-00002-of-00002.gguf").write_text("other weights")
    assert sign(folder, "-m", "big-00001-of-00002.gguf") != before


def test_environment_counts_like_options(folder: Path) -> None:
    """llama-server takes its model and context from LLAMA_ARG_* too; its address does not matter."""
    plain = sign(folder, LLAMA_ARG_MODEL="m.gguf")
    assert plain == sign(folder, LLAMA_ARG_MODEL="m.gguf", LLAMA_ARG_PORT="1", HOME="/x")
    assert plain != sign(folder, LLAMA_ARG_MODEL="m.gguf", LLAMA_ARG_CTX_SIZE="1")
    (folder / "m.gguf").write_text("other weights")
    assert plain != sign(folder, LLAMA_ARG_MODEL="m.gguf")


def test_instances_never_share(folder: Path) -> None:
    """Two endpoints on one model keep their conversations apart."""
    assert sign(folder, "-m", "m.gguf", instance="a/b") != sign(folder, "-m", "m.gguf", instance="a/c")


def test_link_to_the_same_file_is_the_same_model(folder: Path) -> None:
    """Paths are resolved, and the words of the operator still count."""
    (folder / "link.gguf").symlink_to(folder / "m.gguf")
    before = sign(folder, "-m", "link.gguf")
    (folder / "link.gguf").unlink()
    (folder / "link.gguf").symlink_to(folder / "mm.gguf")
    assert sign(folder, "-m", "link.gguf") != before
