"""Asks everything that the doctor knows to ask, side by side, and hands out the sections in their order."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from juggler.backends import registry
from juggler.config.effect import not_in_effect
from juggler.config.load import ConfigFileError, LoadedConfig, load_config
from juggler.config.machine import machine_problems
from juggler.config.problems import Problem, in_file_order
from juggler.config.resolve import ResolvedConfig, endpoint_id, instances_of, resolve
from juggler.config.schema import backend_type
from juggler.doctor.backends import Case, examine_backend
from juggler.doctor.findings import Finding, Grade, Section, note, ok, problem, warning
from juggler.doctor.machine import about_gpus, about_memory, about_pools, about_program
from juggler.doctor.places import PORT_UNAVAILABLE, container_findings, directories, ports
from juggler.errors import ConfigError, JugglerError
from juggler.survey.containers import find_containers
from juggler.survey.gpus import find_gpus
from juggler.survey.memory import main_memory
from juggler.survey.threads import in_thread
from juggler.units import MINUTES, SECONDS

SECTION_LIMIT_S = 2 * MINUTES
"""For one section, whatever its parts do: each has deadlines of its own, well below this for a dozen backends."""

CHECK_LIMIT_S = 20 * SECONDS
PROGRAMS_AT_A_TIME = 4
"""Importing PyTorch takes a core and a gigabyte for seconds."""

_log = logging.getLogger("juggler.doctor")

_GRADES = {"error": Grade.PROBLEM, "warning": Grade.WARNING, "note": Grade.NOTE}


@dataclass(frozen=True)
class Checked:
    """A configuration without errors, and what ``check`` has to say of it."""

    loaded: LoadedConfig
    resolved: ResolvedConfig
    problems: tuple[Problem, ...]


async def examine(path: Path | None, environ: Mapping[str, str] | None = None) -> AsyncIterator[Section]:
    """The report, section by section as they are ready.

    Args:
        path: The configuration; None: there is none, only the machine is looked at.
        environ: The environment to look through; ours if None.
    """
    environ = dict(os.environ) if environ is None else environ
    checked, section = await _configuration(path)
    yield section
    if checked is None:
        yield Section("Machine", tuple(await _machine(None, environ)))
        return
    running = asyncio.Semaphore(PROGRAMS_AT_A_TIME)
    jobs: list[tuple[str, Coroutine[Any, Any, Section]]] = [
        ("Machine", _section("Machine", _machine(checked, environ))),
        ("Directories", directories(checked.resolved, _quota(checked), checked.problems)),
        ("Ports", _ports(checked, environ)),
    ]
    jobs += [(case.name, examine_backend(case, environ, running)) for case in cases_of(checked)]
    tasks = [asyncio.create_task(_bounded(title, job), name=f"examine {title}") for title, job in jobs]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _section(title: str, findings: Coroutine[Any, Any, list[Finding]]) -> Section:
    return Section(title, tuple(await findings))


async def _bounded(title: str, job: Coroutine[Any, Any, Section]) -> Section:
    try:
        async with asyncio.timeout(SECTION_LIMIT_S):
            return await job
    except TimeoutError:
        return Section(title, (warning(f"this took longer than {SECTION_LIMIT_S:.0f} s and was given up"),))
    except JugglerError as error:
        return Section(title, (problem(error.message, error.hint),))
    except Exception as error:  # a mistake of ours in one place must not cost the rest of the report
        _log.debug("%s could not be examined", title, exc_info=True)
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        return Section(title, (warning(f"it could not be examined: {error!r}", "this is a mistake in the doctor"),))


# --- the configuration ---------------------------------------------------------------------------------------------


async def _configuration(path: Path | None) -> tuple[Checked | None, Section]:
    if path is None:
        hint = "`juggler init` writes one for this machine; name another one with --config FILE"
        return None, Section("Configuration", (note("there is none here: only the machine is looked at", hint),))
    title = f"Configuration {path}"
    try:
        loaded = await in_thread(CHECK_LIMIT_S, load_config, path)
    except TimeoutError:
        return None, Section(title, (problem(f"it could not be read within {CHECK_LIMIT_S:.0f} s"),))
    except ConfigFileError as error:
        return None, Section(title, (problem(error.message, error.hint),))
    except ConfigError as error:
        listed = error.details.get("problems")
        problems = [Problem(**one) for one in listed] if isinstance(listed, list) else []
        findings = [_finding(one) for one in problems] or [problem(error.message, error.hint)]
        hint = "correct the file first: its backends were not looked at"
        return None, Section(title, (*findings, note("the rest of the report is about the machine alone", hint)))
    try:
        here = await in_thread(CHECK_LIMIT_S, machine_problems, loaded)
    except TimeoutError:
        here = []
    problems = in_file_order([*loaded.warnings, *here, *not_in_effect(loaded)])
    shown = [_finding(one) for one in problems if one.code != PORT_UNAVAILABLE]
    checked = Checked(loaded, resolve(loaded), tuple(problems))
    return checked, Section(title, tuple(shown) or (ok("no mistakes found"),))


def _finding(found: Problem) -> Finding:
    """A problem of the configuration, with its place and excerpt as ``check`` prints them."""
    message = f"{found.path}:{found.line}:{found.column}: {found.message}"
    if found.excerpt:
        message += f"\n{found.excerpt}"
    return Finding(_GRADES[found.severity], message, found.hint)


def cases_of(checked: Checked) -> list[Case]:
    """The backends in the order of the file, each with its instances."""
    settings = {one.id: one.settings for one in checked.resolved.instances}
    instance_of = instances_of(checked.resolved.servers)
    users: dict[str, dict[str, None]] = {name: {} for name in checked.loaded.config.backends}
    for server in checked.loaded.config.servers:
        for endpoint in server.endpoints:
            users[endpoint.backend][instance_of[endpoint_id(server.name, endpoint.name)]] = None
    return [
        Case(name, backend_type(name, backend), tuple(settings[one] for one in settings if one in users[name]))
        for name, backend in checked.loaded.config.backends.items()
    ]


def _quota(checked: Checked) -> int:
    """Bytes that saved conversations may take; 0 if no backend saves any."""
    for instance in checked.resolved.instances:
        try:
            if registry.create(instance.settings).capabilities.keeps_kv:
                return instance.settings.kv_cache_quota_bytes
        except (JugglerError, ValueError):
            continue
    return 0


# --- the machine ---------------------------------------------------------------------------------------------------


async def _machine(checked: Checked | None, environ: Mapping[str, str]) -> list[Finding]:
    gpus = await find_gpus(environ)
    memory = main_memory()
    findings = [about_program(), about_memory(memory), *about_gpus(gpus)]
    if checked is not None:
        automatic = checked.loaded.config.memory.pools == "auto"
        findings += about_pools(checked.resolved.pools, gpus, memory, automatic=automatic)
    return findings


async def _ports(checked: Checked, environ: Mapping[str, str]) -> Section:
    section = await ports(checked.resolved, checked.problems)
    extra = container_findings(checked.resolved.servers, find_containers(environ))
    return Section(section.title, (*section.findings, *extra))
