"""ComfyUI's command line: an interpreter, a script and a directory (backends.md section 5.1).

What the operator may name as ``binary``: the Python of ComfyUI's environment with ``main.py`` as its first parameter;
``main.py`` itself, which then runs with the Python of the environment beside it; or a launcher that passes its
parameters on (a shell script, ``uv``, ``comfy launch --``).

Option names and abbreviations: comfy/cli_args.py of v0.3.64 and of 2026 (@03294572).
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.backends.argparse_line import Option, without_options
from juggler.backends.base import Address, BackendSettings
from juggler.backends.command_line import find_executable, find_program
from juggler.errors import StartFailed

SCRIPT = "main.py"

_REPLACED = (
    Option("--listen", "--li", "optional"),
    Option("--port", "--po"),
    Option("--tls-keyfile", "--tls-k"),
    Option("--tls-certfile", "--tls-c"),
    Option("--auto-launch", "--au", 0),
    Option("--disable-auto-launch", "--disable-au", 0),
    Option("--windows-standalone-build", "--wi", 0),
    Option("--quick-test-for-ci", "--q", 0),
    Option("--list-feature-flags", "--list-", 0),
)
"""Address and scheme are ours; a browser window nobody asked for, and options that end the program, are unwanted."""

_PYTHON = re.compile(r"(python|pypy)[0-9.]*w?(\.exe)?", re.IGNORECASE)
_ENVIRONMENTS = (".venv", "venv", "../.venv", "../venv")
"""Of ComfyUI's manual installation, of comfy-cli, and of one environment shared by neighbours."""
_EXECUTABLES = ("bin/python", "Scripts/python.exe")
_PORTABLE = "../python_embeded/python.exe"
"""In the portable Windows build; the spelling is theirs."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and where."""

    argv: tuple[str, ...]
    cwd: str | None


def command(settings: BackendSettings, address: Address, env: Mapping[str, str]) -> Command:
    """The command for one start; looks at files.

    The script's folder is the working directory where the operator set none, for custom nodes and relative paths
    expect it.

    Args:
        settings: ``binary``, ``parameters`` and ``cwd`` as the operator wrote them.
        address: Where ComfyUI shall listen.
        env: Of the process; its ``PATH`` is searched.

    Raises:
        StartFailed: No program, no script, or no Python to run it with; each with a hint.
    """
    binary = settings.binary
    if binary is None:
        raise _cannot_start(settings, "no program is configured", "set `binary` to ComfyUI's Python or to its main.py")
    words = _stripped(settings.parameters)
    own = ("--listen", address.host, "--port", str(address.port), "--disable-auto-launch")
    if binary.lower().endswith(".py"):
        script = Path(_program(settings, env, executable=False))
        python = _python_for(script.parent, env.get("PATH"))
        if python is None:
            raise _cannot_start(
                settings,
                f"there is no Python to run {script} with",
                f'set `binary` to the Python of ComfyUI\'s environment, and `default_parameters` to ["{script}"]',
            )
        return Command((python, str(script), *words, *own), settings.cwd or str(script.parent))
    program = _program(settings, env, executable=True)
    words, folder = _with_script(settings, program, words)
    return Command((program, *words, *own), settings.cwd or folder)


def _stripped(parameters: Sequence[str]) -> list[str]:
    """Without what is ours to say, also behind the ``--`` of a launcher; ComfyUI itself has no use for one."""
    if "--" not in parameters:
        return without_options(parameters, _REPLACED)
    at = list(parameters).index("--")
    return [*without_options(parameters[:at], _REPLACED), "--", *_stripped(parameters[at + 1 :])]


def _program(settings: BackendSettings, env: Mapping[str, str], *, executable: bool) -> str:
    find = find_executable if executable else find_program
    return find(settings.binary or "", endpoint=settings.endpoint_name, cwd=settings.cwd, path=env.get("PATH"))


def _with_script(settings: BackendSettings, program: str, words: Sequence[str]) -> tuple[list[str], str | None]:
    """The parameters with an absolute path of the script, and the folder of ComfyUI if it can be told."""
    is_python = _PYTHON.fullmatch(Path(program).name) is not None
    position = next((at for at, word in enumerate(words) if word.lower().endswith(".py")), None)
    if position is None:
        if is_python and not {"-m", "-c"}.intersection(words):
            raise _cannot_start(
                settings,
                f"{program} has no script to run",
                f'let `default_parameters` begin with "{SCRIPT}", and set `cwd` to the folder of ComfyUI',
            )
        beside = Path(program).parent
        return list(words), str(beside) if (beside / SCRIPT).is_file() else None
    script = (Path(settings.cwd or ".").expanduser() / Path(words[position]).expanduser()).absolute()
    if not script.is_file():
        if is_python:
            raise _cannot_start(settings, f"{script} does not exist", "set `cwd` to the folder of ComfyUI")
        return list(words), None
    return [*words[:position], str(script), *words[position + 1 :]], str(script.parent)


def _python_for(folder: Path, search_path: str | None) -> str | None:
    """The Python of an environment beside ComfyUI, else the one on the ``PATH``.

    Links are not resolved: an environment's Python knows its environment by the path it is called by.
    """
    candidates = [folder / environment / name for environment in _ENVIRONMENTS for name in _EXECUTABLES]
    for file in (*candidates, folder / _PORTABLE):
        if file.is_file():
            return str(file)
    return shutil.which("python3", path=search_path) or shutil.which("python", path=search_path)


def _cannot_start(settings: BackendSettings, why: str, hint: str) -> StartFailed:
    name = settings.endpoint_name
    return StartFailed(f"{name!r} cannot be started: {why}", hint=hint, endpoint=name, phase="starting")
