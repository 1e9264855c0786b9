"""What the data plane asks of the rest, and what it offers them. Plain types; no I/O here.

One ``Gateway`` stands behind each listener. For every request head the data plane calls ``route`` (pure, fast),
then ``try_acquire``, or ``await acquire`` where that gives nothing (the hold: it returns when the backend is ready for
this request), relays, and calls ``release`` on the lease exactly once, whatever happened.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from juggler.ids import EndpointId
from juggler.proxy.head import Field, RequestHead
from juggler.proxy.wishes import NO_WISHES, Wishes
from juggler.routing.apis import Api
from juggler.routing.client import client_of
from juggler.routing.stand_in import StandIn
from juggler.routing.traffic import Placeholder, TrafficClass

if TYPE_CHECKING:
    from juggler.proxy.upstream import UpstreamPool


@dataclass(frozen=True, slots=True)
class Route:
    """Where one request goes."""

    endpoint: EndpointId
    endpoint_name: str
    """The operator's name of the endpoint, for error texts."""
    target: bytes
    """What the backend gets as request target: raw path (prefix stripped or not) and raw query."""
    traffic: TrafficClass
    prefix: bytes = b""
    """The stripped prefix (``/vision``) as the client wrote it, empty if none was stripped."""
    bare: bool = False
    """The path was exactly the stripped prefix, without the slash that a page's relative links need behind it."""
    cacheable: bool = False
    """A light GET or HEAD whose answer is not about this very moment, or a POST that only asks: while the backend is
    down, an earlier reply to the same question may stand in for it (``proxy.replies``)."""
    no_store_everywhere: bool = False
    """The backend forbids to keep any of its answers, whatever they are: that is no reason not to."""
    api: Api | None = None
    """In whose shape errors are told; None: its path tells."""
    placeholder: Placeholder | None = None
    """What stands in for a cacheable one while the backend is down and no earlier reply is known."""
    changes: bool = False
    """What it does may make earlier replies to questions wrong."""
    light_if: Callable[[bytes], bool] | None = None
    """Of work: whether its body makes it light after all."""
    stand_in: StandIn | None = None
    """Who may answer it while the backend is down and no earlier reply is known."""

    def as_light(self) -> "Route":
        """The same request, which is no work after all."""
        return replace(self, traffic=TrafficClass.LIGHT, light_if=None)


@dataclass(frozen=True, slots=True)
class LocalResponse:
    """A whole answer made here, without a backend."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class RequestInfo:
    """What the hold may know about a request besides its route.

    Args:
        method: As the client sent it.
        target: As the client sent it.
        client: Address of the client's connection, for logs and for telling clients apart.
        fields: All header fields in order.
        wishes: What the client says about its waiting.
        head: In place of ``fields``, which are made of it when somebody asks; few do.
    """

    __slots__ = ("_fields", "_who", "client", "head", "method", "target", "wishes")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        client: str,
        fields: Sequence[Field] = (),
        wishes: Wishes = NO_WISHES,
        head: RequestHead | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.client = client
        self.wishes = wishes
        self.head = head
        self._fields = fields
        self._who: str | None = None

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """All header fields in order: name in lower case, and value."""
        fields = self._fields if self.head is None else self.head.fields
        return tuple([(name, value) for _, name, value in fields])

    @property
    def who(self) -> str:
        """A name for the client (``routing.client``); quicker than to look for it in ``headers``."""
        if self._who is None:
            fields = self._fields if self.head is None else self.head.notable
            self._who = client_of(self.client, [(name, value) for _, name, value in fields])
        return self._who

    def wishing(self, wishes: Wishes) -> "RequestInfo":
        """The same request with other wishes."""
        return RequestInfo(self.method, self.target, self.client, self._fields, wishes, self.head)


@dataclass(slots=True)
class ExchangeResult:
    """What became of a forwarded request; filled in by the data plane before ``release``."""

    status: int | None = None
    """The backend's status as sent to the client; None if no answer head arrived."""
    client_gone: bool = False
    error: str | None = None
    """``code`` of our own error, if we answered instead of the backend or had to break off."""
    bytes_up: int = 0
    bytes_down: int = 0
    first_byte_s: float | None = None
    """Seconds from hand-over to the backend's answer head."""


class Lease(Protocol):
    """The right to use one ready instance for one exchange."""

    @property
    def upstream(self) -> "UpstreamPool":
        """Connections to the instance."""
        ...

    def switched(self) -> None:
        """The exchange became a tunnel: the 101 was passed on, no byte of the tunnel yet. Synchronous, never raises.

        Called at most once, before ``release``. The default does nothing.
        """
        return

    def release(self, result: ExchangeResult) -> None:
        """The exchange is over. Synchronous, never raises; called exactly once."""
        ...


@dataclass(slots=True)
class LeaseTiming:
    """What a request waited for before it got its lease."""

    queue_s: float
    """Seconds it waited for its turn or for memory, before its instance was being loaded."""
    load_s: float = 0.0
    """Seconds it waited while its instance was being loaded."""
    loaded: bool = False
    """Whether an instance had to be loaded (or woken) for it."""


class TimedLease(Lease, Protocol):
    """A lease that tells what was waited for, and wants to hear of the first byte. What it adds is optional.

    These two are not in ``Lease``, because a protocol's defaults reach only classes that inherit from it.
    """

    @property
    def timing(self) -> LeaseTiming | None:
        """None: not known."""
        return None

    def first_byte(self) -> None:
        """The first byte of the backend's answer is here. Synchronous, never raises; called at most once."""
        return


class Gateway(Protocol):
    """The product behind one listener."""

    def route(self, method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        """Pure and fast; ``target`` raw in origin, absolute or asterisk form.

        Raises:
            JugglerError: ``RoutingError`` and other refusals, answered in our error shape.
        """
        ...

    def try_acquire(self, route: Route, request: RequestInfo) -> Lease | None:
        """A lease, if the request may be forwarded this instant; None: ``acquire`` has to see to it. Fast."""
        ...

    async def acquire(self, route: Route, request: RequestInfo) -> Lease | LocalResponse:
        """Wait until the request may be forwarded, or answer it here. Cancelled when the client leaves.

        Raises:
            JugglerError: Queue bounds, start failures, not ready, shutting down.
        """
        ...
