"""Commands that talk to a running juggler through its status API."""

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

from juggler.errors import JugglerError
from juggler.units import format_duration, format_size

STATUS_TIMEOUT_S = 5.0
ORDER_TIMEOUT_S = 3600.0
"""A load waits its turn behind other requests, however long those take; Ctrl-C ends only the waiting."""


class NotReachable(JugglerError):
    """No juggler answers at the address: none runs, or its `control` listens elsewhere."""


def call(url: str, method: str, path: str, timeout_s: float, needed: str) -> dict[str, Any]:
    """One JSON call.

    Args:
        url: Of the status API.
        method: ``GET`` or ``POST``.
        path: With its query.
        timeout_s: For each step of it.
        needed: A key that the answer has to have: other programs answer whatever they are asked.

    Raises:
        NotReachable: Nobody answers there, or another program does.
        JugglerError: The answer is an error.
    """
    connection = http.client.HTTPConnection(*_host_and_port(url), timeout=timeout_s)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        document = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _not_reachable(url, str(error)) from error
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise _not_reachable(url, "another program does")
    if answer.status >= 400 and answer.headers["X-Juggler"] == "error":
        detail, told = document.get("juggler") or {}, document.get("error")
        message = told.get("message") if isinstance(told, dict) else told
        raise JugglerError(str(message or f"{url} answered {answer.status}"), hint=detail.get("hint"))
    if answer.status >= 400 or needed not in document:
        raise _not_reachable(url, "another program does")
    return document


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname:
            return parts.hostname, parts.port or 80
    except ValueError:  # a port or an IPv6 address that is none
        pass
    raise click.UsageError(f"{url!r} is not an http:// address")


def _not_reachable(url: str, why: str) -> NotReachable:
    return NotReachable(
        f"no juggler answers at {url} ({why})",
        hint="start one with `juggler serve`, or name its address by --url",
    )


def give_order(url: str, name: str, endpoint: str) -> None:
    """Load, unload or stop an endpoint, and wait until it is done."""
    done = call(url, "POST", f"/api/{name}?endpoint={quote(endpoint, safe='')}", ORDER_TIMEOUT_S, "result")
    click.echo(f"{done['endpoint']}: {done['result']}")


def print_status(url: str, *, as_json: bool) -> None:
    """What ``juggler ps`` shows."""
    status = call(url, "GET", "/api/status", STATUS_TIMEOUT_S, "instances")
    if as_json:
        click.echo(json.dumps(status, indent=2, ensure_ascii=False))
        return
    rows: list[tuple[str, ...]] = [("ENDPOINT", "STATE", "RUNNING", "WAITING", "MEMORY", "KNOWN", "IDLE", "LOAD TIME")]
    rows += [_row(one) for one in status["instances"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo("pools: " + ", ".join(_pool(one) for one in status["pools"]))
    for one in status["instances"]:
        if one["error"] is not None:
            click.echo(f"{one['instance']}: {one['error']['message']}")
            if one["error"]["hint"]:
                click.echo(f"  hint: {one['error']['hint']}")
        if one["waiting"] and one["waits_for"]:
            waiting = one["waiting"]
            who, last = ("1 waits", "it is") if waiting == 1 else (f"{waiting} wait", "the last is")
            expected = format_duration(one["expected_wait_s"])
            click.echo(f"{one['instance']}: {who}: {one['waits_for']}; {last} served in {expected} or so")
        if one["holds_on"] is not None:
            click.echo(f"{one['instance']}: attached, and did not free its memory: {one['holds_on']}")
    for entry in status["warmup"]:
        if entry["state"] == "failed":
            click.echo(f"warm-up of {entry['endpoint']} failed: {entry['error']}")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    held = ", ".join(_amount(pool, size) for pool, size in one["held_bytes"].items())
    needs = ", ".join(_amount(pool, size) for pool, size in one["needs_bytes"].items())
    return (
        ", ".join(one["endpoints"]) or one["instance"],
        f"{one['state']} (attached)" if one["attached"] else one["state"],
        str(one["running"]),
        str(one["waiting"]),
        held or f"({needs})",
        one["memory_origin"] or "-",
        "-" if one["idle_s"] is None else format_duration(one["idle_s"]),
        "-" if one["load_s"] is None else format_duration(one["load_s"]),
    )


def _amount(pool: str, size_bytes: int) -> str:
    return pool if pool == "exclusive" else f"{pool} {format_size(size_bytes)}"


def _pool(one: dict[str, Any]) -> str:
    if one["pool"] == "exclusive":
        return "exclusive (one loaded at a time)"
    foreign = ""
    if one["foreign_bytes"]:
        foreign = f", others use {one['foreign_users'] or format_size(one['foreign_bytes'])}"
    return f"{one['pool']} {format_size(one['used_bytes'])} of {format_size(one['capacity_bytes'])} used{foreign}"


def print_overview(url: str, config: Path) -> None:
    """Bare ``juggler``: status, else what to do next. Never an error."""
    try:
        print_status(url, as_json=False)
    except NotReachable:
        click.echo(f"No juggler runs at {url}.")
        if config.exists():
            click.echo(f"  juggler check {config}    look for mistakes in the configuration here")
            click.echo("  juggler doctor               look for what does not work on this machine")
            click.echo("  juggler serve                serve it")
        else:
            click.echo("  juggler demo                 see it work, without any configuration")
            click.echo("  juggler init                 write a configuration for what is installed here")
            click.echo("  juggler serve --config FILE  serve a configuration (docs/configuration.md explains the keys)")
    click.echo("`juggler --help` lists all commands.")
