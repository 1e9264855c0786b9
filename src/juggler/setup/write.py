"""Putting the file in its place: whole or not at all, and never over another one unasked."""

import contextlib
import os
import secrets
from pathlib import Path

from juggler.errors import JugglerError

MODE = 0o600
"""The file names programs to run, and is where keys and passwords of backends go: nobody else's business."""


class Refused(JugglerError):
    """The file cannot be written, or is there already. The operator's to decide."""


def refuse_existing(path: Path) -> None:
    """What can be told before any work is done.

    Raises:
        Refused: Something is there.
    """
    if os.path.lexists(path):
        raise Refused(f"{path} is there already", hint="--force replaces it; --output FILE writes another one")


def write_file(path: Path, text: str, *, replace: bool) -> None:
    """Write a file in one step: readers see the old one or the new one, never a part.

    A link is followed, and a file that is replaced keeps its mode.

    Args:
        replace: Whether a file that is there may go.

    Raises:
        Refused: It is there and may not be replaced, or the system refuses; nothing is left behind.
    """
    target = Path(os.path.realpath(path)) if replace else path
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(4)}.tmp")
    try:
        if target.is_dir():
            raise Refused(f"{path} is a directory", hint=f"name a file in it: --output {path / 'config.json'}")
        _write_new(temporary, text, _mode_of(target) if replace else MODE)
        try:
            if replace:
                temporary.replace(target)
            else:
                _place(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except FileExistsError as error:
        raise Refused(f"{path} is there already", hint="--force replaces it") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise Refused(f"{path} cannot be written: {why}", hint="name another file with --output FILE") from error


def _write_new(path: Path, text: str, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            path.chmod(mode)  # the umask may have taken bits that a replaced file had
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _place(temporary: Path, target: Path) -> None:
    """Give the file its name unless somebody has it: a link fails where a rename would replace."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with target.open("xb"):
            pass
        temporary.replace(target)


def _mode_of(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return MODE
