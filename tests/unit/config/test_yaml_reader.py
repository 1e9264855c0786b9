"""YAML into the same located tree, with the words of JSON and bounded aliases."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.config.problems import Position, Source
from juggler.config.tree import DEPTH_MAX, Read, follow, key_position, plain
from juggler.config.yaml_reader import read_yaml


def read(text: str) -> Read:
    return read_yaml(Source("c.yaml", text))


def value(text: str) -> object:
    result = read(text)
    assert result.problems == []
    assert result.root is not None
    return plain(result.root)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("true", True), ("false", False), ("null", None), ("", None), ("no", "no"), ("on", "on"), ("True", "True"),
        ("~", "~"), ("~/x", "~/x"), ("8021", 8021), ("1e3", 1000.0), ("-1.5", -1.5), ("0x1F", "0x1F"), ("010", "010"),
        ("1_000", "1_000"), ("12:30", "12:30"), ("2026-01-01", "2026-01-01"), (".inf", ".inf"), ('"1"', "1"),
        ("'true'", "true"), ("!!str 5", "5"), ("10m", "10m"), ("/usr/bin/x", "/usr/bin/x"),
    ],
)  # fmt: skip
def test_words(word: str, expected: object) -> None:
    """Only JSON's words and numbers are special: no Norway, no sexagesimal ports, no dates."""
    assert value(f"a: {word}") == {"a": expected}


def test_places() -> None:
    """Keys and values are located as in JSON."""
    root = read("# c\na:\n  - b: 1\n    c: x\n").root
    assert root is not None
    assert follow(root, ("a", 0, "c"))[0].position == Position(4, 8)
    assert key_position(root, ("a", 0, "c")) == Position(4, 5)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: 1\nb: 2\na: 3", "3:1", 'duplicate key "a": it is already at line 1, column 1'),
        ("a: &x [*x]", "1:8", 'the alias "*x" stands inside its own anchor'),
        ("a: *x", "1:4", 'the alias "*x" names no anchor above it'),
        ("? [1]\n: 2", "1:3", "a key must be a text"),
        ("&a x: 1\n*a : 2", "2:1", "a key must be a text, not an alias"),
        ("a: !!int 5", "1:4", 'the tag "tag:yaml.org,2002:int" is not accepted'),
        (
            "a: !!python/object:os.system {}",
            "1:4",
            'the tag "tag:yaml.org,2002:python/object:os.system" is not accepted',
        ),
        ("a: 1\n---\nb: 2", "2:1", "a second document begins here"),
        ("a: 1e999", "1:4", "the number 1e999 is too large"),
        ('a: "\\ud83d"', "1:4", "half of a surrogate pair in this text"),
        ("<<: 5", "1:5", '"<<" must name a mapping, not the number 5'),
        ("", "1:1", "the file is empty"),
        ("# nothing", "1:1", "the file is empty"),
    ],
)
def test_complains(text: str, place: str, message: str) -> None:
    """Each mistake at its place, in the same words as for JSON."""
    first = read(text).problems[0]
    assert (f"{first.line}:{first.column}", first.message) == (place, message)


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("a:\n\tb: 1", "2:1", "indent with spaces, not tabs"),
        ('a: "C:\\models"', "1:8", "in double quotes write a backslash twice; in single quotes it stands for itself"),
        ("a: [1", "1:6", None),
        ("a: \x07", "1:4", None),
        ('a: "\\UFFFFFFFF"', "1:1", None),
    ],
)
def test_what_the_parser_refuses(text: str, place: str, hint: str | None) -> None:
    """PyYAML's errors, marked or not, become problems; the usual two have a hint."""
    (problem,) = read(text).problems
    assert problem.message.startswith("this is not YAML: ")
    assert (f"{problem.line}:{problem.column}", problem.hint) == (place, hint)


def test_anchors_and_merge_keys() -> None:
    """The habits of compose files work: shared settings under ``x-`` and ``<<``; own members win."""
    text = "x-d: &d {a: 1, b: 2}\none: {<<: *d, b: 3}\ntwo:\n  <<: [*d, {c: 4}]\n"
    assert value(text) == {"x-d": {"a": 1, "b": 2}, "one": {"a": 1, "b": 3}, "two": {"a": 1, "b": 2, "c": 4}}


def test_aliases_are_bounded() -> None:
    """A billion laughs are one problem, at once."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    began = time.process_time()
    (problem,) = read("\n".join(lines)).problems
    assert problem.code == "too-large"
    assert time.process_time() - began < 1.0


def test_depth_is_bounded_through_aliases_too() -> None:
    """Neither brackets nor a chain of aliases nests deeper than the bound."""
    assert read("[" * 100_000).problems[0].code == "too-deep"
    chain = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3 * DEPTH_MAX)]
    assert read("\n".join(chain)).problems[0].code == "too-deep"
    assert value("[" * DEPTH_MAX + "]" * DEPTH_MAX) is not None


_documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(_documents)
def test_json_is_yaml(document: object) -> None:
    """A JSON text is read the same by both readers."""
    assert value(json.dumps(document)) == document


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>%@`\"'\\ \n\t#?,<01eu~²", max_size=50))
def test_any_text_gives_a_tree_or_a_reason(text: str) -> None:
    """Nothing raises, whatever PyYAML makes of it."""
    result = read(text)
    assert result.root is not None or result.problems


def test_a_quoted_merge_key_is_a_key() -> None:
    """Only the bare word merges (yaml.org/type/merge); ``"<<"`` is a name like any other."""
    assert value('"<<": {"a": 1}') == {"<<": {"a": 1}}
    assert value("<<: {a: 1}") == {"a": 1}
