"""Sizes that can be true."""

import pytest

from juggler.devices.reading import SIZE_MAX, sane_size


@pytest.mark.parametrize("value", [0, 1, SIZE_MAX])
def test_a_size(value: int) -> None:
    """From nothing to more than there is anywhere."""
    assert sane_size(value) == value


@pytest.mark.parametrize("value", [-1, SIZE_MAX + 1, 2**64 - 1, None, True, 1.5, "1", [1]])
def test_no_size(value: object) -> None:
    """Too large, negative, or no number at all."""
    assert sane_size(value) is None
