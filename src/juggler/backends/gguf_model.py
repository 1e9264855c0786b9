"""The GGUF files behind a command line: looked at for memory estimates and for reading ahead. Blocking.

Whatever is wrong with a file is told when the program is started; here it only means that nothing is known of it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from juggler.memory.footprint import MemoryEstimate
from juggler.memory.gguf_estimate import GgufFiles, GgufOptions, estimate
from juggler.survey.gguf import GgufHead, NotGguf, parts_of, read_head


def existing(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The regular files among some paths, every part of a split model, links followed, each once."""
    found: dict[Path, None] = {}
    for path in paths:
        for part in parts_of(path):
            try:
                real = part.resolve()
                if real.is_file():
                    found[real] = None
            except (OSError, RuntimeError, ValueError):
                continue
    return tuple(found)


def estimate_files(
    model: Path, options: GgufOptions, *, projector: Path | None = None, draft: Path | None = None
) -> MemoryEstimate | None:
    """What the model will take; None where its files are missing, damaged or of another kind."""
    files = _look_at(model)
    if files is None:
        return None
    projector_bytes = _size(existing([projector])) if projector is not None else 0
    return estimate(
        GgufFiles(files.heads, files.size_bytes, projector_bytes, _look_at(draft) if draft is not None else None),
        options,
    )


def _look_at(model: Path) -> GgufFiles | None:
    parts = existing([model])
    heads: list[GgufHead] = []
    for part in parts:
        try:
            heads.append(read_head(part))
        except (NotGguf, OSError):
            return None
    if not heads or not heads[0].layers:
        return None
    return GgufFiles(heads, _size(parts))


def _size(files: Sequence[Path]) -> int:
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
