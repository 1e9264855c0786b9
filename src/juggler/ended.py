"""What is known of a request, for who shows, records and counts them; see ``juggler.history``."""

from collections import deque
from collections.abc import Callable

from juggler.ids import EndpointId, InstanceId, RequestId
from juggler.proxy.contract import ExchangeResult, LeaseTiming, RequestInfo, Route

ENDED_KEPT = 20_000
"""Requests that are over and that nobody has taken yet: a bound for the case that nobody ever does."""


class EndedRequest:
    """One request from its arrival to its end. Times are monotonic seconds of the engine's clock.

    Args:
        arrived_at: When it asked to be let in.
        ended_at: When it was over.
        timing: What it had waited for by then.
        error: Code of the error that refused it; None: its client left.
    """

    __slots__ = (
        "arrived_at",
        "ended_at",
        "error",
        "granted_at",
        "info",
        "instance",
        "request",
        "result",
        "route",
        "timing",
    )

    def __init__(
        self,
        instance: InstanceId,
        route: Route,
        info: RequestInfo,
        arrived_at: float,
        ended_at: float,
        timing: LeaseTiming,
        error: str | None,
    ) -> None:
        self.instance = instance
        self.route = route
        self.info = info
        self.arrived_at = arrived_at
        self.ended_at = ended_at
        self.timing = timing
        self.error = error
        self.request: RequestId | None = None
        """What the scheduler calls it; None: it was never let in."""
        self.granted_at: float | None = None
        """When it was let in; None: never."""
        self.result: ExchangeResult | None = None
        """What became of it once it was let in."""

    @property
    def endpoint(self) -> EndpointId:
        return self.route.endpoint

    @property
    def client_left(self) -> bool:
        """The client went away before it was answered."""
        return self.result.client_gone if self.result is not None else self.error is None

    @property
    def queue_s(self) -> float:
        """Seconds it waited for its turn or for memory."""
        return self.timing.queue_s

    @property
    def load_s(self) -> float:
        """Seconds it waited while its instance was being loaded."""
        return self.timing.load_s


class EndedRequests:
    """Who is over, in order, until the recorder takes them."""

    def __init__(self) -> None:
        self._kept: deque[EndedRequest] = deque(maxlen=ENDED_KEPT)
        self.on_first: Callable[[], None] | None = None
        """Called when there was none and now is one. Must be quick."""
        self.lost = 0
        """How many were dropped before anybody took them."""

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, request: EndedRequest) -> None:
        kept = len(self._kept)
        self.lost += kept == ENDED_KEPT
        self._kept.append(request)
        if kept == 0 and self.on_first is not None:
            self.on_first()

    def take(self) -> EndedRequest:
        """The oldest of them."""
        return self._kept.popleft()
