"""Columns of text."""

import pytest

from juggler.cli.table import cut, in_columns, printable, width_of


def test_columns() -> None:
    """Under each other, whatever their letters take."""
    assert in_columns([("NAME", "N"), ("a", "1"), ("\u65e5\u672c", "22")]) == ["NAME  N", "a     1", "\u65e5\u672c  22"]


def test_narrow() -> None:
    """The column that may shrink does first; then lines are cut, and no line is ever wider."""
    rows = [("NAME", "STATE"), ("a" * 40, "ready")]
    assert in_columns(rows, 30)[1] == "a" * 22 + "~  ready"
    for width in range(1, 60):
        assert all(width_of(line) <= width for line in in_columns(rows, width))


def test_nothing_is_told_to_the_terminal() -> None:
    """Names and targets come from others."""
    assert printable("a\x1b[2Jb\nc\u202e") == "a?[2Jb?c?"
    assert in_columns([("\x1b]0;x\x07",)]) == ["?]0;x?"]


@pytest.mark.parametrize(
    ("text", "width", "left"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab~"),
        ("abc", 1, "~"),
        ("abc", 0, ""),
        ("\u65e5\u672c", 3, "\u65e5~"),
        ("e\u0301", 1, "e\u0301"),
    ],
)
def test_cutting(text: str, width: int, left: str) -> None:
    assert cut(text, width) == left
