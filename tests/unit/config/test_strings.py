"""What counts as a Windows path in a JSON text."""

import pytest

from juggler.config.problems import Source
from juggler.config.strings import looks_like_windows_path, read_string


@pytest.mark.parametrize("raw", [r"C:\x", r"c:\\x", r"a=D:\y", r"models\x.gguf", r"a\\b\c.exe", r"-m C:\models\x"])
def test_paths(raw: str) -> None:
    """A drive with a backslash anywhere, or backslashes before the name of a known kind of file."""
    assert looks_like_windows_path(raw)


@pytest.mark.parametrize("raw", [r"a\nb", r"https:\/\/x", "C:/x", r"\d+\.", "x.gguf", r"one\ttwo", r"{\"a\":\n1}"])
def test_other_texts(raw: str) -> None:
    """Regular expressions, JSON in JSON and plain escapes are no paths."""
    assert not looks_like_windows_path(raw)


def test_only_the_first_bad_escape_of_a_text_is_reported() -> None:
    """A path of six folders is one mistake."""
    result = read_string(Source("c", r'"C:\a\c\d" rest'), 0)
    assert (result.text, result.end, result.closed, len(result.problems)) == (r"C:\a\c\d", 10, True, 1)
