"""The tolerant JSON reader: what it accepts, and where and how it complains."""

import json
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.config.problems import Source
from juggler.config.reader import PROBLEMS_MAX, read_json
from juggler.config.tree import DEPTH_MAX, Read, plain


def read(text: str) -> Read:
    return read_json(Source("c.json", text))


def value(text: str) -> object:
    result = read(text)
    assert result.problems == []
    assert result.root is not None
    return plain(result.root)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1,}', {"a": 1}),
        ("[1, 2, ]", [1, 2]),
        ("// one\n[ # two\n1 /* three\n */, // four\n]# five", [1]),
        ('{\r\n"a":\r\n1\r\n}\r\n', {"a": 1}),
        ('\u00a0{"a"\u2003:1}', {"a": 1}),
        ('"http://x//y#z/*"', "http://x//y#z/*"),
        (r'"\ud83d\ude00\u00e9\/\t"', "\U0001f600é/\t"),
        ("[-0, 1e3, 1.5E-2, true, false, null]", [0, 1000.0, 0.015, True, False, None]),
        ('{"_x": 1, "_x": 2, "x-y": 1, "x-y": 1}', {"_x": 1, "x-y": 1}),
    ],
)
def test_accepts(text: str, expected: object) -> None:
    """Comments, trailing commas and any white space are fine; remarks may repeat."""
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('{"a": 1\n "b": 2}', "1:8", 'missing "," between "a" and the next entry'),
        ('["-m" "x"]', "1:6", 'missing "," between "-m" and the next entry'),
        ("[1 2]", "1:3", 'missing "," between 1 and the next entry'),
        ('{"a": 1, "a": 2}', "1:10", 'duplicate key "a": it is already at line 1, column 2'),
        ('{"a": [1, 2}', "1:12", '"}" where "]" must close the "[" of line 1, column 7'),
        ('{"a": {"b": 1}', "1:1", 'this "{" is never closed'),
        ('{"a": [1', "1:7", 'this "[" is never closed'),
        ('{"a": "b\n}', "1:7", "this text is not closed on its line"),
        ('{"a": "b', "1:7", "this text is not closed on its line"),
        ("{'a': 1}", "1:2", 'text must be in double quotes ("), not in single quotes'),
        ("['a]", "1:2", "this text is not closed on its line"),
        ("{“a”: 1}", "1:2", 'text must be in double quotes ("), not in typographic quotes'),
        ("{a: 1}", "1:2", 'the key "a" must be in double quotes'),
        ("[True]", "1:2", "True is not JSON: write true"),
        ("[None]", "1:2", "None is not JSON: write null"),
        ("[yes]", "1:2", "yes is not JSON"),
        ("[NaN]", "1:2", "NaN is not a number that JSON knows"),
        ("[-Infinity]", "1:2", "-Infinity is not a number that JSON knows"),
        ("[007]", "1:2", "007 is not a number as JSON writes it"),
        ("[.5]", "1:2", ".5 is not a number as JSON writes it"),
        ("[0x1F]", "1:2", "0x1F is not a number as JSON writes it"),
        ("[1e999]", "1:2", "the number 1e999 is too large"),
        ("[10m]", "1:2", "10m is not a number as JSON writes it"),
        ("[/usr/bin/x // c\n]", "1:2", 'the text "/usr/bin/x" must be in double quotes'),
        ('["\\q"]', "1:3", '"\\q" is not an escape that JSON knows'),
        ('["a\\u12g4"]', "1:4", '"\\u" must be followed by four hexadecimal digits'),
        ('["\\ud83d"]', "1:3", '"\\ud83d" is half of a surrogate pair, without its other half'),
        ('["\\ude00\\ud83d"]', "1:3", '"\\ude00" is half of a surrogate pair, without its other half'),
        ('["a\tb"]', "1:4", "a text must not hold the raw control character '\\t'"),
        ('{"a" 1}', "1:5", 'missing ":" between the key "a" and its value'),
        ('{"a" = 1}', "1:6", '"=" where ":" must follow the key "a"'),
        ('{"a" => 1}', "1:6", '"=" where ":" must follow the key "a"'),
        ('{"a": }', "1:2", 'the key "a" has no value'),
        ('{"a"}', "1:2", 'the key "a" has no value'),
        ('{"a: "b"}', "1:2", 'the quote that ends the key is missing before "a: "'),
        ("[1,, 2]", "1:4", 'unexpected ",": there is no entry before it'),
        ('["a": 1]', "1:5", 'unexpected ":" in a list'),
        ("{[1]: 2}", "1:2", 'a key in double quotes must be here, not "["'),
        ("[)]", "1:2", 'unexpected ")" where a value must be'),
        ("[1] /* x", "1:5", "this comment is never closed"),
        ("{} {}", "1:4", 'unexpected "{" after the end of the configuration'),
        ("", "1:1", "the file is empty"),
        ("// nothing\n", "1:1", "the file is empty"),
    ],
)
def test_complains(text: str, place: str, message: str) -> None:
    """Each mistake is told first, at the place where it is mended."""
    first = read(text).problems[0]
    assert (f"{first.line}:{first.column}", first.message) == (place, message)
    assert first.severity == "error"


