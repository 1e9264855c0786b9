"""What the engine knows of each endpoint's requests, and the leases that it grants them."""

from dataclasses import dataclass
from typing import Protocol

from juggler.ids import InstanceId, RequestId
from juggler.proxy.contract import ExchangeResult, LeaseTiming
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


class Grantor(Protocol):
    """The engine, as a lease sees it."""

    def asks(self, instance: InstanceId) -> bool: ...
    def ended(self, request: RequestId, first_byte_at: float | None = None) -> None: ...
    def suspect(self, instance: InstanceId) -> None: ...


class EngineLease:
    """The right to use one ready instance for one exchange; see ``proxy.contract.Lease``.

    Args:
        engine: Hears of its end.
        granted_at: Monotonic seconds.
    """

    __slots__ = ("_engine", "_granted_at", "_instance", "_request", "timing", "upstream")

    def __init__(
        self,
        engine: Grantor,
        request: RequestId,
        instance: InstanceId,
        upstream: UpstreamPool,
        timing: LeaseTiming,
        granted_at: float,
    ) -> None:
        self._engine = engine
        self._request: RequestId | None = request
        self._instance = instance
        self._granted_at = granted_at
        self.upstream = upstream
        self.timing: LeaseTiming | None = timing

    def switched(self) -> None:
        """A tunnel holds no memory where the backend itself tells whether it works: the socket may idle for days."""
        if self._request is not None and self._engine.asks(self._instance):
            self._engine.ended(self._request)
            self._request = None

    def release(self, result: ExchangeResult) -> None:
        if result.error in _SUSPICIOUS:
            self._engine.suspect(self._instance)
        if self._request is not None:
            first_byte_s = result.first_byte_s
            self._engine.ended(self._request, self._granted_at + first_byte_s if first_byte_s is not None else None)
