"""What an operator may have done, whoever asks for it: by the API, which page and command line use.

Everything may be asked for twice. Orders that take time are carried out in tasks of their own, one per kind and
instance: who asks again for what is under way waits for the same one, and leaving ends only the waiting.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from juggler.engine import Engine
from juggler.errors import BadRequest, Conflict, NotFound, RoutingError
from juggler.ids import EndpointId, InstanceId, RequestId
from juggler.renames import Named
from juggler.scheduler import events
from juggler.scheduler.events import OrderKind
from juggler.scheduler.transitions import GONE

ORDERS_MAX = 256
"""Orders under way; there are few instances, and each can have one of each kind."""


@dataclass(frozen=True, slots=True)
class Lock:
    """Swapping was locked."""

    since_at: float
    by: str

    def plain(self) -> dict[str, object]:
        return {"since_at": round(self.since_at, 3), "by": self.by}


class Steering:
    """See the module.

    Args:
        engine: Carries the orders out.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock: Lock | None = None
        self._orders: dict[tuple[str, InstanceId], asyncio.Task[str]] = {}

    @property
    def locked(self) -> dict[str, object] | None:
        """Since when nothing gives way by itself, and who wanted that; None: it is not so."""
        return self._lock.plain() if self._lock is not None else None

    @property
    def orders(self) -> int:
        """How many orders are being carried out."""
        return len(self._orders)

    def endpoint(self, wanted: str) -> EndpointId:
        """An endpoint by its full name, or by its own name where that is unique.

        Raises:
            RoutingError: There is none, or several.
        """
        known = list(self._engine.endpoints)
        if wanted in known:
            return EndpointId(wanted)
        matches = [one for one in known if one.partition("/")[2] == wanted]
        if len(matches) == 1:
            return matches[0]
        problem = "is ambiguous" if matches else "is no endpoint"
        listed = ", ".join(matches or known)
        raise RoutingError(f"{wanted!r} {problem}; there are: {listed}", phase="routing")

    def instance_of(self, endpoint: EndpointId) -> InstanceId:
        """Who serves an endpoint."""
        return self._engine.endpoints[endpoint].instance

    async def load(self, endpoint: EndpointId, wait_s: float, by: str) -> str | None:
        """Have an endpoint loaded as a request would; returns how it went, None while it goes on after ``wait_s``.

        Raises:
            JugglerError: It cannot be loaded.
        """
        named = Named(self._engine.renames, endpoint)

        async def work() -> str:
            await self._engine.load(named.id, by)
            return "loaded"

        return await self._in_time("load", self.instance_of(endpoint), work, wait_s)

    async def order(self, endpoint: EndpointId, kind: OrderKind, wait_s: float) -> str | None:
        """Unload or stop an endpoint's instance once its running requests have ended; returns as ``load``."""
        instance = self.instance_of(endpoint)
        return await self._in_time(kind.value, instance, lambda: self._engine.order(instance, kind), wait_s)

    async def restart(self, endpoint: EndpointId, wait_s: float, by: str) -> str | None:
        """Stop an endpoint's instance as ``order`` does, and load it again; returns as ``load``.

        Raises:
            Conflict: Somebody else runs it.
            JugglerError: It cannot be loaded again.
        """
        instance = self.instance_of(endpoint)
        now = self._engine.scheduler.state.instances[instance]
        if now.attached or not now.spec.starts:
            raise Conflict(
                f"{now.spec.name!r} is attached: the juggler did not start it",
                hint="restart it where it was started",
                endpoint=endpoint,
            )

        was_down = now.residency in GONE
        named = Named(self._engine.renames, endpoint)

        async def work() -> str:
            await self._engine.order(instance, OrderKind.RESTART)
            await self._engine.load(named.id, by)
            return "was not running; loaded" if was_down else "loaded"

        return await self._in_time("restart", instance, work, wait_s)

    async def _in_time(
        self, what: str, instance: InstanceId, work: Callable[[], Awaitable[str]], wait_s: float
    ) -> str | None:
        task = self._orders.get((what, instance))
        if task is None:
            if len(self._orders) >= ORDERS_MAX:
                raise Conflict("too many orders are being carried out", hint="wait for some of them")

            async def carry_out() -> str:
                return await work()

            task = asyncio.get_running_loop().create_task(carry_out(), name=f"{what} {instance}")
            self._orders[what, instance] = task
            task.add_done_callback(lambda done: self._over((what, instance), done))
        await asyncio.wait([task], timeout=wait_s)
        return task.result() if task.done() and not task.cancelled() else None

    def _over(self, key: tuple[str, InstanceId], task: asyncio.Task[str]) -> None:
        self._orders.pop(key, None)
        if not task.cancelled():
            task.exception()  # who still waits is told; what nobody waits for any more shows in the instance's state

    def pin(self, endpoint: EndpointId, pinned: bool) -> None:
        """Make an endpoint's instance one that is never a victim, or no longer so, until the juggler ends."""
        self._engine.post(events.InstancePinned(self._engine.now(), self.instance_of(endpoint), pinned))

    def lock(self, locked: bool, by: str) -> None:
        """Let nothing give way by itself, or that again; until the juggler ends."""
        if locked == (self._lock is not None):
            return
        self._lock = Lock(time.time(), by) if locked else None
        self._engine.post(events.SwapsLocked(self._engine.now(), locked))

    def cancel(self, request: int) -> None:
        """Take a waiting request out of its queue; it is answered with an error.

        Raises:
            NotFound: It does not wait (any more).
            Conflict: It runs.
        """
        self._check_waiting(request)
        self._engine.post(events.RequestCancelled(self._engine.now(), RequestId(request)))

    def move_to_front(self, request: int) -> None:
        """Have a waiting request served before all others.

        Raises:
            NotFound: It does not wait (any more).
            Conflict: It runs.
        """
        self._check_waiting(request)
        self._engine.post(events.RequestPromoted(self._engine.now(), RequestId(request)))

    def _check_waiting(self, request: int) -> None:
        known = self._engine.scheduler.state.requests.get(RequestId(request))
        if known is None:
            raise NotFound(f"no request {request} waits", hint="`juggler queue` lists those that do")
        if known.forwarded_at is not None:
            raise Conflict(f"request {request} does not wait: it runs", hint="its client can end it")

    def close(self) -> None:
        """Nobody waits for orders any more."""
        for task in list(self._orders.values()):
            task.cancel()


def seconds(text: str | None, name: str, most: float) -> float:
    """A number of seconds out of a query; 0 if it is not there.

    Raises:
        BadRequest: It is no number, or not from 0 to ``most``.
    """
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise BadRequest(f"`{name}` is a number of seconds from 0 to {most:g}", code="bad_parameter")
    return value
