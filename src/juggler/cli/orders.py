"""Commands that change something in the running juggler: by hand what requests do by themselves, and the queue."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

from juggler.cli.ending import FAILED
from juggler.cli.progress import Progress
from juggler.cli.remote import ORDER_TIMEOUT_S, STATUS_TIMEOUT_S, Remote, segment
from juggler.cli.table import in_columns, printable, terminal_width
from juggler.errors import JugglerError
from juggler.units import format_duration


def give_orders(remote: Remote, order: str, endpoints: Sequence[str], wait_s: float) -> None:
    """``load``, ``unload``, ``stop`` or ``restart`` endpoints one after the other, each until it is done.

    Args:
        wait_s: So long at most for each, and no longer than ``ORDER_TIMEOUT_S``; 0: only say what is wanted.

    Raises:
        click.exceptions.Exit: Some could not be done, or not in time.
    """
    wait_s = min(wait_s, ORDER_TIMEOUT_S)

    def one(endpoint: str) -> bool:
        path = f"/api/v1/endpoints/{segment(endpoint)}/{order}?wait_s={wait_s:g}"
        with Progress(remote, endpoint):
            answer = remote.call("POST", path, "result", wait_s + STATUS_TIMEOUT_S)
        name, result = printable(answer["endpoint"]), printable(answer["result"])
        if answer["done"]:
            click.echo(f"{name}: {result}")
        elif wait_s:
            click.echo(f"{name}: not done after {format_duration(wait_s)}; the order stands", err=True)
        else:
            click.echo(f"{name}: {order} was ordered")
        return bool(answer["done"]) or not wait_s

    _each(one, endpoints)


def set_pin(remote: Remote, endpoints: Sequence[str], *, on: bool) -> None:
    """Keep endpoints loaded whatever others want, or let them go again.

    Raises:
        click.exceptions.Exit: Some could not.
    """

    def one(endpoint: str) -> bool:
        answer = remote.call("PUT" if on else "DELETE", f"/api/v1/endpoints/{segment(endpoint)}/pin", "pinned")
        click.echo(f"{printable(answer['endpoint'])}: {'pinned' if answer['pinned'] else 'not pinned'}")
        return bool(answer["pinned"]) == on

    _each(one, endpoints)


def set_lock(remote: Remote, *, on: bool) -> None:
    """Let no model give way to another, or go on swapping."""
    answer = remote.call("PUT" if on else "DELETE", "/api/v1/lock", "locked")
    if answer["locked"]:
        click.echo("locked: no model gives way to another until `juggler lock --off`")
    else:
        click.echo("not locked: models are swapped as requests need them")


def print_queue(remote: Remote, *, as_json: bool) -> None:
    """Who waits, in the order in which each instance serves them, and why."""
    answer = remote.call("GET", "/api/v1/status", "waiting")
    if as_json:
        click.echo(json.dumps(answer["waiting"], indent=2))
        return
    for line in queue_lines(answer, terminal_width()):
        click.echo(line)


def queue_lines(status: dict[str, Any], width: int | None) -> list[str]:
    """One line for each that waits."""
    if not status["waiting"]:
        return ["Nobody waits."]
    now = status["now_at"]
    rows = [("ID", "ENDPOINT", "NO", "CLIENT", "WAITS", "EXPECTED", "REQUEST", "WHY")]
    for one in sorted(status["waiting"], key=lambda one: (one["instance"], one["position"])):
        expected = one["expected_s"]
        rows.append(
            (
                str(one["request"]),
                one["endpoint"],
                str(one["position"]),
                one["client"] or "-",
                format_duration(max(now - one["arrived_at"], 0.0)),
                "-" if expected is None else format_duration(expected),
                "load" if one["kind"] == "load" else f"{one['method']} {one['target']}",
                one["why"],
            )
        )
    return in_columns(rows, width, shrinks=6)


def cancel(remote: Remote, requests: Sequence[int]) -> None:
    """Answer waiting requests with an error.

    Raises:
        click.exceptions.Exit: Some do not wait.
    """

    def one(request: int) -> bool:
        answer = remote.call("DELETE", f"/api/v1/requests/{request}", "result")
        click.echo(f"{answer['request']}: {printable(answer['result'])}")
        return True

    _each(one, requests)


def to_front(remote: Remote, requests: Sequence[int]) -> None:
    """Serve waiting requests before all others of their instance, the first named first.

    Raises:
        click.exceptions.Exit: Some do not wait.
    """

    def one(request: int) -> bool:
        answer = remote.call("POST", f"/api/v1/requests/{request}/front", "position")
        click.echo(f"{answer['request']}: is next")
        return True

    _each(one, list(reversed(requests)))


def _each(order: Callable[[Any], bool], things: Sequence[Any]) -> None:
    failed = False
    for thing in things:
        try:
            done = order(thing)
        except JugglerError as error:
            if len(things) == 1:
                raise
            click.echo(error.message, err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            done = False
        failed = failed or not done
    if failed:
        raise click.exceptions.Exit(FAILED)
