"""People who open a page whose backend has to load: they are told so, and their turn in the queue goes on.

A browser that navigates waits a moment for its page, as any client; then it is answered with one of ours
(``proxy.page``), which soon asks again. Between two of its questions nobody is connected, so the request itself is
kept here, with its place in the queue; the next question goes on with it. Without this each would queue anew, and a
load that took longer than the pause for abandoned ones (``scheduler.policy``) could be given up.

The questions after the first are held for longer: the browser shows our page all the while, its own comes in the moment
it is there, and most of the time somebody is connected whose leaving is seen. Who leaves may be asking anew (a person
who reloads the page), so the request outlives him by ``LEFT_S``. Between two questions nobody's leaving can be seen:
what is kept ends ``KEPT_S`` after the last one. A turn that comes meanwhile is held as long, or the model could be
taken away again before anybody saw its page; a failure is told to who asks next, and not tried again for him.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

from juggler.ids import EndpointId
from juggler.proxy.contract import ExchangeResult, Lease, LocalResponse, RequestInfo, Route
from juggler.proxy.page import waiting_page
from juggler.proxy.reader import Reader, reader_of
from juggler.proxy.wishes import NO_WISHES
from juggler.renames import Named, Renames
from juggler.routing.client import client_of
from juggler.routing.traffic import TrafficClass
from juggler.scheduler.explain import Outlook
from juggler.units import SECONDS

HELD_S = 5 * SECONDS
"""How long a question after the first is held, before the page shows how things stand now."""

KEPT_S = 8 * SECONDS
"""After an answer: four times the page's pause, as networks hang, and pages that nobody looks at are slowed down."""

LEFT_S = 2 * SECONDS
"""After a client has left: a browser that loads the page again hangs up first, and may have to connect anew."""

KEPT_MOST = 16
"""Per client and endpoint: tabs that one person may open on the same page. Further ones queue anew each time."""

_STARTS = (TrafficClass.START, TrafficClass.WORK)


class Engine(Protocol):
    """What is asked of the engine."""

    @property
    def renames(self) -> Renames: ...
    async def acquire(self, route: Route, request: RequestInfo) -> Lease: ...
    def answers(self, endpoint: EndpointId) -> bool: ...
    def outlook(self, endpoint: EndpointId) -> Outlook: ...
    def now(self) -> float: ...


@dataclass(slots=True)
class _Kept:
    """One request that waits, whether or not its client is there."""

    acquiring: "asyncio.Task[Lease]"
    since: float
    named: Named
    """For which endpoint: its name may become another's."""
    expiry: asyncio.TimerHandle | None = None


