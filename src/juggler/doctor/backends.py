"""One backend of the configuration: its program, the options and files given to it, the server it attaches to."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.backends import registry
from juggler.backends.base import Backend, BackendSettings, ProbeResult
from juggler.backends.command_line import find_executable
from juggler.doctor.files import file_findings
from juggler.doctor.findings import Finding, Section, note, ok, problem, warning
from juggler.doctor.options import Family, KnownOptions, read_help, unknown_options
from juggler.errors import JugglerError, StartFailed
from juggler.lifecycle.caller import HttpCaller
from juggler.survey.brief_run import BriefRun, run_briefly
from juggler.survey.servers import Identity, find, who_answers
from juggler.survey.threads import in_thread
from juggler.survey.versions import find_version, shortened
from juggler.tls import Trouble
from juggler.units import SECONDS

RUN_LIMIT_S = 20 * SECONDS
"""For one run of a program: vLLM imports for 10 s before it tells its version, one-file binaries unpack first."""

FILES_LIMIT_S = 10 * SECONDS
PROBE_LIMIT_S = 3 * SECONDS

_EXACT_FAMILY = frozenset({"llamacpp"})
"""Types whose help lists every option and whose names are exact (llama.cpp: ``common/arg.cpp``)."""

_CANNOT_RUN = (126, 127)
"""What shells and loaders answer for a program that cannot be executed."""


@dataclass(frozen=True)
class Case:
    """A backend as the configuration has it."""

    name: str
    type: str
    instances: tuple[BackendSettings, ...]
    """One for each process, or for each attached server; empty: no endpoint uses it."""


async def examine_backend(case: Case, environ: Mapping[str, str], running: asyncio.Semaphore) -> Section:
    """Everything that can be said about a backend without starting it.

    Args:
        environ: Ours, which its program inherits.
        running: How many programs may run at a time.
    """
    title = f'Backend "{case.name}"' + (f" ({case.type})" if case.type != case.name else "")
    if not case.instances:
        return Section(title, (note("no endpoint uses it: not looked at"),))
    findings: list[Finding] = []
    try:
        backend = registry.create(case.instances[0])
    except ValueError as error:
        findings.append(problem(f"its settings cannot be used: {error}"))
        backend = None
    parts: list[asyncio.Task[list[Finding]]] = []
    async with asyncio.TaskGroup() as tasks:
        if backend is not None:
            parts.append(tasks.create_task(_program(case, backend, environ, running), name=f"program of {case.name}"))
        parts += [tasks.create_task(_files(one), name=f"files of {one.endpoint_name}") for one in case.instances]
        if backend is not None:
            urls = {one.attach_to: one for one in case.instances if one.attach_to is not None}
            parts += [tasks.create_task(_target(one), name=f"target {url}") for url, one in urls.items()]
    findings += [finding for part in parts for finding in part.result()]
    return Section(title, tuple(findings) or (note("nothing to check for this type"),))


# --- the program ---------------------------------------------------------------------------------------------------


async def _program(
    case: Case, backend: Backend, environ: Mapping[str, str], running: asyncio.Semaphore
) -> list[Finding]:
    settings = backend.settings
    if settings.binary is None:
        return []
    env = {**environ, **settings.env}
    try:
        path = await in_thread(FILES_LIMIT_S, _locate, settings, env.get("PATH"))
    except (OSError, TimeoutError) as error:
        return [problem(f"{settings.binary} cannot be looked at: {error or 'is a network mount dead?'}")]
    if path is None:
        return [note("its program was not run: see the problems of the configuration")]
    version, listing = await asyncio.gather(
        _ask(path, backend.version_arguments, settings, env, running),
        _ask(path, backend.help_arguments, settings, env, running),
    )
    findings = [_about_version(path, version, backend)]
    if any(one.parameters for one in case.instances):
        findings += _about_options(case, backend, listing)
    return findings


def _locate(settings: BackendSettings, search_path: str | None) -> str | None:
    """The program's path; None where ``check`` has said why it cannot be started."""
    try:
        found = find_executable(settings.binary or "", endpoint="", cwd=settings.cwd, path=search_path)
    except StartFailed:
        return None
    return found if settings.cwd is None or Path(settings.cwd).is_dir() else None


async def _ask(
    path: str,
    arguments: Sequence[str] | None,
    settings: BackendSettings,
    env: Mapping[str, str],
    running: asyncio.Semaphore,
) -> BriefRun | StartFailed | None:
    """Run the program for what it prints; None where nothing makes it print that."""
    if arguments is None:
        return None
    async with running:
        try:
            return await run_briefly([path, *arguments], env=env, cwd=settings.cwd, limit_s=RUN_LIMIT_S)
        except StartFailed as error:
            return error
        except OSError as error:
            return StartFailed(str(error))


def _about_version(path: str, run: BriefRun | StartFailed | None, backend: Backend) -> Finding:
    if run is None:
        interpreter = _missing_interpreter(Path(path))
        if interpreter is not None:
            return problem(f"{path} needs {interpreter}, which does not exist", "install it, or correct the first line")
        return ok(f"{path} (its version: not checked, it cannot be asked quickly)")
    if isinstance(run, StartFailed):
        return problem(run.message, run.hint)
    if run.status is None:
        return warning(f"{path} did not tell its version within {RUN_LIMIT_S:.0f} s", "does it run at all? Try it")
    version = find_version(run.lines, strict=run.status != 0)
    if version is not None and run.status >= 0:
        return ok(f"{path}: {version}")
    if run.status == 0:
        return ok(f"{path} runs, and tells no version")
    hint = backend.hint_for(run.lines)
    how = f"status {run.status}" if run.status > 0 else f"signal {-run.status}"
    message = f"{path} ends with {how} when asked for its version"
    if run.lines:
        message += f": {shortened(run.lines[-1])}"
    severe = hint is not None or run.status < 0 or run.status in _CANNOT_RUN
    return problem(message, hint) if severe else warning(message)


