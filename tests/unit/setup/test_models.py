"""Model files: found by a bounded walk, and told apart."""

import os
import random
import time
from pathlib import Path

import pytest

from juggler.setup import models
from juggler.setup.models import ModelSearch, find_models
from juggler.survey import gguf
from tests.unit.survey.gguf_files import LLAMA, Written, write_gguf

PROJECTOR: dict[str, Written] = {
    "general.architecture": "clip",
    "general.type": "mmproj",
    "clip.vision.projection_dim": 4096,
}


def names(search: ModelSearch) -> list[str]:
    return [model.name for model in search.models]


def test_models_largest_first(tmp_path: Path) -> None:
    """Those that llama-server can load; all others with the reason."""
    write_gguf(tmp_path / "small.gguf", size_bytes=5_000)
    write_gguf(tmp_path / "a" / "b" / "large.gguf", size_bytes=50_000)
    write_gguf(tmp_path / "flux.gguf", {"general.architecture": "flux"})
    write_gguf(tmp_path / "cut.gguf", tensor_offset=100_000)
    os.truncate(tmp_path / "cut.gguf", 50_000)
    (tmp_path / "lfs.gguf").write_text("version https://git-lfs")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "saved.kcpps").write_text("{}")
    search = find_models([tmp_path])
    assert names(search) == ["large", "small"]
    assert search.kcpps == [tmp_path / "saved.kcpps"]
    assert search.folders == [tmp_path / "a" / "b", tmp_path]
    assert sorted(search.left_out) == [
        "cut.gguf: incomplete",
        "flux.gguf: no language model (flux)",
        "lfs.gguf: it does not begin as GGUF files do",
    ]
    assert search.cut_short is None


def test_split_models_count_once(tmp_path: Path) -> None:
    """With the size of all parts; without one of them the model is left out."""
    for number in (1, 2, 3):
        write_gguf(tmp_path / f"big-0000{number}-of-00003.gguf", size_bytes=10_000)
        if number != 2:
            write_gguf(tmp_path / f"torn-0000{number}-of-00003.gguf")
    search = find_models([tmp_path])
    assert names(search) == ["big"]
    assert search.models[0].path.name == "big-00001-of-00003.gguf"
    assert search.models[0].size_bytes == 30_000
    assert search.left_out == ["torn-00001-of-00003.gguf: a part of it is missing"]


def test_loops_and_doubles(tmp_path: Path) -> None:
    """Links that lead back, links to the same file, and folders named twice: each file once."""
    write_gguf(tmp_path / "hub" / "blobs" / "0123")
    snapshot = tmp_path / "hub" / "models--x" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "m.gguf").symlink_to(tmp_path / "hub" / "blobs" / "0123")
    (tmp_path / "hub" / "again").symlink_to(tmp_path / "hub")
    (tmp_path / "hub" / "loop").symlink_to("loop")
    (tmp_path / "hub" / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "hub" / "gone.gguf").symlink_to("nowhere")
    (tmp_path / "hub" / "copy.gguf").symlink_to(snapshot / "m.gguf")
    search = find_models([tmp_path / "hub", tmp_path, tmp_path / "hub", tmp_path / "none", tmp_path / "hub" / "loop"])
    assert len(search.models) == 1
    assert search.unreadable == []


def test_hidden_and_foreign_folders_are_passed_over(tmp_path: Path) -> None:
    """Environments and repositories hold thousands of entries and no models."""
    for folder in (".git", "node_modules", "venv"):
        write_gguf(tmp_path / folder / "m.gguf")
    assert find_models([tmp_path]).models == []


