"""Notices that the configuration file has changed, however it is written."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from juggler.reload.source import Identity
from juggler.survey.threads import OneLook
from juggler.units import SECONDS

LOOK_EVERY_S = 1 * SECONDS
STABLE_S = 0.5 * SECONDS
"""Editors and copies write in several steps: a change counts when nothing more has changed for so long."""

LOOK_LIMIT_S = 5 * SECONDS
"""For one look, on a disk that sleeps or a network that is gone."""

AGAIN_AFTER_S = 5 * SECONDS
"""For a change that could not be taken up yet."""


class Watcher:
    """Looks at the file each second; polling works on every file system, and sees through links.

    Args:
        look: Gives the file's identity, None while there is none; called in a thread.
        changed: Awaited for each change; the next one is looked for when it has returned. False: it could not be
            taken up yet, and is to be told again.
        since: The identity that is in effect; None: whatever is found first counts as a change.
        look_every_s: Seconds between two looks.
        stable_s: See ``STABLE_S``.
        again_after_s: See ``AGAIN_AFTER_S``.
    """

    def __init__(
        self,
        look: Callable[[], Identity | None],
        changed: Callable[[], Awaitable[bool]],
        *,
        since: Identity | None = None,
        look_every_s: float = LOOK_EVERY_S,
        stable_s: float = STABLE_S,
        again_after_s: float = AGAIN_AFTER_S,
    ) -> None:
        self._look = look
        self._one_look = OneLook(LOOK_LIMIT_S)
        self._changed = changed
        self._seen = since
        self._look_every_s = look_every_s
        self._stable_s = stable_s
        self._again_after_s = again_after_s
        self._put_off: Identity | None = None
        self._again_at = 0.0
        """The change that could not be taken up, and when it is told again."""

    async def run(self) -> None:
        """Watch until cancelled. A moment without the file is no change."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._look_every_s)
            found = await self._identity()
            if found is None or found == self._seen:
                continue
            if found == self._put_off and loop.time() < self._again_at:
                continue
            found = await self._settled(found)
            if found is not None and found != self._seen:
                if await self._changed():
                    self._seen, self._put_off = found, None
                else:
                    self._put_off, self._again_at = found, loop.time() + self._again_after_s

    async def _settled(self, found: Identity) -> Identity | None:
        """What it is once it stays the same; None: it has gone."""
        while True:
            await asyncio.sleep(self._stable_s)
            again = await self._identity()
            if again is None or again == found:
                return again
            found = again

    async def _identity(self) -> Identity | None:
        with contextlib.suppress(TimeoutError, RuntimeError):  # too slow a disk, or no thread to be had
            return await self._one_look.in_thread(self._look)
        return None
