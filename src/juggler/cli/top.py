"""``juggler top``: memory, instances, queue and running requests on one screen."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from juggler.cli.ps import amount, loading_text, state_of, status_of
from juggler.cli.remote import Remote
from juggler.cli.screen import can_repaint, show_once_or_live
from juggler.cli.table import cut, printable, width_of
from juggler.units import format_duration, format_size

Status = Mapping[str, Any]
Section = Callable[[int], Table]
"""Makes a table of so many entries at most."""

WIDTH_ELSEWHERE = 120
"""Columns where output is no terminal."""

WIDTH_FOR_ALL = 90
"""Terminals that are narrower get the columns that matter most."""

_STYLES = {
    "ready": "green",
    "busy": "bold green",
    "failed": "bold red",
    "down": "red",
    "stopped": "dim",
    "unloaded": "dim",
}
_MOVING = "yellow"
_HOLDER_STYLES = ("black on green", "black on cyan", "black on yellow", "white on blue", "white on magenta")
_FOREIGN_STYLE = "white on bright_black"


def show_top(remote: Remote, *, every_s: float) -> None:
    """Until ``q`` or Ctrl-C; once where output is no terminal.

    Raises:
        JugglerError: Nobody answers at the first look, or the key is wrong.
    """

    def lines(width: int | None, height: int | None) -> list[str]:
        return view(status_of(remote), remote.url, width or WIDTH_ELSEWHERE, height, colours=can_repaint())

    show_once_or_live(lines, every_s=every_s)


def view(status: Status, url: str, width: int, height: int | None, *, colours: bool) -> list[str]:
    """The screen as lines of at most ``width`` columns.

    Args:
        height: Rows there are: sections show as many entries as there is room for; None: all.
        colours: As escape sequences; without, every state is told all the same.
    """
    now = status["now_at"]
    head = [_title(status, url), _today(status, width), *(_bar(one, width) for one in status["pools"])]
    sections = [
        (_instances(status["instances"], now, width), len(status["instances"])),
        (_queue(status["waiting"], now, width), len(status["waiting"])),
        (_running(status["running"], now, width), len(status["running"])),
    ]
    if height is None:
        rooms = [count for _, count in sections]
    else:
        rooms = _rooms(height - len(head), [count for _, count in sections])
    parts: list[RenderableType] = [*head]
    for (section, count), room in zip(sections, rooms, strict=True):
        if count:
            parts += ["", section(room)] if height is None or room else []
            if room and count > room:
                parts.append(Text(f"... and {count - room} more", style="dim"))
    lines = _rendered(Group(*parts), width, colours)
    return lines if height is None else lines[:height]


def _rooms(rows: int, counts: Sequence[int]) -> list[int]:
    """How many entries each section shows: in turn one more, while there is room for heads and remarks too."""
    rooms = [0] * len(counts)
    left = rows - 3 * sum(1 for count in counts if count)
    while left > 0 and any(room < count for room, count in zip(rooms, counts, strict=True)):
        for number, count in enumerate(counts):
            if left > 0 and rooms[number] < count:
                rooms[number] += 1
                left -= 1
    return rooms


def _rendered(what: RenderableType, width: int, colours: bool) -> list[str]:
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colours,
        no_color=bool(os.environ.get("NO_COLOR")) or not colours,
        color_system="auto" if colours else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(what, no_wrap=True, overflow="ellipsis" if _has_ellipsis() else "crop")
    return out.getvalue().rstrip("\n").split("\n")


def _has_ellipsis() -> bool:
    return (sys.stdout.encoding or "ascii").lower().startswith("utf")


def _title(status: Status, url: str) -> Text:
    up = format_duration(max(status["now_at"] - status["started_at"], 0.0))
    text = Text(f"juggler {printable(status['version'])} at {url}, up {up}", style="bold")
    if status["shutting_down"]:
        text.append("  SHUTTING DOWN", style="bold red")
    if status["locked"]:
        text.append("  LOCKED: nothing is swapped", style="bold yellow")
    return text


def _today(status: Status, width: int) -> Text:
    today = status["today"] or {}
    parts = [f"today: {_count(today.get('requests'), 'request')}", _count(today.get("swaps"), "swap")]
    if today.get("failures"):
        parts.append(_count(today["failures"], "failure"))
    share = today.get("share_waiting")
    if share is not None:
        parts.append(f"{share:.0%} of the time spent waiting for loads")
    clock = time.strftime("%H:%M:%S", time.localtime(status["now_at"]))
    left = cut(", ".join(parts), max(width - 10, 1))
    return Text(left + " " * max(width - width_of(left) - 9, 1) + clock, style="dim")


def _count(number: int | None, what: str) -> str:
    return f"{number or 0} {what}" if number == 1 else f"{number or 0} {what}s"


def _bar(pool: Status, width: int) -> Text:
    """A pool as a bar whose parts carry their names, so that it can be read without colours."""
    exclusive = pool["pool"] == "exclusive"
    used, capacity, foreign = pool["used_bytes"], pool["capacity_bytes"], pool["foreign_bytes"]
    told = "one at a time" if exclusive else f"{format_size(used)} of {format_size(capacity)}"
    name = printable(pool["pool"])
    room = max(width - width_of(name) - width_of(told) - 6, 10)
    text = Text(f"{name} [")
    parts = [(one["instance"], one["bytes"], _HOLDER_STYLES[n % 5]) for n, one in enumerate(pool["holders"])]
    if foreign:
        parts.append((f"others: {pool['foreign_users'] or format_size(foreign)}", foreign, _FOREIGN_STYLE))
    left = room
    for holder, size, style in parts:
        columns = min(max(round(room * size / capacity), 1), left) if capacity else 0
        if columns:
            shown = cut(printable(holder).rpartition("/")[2], columns - 1)
            text.append(shown + " " * (columns - 1 - width_of(shown)) + "|", style=style)
            left -= columns
    text.append("." * left + "] " + told)
    return text


def _table(heads: Sequence[str], width: int) -> Table:
    """The last column takes what the others leave."""
    table = Table(box=None, padding=(0, 2, 0, 0), width=width, header_style="bold underline", collapse_padding=True)
    for number, head in enumerate(heads):
        table.add_column(head, no_wrap=True, ratio=1 if number == len(heads) - 1 else None, overflow="crop")
    return table


def _filled(heads: Sequence[str], narrow: Sequence[int], width: int, rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table; of ``width`` columns, or with the columns ``narrow`` alone where that is little."""
    columns = range(len(heads)) if width >= WIDTH_FOR_ALL else narrow
    table = _table([heads[column] for column in columns], width)
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    return table


