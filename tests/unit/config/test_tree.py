"""Looking things up in a located tree."""

from juggler.config.problems import Position, Source
from juggler.config.reader import read_json
from juggler.config.tree import Node, describe, follow, is_ignored_key, key_position, plain, quoted


def tree(text: str) -> Node:
    root = read_json(Source("t", text)).root
    assert root is not None
    return root


def test_every_value_and_key_has_its_place() -> None:
    """Keys and values are located separately."""
    root = tree('{\n  "a": [1,\n    {"b": 2}]\n}')
    assert follow(root, ("a",))[0].position == Position(2, 8)
    assert follow(root, ("a", 1, "b"))[0].position == Position(3, 11)
    assert key_position(root, ("a", 1, "b")) == Position(3, 6)
    assert key_position(root, ()) == Position(1, 1)


def test_parts_that_lead_nowhere_are_skipped() -> None:
    """Names of union branches in pydantic's paths do not hide the value; what exists is told."""
    root = tree('{"a": {"b": 2}}')
    node, found = follow(root, ("a", "<per pool>", "b"))
    assert (node.value, found) == (2, ("a", "b"))
    assert follow(root, ("a", "missing"))[1] == ("a",)
    assert key_position(root, ("a", "missing")) == Position(1, 7)


def test_plain_values() -> None:
    """Without places the tree is what json.loads gives."""
    assert plain(tree('{"a": [1, 2.5, "x", true, null]}')) == {"a": [1, 2.5, "x", True, None]}


def test_descriptions_name_what_was_found() -> None:
    """Messages tell kinds and values apart, shortened."""
    assert [describe(tree(text)) for text in ("{}", "[]", '"x"', "1", "true", "null")] == [
        "an object", "a list", 'the text "x"', "the number 1", "true", "null",
    ]  # fmt: skip
    assert quoted("a\nb") == '"a\\nb"'
    assert len(quoted("x" * 500)) == 62


def test_remarks() -> None:
    """Which keys are the operator's own."""
    assert [key for key in ("$schema", "_a", "x-b", "xb", "a_", "$other") if is_ignored_key(key)] == [
        "$schema", "_a", "x-b",
    ]  # fmt: skip
