"""Model files of this user: found by a bounded walk, told apart by what they say of themselves. Blocks on the disk.

A GGUF file is taken if llama-server could load it: it has a vocabulary, all its parts are there, and it is complete.
Projectors (``mmproj``) are given to the model they belong to.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from juggler.survey.gguf import GgufHead, NotGguf, is_later_part, parts_of, plain_stem, read_head
from juggler.units import SECONDS

DEPTH_MAX = 6
"""Hugging Face's cache is the deepest: ``hub/models--owner--name/snapshots/revision/folder/file``."""

ENTRIES_MAX = 50_000
FILES_MAX = 300
WALK_LIMIT_S = 5 * SECONDS
"""For walking and reading heads together: a cold disk gives 10 000 entries in that time."""

_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "venv", "env", "site-packages", "blobs"})
_PRECISIONS = ("f16", "bf16", "q8", "f32")
"""Of projectors, best first: half precision loses nothing, and full costs twice."""

_WORD = re.compile(r"[a-z]+|[0-9]+")
_NOISE = frozenset({"mmproj", "model", "gguf", "f", "bf", "q", "k", "m", "s", "l", "xl", "iq", "it", "instruct", "ud"})


@dataclass(frozen=True)
class Model:
    """A language model that llama-server can load."""

    path: Path
    """Of its first part."""
    size_bytes: int
    """Of all parts."""
    head: GgufHead
    projector: Path | None = None
    projector_bytes: int = 0

    @property
    def name(self) -> str:
        return plain_stem(self.path)

    @property
    def is_embedding(self) -> bool:
        """Whether it makes vectors, not text (BERT and its kin: llama.cpp ``src/llama-arch.cpp``)."""
        return "bert" in self.head.architecture or self.head.number("pooling_type") in (1, 2, 3)


