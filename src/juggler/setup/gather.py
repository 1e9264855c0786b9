"""Looks at everything at once, each look under its deadline."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from juggler.backends import registry
from juggler.backends.base import BackendSettings
from juggler.errors import JugglerError
from juggler.ids import InstanceId
from juggler.lifecycle.ports import is_free
from juggler.setup.facts import CONTROL_PORT, FIRST_PORT, PORTS_WANTED, Facts
from juggler.setup.models import WALK_LIMIT_S, ModelSearch, find_models
from juggler.setup.places import Surroundings
from juggler.setup.programs import Program, find_programs
from juggler.setup.servers import find_servers
from juggler.survey.brief_run import run_briefly
from juggler.survey.containers import Containers, find_containers
from juggler.survey.gpus import find_gpus
from juggler.survey.listeners import Holder, holder_of
from juggler.survey.memory import main_memory
from juggler.survey.running import running_juggler
from juggler.survey.threads import in_thread
from juggler.survey.versions import find_version
from juggler.units import SECONDS

LOOK_LIMIT_S = 5 * SECONDS
VERSION_LIMIT_S = 5 * SECONDS
"""A comment is not worth more; vLLM takes longer and goes without."""

VERSIONS_AT_A_TIME = 4
PORTS_TRIED_MAX = 500
_LISTEN_HOSTS = ("127.0.0.1", "::1")
"""What ``localhost`` stands for."""


async def gather_facts(around: Surroundings) -> Facts:
    """Everything about this machine; takes some ten seconds at most, usually less than one."""
    own = await _running_juggler()
    programs, search, servers, gpus, containers, (control, ports) = await asyncio.gather(
        _programs(around),
        _models(around),
        find_servers(around, own.pid if own is not None else None),
        find_gpus(around.environ),
        _containers(around),
        _ports(own),
    )
    return Facts(programs, search, servers, gpus, main_memory(), containers, ports, control)


async def _running_juggler() -> Holder | None:
    """A juggler on the usual control address: its ports will be free when its new configuration is served."""
    if await running_juggler("127.0.0.1", CONTROL_PORT) is None:
        return None
    return await _holder(CONTROL_PORT)


async def _holder(port: int) -> Holder | None:
    try:
        return await in_thread(LOOK_LIMIT_S, holder_of, port)
    except (OSError, TimeoutError):
        return None


async def _models(around: Surroundings) -> ModelSearch:
    try:
        return await in_thread(WALK_LIMIT_S + LOOK_LIMIT_S, find_models, around.all_model_folders())
    except TimeoutError:
        return ModelSearch(cut_short="a folder does not answer: is a network mount dead?")


async def _containers(around: Surroundings) -> Containers:
    try:
        return await in_thread(LOOK_LIMIT_S, find_containers, around.environ)
    except (OSError, TimeoutError):
        return Containers()


async def _programs(around: Surroundings) -> list[Program]:
    """The programs, each with its version where it tells it quickly."""
    try:
        found = await in_thread(LOOK_LIMIT_S, find_programs, around)
    except TimeoutError:
        return []
    running = asyncio.Semaphore(VERSIONS_AT_A_TIME)
    return list(await asyncio.gather(*(_with_version(program, around.environ, running) for program in found)))


async def _with_version(program: Program, environ: Mapping[str, str], running: asyncio.Semaphore) -> Program:
    cwd = str(program.folder) if program.folder is not None else None
    settings = BackendSettings(
        InstanceId("init"), "init", program.type, binary=program.path, parameters=program.parameters, cwd=cwd
    )
    try:
        arguments = registry.create(settings).version_arguments
    except ValueError:  # settings that its module refuses
        return program
    if arguments is None:
        return program
    async with running:
        try:
            run = await run_briefly([program.path, *arguments], env=environ, cwd=cwd, limit_s=VERSION_LIMIT_S)
        except (JugglerError, OSError):
            return program
    return replace(program, version=find_version(run.lines)) if run.status is not None else program


async def _ports(own: Holder | None) -> tuple[int, list[int]]:
    """The control port, and enough others, from the usual ones upwards."""
    pid = own.pid if own is not None else None
    control = await in_thread(LOOK_LIMIT_S, free_ports, CONTROL_PORT, 1, pid)
    others = await in_thread(LOOK_LIMIT_S, free_ports, max(FIRST_PORT, control[0] + 1), PORTS_WANTED, pid)
    return control[0], others


def free_ports(first: int, count: int, own_pid: int | None = None) -> list[int]:
    """``count`` ports from ``first`` upwards on which ``localhost`` can be listened on, or which ``own_pid`` holds.

    Blocks for as long as looking at ``/proc`` takes.

    Raises:
        OSError: There are not so many within ``PORTS_TRIED_MAX``.
    """
    found: list[int] = []
    for port in range(first, min(first + PORTS_TRIED_MAX, 65536)):
        if len(found) == count:
            break
        if all(_can_listen(host, port) for host in _LISTEN_HOSTS) or _is_held_by(own_pid, port):
            found.append(port)
    if len(found) < count:
        raise OSError(f"not enough free ports from {first} to {first + PORTS_TRIED_MAX}")
    return found


def _is_held_by(pid: int | None, port: int) -> bool:
    holder = holder_of(port) if pid is not None else None
    return holder is not None and holder.pid == pid


def _can_listen(host: str, port: int) -> bool:
    try:
        return is_free(host, port)
    except OSError:  # a machine without IPv6
        return host != "127.0.0.1"