class PageWaits:
    """See the module.

    Args:
        engine: Whom the requests wait for.
        page_after_s: How long a browser waits for its own page before it gets ours.
    """

    def __init__(self, engine: Engine, page_after_s: float) -> None:
        self._engine = engine
        self.page_after_s = page_after_s
        self._kept: dict[EndpointId, dict[str, deque[_Kept]]] = {}
        self._renamed = engine.renames.count
        """As of when ``_kept`` has the names of endpoints."""
        self._closed = False

    def keeps(self, endpoint: EndpointId) -> bool:
        """Whether anything is kept for an endpoint: then a request for it may be one that goes on with it."""
        return bool(self._kept) and endpoint in self._by_name()

    def concern(self, route: Route, request: RequestInfo) -> bool:
        """Whether a request is for a page that a browser shows, and its backend has, or had, to be loaded for it."""
        return (
            route.traffic in _STARTS
            and request.method == b"GET"
            and request.wishes == NO_WISHES  # no browser has any, and who bounds his wait means it
            and (self.keeps(route.endpoint) or not self._engine.answers(route.endpoint))
            and reader_of(request.method, request.headers) is Reader.PAGE
        )

    async def acquire(self, route: Route, request: RequestInfo) -> Lease | LocalResponse:
        """As ``Gateway.acquire``; the page of a wait if it takes longer.

        Raises:
            JugglerError: As the engine.
        """
        client = client_of(request.client, request.headers)
        is_up = self._engine.answers(route.endpoint)
        named = Named(self._engine.renames, route.endpoint)
        kept = self._take(route.endpoint, client)
        if is_up:
            if kept is not None and _is_outdated(kept, route):
                _end(kept)
                kept = None
            if kept is None:
                return await self._engine.acquire(route, request)
        patience_s = self.page_after_s
        if kept is None:
            acquiring = asyncio.get_running_loop().create_task(
                self._acquire(named, route, request), name=f"page of {route.endpoint}"
            )
            kept = _Kept(acquiring, self._engine.now(), named)
        else:
            patience_s = max(patience_s, HELD_S)
        try:
            await asyncio.wait((kept.acquiring,), timeout=patience_s)
        except asyncio.CancelledError:
            self._keep(client, kept, LEFT_S)
            raise
        if kept.acquiring.done():
            return kept.acquiring.result()
        self._keep(client, kept, KEPT_S)
        outlook = self._engine.outlook(kept.named.id)
        waited_s = self._engine.now() - kept.since
        return waiting_page(route.endpoint_name, outlook.why, outlook.expected_s, waited_s)

    async def _acquire(self, named: Named, route: Route, request: RequestInfo) -> Lease:
        """In a task of its own, which may begin when the endpoint has another name already."""
        endpoint = named.id
        return await self._engine.acquire(
            route if endpoint == route.endpoint else replace(route, endpoint=endpoint), request
        )

    def close(self) -> None:
        """Keep nothing any more: the juggler goes down."""
        self._closed = True
        for clients in self._kept.values():
            for waiting in clients.values():
                for kept in waiting:
                    _end(kept)
        self._kept.clear()

    def _by_name(self) -> dict[EndpointId, dict[str, deque[_Kept]]]:
        """What is kept, by the names that endpoints have now."""
        if self._renamed != self._engine.renames.count:
            self._renamed = self._engine.renames.count
            all_of_it = [(client, one) for row in self._kept.values() for client, some in row.items() for one in some]
            self._kept.clear()
            for client, kept in all_of_it:
                self._kept.setdefault(kept.named.id, {}).setdefault(client, deque()).append(kept)
        return self._kept

    def _take(self, endpoint: EndpointId, client: str) -> _Kept | None:
        """The longest kept of this client's requests for this endpoint."""
        waiting = self._by_name().get(endpoint, {}).get(client)
        if waiting is None:
            return None
        kept = waiting[0]
        self._forget(client, kept)
        return kept

    def _keep(self, client: str, kept: _Kept, for_s: float) -> None:
        waiting = self._by_name().get(kept.named.id, {}).get(client, deque())
        if self._closed or len(waiting) >= KEPT_MOST:
            _end(kept)
            return
        waiting.append(kept)
        self._kept.setdefault(kept.named.id, {})[client] = waiting
        kept.expiry = asyncio.get_running_loop().call_later(for_s, self._expire, client, kept)

    def _expire(self, client: str, kept: _Kept) -> None:
        self._forget(client, kept)
        _end(kept)

    def _forget(self, client: str, kept: _Kept) -> None:
        if kept.expiry is not None:
            kept.expiry.cancel()
        endpoint = kept.named.id
        clients = self._by_name()[endpoint]
        clients[client].remove(kept)
        if not clients[client]:
            del clients[client]
        if not clients:
            del self._kept[endpoint]


def _is_outdated(kept: _Kept, route: Route) -> bool:
    """Whether a request that was kept is of no use, now that the backend is up, by whomever it was loaded."""
    if kept.acquiring.done():  # what failed then need not fail now
        return kept.acquiring.cancelled() or kept.acquiring.exception() is not None
    return route.traffic is TrafficClass.START  # a root document needs no turn, whoever has all the slots


def _end(kept: _Kept) -> None:
    """Its client has left."""
    if kept.expiry is not None:
        kept.expiry.cancel()
    kept.acquiring.cancel()
    kept.acquiring.add_done_callback(_give_back)


def _give_back(acquiring: "asyncio.Task[Lease]") -> None:
    """What came all the same is of no use to anybody."""
    if not acquiring.cancelled() and acquiring.exception() is None:
        acquiring.result().release(ExchangeResult(client_gone=True))
