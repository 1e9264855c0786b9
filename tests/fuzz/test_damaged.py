"""The kept corpus once more, damaged: for the targets that have no grammar of their own here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.profiles import tries
from tests.fuzz.strategies import damaged
from tests.fuzz.targets import TARGETS, corpus


@pytest.mark.parametrize("name", ["event_streams", "wants_events", "gguf", "config"])
def test_damaged_inputs(name: str) -> None:
    """Whatever is left of a good input is read rightly or refused."""
    kept = [path.read_bytes() for path in corpus(name)]

    @given(data=damaged(st.sampled_from(kept)))
    @tries(60)
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()
