"""When a server that somebody else runs is looked for, and looked after: in the time between two orders."""

import asyncio
import logging
from collections.abc import Sized

from juggler.backends.base import Backend
from juggler.errors import BackendError
from juggler.lifecycle.attaching import LOOK_EVERY_S, AttachedHandle, AttachTarget, has_died
from juggler.lifecycle.interruption import Interrupted, Interruption
from juggler.lifecycle.waiting import ProcessEnded

_log = logging.getLogger("juggler.lifecycle")


class TargetWatch:
    """The owner's eye on the server that it attaches to; every look is cut short by an order.

    Args:
        target: Where the server is expected.
        backend: Told that it is about an attached server whenever one is looked for.
        orders: Those that wait to be carried out.
        ordered: Set when there is one, or something is suspected; cleared by the owner before it waits.
        interruption: Checked with each order.
    """

    def __init__(
        self,
        target: AttachTarget,
        backend: Backend,
        orders: Sized,
        ordered: asyncio.Event,
        interruption: Interruption,
    ) -> None:
        self.target = target
        self._backend = backend
        self._orders = orders
        self._ordered = ordered
        self._interruption = interruption
        self._next_look_s = 0.0
        self._suspected = False
        self._missed = ""

    async def finds(self) -> bool:
        """Look when it is time to; True: the server answers. False: an order has come, or it does not answer."""
        if await self._ordered_within(self._next_look_s):
            return False
        self.pause()
        self._backend.attached = True
        try:
            return await self._interruption.unless(self._is_ordered, self.target.answers())
        except Interrupted:
            return False
        except Exception:
            name = self._backend.settings.instance
            _log.exception("%s: the %s module failed in probe", name, self._backend.type_name)
            return False

    async def look_after(self, attached: AttachedHandle) -> None:
        """Until an order comes, or for some seconds and then one look at the server.

        Raises:
            ProcessEnded: It does not accept connections any more.
        """
        if not self._suspected and await self._ordered_within(LOOK_EVERY_S):
            return
        self._suspected = False
        try:
            died = await self._interruption.unless(self._is_ordered, has_died(attached.address))
        except Interrupted:
            return
        if died:
            raise ProcessEnded(attached.lost())

    def suspect(self) -> None:
        """The next look comes at once."""
        self._suspected = True
        self._ordered.set()

    def pause(self) -> None:
        """The server was looked for, or let go of, just now."""
        self._next_look_s = LOOK_EVERY_S

    def tell_missed(self, failure: BackendError | None) -> None:
        """There was nothing to attach to, or there was; the same failure is logged once."""
        message = failure.message if failure is not None else ""
        if message and message != self._missed:
            _log.info("%s", message)
        self._missed = message

    def _is_ordered(self) -> bool:
        return len(self._orders) > 0

    async def _ordered_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._ordered.wait()
        except TimeoutError:
            return False
        return True
