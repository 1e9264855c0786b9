"""Directories of ours, ports to listen on, and who can reach them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from juggler import __version__
from juggler.config.problems import Problem
from juggler.config.resolve import ResolvedConfig, ResolvedServer
from juggler.doctor.findings import Finding, Section, note, ok, problem, warning
from juggler.survey.containers import Containers, is_loopback
from juggler.survey.listeners import Holder, holder_of
from juggler.survey.running import RunningJuggler, running_juggler
from juggler.survey.threads import in_thread
from juggler.units import GIB, SECONDS, format_size

DISK_LIMIT_S = 5 * SECONDS
HOLDER_LIMIT_S = 3 * SECONDS
FREE_BYTES_LEAST = 1 * GIB
"""Below it a log, a private copy of a configuration or one saved slot may fill the disk."""

BAD_DIRECTORY = "bad-directory"
PORT_UNAVAILABLE = "port-unavailable"
"""Codes of ``config.machine`` that this module goes on from."""


# --- directories ---------------------------------------------------------------------------------------------------


async def directories(config: ResolvedConfig, quota_bytes: int, problems: Sequence[Problem]) -> Section:
    """``temp_dir`` and ``state_dir``: whether they exist, and what is free there.

    Args:
        quota_bytes: What saved conversation state may take below ``state_dir``; 0 if nothing is saved.
        problems: What ``check`` found; what cannot be written is told there already.
    """
    refused = {one.key for one in problems if one.code == BAD_DIRECTORY}
    findings = []
    for key, path, wanted in (("temp_dir", config.temp_dir, 0), ("state_dir", config.state_dir, quota_bytes)):
        if key in refused:
            findings.append(note(f"{key} {path}: see the problems of the configuration"))
            continue
        try:
            findings.append(await in_thread(DISK_LIMIT_S, _directory, key, path, wanted))
        except TimeoutError:
            findings.append(problem(f"{key} {path} does not answer", "is it on a dead network mount?"))
        except OSError as error:
            findings.append(problem(f"{key} {path} cannot be looked at: {error.strerror}"))
    return Section("Directories", tuple(findings))


def _directory(key: str, path: Path, wanted_bytes: int) -> Finding:
    nearest = path
    while not nearest.exists():
        nearest = nearest.parent
    free_bytes = shutil.disk_usage(nearest).free
    state = f"{format_size(free_bytes)} free" + ("" if nearest == path else ", will be made at the start")
    if free_bytes < FREE_BYTES_LEAST:
        return warning(f"{key} {path}: only {state}", f"free some space, or set `{key}` to another disk")
    if free_bytes < wanted_bytes:
        hint = f"lower `kv_cache.quota` ({format_size(wanted_bytes)}), or set `state_dir` to a larger disk"
        return warning(f"{key} {path}: {state}, less than saved conversations may take", hint)
    return ok(f"{key} {path}: writable, {state}")


# --- ports ---------------------------------------------------------------------------------------------------------


async def ports(config: ResolvedConfig, problems: Sequence[Problem]) -> Section:
    """Each address to listen on: free, held by a running juggler, or taken by somebody else."""
    control = config.control
    running = await running_juggler(control.host, control.port) if control is not None else None
    refused = {one.key: one.message for one in problems if one.code == PORT_UNAVAILABLE}
    own = await _holder(control.port) if control is not None and running is not None else None
    findings = []
    for index, server in enumerate(config.servers):
        what = f"{server.name}: {server.host}:{server.port}"
        findings.append(await _port(what, server.port, refused.get(f"servers[{index}].port"), running, own))
    if control is not None:
        what = f"dashboard and API: {control.host}:{control.port}"
        refusal = refused.get("control.port")
        if refusal is None or running is not None:
            findings.append(await _port(what, control.port, refusal, running, own))
        else:
            holder = await _holder(control.port)
            by = f"taken by {holder}" if holder else refusal
            findings.append(warning(f"{what} is not free: {by}", "set `control` to another port, or to false"))
    if running is not None:
        findings += _about(running, config)
    return Section("Ports", tuple(findings) or (note("no server is configured"),))


async def _port(
    what: str, port: int, refusal: str | None, running: RunningJuggler | None, own: Holder | None
) -> Finding:
    if refusal is None:
        return ok(f"{what} is free")
    holder = await _holder(port)
    if running is not None and (own is None or holder is None or holder.pid == own.pid):
        return ok(f"{what} is held by the running juggler")
    if holder is not None:
        return problem(f"{what} is taken by {holder}", "end that program, or set another `port`")
    return problem(f"{what} is not free: {refusal}", "end the program that has it, or set another `port` or `host`")


async def _holder(port: int) -> Holder | None:
    try:
        return await in_thread(HOLDER_LIMIT_S, holder_of, port)
    except (OSError, TimeoutError):
        return None


def _about(running: RunningJuggler, config: ResolvedConfig) -> list[Finding]:
    findings = []
    if running.version is None or running.endpoints is None:
        return [note("the running juggler wants its admin key before it tells what it serves")]
    if running.version != __version__:
        findings.append(note(f"the running juggler is version {running.version}, this is {__version__}", "restart it"))
    if running.endpoints != {one.id for server in config.servers for one in server.endpoints}:
        hint = "restart it to serve this one"
        findings.append(note("the running juggler serves other endpoints than this configuration has", hint))
    return findings


# --- containers ----------------------------------------------------------------------------------------------------


def container_findings(servers: Sequence[ResolvedServer], containers: Containers) -> list[Finding]:
    """Whether clients in containers can reach the servers; nothing without a sign that there are containers."""
    closed = [f"{server.name} ({server.host}:{server.port})" for server in servers if is_loopback(server.host)]
    if not closed or not containers.likely:
        return []
    shown = ", ".join(closed)
    if containers.inside:
        hint = 'write "host": "0.0.0.0" here, and decide who may reach it where the port is published'
        return [warning(f"{shown}: this is a container, and published ports do not reach its loopback address", hint)]
    message = f"{shown}: clients in containers cannot reach it (seen here: {containers})"
    name = "host.docker.internal (Docker: --add-host=host.docker.internal:host-gateway) or host.containers.internal"
    if containers.host_address is not None:
        hint = (
            f'if there are such clients, write "host": "{containers.host_address}" for them alone, or "0.0.0.0" for '
            f"every network of this machine; they then use {name}"
        )
    else:
        hint = f'if there are such clients, write "host": "0.0.0.0" and mind the firewall; they then use {name}'
    return [warning(message, hint)]
