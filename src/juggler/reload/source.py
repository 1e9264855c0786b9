"""The file that a juggler runs by: read whole, and told apart from what it was before."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.config.load import LoadedConfig, load_config
from juggler.config.problems import Problem
from juggler.config.resolve import ResolvedConfig, resolve

Identity = tuple[str, int, int, int, int]
"""Path behind all links, device, inode, size and time of the last change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Read:
    """One version of the file, checked and ready to be used."""

    config: ResolvedConfig
    warnings: Sequence[Problem]
    digest: str
    text: str


def read_config(path: Path) -> Read:
    """Read, check and resolve; blocks on the disk.

    Raises:
        ConfigError: As ``load_config``.
    """
    return read_from(load_config(path))


def read_from(loaded: LoadedConfig) -> Read:
    """What was loaded already."""
    text = loaded.source.text
    return Read(resolve(loaded), loaded.warnings, digest_of(text), text)


def digest_of(text: str) -> str:
    """Equal for equal texts."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def identity_of(path: Path) -> Identity | None:
    """Which file it is, and in which state; None while there is none. Blocks on the disk.

    Editors write a new file and rename it over the old one; deployments move a link. Both give another inode or path,
    also where size and time happen to be the same.
    """
    try:
        behind = os.path.realpath(path, strict=True)
        state = os.stat(behind)  # noqa: PTH116  # realpath gives text
    except OSError:
        return None
    return behind, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
