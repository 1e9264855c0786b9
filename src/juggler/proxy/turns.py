"""Work that can wait a moment, done a little in each turn of the loop, so that everybody else gets on meanwhile."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from juggler.units import KIB

_log = logging.getLogger("juggler.proxy")

LARGE_PIECE_BYTES = 64 * KIB
"""Who sends so much at once has more, and waits for his turn if it is to be looked through."""

SHARE_S = 0.002
"""Once so much of a turn is used up the rest waits for the next one."""


class Turns:
    """First come, first served. Holds one job for each that waits; who adds them bounds their number."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()

    def add(self, loop: asyncio.AbstractEventLoop, job: Callable[[], None]) -> None:
        """Have ``job`` done in the next turn or a later one."""
        self._jobs.append(job)
        if len(self._jobs) == 1:
            loop.call_soon(self._run, loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        end = time.perf_counter() + SHARE_S
        while True:
            try:
                self._jobs[0]()
            except Exception:  # those behind it must not wait for ever
                _log.exception("this is a bug in the juggler: bytes could not be passed on in their turn")
            self._jobs.popleft()  # only now: who adds one meanwhile must not begin a second run
            if not self._jobs:
                return
            if time.perf_counter() >= end:
                loop.call_soon(self._run, loop)
                return
