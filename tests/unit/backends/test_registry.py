"""The table of backend types."""

import pytest

from juggler.backends.base import Backend
from juggler.backends.registry import BACKENDS, create, traffic_for
from juggler.config.types import BACKEND_TYPES
from tests.unit.backends.fake_caller import settings


def test_every_configurable_type_is_known() -> None:
    """What the configuration accepts is here, and nothing else is."""
    assert set(BACKENDS) == set(BACKEND_TYPES)


@pytest.mark.parametrize("type_name", sorted(BACKENDS))
def test_names_agree(type_name: str) -> None:
    """A class carries the name it is listed under, and can be made from plain settings."""
    backend = create(settings(type_name))
    assert isinstance(backend, Backend)
    assert backend.type_name == type_name
    assert traffic_for(type_name) is type(backend).traffic


def test_unknown_types() -> None:
    """A name nobody knows is a bug of the caller."""
    with pytest.raises(ValueError, match="no-such"):
        create(settings("no-such"))
