"""The kept corpus: the ways to smuggle that are known, one good example of each kind, and what the fuzzers found."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import conversations
from tests.fuzz.targets import CORPUS, TARGETS, corpus

BYTES_MAX = 400 * 1024


@pytest.fixture(scope="module", autouse=True)
def _loop() -> Iterator[None]:
    yield
    conversations.close()


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    """What was wrong once stays right. Every failing file is named, not only the first."""
    failures: list[tuple[str, Exception]] = []
    for path in corpus(name):
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            failures.append((path.name, error))
    assert not failures


def test_the_corpus_is_complete_and_small() -> None:
    """Each target has one, nothing else lies there, and it does not burden the repository."""
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    files: list[Path] = [path for name in TARGETS for path in corpus(name)]
    assert all(any(corpus(name)) for name in TARGETS)
    assert sum(path.stat().st_size for path in files) < BYTES_MAX
