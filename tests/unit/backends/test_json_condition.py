"""Conditions on JSON answers."""

import pytest

from juggler.backends.json_condition import parse_condition

DOCUMENT = {"queue_remaining": 2, "state": {"job": "txt2img", "flags": [False, True]}, "empty": "", "zero": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("queue_remaining > 0", True),
        ("queue_remaining > 2", False),
        ("queue_remaining >= 2", True),
        ("queue_remaining<2", False),
        ("queue_remaining == 2", True),
        ('state.job != ""', True),
        ('state.job == "txt2img"', True),
        ("state.flags.1", True),
        ("state.flags.0", False),
        ("empty", False),
        ("zero", False),
        ("zero == 0", True),
        ("missing", False),
        ("missing.deeper > 0", False),
        ("missing != 1", False),
        ("state.job > 1", False),
        ("state.flags.9", False),
        ("queue_remaining.x", False),
    ],
)
def test_conditions(text: str, expected: bool) -> None:
    """Paths, comparisons and plain truth; what is not there or cannot be compared is never true."""
    assert parse_condition(text).holds(DOCUMENT) is expected


@pytest.mark.parametrize("document", [None, [], 3, "text", True])
def test_other_documents_are_harmless(document: object) -> None:
    """An answer of another shape is not busy, and raises nothing."""
    assert parse_condition("a.b > 0").holds(document) is False


@pytest.mark.parametrize("text", ["", "> 0", "a >", "a > b", "a = 1", "a > 0 b", "a..b", "__import__('os')", "a > 'x'"])
def test_nonsense_is_refused_with_the_text(text: str) -> None:
    """A mistake is found when the configuration is read, and shown."""
    with pytest.raises(ValueError, match=r"condition|JSON value"):
        parse_condition(text)
