"""Text in columns, for terminals of any width and any encoding."""

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence


def printable(text: object) -> str:
    """One line that tells the terminal nothing: control characters are shown as ``?``."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(one if one.isprintable() else "?" for one in shown)


def width_of(text: str) -> int:
    """Columns it takes; East Asian characters take two."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def cut(text: str, width: int) -> str:
    """Its beginning, in at most ``width`` columns; what is cut ends with ``~``."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return text + "~" if width > 0 else ""


def terminal_size() -> os.terminal_size:
    """Columns and rows of the terminal we write to, now: ``COLUMNS`` of the environment does not change with it."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return shutil.get_terminal_size()
    return size if size.columns and size.lines else shutil.get_terminal_size()  # 0: it does not know


def terminal_width() -> int | None:
    """Columns of the terminal we write to; None: it is none, and lines may have any length."""
    return terminal_size().columns if sys.stdout.isatty() else None


def in_columns(rows: Sequence[Sequence[str]], width: int | None = None, *, shrinks: int = 0) -> list[str]:
    """Lines with the cells under each other, the first row being the heads.

    Args:
        width: Columns there are; None: as many as it takes.
        shrinks: The column that gives way first; at the end lines are cut.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(width_of(row[column]) for row in cells) for column in range(len(cells[0]))]
    if width is not None:
        over = sum(widths) + 2 * (len(widths) - 1) - width
        widths[shrinks] = max(widths[shrinks] - max(over, 0), min(widths[shrinks], 12))
    lines = []
    for row in cells:
        parts = []
        for cell, room in zip(row, widths, strict=True):
            shown = cut(cell, room)
            parts.append(shown + " " * (room - width_of(shown)))
        line = "  ".join(parts).rstrip()
        lines.append(line if width is None else cut(line, width))
    return lines