def test_reads_on_after_plain_mistakes() -> None:
    """One run reports every mistake whose meaning is plain, and still gives the tree."""
    result = read("{'a': True b: [1 2,, None], \"a\": 1 /* . */ }")
    assert [problem.code for problem in result.problems] == [
        "quotes", "bad-word", "missing-comma", "unquoted", "missing-comma", "stray-comma", "bad-word", "duplicate-key",
    ]  # fmt: skip
    assert result.root is not None
    assert plain(result.root) == {"a": True, "b": [1, 2, None]}


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (r"C:\models\x.gguf", r'"C:\\models\\x.gguf", or forward slashes, "C:/models/x.gguf"'),
        (r"C:\users\me", r'"C:\\users\\me"'),
        (r"--model=D:\x\y", r'"--model=D:\\x\\y"'),
    ],
)
def test_windows_paths_get_their_hint(raw: str, hint: str) -> None:
    """A single backslash in a path is explained with that very path, also where it looks like a bad \\u."""
    (problem,) = read(f'["{raw}"]').problems
    assert problem.hint is not None
    assert hint in problem.hint
    assert (problem.line, problem.column) == (1, 3 + raw.index("\\"))


@pytest.mark.parametrize(
    ("raw", "column", "meaning"),
    [
        (r"C:\test\new.gguf", 5, "a tab"),
        (r"C:\\test\new.gguf", 11, "a line end"),
        (r"C:\bin", 5, "a backspace"),
        (r"C:\files", 5, "a form feed"),
        (r"models\raw.gguf", 9, "a carriage return"),
    ],
)
def test_paths_with_silent_escapes_are_warned_about(raw: str, column: int, meaning: str) -> None:
    """``"C:\\test"`` is valid JSON and a broken path: a warning, not an error."""
    (problem,) = read(f'["{raw}"]').problems
    assert (problem.severity, problem.column) == ("warning", column)
    assert meaning in problem.message
    assert problem.hint is not None
    assert "forward slashes" in problem.hint


@pytest.mark.parametrize(
    "text", [r'"a\tb"', r'"line\nline"', r'"C:\\test\\new.gguf"', r'"^\\d+\n$"', r'"say: \"hi\"\n"']
)
def test_ordinary_escapes_are_not_warned_about(text: str) -> None:
    """Texts that are no Windows paths keep their escapes in peace."""
    assert value(text) == json.loads(text)


def test_a_backslash_before_the_closing_quote() -> None:
    """``"C:\\models\\"`` swallows its closing quote; the hint still says what to write."""
    problems = read('{"a": "C:\\models\\"}').problems
    assert [problem.code for problem in problems] == ["bad-escape", "unclosed"]
    assert all(problem.hint is not None and "two backslashes" in problem.hint for problem in problems)


@pytest.mark.parametrize("opener", ["[", '{"a":', '[{"a":'])
def test_depth_is_bounded(opener: str) -> None:
    """A million brackets are one problem and no RecursionError."""
    (problem,) = read(opener * 1_000_000).problems
    assert problem.code == "too-deep"
    assert value("[" * DEPTH_MAX + "]" * DEPTH_MAX) is not None


def test_reports_are_bounded() -> None:
    """A file that is no JSON at all does not print a book."""
    result = read("[" + "1 " * 10_000 + "]")
    assert len(result.problems) == PROBLEMS_MAX
    assert result.root is None


@pytest.mark.parametrize(
    "text",
    [
        "[" + "9" * 500_000 + "]",
        '"' + "\\u" * 200_000,
        "/*" * 200_000,
        '["' + "a\\b" * 100_000,
        "'" * 200_000,
        "x=" * 200_000,
    ],
    ids=["digits", "escapes", "comments", "path", "quotes", "words"],
)
def test_hostile_texts_take_no_quadratic_time(text: str) -> None:
    """Half a megabyte of anything is read in time that grows with its length."""
    began = time.process_time()
    read(text)
    assert time.process_time() - began < 2.0


def test_no_limit_on_integers_is_hit() -> None:
    """CPython refuses to convert 4300 digits; that must come out as a problem."""
    assert sys.get_int_max_str_digits() > 0
    assert read("[" + "9" * 5000 + "]").problems[0].code == "bad-number"


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
_documents = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@settings(deadline=None)
@given(_documents, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_reads_json_as_the_standard_library_does(document: object, indent: int | str | None, ascii_only: bool) -> None:
    """Whatever json.dumps writes is read as json.loads reads it, in every layout."""
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    result = read(text)
    assert [problem for problem in result.problems if problem.severity == "error"] == []
    assert result.root is not None
    assert plain(result.root) == json.loads(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}[]\",:'\\ntu/*#-01eE.+ \nTrxd8“=", max_size=60))
def test_any_text_gives_a_tree_or_a_reason(text: str) -> None:
    """Nothing raises; no tree without an error, and every place lies in the text."""
    result = read(text)
    errors = [problem for problem in result.problems if problem.severity == "error"]
    assert result.root is not None or errors
    lines = text.split("\n")
    for problem in result.problems:
        assert problem.line <= len(lines)
        assert problem.column <= len(lines[problem.line - 1]) + 1