def _instances(instances: Sequence[Status], now: float, width: int) -> Section:
    def row(one: Status) -> tuple[str | Text, ...]:
        held = one["held_bytes"] or one["needs_bytes"]
        memory = ", ".join(amount(pool, size) for pool, size in held.items())
        since = one["since_at"]
        return (
            printable(one["name"] or one["instance"]),
            Text(state_of(one), style=_STYLES.get(one["state"], _MOVING)),
            str(one["running"]),
            str(one["waiting"]),
            memory if one["held_bytes"] else f"({memory})",
            "-" if since is None else format_duration(max(now - since, 0.0)),
            printable(_remark(one, now)),
        )

    heads = ("INSTANCE", "STATE", "RUN", "WAIT", "MEMORY", "SINCE", "REMARK")
    ordered = sorted(instances, key=_importance)
    return lambda room: _filled(heads, (0, 1, 3, 6), width, map(row, ordered[:room]))


def _importance(one: Status) -> int:
    """What needs looking at first, what is not there last; the order is kept otherwise."""
    if one["error"] is not None or one["waiting"]:
        return 0
    return 2 if one["state"] in ("stopped", "down", "unloaded") else 1


def _remark(one: Status, now: float) -> str:
    if one["error"] is not None:
        return str(one["error"]["message"])
    if loading := loading_text(one, now):
        return loading
    return f"did not free its memory: {one['holds_on']}" if one["holds_on"] is not None else ""


def _queue(waiting: Sequence[Status], now: float, width: int) -> Section:
    def row(one: Status) -> tuple[str, ...]:
        expected = one["expected_s"]
        return (
            str(one["request"]),
            str(one["position"]),
            printable(one["endpoint"]),
            printable(one["client"] or "-"),
            format_duration(max(now - one["arrived_at"], 0.0)),
            "-" if expected is None else format_duration(expected),
            printable(one["why"]),
        )

    heads = ("WAITING", "NO", "ENDPOINT", "CLIENT", "FOR", "EXPECTED", "WHY")
    ordered = sorted(waiting, key=lambda one: (one["position"], one["arrived_at"]))
    return lambda room: _filled(heads, (0, 2, 4, 6), width, map(row, ordered[:room]))


def _running(running: Sequence[Status], now: float, width: int) -> Section:
    def row(one: Status) -> tuple[str, ...]:
        return (
            str(one["request"]),
            printable(one["endpoint"]),
            printable(one["client"] or "-"),
            format_duration(max(now - one["granted_at"], 0.0)),
            printable(f"{one['method']} {one['target']}"),
        )

    heads = ("RUNNING", "ENDPOINT", "CLIENT", "FOR", "REQUEST")
    ordered = sorted(running, key=lambda one: one["granted_at"])
    return lambda room: _filled(heads, (0, 1, 3, 4), width, map(row, ordered[:room]))