@dataclass
class ModelSearch:
    """What a search has found."""

    models: list[Model] = field(default_factory=list)
    kcpps: list[Path] = field(default_factory=list)
    """Configurations saved by koboldcpp."""
    folders: list[Path] = field(default_factory=list)
    """Those that hold something of all this."""
    unreadable: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Files that look like models and cannot be used, each with the reason."""
    cut_short: str | None = None
    """Which bound ended the search, if one did."""


def find_models(folders: Sequence[Path], limit_s: float = WALK_LIMIT_S) -> ModelSearch:
    """Search some folders; never raises for what lies in them."""
    search = ModelSearch()
    deadline = time.monotonic() + limit_s
    files: dict[tuple[int, int], Path] = {}
    projectors: list[tuple[Path, GgufHead]] = []
    for path in _Walk(search, deadline).files(folders):
        try:
            status = path.stat()
        except OSError:  # a link to nowhere
            continue
        if (status.st_dev, status.st_ino) in files:
            continue
        if len(files) >= FILES_MAX or time.monotonic() > deadline:
            search.cut_short = f"more than {FILES_MAX} files" if len(files) >= FILES_MAX else "it took too long"
            break
        files[status.st_dev, status.st_ino] = path
        _take(path, search, projectors)
    search.models = [_with_projector(model, projectors, search.models) for model in search.models]
    search.models.sort(key=lambda model: (-model.size_bytes, model.name, str(model.path)))
    search.folders = list(dict.fromkeys([*(m.path.parent for m in search.models), *(k.parent for k in search.kcpps)]))
    return search


class _Walk:
    """One walk over some folders: each folder once, however many links lead to it."""

    def __init__(self, search: ModelSearch, deadline: float) -> None:
        self._search = search
        self._deadline = deadline
        self._seen: set[tuple[int, int]] = set()
        self._entries = 0

    def files(self, folders: Iterable[Path]) -> Iterator[Path]:
        """Files by their endings, folder by folder."""
        for folder in folders:
            yield from self._below(folder, 0)

    def _below(self, folder: Path, depth: int) -> Iterator[Path]:
        if self._search.cut_short is not None or not self._is_new(folder):
            return
        inner = []
        for entry in self._list(folder):
            lower = entry.name.lower()
            try:
                if lower.endswith((".gguf", ".kcpps")):
                    if entry.is_file():
                        yield Path(entry.path)
                elif depth < DEPTH_MAX and lower[:1] != "." and lower not in _SKIPPED_FOLDERS and entry.is_dir():
                    inner.append(Path(entry.path))
            except OSError:  # a loop of links
                continue
        for path in inner:
            yield from self._below(path, depth + 1)

    def _is_new(self, folder: Path) -> bool:
        try:
            status = folder.stat()
        except OSError:
            return False
        known = (status.st_dev, status.st_ino) in self._seen
        self._seen.add((status.st_dev, status.st_ino))
        return not known

    def _list(self, folder: Path) -> list[os.DirEntry[str]]:
        listed: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._entries += 1
                    if self._entries > ENTRIES_MAX:
                        self._search.cut_short = f"more than {ENTRIES_MAX} entries"
                        break
                    if time.monotonic() > self._deadline:
                        self._search.cut_short = "it took too long"
                        break
                    listed.append(entry)
        except NotADirectoryError:
            return []
        except OSError:
            self._search.unreadable.append(folder)
        return sorted(listed, key=lambda entry: entry.name)


def _take(path: Path, search: ModelSearch, projectors: list[tuple[Path, GgufHead]]) -> None:
    """Sort one file into what it is."""
    if not str(path).isprintable():
        search.left_out.append(f"{path.name!a}: characters in its name that a configuration cannot hold")
        return
    if path.suffix.lower() == ".kcpps":
        search.kcpps.append(path)
        return
    if is_later_part(path):
        return
    parts = parts_of(path)
    try:
        heads = [read_head(part) for part in parts]
        sizes = [part.stat().st_size for part in parts]
    except NotGguf as error:
        search.left_out.append(f"{path.name}: {error}")
        return
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and len(parts) > 1
        search.left_out.append(f"{path.name}: {'a part of it is missing' if missing else error.strerror}")
        return
    if any(size < head.least_bytes for size, head in zip(sizes, heads, strict=True)):
        search.left_out.append(f"{path.name}: incomplete")
    elif heads[0].is_projector or "mmproj" in path.name.lower():
        projectors.append((path, heads[0]))
    elif heads[0].is_language_model:
        search.models.append(Model(path, sum(sizes), heads[0]))
    else:
        search.left_out.append(f"{path.name}: no language model ({heads[0].architecture or 'unknown kind'})")


def _with_projector(model: Model, projectors: Sequence[tuple[Path, GgufHead]], models: Sequence[Model]) -> Model:
    """The model with the projector that belongs to it, if one lies in its folder.

    Its name says which model it is for (``mmproj-gemma-3-27b-it-f16``); one that says nothing (``mmproj-F16``) is for
    the only model of its folder, in however many quantizations that is there.
    """
    own = _words(model.path)
    alone = all(_words(other.path) == own for other in models if other.path.parent == model.path.parent)
    related = []
    for path, head in projectors:
        words = _words(path)
        if path.parent == model.path.parent and _fits(model, head) and (words <= own if words else alone):
            related.append((-len(words), _precision(path), path.name, path))
    if not related:
        return model
    path = min(related)[3]
    return replace(model, projector=path, projector_bytes=path.stat().st_size)


def _fits(model: Model, projector: GgufHead) -> bool:
    """Whether what the projector makes has the model's width; llama.cpp refuses others (``tools/mtmd/mtmd.cpp``)."""
    width = projector.values.get("clip.vision.projection_dim") or projector.values.get("clip.audio.projection_dim")
    own = model.head.number("embedding_length")
    return width is None or own is None or width == own


def _words(path: Path) -> set[str]:
    """The words and numbers of a name that tell models apart."""
    stem = re.sub(r"(i?q[0-9]_\w+|b?f(16|32))", " ", plain_stem(path).lower())
    return {word for word in _WORD.findall(stem) if word not in _NOISE}


def _precision(path: Path) -> int:
    name = path.name.lower()
    found = [number for number, word in enumerate(_PRECISIONS) if word in name]
    return max(found) if found == [0, 1] else min(found, default=len(_PRECISIONS))  # "bf16" holds "f16"
