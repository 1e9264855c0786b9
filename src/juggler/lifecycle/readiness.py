"""Waiting for a started process: until it answers its probe, ends, or has had its time.

Readiness is what the backend's own probe says before the deadline, nothing else: exit statuses and log lines are
weak evidence (a server that cannot bind may end with status 0 or stay alive, backends.md section 1.2).
"""

import asyncio
import logging
import re
from collections.abc import Sequence

from juggler.backends.base import Backend, Caller, ProbeResult
from juggler.clock import Clock
from juggler.errors import BackendExited, ReadyTimeout, StartFailed
from juggler.lifecycle.launcher import ExitReport, LaunchHandle
from juggler.lifecycle.waiting import ProcessEnded, unless_ended
from juggler.logs.launches import shown_output
from juggler.units import SECONDS, format_duration

FIRST_PAUSE_S = 0.010 * SECONDS
"""Between the first two probes: small servers are up in 50 ms, and each pause is on average half lost."""

PAUSE_GROWTH = 1.5
PAUSE_LIMIT_S = 0.250 * SECONDS
"""A model that loads for minutes is asked four times a second, which costs nothing that can be measured."""

PROBE_LIMIT_S = 3 * SECONDS
"""For one probe; a server that loads in its accepting thread takes the connection and stays silent."""

LOG_TAIL_LINES = 20

_log = logging.getLogger("juggler.lifecycle")

# Linux and macOS: strerror(EADDRINUSE); asyncio, hence uvicorn: "error while attempting to bind on address";
# Windows: WSAEADDRINUSE 10048; llama.cpp (server-http.cpp): "couldn't bind"; gradio: "Cannot find empty port".
_ADDRESS_IN_USE = re.compile(
    r"address (is )?already in use|address in use|eaddrinuse|attempting to bind on address"
    r"|only one usage of each socket address|(could ?n[o']t|cannot|can't|failed to|unable to) bind\b"
    r"|cannot find empty port|port \d+ is (already )?in use",
    re.IGNORECASE,
)
_COMPLAINT = re.compile(
    r"error|fail|fatal|exception|abort|cannot|can't|could ?n[o']t|unable|denied|not found|no such|out of memory"
    r"|invalid|unknown|unrecognized|missing|panic|in use",
    re.IGNORECASE,
)
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_LINE_LIMIT = 300
"""Characters of one line of output in a message."""


class PortTaken(StartFailed):
    """Another program has the address; the start may succeed on another port. Ours to retry, a few times."""


async def wait_until_ready(
    backend: Backend, caller: Caller, handle: LaunchHandle, *, timeout_s: float, clock: Clock
) -> None:
    """Return when the backend's probe says it is ready.

    Probes at once and then after pauses that grow from 10 to 250 ms; each probe gets 3 s at most. The end of the
    process is noticed at once, also in the middle of a probe.

    Raises:
        ReadyTimeout: Not within ``timeout_s``; the process still runs.
        PortTaken: Somebody else answers on the address, or the process ended and complained about its address.
        StartFailed: The process ended.
        Exception: The probe itself raised something it should not.
    """
    started = clock.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            result = await unless_ended(handle, _poll(backend, caller), "probe")
    except ProcessEnded as ended:
        raise await start_ended(backend, handle, ended.report) from None
    except TimeoutError:
        raise _timed_out(backend, handle, clock.monotonic() - started) from None
    if result is ProbeResult.WRONG_SERVER:
        raise PortTaken(
            f"{backend.settings.endpoint_name}: another program answers on {handle.address}, "
            f"where its {backend.type_name} server should",
            hint="stop the other program, or let the juggler choose another port",
            endpoint=backend.settings.endpoint_name,
            phase="starting",
            log_tail=shown_output(handle.output(LOG_TAIL_LINES), backend.secrets),
        )


