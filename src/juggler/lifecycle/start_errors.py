"""Why a command could not be executed, as a sentence with a hint that names the file."""

import errno
import os
import stat
from pathlib import Path

from juggler.backends.base import LaunchPlan
from juggler.errors import StartFailed

_OTHER_PROGRAM_FORMATS = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
"""First bytes of executables of Linux, Windows and macOS."""


def check_plan(plan: LaunchPlan) -> None:
    """Refuse what no system can execute.

    Raises:
        StartFailed: The command is empty, or text holds a NUL, or a variable's name an equals sign.
    """
    if not plan.argv or not plan.argv[0]:
        raise StartFailed("The command to start is empty.", phase="starting", hint="Set the backend's `binary`.")
    texts = (*plan.argv, *plan.env, *plan.env.values(), plan.cwd or "", *plan.temp_files)
    if any("\0" in text for text in texts):
        raise StartFailed(f"The command for {plan.argv[0]!r} holds a NUL character.", phase="starting")
    if bad := [name for name in plan.env if not name or "=" in name]:
        raise StartFailed(f"{bad[0]!r} cannot be the name of an environment variable.", phase="starting")


def start_failed(plan: LaunchPlan, cwd: str, stage: str, code: int, text: str) -> StartFailed:
    """The error for a failed ``stage`` (``fork``, ``setup``, ``chdir``, ``exec``) of starting ``plan`` in ``cwd``."""
    hint: str | None
    if stage == "chdir":
        message, hint = _explain_cwd(cwd, code)
    elif stage == "exec":
        message, hint = _explain_exec(plan, cwd, code)
    else:
        message, hint = f"The system refused a new process for {plan.argv[0]!r}: {os.strerror(code)}.", None
        if code in (errno.EAGAIN, errno.ENOMEM):
            hint = "Look at the limits on processes and memory (`ulimit -u`, control groups)."
    details: dict[str, object] = {"errno": errno.errorcode.get(code, str(code)), "system_message": text}
    return StartFailed(message, hint=hint, phase="starting", details=details)


def _explain_cwd(cwd: str, code: int) -> tuple[str, str]:
    if code == errno.ENOENT:
        return f"The working directory {cwd!r} does not exist.", "Correct the backend's `cwd`."
    if code == errno.ENOTDIR:
        return f"The working directory {cwd!r} is not a directory.", "Correct the backend's `cwd`."
    return f"The working directory {cwd!r} cannot be entered: {os.strerror(code)}.", "Look at its permissions."


def _explain_exec(plan: LaunchPlan, cwd: str, code: int) -> tuple[str, str | None]:
    name = plan.argv[0]
    file = _find(name, plan.env.get("PATH", os.defpath), cwd)
    if file is None:
        if "/" in name:
            return f"The program {name!r} does not exist.", "Correct the backend's `binary`."
        hint = "Install it, or give its full path as the backend's `binary`."
        return f"The program {name!r} was found in no directory of PATH.", hint
    if file.is_dir():
        return f"The program {str(file)!r} is a directory.", "Name the executable file inside it as `binary`."
    start = _first_bytes(file)
    interpreter = start.partition(b"\n")[0][2:].decode("utf-8", "replace").lstrip() if start[:2] == b"#!" else None
    if code == errno.ENOENT:
        return _explain_missing_interpreter(file, interpreter)
    if code == errno.ENOEXEC:
        if start.startswith(_OTHER_PROGRAM_FORMATS):
            return f"The program {str(file)!r} was built for another kind of machine.", "Get the build for this one."
        hint = "Begin the script with its interpreter (`#!/bin/sh`), or name the interpreter as `binary`."
        return f"{str(file)!r} is no program and no script that names its interpreter in its first line.", hint
    if code == errno.EACCES:
        if not stat.S_IMODE(file.stat().st_mode) & 0o111:
            return f"The program {str(file)!r} is not executable.", f"Make it so: `chmod +x {file}`."
        hint = "Look at the permissions of the file, its directories and its interpreter, and for a noexec mount."
        return f"The program {str(file)!r} may not be executed.", hint
    if code == errno.E2BIG:
        return f"The command line and environment for {str(file)!r} are too long for this system.", None
    return f"The program {str(file)!r} cannot be executed: {os.strerror(code)}.", None


def _explain_missing_interpreter(file: Path, interpreter: str | None) -> tuple[str, str | None]:
    if interpreter is None:
        hint = "It is probably built for another system (its loader is missing); get the build for this one."
        return f"The program {str(file)!r} exists, but this system cannot load it.", hint
    if interpreter.endswith("\r"):
        hint = "The file has Windows line ends; convert it, for example with `dos2unix`."
    else:
        hint = "Install the interpreter, or correct the first line of the script."
    return f"The interpreter {interpreter.rstrip()!r} of {str(file)!r} does not exist.", hint


def _find(name: str, path: str, cwd: str) -> Path | None:
    if "/" in name:
        file = Path(cwd, name)
        return file if os.path.lexists(file) else None
    candidates = [Path(cwd, folder, name) for folder in path.split(os.pathsep)]
    found = [file for file in candidates if file.is_file()]
    executable = [file for file in found if os.access(file, os.X_OK)]
    return next(iter(executable or found), None)


def _first_bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(256)
    except OSError:
        return b""
