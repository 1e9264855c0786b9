"""koboldcpp's command for one start: the operator's, with the address and what ends or hides a server taken out.

What may be named as ``binary``: the one-file program; an interpreter (or ``uv``, ``conda`` …) with ``koboldcpp.py``
among its first parameters; or ``koboldcpp.py`` itself, which is not executable in a source folder and then runs with
the Python of an environment beside it, else with the one on the ``PATH``.

Option names and effects: backends.md 4.1 and 4.2; koboldcpp.py 1.116.1.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.backends.base import Address, BackendSettings
from juggler.backends.command_line import find_executable, find_program
from juggler.backends.koboldcpp_config import Configured, configured, write_copies
from juggler.backends.koboldcpp_options import END_OF_OPTIONS, POSITIONAL, Group, joined, split
from juggler.backends.secrets import SHORTEST
from juggler.errors import StartFailed

DEFAULT_PROGRAM = "koboldcpp"

_REPLACED = ("--host", "--port", "--launch", "--showgui", "--adminunloadtimeout")
"""Address, windows, and unloads of its own after which nothing would load the model again (backends.md 4.5)."""

_LEFT_OUT = (
    *("--analyze", "--benchmark", "--cli", "--exportconfig", "--exporttemplate", "--help", "--onready", "--prompt"),
    *("--remotetunnel", "--singleinstance", "--ssl", "--testmemory", "--unpack", "--version"),
)
"""They end the program, run commands, open a tunnel, let others shut it down, or encrypt its port."""

_ROUTERS = ("--routermode", "--autoswapmode")
_SECRETS = ("--password", "--adminpassword", "--hordekey")
_SECRET_VARIABLES = ("KCPP_PASSWORD", "KCPP_ADMINPASSWORD")

_SCREENS = frozenset({"DISPLAY", "WAYLAND_DISPLAY"})
"""Without a model it opens its window on them, and waits for somebody to click."""

_ENVIRONMENTS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")

_log = logging.getLogger("juggler.backends.koboldcpp")


@dataclass(frozen=True, slots=True)
class Known:
    """What settings, files and environment say of a server."""

    admin: bool = False
    """Its routes for unloading are switched on."""
    admin_password: str = ""
    secrets: tuple[str, ...] = ()
    """Words that it prints at its start and that must not be shown (backends.md 4.1)."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run."""

    argv: tuple[str, ...]
    known: Known
    temp_files: tuple[str, ...] = ()


def command(settings: BackendSettings, address: Address, env: Mapping[str, str]) -> Command:
    """The command for one start; reads the settings files it names, and copies them below ``temp_dir``.

    Args:
        settings: ``binary``, ``parameters`` and ``cwd`` as the operator wrote them.
        address: Where koboldcpp shall listen.
        env: Of the process; its ``PATH`` is searched.

    Raises:
        StartFailed: No program, no Python to run it with, an unusable settings file, or router mode; with a hint.
    """
    program = _program(settings, env)
    wrapper, parameters = with_script(settings.parameters)
    groups = split(parameters)
    _tell(settings, groups)
    config = configured(settings, _without_address(groups))
    if any(config.flag(router) for router in _ROUTERS):
        raise _cannot_start(
            settings,
            "router mode is switched on, in which koboldcpp swaps models itself",
            "take `--routermode` and `--autoswapmode` out of `parameters` and of the settings file, and write one "
            "endpoint per model: the juggler swaps them",
        )
    left = list(config.groups)
    own = ["--port", str(address.port), "--host", address.host]
    temp_files: tuple[str, ...] = ()
    if config.documents:
        copy, directory = write_copies(settings, config, address)
        own += ["--config", copy]
        temp_files = (directory,)
    end = next((at for at, group in enumerate(left) if group.option == END_OF_OPTIONS), len(left))
    words = [*joined(left[:end]), *own, *joined(left[end:])]
    return Command((*program, *wrapper, *words), _known(config, env), temp_files)


def known(settings: BackendSettings) -> Known:
    """What the settings say of a server that somebody else runs, files amiss left aside; blocks on the disk."""
    _, parameters = with_script(settings.parameters)
    groups = split(parameters)
    try:
        config = configured(settings, groups)
    except StartFailed:
        config = Configured(groups, words=frozenset(parameters))
    return _known(config, settings.env)


def with_script(parameters: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What stands before koboldcpp's own parameters, script included, and these. None of them is a Python file."""
    is_script = (word.lower().endswith(".py") and " " not in word for word in parameters)
    script = next((at for at, found in enumerate(is_script) if found), -1)
    return tuple(parameters[: script + 1]), tuple(parameters[script + 1 :])


def without_screens(environ: Mapping[str, str]) -> dict[str, str]:
    """An inherited environment in which no window can be opened."""
    return {name: value for name, value in environ.items() if name not in _SCREENS}


def _program(settings: BackendSettings, env: Mapping[str, str]) -> tuple[str, ...]:
    binary, name, path = settings.binary or DEFAULT_PROGRAM, settings.endpoint_name, env.get("PATH")
    if not binary.lower().endswith(".py"):
        return (find_executable(binary, endpoint=name, cwd=settings.cwd, path=path),)
    script = Path(find_program(binary, endpoint=name, cwd=settings.cwd, path=path))
    if os.access(script, os.X_OK):
        return (str(script),)
    beside = (script.parent / environment for environment in _ENVIRONMENTS)
    python = next((str(file) for file in beside if file.is_file()), None)
    python = python or shutil.which("python3", path=path) or shutil.which("python", path=path)
    if python is None:
        raise _cannot_start(
            settings,
            f"there is no Python to run {script} with",
            f'set `binary` to a Python, and `default_parameters` to ["{script}"]',
        )
    return (python, str(script))


def _without_address(groups: Sequence[Group]) -> list[Group]:
    """Without our options and without a port as the second positional word."""
    left = [group for group in groups if group.option not in (*_REPLACED, *_LEFT_OUT)]
    positional = [group for group in left if group.option == POSITIONAL]
    port = positional[1] if len(positional) > 1 and positional[1].value.isdecimal() else None
    return [group for group in left if group is not port]


def _tell(settings: BackendSettings, groups: Sequence[Group]) -> None:
    left_out = sorted({group.option for group in groups}.intersection(_LEFT_OUT))
    if left_out:
        _log.warning("%s: left out of its parameters: %s", settings.instance, ", ".join(left_out))


def _known(config: Configured, env: Mapping[str, str]) -> Known:
    secrets = {config.text(option) for option in _SECRETS} | {env.get(name, "") for name in _SECRET_VARIABLES}
    for document in config.documents:  # printed although the command line overrides them? Better hidden once too often
        secrets |= {str(document.get(option[2:]) or "") for option in _SECRETS}
    # As Python prints them in the namespace of all arguments.
    secrets |= {repr(secret)[1:-1] for secret in secrets}
    return Known(
        admin=config.flag("--admin"),
        admin_password=config.text("--adminpassword", env.get("KCPP_ADMINPASSWORD", "")),
        secrets=tuple(sorted((one for one in secrets if len(one) >= SHORTEST), key=len, reverse=True)),
    )


def _cannot_start(settings: BackendSettings, why: str, hint: str) -> StartFailed:
    name = settings.endpoint_name
    return StartFailed(f"{name!r} cannot be started: {why}", hint=hint, endpoint=name, phase="starting")
