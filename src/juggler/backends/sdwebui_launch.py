"""Command line and environment of A1111 and Forge (backends.md section 3.1).

What the operator may name as ``binary``: ``webui.sh``; ``launch.py``, which then runs with the Python of the
environment beside it; a Python or a shell with one of the two as its first parameter; or any launcher that passes its
parameters on.

Two things of the program's own would undo our choice of the address, and are dealt with: words of COMMANDLINE_ARGS come
after the command line, and ``webui-user.sh`` may set that variable again. What the operator put into the variable is
moved into the command line here; what ``webui-user.sh`` puts there is seen to by ``sdwebui_shim``.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.backends import sdwebui_shim
from juggler.backends.argparse_line import Option, has_option, option_value, without_options
from juggler.backends.base import Address, BackendSettings
from juggler.backends.command_line import find_executable, find_program
from juggler.errors import StartFailed

LOCALHOST = "127.0.0.1"
"""Where gradio listens without ``--server-name``; the option would count as "not local" and take the installation of
extensions out of the UI (modules/shared_cmd_options.py)."""

_REMOVED = tuple(Option(name, shortest, values) for name, shortest, values in sdwebui_shim.REMOVED)
_API_ONLY = Option(sdwebui_shim.API_ONLY, "--now", 0)
_API = Option("--api", None, 0)
_API_AUTH = Option("--api-auth", "--api-a")
_SUBPATH = Option("--subpath", "--subp")
_SKIP_LOAD = Option("--skip-load-model-at-start", "--skip-l", 0)
_AS_ROOT = Option("-f", None, 0)

_SCRIPTS = (".py", ".sh")
_INTERPRETER = re.compile(r"(?:python|pypy)[0-9.]*w?(?:\.exe)?|(?:ba|da|k|z)?sh", re.IGNORECASE)
_PYTHONS = ("venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe", ".venv/Scripts/python.exe")
_HINT = "set `binary` to the web UI's webui.sh (or launch.py)"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and where."""

    argv: tuple[str, ...]
    cwd: str | None


