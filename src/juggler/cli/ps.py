"""``juggler ps`` and bare ``juggler``: what is loaded, what runs and who waits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from juggler.cli.remote import NotReachable, Remote
from juggler.cli.screen import watch
from juggler.cli.table import in_columns, printable, terminal_width
from juggler.units import format_duration, format_size

Status = Mapping[str, Any]

HEADS = ("ENDPOINT", "STATE", "RUNNING", "WAITING", "MEMORY", "KNOWN", "IDLE", "LOAD TIME")


def status_of(remote: Remote) -> dict[str, Any]:
    """All there is to know.

    Raises:
        JugglerError: Nobody answers, or not with that.
    """
    return remote.call("GET", "/api/v1/status", "instances")


def print_status(remote: Remote, *, as_json: bool) -> None:
    """Once."""
    status = status_of(remote)
    if as_json:
        click.echo(json.dumps(status, indent=2))
        return
    for line in status_lines(status, terminal_width()):
        click.echo(line)


def watch_status(remote: Remote, *, as_json: bool, every_s: float) -> None:
    """Again and again, until ``q`` or Ctrl-C; one document a line as JSON."""

    def lines(width: int | None, height: int | None) -> list[str]:
        status = status_of(remote)
        if as_json:
            return [json.dumps(status)]
        return status_lines(status, width)

    watch(lines, every_s=every_s, on_screen=not as_json)


def status_lines(status: Status, width: int | None) -> list[str]:
    """What ``juggler ps`` shows, in at most ``width`` columns where they are bounded."""
    now = status["now_at"]
    lines = in_columns([HEADS, *(_row(one, now) for one in status["instances"])], width)
    lines.append("pools: " + ", ".join(_pool(one) for one in status["pools"]))
    locked = status.get("locked")
    if locked:
        since = format_duration(max(now - locked["since_at"], 0.0))
        lines.append(f"locked for {since}: no model gives way to another until `juggler lock --off`")
    if status["shutting_down"]:
        lines.append("it is shutting down")
    for one in status["instances"]:
        lines += _remarks(one)
    for entry in status["warmup"]:
        if entry["state"] == "failed":
            lines.append(f"warm-up of {entry['endpoint']} failed: {entry['error']}")
    return [printable(line) for line in lines]


def _remarks(one: Status) -> list[str]:
    lines = []
    if one["error"] is not None:
        lines.append(f"{one['instance']}: {one['error']['message']}")
        if one["error"]["hint"]:
            lines.append(f"  hint: {one['error']['hint']}")
    if one["waiting"] and one["waits_for"]:
        waiting = one["waiting"]
        who, last = ("1 waits", "it is") if waiting == 1 else (f"{waiting} wait", "the last is")
        expected = one["expected_wait_s"]
        when = f"; {last} served in {format_duration(expected)} or so" if expected is not None else ""
        lines.append(f"{one['instance']}: {who}: {one['waits_for']}{when}")
    if one["holds_on"] is not None:
        lines.append(f"{one['instance']}: attached, and did not free its memory: {one['holds_on']}")
    return lines


def _row(one: Status, now: float) -> tuple[str, ...]:
    held = ", ".join(amount(pool, size) for pool, size in one["held_bytes"].items())
    needs = ", ".join(amount(pool, size) for pool, size in one["needs_bytes"].items())
    idle_at, load_s = one["idle_since_at"], one["load_expected_s"]
    return (
        ", ".join(one["endpoints"]) or one["instance"],
        state_of(one),
        str(one["running"]),
        str(one["waiting"]),
        held or f"({needs})",
        one["memory_origin"] or "-",
        "-" if idle_at is None else format_duration(max(now - idle_at, 0.0)),
        "-" if load_s is None else format_duration(load_s),
    )


def state_of(one: Status) -> str:
    """The state of an instance with what else there is to say in a word."""
    marks = [name for name in ("attached", "pinned") if one.get(name)]
    return f"{one['state']} ({', '.join(marks)})" if marks else str(one["state"])


def loading_text(one: Status, now: float) -> str:
    """How a load goes on, or what it waits for; empty if there is none."""
    began, expected = one["load_began_at"], one["load_expected_s"]
    if began is not None:
        took = format_duration(max(now - began, 0.0))
        return f"loading for {took}" + (f" of about {format_duration(expected)}" if expected is not None else "")
    return str(one["waits_for"]) if one["waiting"] and one["waits_for"] else ""


def amount(pool: str, size_bytes: int) -> str:
    """So much of a pool."""
    return pool if pool == "exclusive" else f"{pool} {format_size(size_bytes)}"


def _pool(one: Status) -> str:
    if one["pool"] == "exclusive":
        return "exclusive (one loaded at a time)"
    foreign = ""
    if one["foreign_bytes"]:
        foreign = f", others use {one['foreign_users'] or format_size(one['foreign_bytes'])}"
    return f"{one['pool']} {format_size(one['used_bytes'])} of {format_size(one['capacity_bytes'])} used{foreign}"


def print_overview(remote: Remote, config: Path) -> None:
    """Bare ``juggler``: status, else what to do next. Never an error where none runs."""
    try:
        print_status(remote, as_json=False)
    except NotReachable:
        click.echo(f"No juggler runs at {remote.url}.")
        if config.exists():
            click.echo(f"  juggler check {config}    look for mistakes in the configuration here")
            click.echo("  juggler doctor               look for what does not work on this machine")
            click.echo("  juggler serve                serve it")
        else:
            click.echo("  juggler demo                 see it work, without any configuration")
            click.echo("  juggler init                 write a configuration for what is installed here")
            click.echo("  juggler serve --config FILE  serve a configuration (docs/configuration.md explains the keys)")
    click.echo("`juggler --help` lists all commands.")
