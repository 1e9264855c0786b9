"""Finding executables, and taking options out of a command line the way the program's own parser reads them."""

import os
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from juggler.errors import StartFailed


def find_executable(binary: str, *, endpoint: str, cwd: str | None, path: str | None) -> str:
    """The absolute path of ``binary``: a bare name on ``path``, else a file, relative to ``cwd``.

    Args:
        binary: As the operator wrote it; ``~`` is expanded.
        path: The ``PATH`` to search, None for the process's own.

    Raises:
        StartFailed: Missing, a directory, or not executable; with a hint.
    """
    file = find_program(binary, endpoint=endpoint, cwd=cwd, path=path)
    if not os.access(file, os.X_OK):
        raise _cannot_start(endpoint, f"{file} is not executable", f"make it so: chmod +x {file}")
    return file


def find_program(binary: str, *, endpoint: str, cwd: str | None, path: str | None) -> str:
    """As ``find_executable``, for what may be a script that somebody else executes.

    Raises:
        StartFailed: Missing, or a directory; with a hint.
    """
    name = str(Path(binary).expanduser()) if binary.startswith("~") else binary
    if os.sep not in name and not (os.altsep and os.altsep in name):
        found = shutil.which(name, path=path)
        if found is None:
            raise _cannot_start(
                endpoint, f"{binary!r} is not on the PATH", "give the full path as the backend's `binary`"
            )
        return found
    file = Path(cwd or ".").expanduser() / name
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise _cannot_start(endpoint, f"{file} does not exist", "correct the backend's `binary`") from None
    except OSError as error:
        why = f"{file} cannot be looked at ({error.strerror})"
        raise _cannot_start(endpoint, why, "correct the backend's `binary`, or the rights of its directory") from error
    if stat.S_ISDIR(mode):
        raise _cannot_start(endpoint, f"{file} is a directory", "name the program itself as `binary`")
    return str(file.absolute())


def _cannot_start(endpoint: str, why: str, hint: str) -> StartFailed:
    return StartFailed(f"{endpoint!r} cannot be started: {why}", hint=hint, endpoint=endpoint, phase="starting")


def without_options(arguments: Sequence[str], *, with_value: Collection[str], flags: Collection[str] = ()) -> list[str]:
    """Drop options of a parser that knows exact names with separate values (llama.cpp; backends.md 2.1).

    Underscores in long names count as dashes. ``--port=1`` is left alone: llama.cpp refuses it, and says so.
    """
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif canonical(argument) in with_value:
            skip = True
        elif canonical(argument) not in flags:
            kept.append(argument)
    return kept


def canonical(option: str) -> str:
    """A long option with dashes for underscores; anything else unchanged."""
    return option.replace("_", "-") if option.startswith("--") else option


def option_value(arguments: Sequence[str], names: Collection[str]) -> str | None:
    """The value of the last of these options, for parsers in which the last one wins; None if absent."""
    value = None
    for position, argument in enumerate(arguments[:-1]):
        if canonical(argument) in names:
            value = arguments[position + 1]
    return value


def option_values(arguments: Sequence[str], names: Collection[str], *, count: int = 1) -> list[tuple[str, ...]]:
    """All values of options that may be repeated, ``count`` words each, in order."""
    return [
        tuple(arguments[position + 1 : position + 1 + count])
        for position, argument in enumerate(arguments)
        if canonical(argument) in names and len(arguments) > position + count
    ]


def has_option(arguments: Sequence[str], names: Collection[str]) -> bool:
    """Whether one of these options stands in the line."""
    return any(canonical(argument) in names for argument in arguments)


def without_variables(environ: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """A copy of an environment without some variables."""
    return {name: value for name, value in environ.items() if name not in names}
