"""What requests of a listener are told to wait for, and as what."""

from dataclasses import replace

import pytest

from juggler.errors import NotLoaded
from juggler.gateway import EndpointGateway
from juggler.ids import EndpointId
from juggler.proxy.contract import Lease, LocalResponse, RequestInfo, Route
from juggler.proxy.head import Field
from juggler.renames import Renames
from juggler.routing.table import Entry, RoutingTable
from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable

UI = Entry(EndpointId("s/ui"), "ui", "/ui", True, TrafficTable([TrafficRule("GET /", TrafficClass.START)]))
HTML: Field = (b"Accept: text/html\r\n", b"accept", b"text/html")
REQUEST = RequestInfo(b"GET", b"/ui/", "10.0.0.1", ())
OTHER = EndpointId("t/ui")
PRERENDER: Field = (b"Sec-Purpose: prefetch;prerender\r\n", b"sec-purpose", b"prefetch;prerender")


class Hold:
    """Notes who waits, and lets nobody in."""

    def __init__(self) -> None:
        self.waited: list[TrafficClass] = []
        self.endpoints: list[EndpointId] = []
        self.tried: list[EndpointId] = []
        self.renames = Renames()

    def try_acquire(self, route: Route, request: RequestInfo) -> Lease | None:
        self.tried.append(route.endpoint)
        return None

    async def acquire(self, route: Route, request: RequestInfo) -> Lease:
        self.waited.append(route.traffic)
        self.endpoints.append(route.endpoint)
        raise NotLoaded("It is not loaded.")


async def ask(hold: Hold, *fields: Field, target: bytes = b"/ui/") -> LocalResponse | None:
    gateway = EndpointGateway(RoutingTable("s", [UI]), hold)
    route = gateway.route(b"GET", target, b"h")
    assert isinstance(route, Route)
    request = RequestInfo(b"GET", target, "10.0.0.1", fields)
    assert gateway.try_acquire(route, request) is None
    try:
        answer = await gateway.acquire(route, request)
    except NotLoaded:
        return None
    assert isinstance(answer, LocalResponse)
    return answer


@pytest.mark.parametrize(
    ("fields", "traffic"),
    [
        ((HTML,), TrafficClass.START),
        ((), TrafficClass.START),
        ((HTML, PRERENDER), TrafficClass.LIGHT),
    ],
)
async def test_a_page_that_nobody_has_opened_yet_starts_nothing(
    fields: tuple[Field, ...], traffic: TrafficClass
) -> None:
    """Browsers fetch what their user may be about to open."""
    hold = Hold()
    assert await ask(hold, *fields) is None
    assert hold.waited == [traffic]


async def test_a_bare_prefix_is_redirected_before_anybody_waits() -> None:
    """A redirect needs no backend."""
    hold = Hold()
    answer = await ask(hold, HTML, target=b"/ui")
    assert answer is not None
    assert answer.status == 307
    assert hold.waited == []


async def test_a_request_that_was_routed_before_its_server_was_renamed() -> None:
    """It is held again, or its body has come: the old name may be another server's by now."""
    hold = Hold()
    gateway = EndpointGateway(RoutingTable("s", [UI]), hold)
    route = gateway.route(b"GET", b"/ui/", b"h")
    assert isinstance(route, Route)
    hold.renames.add({UI.endpoint: OTHER, OTHER: UI.endpoint})
    gateway.change(RoutingTable("t", [replace(UI, endpoint=OTHER)]), hold, None)
    with pytest.raises(NotLoaded):
        await gateway.acquire(route, REQUEST)
    assert hold.endpoints == ["t/ui"]


async def test_a_request_that_was_routed_before_its_endpoint_was_renamed() -> None:
    """Its server has no endpoint of the old name any more."""
    hold, moved = Hold(), EndpointId("s/moved")
    gateway = EndpointGateway(RoutingTable("s", [UI]), hold)
    route = gateway.route(b"GET", b"/ui/", b"h")
    assert isinstance(route, Route)
    hold.renames.add({UI.endpoint: moved})
    gateway.change(RoutingTable("s", [replace(UI, endpoint=moved, name="moved")]), hold, None)
    with pytest.raises(NotLoaded):
        await gateway.acquire(route, REQUEST)
    assert hold.endpoints == [moved]


async def test_a_listener_that_drains_follows_its_endpoints() -> None:
    """No configuration changes it any more; its requests have today's names, whenever they were routed."""
    hold = Hold()
    gateway = EndpointGateway(RoutingTable("s", [UI]), hold)
    early = gateway.route(b"GET", b"/ui/", b"h")
    assert isinstance(early, Route)
    for new, old in ((OTHER, UI.endpoint), (UI.endpoint, OTHER), (OTHER, UI.endpoint)):
        hold.renames.add({old: new, new: old})
        with pytest.raises(NotLoaded):
            await gateway.acquire(early, REQUEST)
        late = gateway.route(b"GET", b"/ui/", b"h")
        assert isinstance(late, Route)
        assert gateway.try_acquire(late, REQUEST) is None
        with pytest.raises(NotLoaded):
            await gateway.acquire(late, REQUEST)
        assert hold.endpoints[-2:] == [new, new]
        assert hold.tried[-1] == new
    assert gateway.route(b"GET", b"/ui/", b"h") is late  # nothing is made anew for as long as names stay
