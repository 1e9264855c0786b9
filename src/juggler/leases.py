"""What the engine knows of each endpoint's requests, and the leases that it grants them."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from juggler.ended import EndedRequest
from juggler.errors import JugglerError
from juggler.ids import EndpointId, InstanceId, RequestId
from juggler.proxy.contract import ExchangeResult, LeaseTiming, RequestInfo, Route
from juggler.proxy.upstream import UpstreamPool
from juggler.proxy.wishes import Wishes

_SUSPICIOUS = frozenset({"upstream_connect_failed", "upstream_closed"})
"""Errors after which a backend may be dead: an attached server is looked after, the end of a process waited for."""

NOT_WAITED = LeaseTiming(queue_s=0.0)
"""Of a request that was let in at once."""


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What the scheduler is told of every request of one endpoint."""

    name: str
    instance: InstanceId
    priority: int
    max_wait_s: float
    timeout_s: float
    max_priority: int = 0
    """The most that a request may ask for."""

    def priority_of(self, wishes: Wishes) -> int:
        """What the endpoint allows of what the request asks for."""
        return self.priority if wishes.priority is None else min(wishes.priority, self.max_priority)


class Waiter:
    """One request between its arrival and its answer.

    Args:
        endpoint: Of which it wants something.
        info: The request; None: somebody wants it loaded.
        client: Who asks.
        asked_at: Monotonic seconds.
    """

    __slots__ = ("answer", "asked_at", "client", "endpoint", "future", "info")

    def __init__(self, endpoint: EndpointId, info: RequestInfo | None, client: str, asked_at: float) -> None:
        self.endpoint = endpoint
        self.info = info
        self.client = client
        self.asked_at = asked_at
        self.answer: InstanceId | JugglerError | None = None
        self.future: asyncio.Future[None] | None = None

    def resolve(self, answer: InstanceId | JugglerError) -> None:
        self.answer = answer
        if self.future is not None and not self.future.done():
            self.future.set_result(None)


class Grantor(Protocol):
    """The engine, as a lease sees it."""

    def asks(self, instance: InstanceId) -> bool: ...
    def ended(self, request: RequestId, first_byte_at: float | None = None) -> None: ...
    def suspect(self, instance: InstanceId) -> None: ...
    def over(self, lease: "EngineLease") -> None: ...


class EngineLease(EndedRequest):
    """The right to use one ready instance for one exchange; see ``proxy.contract.Lease``.

    Args:
        engine: Hears of its end.
        request: What the scheduler calls it.
        upstream: Connections to the instance.
        arrived_at: Monotonic seconds.
        granted_at: The same.
    """

    __slots__ = ("_engine", "_running", "upstream")

    def __init__(
        self,
        engine: Grantor,
        request: RequestId,
        instance: InstanceId,
        upstream: UpstreamPool,
        route: Route,
        info: RequestInfo,
        timing: LeaseTiming,
        arrived_at: float,
        granted_at: float,
    ) -> None:
        # All that an ended request has, without the call: every request comes by here.
        self._engine = engine
        self._running = True
        self.request: RequestId = request
        self.instance = instance
        self.upstream = upstream
        self.route = route
        self.info = info
        self.timing = timing
        self.arrived_at = arrived_at
        self.granted_at: float = granted_at
        self.ended_at = 0.0
        self.result = None
        self.error = None

    def switched(self) -> None:
        """A tunnel holds no memory where the backend itself tells whether it works: the socket may idle for days."""
        if self._running and self._engine.asks(self.instance):
            self._engine.ended(self.request)
            self._running = False

    def release(self, result: ExchangeResult) -> None:
        if result.error in _SUSPICIOUS:
            self._engine.suspect(self.instance)
        self.result = result
        self._engine.over(self)
        if self._running:
            first_byte_s = result.first_byte_s
            self._engine.ended(self.request, self.granted_at + first_byte_s if first_byte_s is not None else None)