def words_of(parameters: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The words of the command line and of COMMANDLINE_ARGS, in the order in which the program reads them.

    Raises:
        ValueError: The variable has an open quote.
    """
    return [*parameters, *shlex.split(env.get("COMMANDLINE_ARGS", ""))]


def api_credentials(words: Sequence[str]) -> str | None:
    """``user:password`` of the first account that ``--api-auth`` lists; None without one."""
    accounts = option_value(words, _API_AUTH) or ""
    return accounts.split(",")[0] or None


def skips_load(words: Sequence[str]) -> bool:
    """Whether A1111 is told to load no checkpoint before it needs one."""
    return has_option(words, _SKIP_LOAD)


def environment(environ: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The environment of the process.

    Args:
        environ: Of the juggler.
        own: What the operator set for the backend; wins.
    """
    env = {"PYTHONUNBUFFERED": "1", **environ, **own}
    if "VIRTUAL_ENV" not in own:
        _leave_our_environment(env)
    for name in sdwebui_shim.VARIABLES:
        env.pop(name, None)
    env["COMMANDLINE_ARGS"] = ""  # moved into the command line; removed, webui-macos-env.sh and others would be missed
    env["SD_WEBUI_RESTARTING"] = "1"  # or the setting "auto launch browser" opens one (webui.py)
    env.setdefault("LAUNCH_SCRIPT", str(Path(sdwebui_shim.__file__).absolute()))
    # gradio calls itself over HTTP at its start; of the two spellings each library reads another one first.
    excluded = [*env.get("no_proxy", "").split(","), *env.get("NO_PROXY", "").split(","), "localhost", LOCALHOST]
    env["NO_PROXY"] = env["no_proxy"] = ",".join(dict.fromkeys(host.strip() for host in excluded if host.strip()))
    return env


def _leave_our_environment(env: dict[str, str]) -> None:
    """Hide the juggler's own virtual environment: with any active, webui.sh would install and run in that one."""
    active = env.get("VIRTUAL_ENV")
    if active is None or Path(active).resolve() != Path(sys.prefix).resolve():
        return
    del env["VIRTUAL_ENV"]
    folders = {str(Path(active) / name) for name in ("bin", "Scripts")}
    paths = env.get("PATH", "").split(os.pathsep)
    env["PATH"] = os.pathsep.join(path for path in paths if path not in folders)


def command(settings: BackendSettings, address: Address, words: Sequence[str], path: str | None) -> Command:
    """The command for one start; looks at files.

    Args:
        settings: ``binary`` and ``cwd`` as the operator wrote them, and the prefix of its pages.
        address: Where the web UI shall listen.
        words: Parameters, those of COMMANDLINE_ARGS included.
        path: The ``PATH`` to search.

    Raises:
        StartFailed: No program, no script, or no Python to run it with; each with a hint.
    """
    if settings.binary is None:
        raise _cannot_start(settings, "no program is configured", _HINT)
    program, before, script, after = _located(settings, words, path)
    arguments = without_options(after, (*_REMOVED, _API_ONLY, _API))
    arguments += _own(settings, address, after)
    is_shell = script is not None and script.suffix.lower() == ".sh"
    if is_shell and (_is_root() or has_option(arguments, _AS_ROOT)):
        # webui.sh refuses to run as root unless this comes first; launch.py ignores it (webui.sh, cmd_args.py).
        arguments = ["-f", *without_options(arguments, (_AS_ROOT,))]
    start = (program, *before, *((str(script),) if script is not None and str(script) != program else ()))
    return Command((*start, *arguments), settings.cwd or (str(script.parent) if script is not None else None))


def _own(settings: BackendSettings, address: Address, words: Sequence[str]) -> list[str]:
    """Our options: the address, the API, and the prefix under which its pages are seen."""
    own = ["--port", str(address.port)]
    if has_option(words, _API_ONLY):
        # Without a name that mode listens on all interfaces, where the other one has 127.0.0.1.
        return [*own, sdwebui_shim.API_ONLY, "--server-name", address.host]
    own.append("--api")
    if address.host != LOCALHOST:
        own += ["--server-name", address.host]
    prefix = settings.ui_prefix.strip("/")
    if prefix and not has_option(words, _SUBPATH):
        own += ["--subpath", prefix]
    return own


def _located(
    settings: BackendSettings, words: Sequence[str], path: str | None
) -> tuple[str, list[str], Path | None, list[str]]:
    """The program, its own words, the script it runs (or is), and the words for the script.

    Raises:
        StartFailed: One of them is missing; with a hint.
    """
    binary = settings.binary or ""
    if Path(binary).name == binary and (_folder(settings) / binary).is_file():
        binary = f"./{binary}"  # found by its bare name where the operator said to look
    if binary.lower().endswith(".py"):
        script = Path(find_program(binary, endpoint=settings.endpoint_name, cwd=settings.cwd, path=path))
        return _python_for(settings, script, path), [], script, list(words)
    program = find_executable(binary, endpoint=settings.endpoint_name, cwd=settings.cwd, path=path)
    if Path(program).suffix.lower() == ".sh":
        return program, [], Path(program), list(words)
    if _INTERPRETER.fullmatch(Path(program).name) is None:
        beside = Path(program).parent / "launch.py"
        # Its folder, not the script, is what matters here: the launcher knows what to run.
        return program, [], Path(program) if beside.is_file() else None, list(words)
    position = next((at for at, word in enumerate(words) if word.lower().endswith(_SCRIPTS)), None)
    if position is None:
        raise _cannot_start(
            settings,
            f"{program} has no script to run",
            'let `default_parameters` begin with "launch.py", and set `cwd` to the folder of the web UI',
        )
    return program, list(words[:position]), _script(settings, program, words[position]), list(words[position + 1 :])


def _script(settings: BackendSettings, program: str, name: str) -> Path:
    """The script that an interpreter is to run: below ``cwd``, else in the folder that holds the interpreter's
    environment (``venv/bin/python``).

    Raises:
        StartFailed: There is none; with a hint.
    """
    script = (_folder(settings) / Path(name).expanduser()).absolute()
    if not script.is_file() and settings.cwd is None and len(Path(program).parents) > 2:
        beside = Path(program).parents[2] / name
        script = beside if beside.is_file() else script
    if not script.is_file():
        raise _cannot_start(settings, f"{script} does not exist", "set `cwd` to the folder of the web UI")
    return script


def _python_for(settings: BackendSettings, script: Path, path: str | None) -> str:
    """The Python of the environment that webui.sh made beside the script, else the one on the ``PATH``.

    Links are not resolved: an environment's Python knows its environment by the path it is called by.

    Raises:
        StartFailed: There is none; with a hint.
    """
    for name in _PYTHONS:
        if (script.parent / name).is_file():
            return str(script.parent / name)
    found = shutil.which("python3", path=path) or shutil.which("python", path=path)
    if found is None:
        hint = f'set `binary` to the Python of its environment, and `default_parameters` to ["{script}"]'
        raise _cannot_start(settings, f"there is no Python to run {script} with", hint)
    return found


def _folder(settings: BackendSettings) -> Path:
    return Path(settings.cwd or ".").expanduser()


def _is_root() -> bool:
    return getattr(os, "geteuid", lambda: 1)() == 0


def _cannot_start(settings: BackendSettings, why: str, hint: str) -> StartFailed:
    name = settings.endpoint_name
    return StartFailed(f"{name!r} cannot be started: {why}", hint=hint, endpoint=name, phase="starting")