def _missing_interpreter(path: Path) -> str | None:
    """The interpreter that a script names and that is not there: an environment that has been moved or removed."""
    try:
        with path.open("rb") as file:
            first = file.read(512).partition(b"\n")[0]
    except OSError:
        return None
    words = first[2:].decode("utf-8", "replace").split() if first.startswith(b"#!") else []
    return words[0] if words and not os.path.lexists(words[0]) else None


def _about_options(case: Case, backend: Backend, listing: BriefRun | StartFailed | None) -> list[Finding]:
    if listing is None:
        return [note("its options: not checked, the program does not list them quickly")]
    if isinstance(listing, StartFailed):
        return []  # said of its version already
    known = read_help(listing.output) if listing.status is not None else None
    if known is None:
        why = f"not within {RUN_LIMIT_S:.0f} s" if listing.status is None else "it printed no list of options"
        words = " ".join(backend.help_arguments or ())
        return [note(f"its options: not checked, `{words}` did not help ({why})")]
    return _unknown(case, backend, known)


def _unknown(case: Case, backend: Backend, known: KnownOptions) -> list[Finding]:
    family: Family = "exact" if case.type in _EXACT_FAMILY else "argparse"
    users: dict[str, list[str]] = {}
    for settings in case.instances:
        for option in unknown_options(settings.parameters, known, family):
            users.setdefault(option, []).append(settings.endpoint_name)
    if not users:
        return [ok("its help lists every option that is used")]
    findings = []
    for option, endpoints in users.items():
        where = "every endpoint" if len(endpoints) == len(case.instances) > 1 else ", ".join(endpoints)
        if family == "exact":
            hint = backend.hint_for([f"error: invalid argument: {option}"]) or "remove or replace it: no start with it"
            findings.append(problem(f"{option} is no option of this build ({where})", hint))
        else:
            hint = "it is gone, renamed or hidden; if the program does not start, this is why"
            findings.append(warning(f"{option} is not in the program's help ({where})", hint))
    return findings


# --- files and targets ---------------------------------------------------------------------------------------------


async def _files(settings: BackendSettings) -> list[Finding]:
    if settings.attach_to is not None and settings.binary is None:
        return []  # parameters mean nothing to a server that runs already
    try:
        return await in_thread(FILES_LIMIT_S, file_findings, settings)
    except TimeoutError:
        why = f"its files could not be looked at within {FILES_LIMIT_S:.0f} s"
        return [warning(f"{settings.endpoint_name}: {why}", "is a network mount dead?")]


_UNLOADS_WITH = {
    "vllm": "start it with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1",
    "koboldcpp": "start it with --admin and --admindir (and `unload` needs its --adminpassword in `parameters`)",
}


async def _target(settings: BackendSettings) -> list[Finding]:
    """Whether the server to attach to is there, and the program it should be."""
    url = settings.attach_to or ""
    address = await find(url, settings.attach_tls)
    if isinstance(address, Trouble):
        why = address.why
        if address.hint is not None:
            return [problem(f"no connection to {url}: {why}", address.hint)]
        if settings.binary is not None:
            return [note(f"nothing answers at {url} ({why}): the juggler would start its own")]
        return [problem(f"nothing answers at {url} ({why})", "start that server, or set `binary`")]
    backend = registry.create(settings)
    backend.attached = True
    caller = HttpCaller(address)
    identity = await who_answers(caller, backend)
    probe = await _probe(backend, caller)
    findings = [_about_target(url, settings, identity, probe)]
    if probe is ProbeResult.READY and settings.model_unloading and settings.type != "command":
        findings += await _unloading(backend, caller)
    return findings


async def _unloading(backend: Backend, caller: HttpCaller) -> list[Finding]:
    """A warning where an attached server lacks what its memory is freed by, as one started by hand may."""
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            await backend.examine(caller)
    except (OSError, ValueError, JugglerError):  # TimeoutError is an OSError
        return []
    if backend.capabilities.unload != "none":
        return []
    return [warning("it runs without what lets the juggler free its memory", _UNLOADS_WITH.get(backend.type_name))]


async def _probe(backend: Backend, caller: HttpCaller) -> ProbeResult:
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            return await backend.probe(caller)
    except (OSError, ValueError, JugglerError):  # TimeoutError is an OSError
        return ProbeResult.NOT_YET


def _about_target(url: str, settings: BackendSettings, identity: Identity | None, probe: ProbeResult) -> Finding:
    kind = settings.type
    if kind == "command":
        named = f": {identity.text}" if identity else ""
        if probe is ProbeResult.READY:
            return ok(f"the server at {url} answers{named}")
        return warning(f"the server at {url} answers, but is not ready{named}", "look at `ready_path`")
    if identity is not None and identity.type == kind:
        state = "" if probe is ProbeResult.READY else " (not ready yet)"
        return ok(f"{identity.text} answers at {url}{state}")
    if identity is not None:
        hint = f"`attach_to` must name a server of type {kind}; this one is of type {identity.type}"
        return problem(f"the server at {url} is not {kind}: {identity.text} answers", hint)
    if probe is ProbeResult.WRONG_SERVER:
        return problem(f"the server at {url} is not {kind}, and no program known here", "correct `attach_to`")
    if probe is ProbeResult.READY:
        return ok(f"a {kind} server answers at {url} (its version: not told)")
    hint = "wait until it has started, and look at its address, keys and options"
    return warning(f"something answers at {url}, but not as {kind} does (yet)", hint)