def test_deep_folders(tmp_path: Path) -> None:
    """Down to the depth of Hugging Face's cache, and not for ever."""
    write_gguf(tmp_path.joinpath(*"123456", "m.gguf"))
    write_gguf(tmp_path.joinpath(*"1234567", "too-deep.gguf"))
    assert names(find_models([tmp_path])) == ["m"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    """Named, and the search goes on."""
    (tmp_path / "closed").mkdir(mode=0)
    write_gguf(tmp_path / "m.gguf")
    search = find_models([tmp_path])
    assert (names(search), search.unreadable) == (["m"], [tmp_path / "closed"])


def test_folders_that_may_not_be_read_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the system's answer made up; a file that may not be read is left out."""
    write_gguf(tmp_path / "closed" / "m.gguf")
    write_gguf(tmp_path / "n.gguf")
    real_scan, real_head = os.scandir, gguf.read_head

    def scandir(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real_scan(path)

    def read_head(path: Path) -> object:
        if path.name == "n.gguf":
            raise PermissionError(13, "Permission denied")
        return real_head(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(models, "read_head", read_head)
    search = find_models([tmp_path])
    assert search.unreadable == [tmp_path / "closed"]
    assert search.left_out == ["n.gguf: Permission denied"]


def test_names_that_no_configuration_can_hold(tmp_path: Path) -> None:
    """Control characters and bytes that are no text."""
    write_gguf(tmp_path / "line\nend.gguf")
    write_gguf(Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.gguf")))
    search = find_models([tmp_path])
    assert search.models == []
    assert len(search.left_out) == 2
    assert all(line.isprintable() for line in search.left_out)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, entries and time: the search ends, and says what ended it."""
    for number in range(12):
        write_gguf(tmp_path / f"f{number % 3}" / f"{number}.gguf")
    monkeypatch.setattr(models, "FILES_MAX", 5)
    search = find_models([tmp_path])
    assert (len(search.models), search.cut_short) == (5, "more than 5 files")
    monkeypatch.setattr(models, "ENTRIES_MAX", 6)
    assert find_models([tmp_path]).cut_short == "more than 6 entries"
    began = time.monotonic()
    assert find_models([tmp_path], limit_s=-1).cut_short == "it took too long"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("projectors", "expected"),
    [
        ({"mmproj-gemma-3-27b-it-f16.gguf": 4096}, "mmproj-gemma-3-27b-it-f16.gguf"),
        ({"gemma-3-27b-mmproj-BF16.gguf": 4096}, "gemma-3-27b-mmproj-BF16.gguf"),
        ({"mmproj-F32.gguf": 4096, "mmproj-F16.gguf": 4096, "mmproj-BF16.gguf": 4096}, "mmproj-F16.gguf"),
        ({"mmproj-model-f16.gguf": 4096, "mmproj-gemma-3-27b-f32.gguf": 4096}, "mmproj-gemma-3-27b-f32.gguf"),
        ({"mmproj-gemma-3-12b-it-f16.gguf": 4096}, None),
        ({"mmproj-F16.gguf": 3840}, None),
        ({}, None),
    ],
)
def test_projectors(tmp_path: Path, projectors: dict[str, int], expected: str | None) -> None:
    """By name, by width, by precision; one for another model is not taken."""
    write_gguf(tmp_path / "google_gemma-3-27b-it-Q5_K_M.gguf", size_bytes=9_000)
    for name, width in projectors.items():
        write_gguf(tmp_path / name, {**PROJECTOR, "clip.vision.projection_dim": width}, size_bytes=7_000)
    (model,) = find_models([tmp_path]).models
    assert (model.projector.name if model.projector else None) == expected
    assert model.projector_bytes == (7_000 if expected else 0)


def test_a_nameless_projector_among_many_models(tmp_path: Path) -> None:
    """It could be anybody's: nobody gets it. Two quantizations of one model are one model, though."""
    write_gguf(tmp_path / "mmproj-F16.gguf", PROJECTOR)
    write_gguf(tmp_path / "gemma-3-27b-it-Q4_K_M.gguf")
    write_gguf(tmp_path / "gemma-3-27b-it-Q8_0.gguf")
    assert all(model.projector is not None for model in find_models([tmp_path]).models)
    write_gguf(tmp_path / "qwen3-8b-Q8_0.gguf")
    assert all(model.projector is None for model in find_models([tmp_path]).models)


def test_embedding_models(tmp_path: Path) -> None:
    """By their architecture, or because they pool."""
    write_gguf(tmp_path / "nomic.gguf", {**LLAMA, "general.architecture": "nomic-bert"})
    write_gguf(tmp_path / "qwen3-embedding.gguf", {**LLAMA, "llama.pooling_type": 3})
    write_gguf(tmp_path / "chat.gguf")
    embedding = {model.name: model.is_embedding for model in find_models([tmp_path]).models}
    assert embedding == {"nomic": True, "qwen3-embedding": True, "chat": False}


def test_the_order_of_the_disk_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs write the same configuration."""
    for number in range(6):
        write_gguf(tmp_path / f"m{number}.gguf")
    first = names(find_models([tmp_path]))
    real = os.scandir

    class Shuffled:
        def __init__(self, path: Path) -> None:
            self.entries = list(real(path))
            random.Random(3).shuffle(self.entries)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert names(find_models([tmp_path])) == first
