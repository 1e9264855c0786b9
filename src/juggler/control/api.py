"""The minimal local status API: what ``juggler ps``, ``why``, ``load``, ``unload`` and ``stop`` talk to.

Every answer is JSON. Changes are POST only, and only from this machine's own programs: a request that carries a
foreign ``Origin``, or a ``Host`` that is no name of the loopback address, is refused, so that a web page cannot
steer the juggler (DNS rebinding and cross-site POST).
"""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from juggler.clock import Clock
from juggler.control.decisions import decisions
from juggler.control.snapshot import status
from juggler.engine import Engine
from juggler.errors import BadRequest, JugglerError, RoutingError
from juggler.ids import EndpointId
from juggler.proxy.contract import Lease, LocalResponse, RequestInfo, Route
from juggler.proxy.responses import to_json
from juggler.routing.target import parse_target
from juggler.routing.traffic import TrafficClass
from juggler.scheduler.events import OrderKind
from juggler.warmup import Warmup

_log = logging.getLogger("juggler.control")

ORDER_LIMIT_S = 600.0
"""How long a caller waits for running requests to end before it is told that the order still stands."""

_HERE = EndpointId("juggler")


class ControlGateway:
    """See ``proxy.contract.Gateway``; nothing here ever reaches a backend.

    Args:
        host: The address the operator gave the control listener; an allowed ``Host`` besides the loopback names.
    """

    def __init__(self, engine: Engine, warmup: Warmup, clock: Clock, host: str) -> None:
        self._engine = engine
        self._warmup = warmup
        self._clock = clock
        self._host = host
        self._posts: dict[bytes, Callable[[EndpointId], Awaitable[object]]] = {
            b"/api/load": self._load,
            b"/api/unload": self._unload,
            b"/api/stop": self._stop,
        }

    def route(self, method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        if not self._is_own_name(host):
            raise BadRequest(
                "this address answers only to its own names", status=403, code="foreign_host", hint="use 127.0.0.1"
            )
        path = parse_target(target).path
        if path == b"/api/status" and method in (b"GET", b"HEAD"):
            return _json(200, status(self._engine, self._warmup, self._clock.monotonic()))
        if path == b"/api/decisions" and method in (b"GET", b"HEAD"):
            return self._decisions(target)
        if path in self._posts:
            if method != b"POST":
                raise BadRequest("this changes something: use POST", status=405, code="method_not_allowed")
            return Route(_HERE, "juggler", target, TrafficClass.LIGHT)
        raise RoutingError(f"no such route: {path[:200].decode('latin-1')}; try GET /api/status", phase="routing")

    def _decisions(self, target: bytes) -> LocalResponse:
        wanted = _parameter(target, "endpoint")
        instance = None
        if wanted:
            instance = self._engine.endpoints[self._endpoint(wanted)].instance
        kept = decisions(self._engine, self._clock.monotonic(), instance)
        return _json(200, {"decisions": kept, "made": self._engine.scheduler.state.decisions_made})

    def try_acquire(self, route: Route, request: RequestInfo) -> Lease | None:
        return None  # nothing is forwarded from here

    async def acquire(self, route: Route, request: RequestInfo) -> Lease | LocalResponse:
        for name, value in request.headers:
            if name.lower() == b"origin" and not self._is_own_name(value.partition(b"://")[2]):
                raise BadRequest("changes are not taken from other sites", status=403, code="foreign_origin")
        endpoint = self._endpoint(_parameter(route.target, "endpoint"))
        result = await self._posts[parse_target(route.target).path](endpoint)
        return _json(200, {"endpoint": endpoint, "result": result})

    def _endpoint(self, wanted: str) -> EndpointId:
        """An endpoint by its full name, or by its own name where that is unique."""
        known = list(self._engine.endpoints)
        if wanted in known:
            return EndpointId(wanted)
        matches = [one for one in known if one.partition("/")[2] == wanted]
        if len(matches) == 1:
            return matches[0]
        problem = "is ambiguous" if matches else "is no endpoint"
        listed = ", ".join(matches or known)
        raise RoutingError(f"{wanted!r} {problem}; there are: {listed}", phase="routing")

    async def _load(self, endpoint: EndpointId) -> object:
        await self._engine.load(endpoint)
        return "loaded"

    async def _unload(self, endpoint: EndpointId) -> object:
        return await self._order(endpoint, OrderKind.UNLOAD)

    async def _stop(self, endpoint: EndpointId) -> object:
        return await self._order(endpoint, OrderKind.STOP)

    async def _order(self, endpoint: EndpointId, kind: OrderKind) -> object:
        policy = self._engine.endpoints.get(endpoint)
        if policy is None:
            return "done"  # what cannot be started need not be stopped
        try:
            async with asyncio.timeout(ORDER_LIMIT_S):
                return await self._engine.order(policy.instance, kind)
        except TimeoutError:
            raise JugglerError(f"requests still run on {endpoint!r}; the order stands", endpoint=endpoint) from None

    def _is_own_name(self, host: bytes | None) -> bool:
        if host is None:
            return True  # HTTP/1.0: no browser speaks it
        name = host.decode("latin-1").rsplit("@", 1)[-1]
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if name.lower() in ("localhost", self._host.lower()):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def _parameter(target: bytes, name: str) -> str:
    query = parse_target(target).query[1:].decode("utf-8", "replace")
    return parse_qs(query).get(name, [""])[0]


def _json(status_code: int, data: object) -> LocalResponse:
    return LocalResponse(status_code, to_json(data) + b"\n")
