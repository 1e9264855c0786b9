"""What stands behind each listener of the operator: routing, then the engine's hold."""

from juggler.engine import Engine
from juggler.page_waits import PageWaits
from juggler.proxy.contract import Lease, LocalResponse, RequestInfo, Route
from juggler.routing.slash import slash_redirect
from juggler.routing.table import RoutingTable


class EndpointGateway:
    """The endpoints of one server entry; see ``proxy.contract.Gateway``.

    Args:
        table: Where its requests go.
        engine: Whom they wait for.
        pages: For those of people; None: they wait as everybody does.
    """

    def __init__(self, table: RoutingTable, engine: Engine, pages: PageWaits | None = None) -> None:
        self._table = table
        self._engine = engine
        self._pages = pages

    def route(self, method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        return self._table.match(method, target)

    def try_acquire(self, route: Route, request: RequestInfo) -> Lease | None:
        if route.bare or (self._pages is not None and self._pages.keeps(route.endpoint)):
            return None
        return self._engine.try_acquire(route, request)

    async def acquire(self, route: Route, request: RequestInfo) -> Lease | LocalResponse:
        if route.bare:
            redirect = slash_redirect(route, request)
            if redirect is not None:
                return redirect  # before the engine: a redirect starts nothing
        if self._pages is not None and self._pages.concern(route, request):
            return await self._pages.acquire(route, request)
        return await self._engine.acquire(route, request)
