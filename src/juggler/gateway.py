"""What stands behind each listener of the operator: routing, then the engine's hold."""

import asyncio
from dataclasses import replace
from typing import Protocol

from juggler.engine import Engine
from juggler.ids import EndpointId
from juggler.page_waits import PageWaits
from juggler.proxy.contract import Lease, LocalResponse, RequestInfo, Route
from juggler.proxy.reader import is_prefetch
from juggler.renames import Renames
from juggler.routing.slash import slash_redirect
from juggler.routing.table import RoutingTable
from juggler.routing.traffic import TrafficClass


class Hold(Protocol):
    """What requests wait for: the engine, or the moment when it knows their endpoints."""

    @property
    def renames(self) -> Renames: ...
    def try_acquire(self, route: Route, request: RequestInfo) -> Lease | None: ...
    async def acquire(self, route: Route, request: RequestInfo) -> Lease: ...


class Anteroom:
    """Where requests wait that came to a new listener before the configuration it belongs to is in effect.

    Args:
        engine: Whom they wait for then.
        went_live: Set at that moment, or when that configuration is given up; then the engine tells what there is.
    """

    def __init__(self, engine: Engine, went_live: asyncio.Event) -> None:
        self._engine = engine
        self._went_live = went_live

    @property
    def renames(self) -> Renames:
        return self._engine.renames

    def try_acquire(self, route: Route, request: RequestInfo) -> Lease | None:
        return None

    async def acquire(self, route: Route, request: RequestInfo) -> Lease:
        await self._went_live.wait()
        return await self._engine.acquire(route, request)


class EndpointGateway:
    """The endpoints of one server entry; see ``proxy.contract.Gateway``.

    Args:
        table: Where its requests go.
        engine: Whom they wait for.
        pages: For those of people; None: they wait as everybody does.
    """

    def __init__(self, table: RoutingTable, engine: Hold, pages: PageWaits | None = None) -> None:
        self._renames = engine.renames
        self._since: dict[EndpointId, int] = {}
        """When each endpoint was last called so: who holds a route may have got it before a change of names."""
        self._take(table)
        self._engine = engine
        self._pages = pages

    def change(self, table: RoutingTable, engine: Hold, pages: PageWaits | None) -> None:
        """Other routes for the requests to come; those under way keep the one they were given."""
        self._take(table)
        self._engine, self._pages = engine, pages

    def _take(self, table: RoutingTable) -> None:
        self._table = table
        self._renamed = self._renames.count
        """As of when ``_table`` has the names of endpoints."""
        self._since.update((one.endpoint, self._renamed) for one in table.entries)

    def _follow(self) -> None:
        """Its listener drains, and no change comes to it any more: the same routes, by the names of today."""
        entries = [
            replace(one, endpoint=self._renames.present(one.endpoint, self._renamed)) for one in self._table.entries
        ]
        self._take(RoutingTable(self._table.server_name, entries))

    def route(self, method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        if self._renamed != self._renames.count:
            self._follow()
        return self._table.match(method, target)

    def try_acquire(self, route: Route, request: RequestInfo) -> Lease | None:
        if route.bare or (self._pages is not None and self._pages.keeps(route.endpoint)):
            return None
        return self._engine.try_acquire(route, request)

    async def acquire(self, route: Route, request: RequestInfo) -> Lease | LocalResponse:
        endpoint = self._renames.present(route.endpoint, self._since[route.endpoint])
        if endpoint != route.endpoint:  # it was routed a while ago, by a name that may be another's now
            route = replace(route, endpoint=endpoint)
        if route.bare:
            redirect = slash_redirect(route, request)
            if redirect is not None:
                return redirect  # before the engine: a redirect starts nothing
        if route.traffic is TrafficClass.START and is_prefetch(request.headers):
            route = replace(route, traffic=TrafficClass.LIGHT)  # nobody has opened the page yet
        if self._pages is not None and self._pages.concern(route, request):
            return await self._pages.acquire(route, request)
        return await self._engine.acquire(route, request)