async def start_ended(backend: Backend, handle: LaunchHandle, report: ExitReport) -> StartFailed:
    """The error for a process that ended before it was ready: ``PortTaken`` if it complains about its address."""
    log_tail = shown_output(await settled_output(handle), backend.secrets)
    error = PortTaken if address_in_use(log_tail) else StartFailed
    return error(
        _sentence(backend, f"ended with {_how(report)} before it was ready", log_tail),
        hint=hint_of(backend, log_tail),
        endpoint=backend.settings.endpoint_name,
        phase="starting",
        exit_status=report.status,
        log_tail=log_tail,
    )


async def unexpected_end(backend: Backend, handle: LaunchHandle, report: ExitReport) -> BackendExited:
    """The error for a process that ended while it should have served."""
    log_tail = shown_output(await settled_output(handle), backend.secrets)
    return BackendExited(
        _sentence(backend, f"ended unexpectedly with {_how(report)}", log_tail),
        hint=hint_of(backend, log_tail),
        endpoint=backend.settings.endpoint_name,
        phase="forward",
        exit_status=report.status,
        log_tail=log_tail,
    )


async def settled_output(handle: LaunchHandle) -> list[str]:
    """The last lines of a process that has just ended, once no more arrive; after 10 to 100 ms.

    The news of the end and the last lines come by different pipes, and the lines are what the operator needs.
    """
    lines = handle.output(LOG_TAIL_LINES)
    for _ in range(10):
        await asyncio.sleep(0.01)
        before, lines = lines, handle.output(LOG_TAIL_LINES)
        if before == lines:
            break
    return lines


def hint_of(backend: Backend, log_tail: Sequence[str]) -> str | None:
    """The backend's hint for these lines; a mistake in the module costs the hint, not the report."""
    try:
        return backend.hint_for(log_tail)
    except Exception:
        _log.exception("%s: the %s module failed to give a hint", backend.settings.instance, backend.type_name)
        return None


def address_in_use(log_tail: Sequence[str]) -> bool:
    """Whether a server's last lines say that it could not have its port."""
    return any(_ADDRESS_IN_USE.search(line) for line in log_tail)


def last_meaningful_line(log_tail: Sequence[str]) -> str | None:
    """The last line that complains about something, else the last one with any letter; None without either."""
    lines = [_TERMINAL_CODES.sub("", line).strip() for line in log_tail]
    lines = [line for line in lines if any(character.isalpha() for character in line)]
    chosen = next((line for line in reversed(lines) if _COMPLAINT.search(line)), lines[-1] if lines else None)
    if chosen is not None and len(chosen) > _LINE_LIMIT:
        return chosen[: _LINE_LIMIT - 1] + "…"
    return chosen


async def _poll(backend: Backend, caller: Caller) -> ProbeResult:
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            async with asyncio.timeout(PROBE_LIMIT_S):
                result = await backend.probe(caller)
        except (OSError, TimeoutError):
            result = ProbeResult.NOT_YET
        if result is not ProbeResult.NOT_YET:
            return result
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * PAUSE_GROWTH, PAUSE_LIMIT_S)


def _timed_out(backend: Backend, handle: LaunchHandle, waited_s: float) -> ReadyTimeout:
    log_tail = shown_output(handle.output(LOG_TAIL_LINES), backend.secrets)
    return ReadyTimeout(
        _sentence(backend, f"was not ready after {format_duration(waited_s)}", log_tail),
        hint=hint_of(backend, log_tail) or "raise start_timeout if the model only needs longer to load",
        endpoint=backend.settings.endpoint_name,
        phase="starting",
        log_tail=log_tail,
    )


def _sentence(backend: Backend, what: str, log_tail: Sequence[str]) -> str:
    line = last_meaningful_line(log_tail)
    sentence = f"{backend.settings.endpoint_name}: its {backend.type_name} server {what}"
    return f"{sentence}: {line}" if line else sentence


def _how(report: ExitReport) -> str:
    return f"exit status {report.status}" if report.status >= 0 else f"signal {-report.status}"
