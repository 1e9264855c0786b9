"""docs/backends.md says what the code says, and its examples are accepted."""

import json

import pytest

from juggler.backends.document import PAGE, examples, page
from juggler.backends.registry import BACKENDS
from juggler.config.load import load_text
from juggler.config.validate import validate


def test_the_committed_page_is_fresh() -> None:
    """Whoever changes a module runs ``python -m juggler.backends.document``."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_type_has_a_section() -> None:
    assert set(examples()) == set(BACKENDS)
    for name in BACKENDS:
        assert f"## `{name}`" in page()


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_examples_are_accepted(name: str) -> None:
    """By the checker, without an error or a warning."""
    backends = json.loads(examples()[name])
    endpoints = [{"name": "E", "backend": next(iter(backends))}]
    document = {"backends": backends, "servers": [{"name": "S", "port": 9000, "endpoints": endpoints}]}
    assert validate(load_text(json.dumps(document))) == []
