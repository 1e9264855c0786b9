"""For programs that are started here without the supervisor, which would take another port if somebody had theirs."""

import pytest
from tests.ports import free_port

from juggler.lifecycle import ports


@pytest.fixture(autouse=True)
def _own_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher reserves ports that no other test can get."""
    monkeypatch.setattr(ports, "reserve_port", free_port)
