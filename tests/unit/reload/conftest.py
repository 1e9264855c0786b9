"""For tests of reloads."""

import pytest

from juggler.gateway import Anteroom
from juggler.ids import EndpointId
from juggler.proxy.contract import Lease, RequestInfo, Route


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> list[EndpointId]:
    """Endpoints of the requests that have come to a listener before its configuration is in effect."""
    came: list[EndpointId] = []
    acquire = Anteroom.acquire

    async def noted(self: Anteroom, route: Route, request: RequestInfo) -> Lease:
        came.append(route.endpoint)
        return await acquire(self, route, request)

    monkeypatch.setattr(Anteroom, "acquire", noted)
    return came
