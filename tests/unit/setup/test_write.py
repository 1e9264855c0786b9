"""Writing the file: whole, private, and never over another one unasked."""

import os
import stat
from pathlib import Path

import pytest

from juggler.setup.write import Refused, refuse_existing, write_file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file(tmp_path: Path) -> None:
    """Private, with plain line ends, and nothing beside it."""
    path = tmp_path / "config.json"
    write_file(path, "grün\n", replace=False)
    assert path.read_bytes() == "grün\n".encode()
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    """A file, a link to nowhere, and a file that appeared since the first look."""
    path = tmp_path / "config.json"
    refuse_existing(path)
    path.symlink_to("nowhere")
    with pytest.raises(Refused, match="is there already"):
        refuse_existing(path)
    with pytest.raises(Refused, match="is there already"):
        write_file(path, "new", replace=False)
    path.unlink()
    path.write_text("old")
    with pytest.raises(Refused, match="is there already"):
        write_file(path, "new", replace=False)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing(tmp_path: Path) -> None:
    """Through a link, keeping the mode that somebody chose."""
    path = tmp_path / "real.json"
    path.write_text("old")
    path.chmod(0o664)
    link = tmp_path / "config.json"
    link.symlink_to(path)
    write_file(link, "new", replace=True)
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert mode(path) == 0o664
    fresh = tmp_path / "fresh.json"
    write_file(fresh, "new", replace=True)
    assert mode(fresh) == 0o600


def test_directories(tmp_path: Path) -> None:
    """A directory is not replaced, and one that is missing is not made."""
    for replace in (False, True):
        with pytest.raises(Refused):
            write_file(tmp_path, "x", replace=replace)
        with pytest.raises(Refused, match="cannot be written: No such file or directory"):
            write_file(tmp_path / "none" / "c.json", "x", replace=replace)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    """Said in a sentence."""
    tmp_path.chmod(0o500)
    with pytest.raises(Refused, match="Permission denied"):
        write_file(tmp_path / "c.json", "x", replace=False)
    tmp_path.chmod(0o700)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file stays whole, and no part of the new one is left."""
    path = tmp_path / "config.json"
    path.write_text("old")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Refused, match="No space left"):
        write_file(path, "new", replace=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the name is taken first, which fails as well where somebody has it."""

    def fail(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    path = tmp_path / "config.json"
    write_file(path, "new", replace=False)
    assert path.read_text() == "new"
    with pytest.raises(Refused, match="is there already"):
        write_file(path, "newer", replace=False)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
