"""The table of backend types."""

import pytest

from juggler.backends.base import Backend
from juggler.backends.registry import BACKENDS, LATER, create, traffic_for
from juggler.config.types import BACKEND_TYPES
from juggler.errors import NotSupportedYet
from juggler.routing.traffic import TrafficClass
from tests.unit.backends.fake_caller import settings


def test_every_configurable_type_is_known() -> None:
    """What the configuration accepts is here, now or later, and nothing else is."""
    assert set(BACKENDS) | LATER == set(BACKEND_TYPES)
    assert not set(BACKENDS) & LATER


@pytest.mark.parametrize("type_name", sorted(BACKENDS))
def test_names_agree(type_name: str) -> None:
    """A class carries the name it is listed under, and can be made from plain settings."""
    backend = create(settings(type_name))
    assert isinstance(backend, Backend)
    assert backend.type_name == type_name
    assert traffic_for(type_name) is type(backend).traffic


@pytest.mark.parametrize("type_name", sorted(LATER))
def test_later_types_say_so(type_name: str) -> None:
    """A type that can be configured but not run yet is refused by name, with a way out."""
    with pytest.raises(NotSupportedYet, match=type_name) as caught:
        create(settings(type_name))
    assert "command" in (caught.value.hint or "")
    assert traffic_for(type_name).classify(b"POST", b"/x") is TrafficClass.WORK


def test_unknown_types() -> None:
    """A name nobody knows is a bug of the caller."""
    with pytest.raises(ValueError, match="no-such"):
        create(settings("no-such"))
