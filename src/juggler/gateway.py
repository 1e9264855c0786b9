"""What stands behind each listener of the operator: routing, then the engine's hold."""

from juggler.engine import Engine
from juggler.proxy.contract import Lease, LocalResponse, RequestInfo, Route
from juggler.routing.slash import slash_redirect
from juggler.routing.table import RoutingTable


class EndpointGateway:
    """The endpoints of one server entry; see ``proxy.contract.Gateway``."""

    def __init__(self, table: RoutingTable, engine: Engine) -> None:
        self._table = table
        self._engine = engine

    def route(self, method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        return self._table.match(method, target)

    async def acquire(self, route: Route, request: RequestInfo) -> Lease | LocalResponse:
        if route.bare:
            redirect = slash_redirect(route, request)
            if redirect is not None:
                return redirect  # before the engine: a redirect starts nothing
        return await self._engine.acquire(route, request)
