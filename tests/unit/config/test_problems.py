"""Places, excerpts and the form of a printed problem."""

import pytest

from juggler.config.problems import (
    EXCERPT_CHARACTERS_MAX,
    Position,
    Problem,
    Source,
    config_error,
    excerpt,
    path_text,
)


@pytest.mark.parametrize(
    ("offset", "place"), [(0, (1, 1)), (1, (1, 2)), (3, (2, 1)), (5, (3, 1)), (7, (4, 1)), (8, (4, 2))]
)
def test_positions_count_lines_as_editors_do(offset: int, place: tuple[int, int]) -> None:
    """CRLF, LF and CR each end one line; columns count from 1."""
    source = Source("x", "a\r\nb\nc\rde")
    assert source.position(offset) == place


def test_lines_come_without_their_ends() -> None:
    """An excerpt never holds a line end, whatever kind the file uses."""
    source = Source("x", "a\r\nb\nc\r")
    assert [source.line(number) for number in (0, 1, 2, 3, 4, 5)] == ["", "a", "b", "c", "", ""]


def test_a_problem_prints_place_first() -> None:
    """Editors link ``path:line:column``; warnings say that they are."""
    source = Source("c.json", "{\n  bad\n}")
    error = source.problem("error", Position(2, 3), "no good", hint="do better", key=("servers", 0, "port"))
    assert str(error) == "c.json:2:3: no good\n      bad\n      ^\n  hint: do better"
    assert error.key == "servers[0].port"
    assert str(source.problem("warning", Position(3, 1), "hm")).startswith("c.json:3:1: warning: hm\n")


@pytest.mark.parametrize(
    ("line", "column", "caret"),
    [("\tx", 2, "    \t^"), ("日x", 2, "      ^"), ("abc", 9, "       ^"), ("", 1, "    ^")],
)
def test_the_caret_stands_right_in_a_terminal(line: str, column: int, caret: str) -> None:
    """Tabs are repeated, wide characters count twice, and the caret never runs past the line's end."""
    assert excerpt(line, column).splitlines()[1] == caret


def test_long_lines_are_cut_around_the_caret() -> None:
    """A minified file does not flood the terminal, and the caret still points at the right character."""
    shown, caret = excerpt("a" * 5000 + "X" + "b" * 5000, 5001).splitlines()
    assert len(shown) == EXCERPT_CHARACTERS_MAX + 4
    assert shown[caret.index("^")] == "X"


def test_an_excerpt_cannot_command_the_terminal() -> None:
    """Escape sequences in a file are shown as replacement characters."""
    assert "\x1b" not in excerpt("\x1b[2J", 1)


def test_all_problems_are_told_in_file_order() -> None:
    """The exception sorts by place and carries the same as data."""
    late, early = Problem("error", "f", 9, 1, "late"), Problem("warning", "f", 2, 1, "early")
    error = config_error([late, early])
    assert error.message == "f:2:1: warning: early\nf:9:1: late"
    assert error.details["problems"] == [early.as_dict(), late.as_dict()]


def test_path_text() -> None:
    """Paths read as in most languages."""
    assert path_text(()) == ""
    assert path_text(("servers", 0, "endpoints", 12, "env", "A")) == "servers[0].endpoints[12].env.A"
