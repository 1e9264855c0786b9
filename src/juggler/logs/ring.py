"""The last lines of one log, for any number of readers who come and go.

A reader asks for what is newer than the last number it saw and may wait for it; numbers count up by one and are never
used again within a run, so that a reader who was away too long learns how many lines it has lost. Nothing here runs
by itself: no task, no thread.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from juggler.units import MIB

Stream = Literal["stdout", "stderr", "juggler"]
"""Who wrote a line; ``juggler``: we ourselves."""

LINES_MAX = 5000
BYTES_MAX = 1 * MIB
"""Per log, text and what Python needs to keep it."""

LINE_COST_BYTES = 150
"""What a kept line costs beside its text, about."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line."""

    seq: int | None
    """Counts up from 1 within a log; None: the line has only begun."""
    at: float
    """Seconds since 1970, when we read it."""
    stream: Stream
    level: str | None
    """``debug`` to ``critical``, for our own."""
    text: str
    """One line; of control characters only tabs and colours (SGR sequences) are left."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader gets."""

    lines: list[LogLine]
    """The oldest first."""
    begun: list[LogLine]
    """Lines whose end has not come yet: prompts, progress bars."""
    last: int
    """The number of the newest line there is; 0: there was none yet. ``lines`` may end before it."""
    lost: int
    """Lines that the reader has not seen and that are no longer kept."""


class LogRing:
    """See the module; all calls belong to the loop's thread.

    Args:
        now: The wall clock.
    """

    def __init__(self, now: Callable[[], float], *, lines_max: int = LINES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.now = now
        self._lines_max = lines_max
        self._bytes_max = bytes_max
        self._lines: deque[LogLine] = deque()
        self._bytes = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.last = 0
        """The number of the newest line."""
        self.running = False
        """Somebody writes into it at present."""
        self.begun: Callable[[], Sequence[tuple[Stream, str]]] = tuple
        """Asks the writer for lines whose end has not come yet."""

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def written_at(self) -> float:
        """When the newest line came; 0 where there is none."""
        return self._lines[-1].at if self._lines else 0.0

    def add(self, stream: Stream, text: str, level: str | None = None, at: float | None = None) -> None:
        """One complete line, masked."""
        self.last += 1
        self._lines.append(LogLine(self.last, self.now() if at is None else at, stream, level, text))
        self._bytes += len(text) + LINE_COST_BYTES
        while len(self._lines) > self._lines_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._lines.popleft().text) + LINE_COST_BYTES
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def read(self, after: int | None = None, limit: int = 500, since_s: float | None = None) -> Reading:
        """Lines that are kept.

        Args:
            after: The first ``limit`` lines with a larger number. None, or a number that no line has had yet (it is
                of another run): the last ``limit`` lines.
            since_s: Only lines of so many last seconds.
        """
        known = after is not None and after <= self.last
        first = self.last - len(self._lines) + 1
        begin = max(first, after + 1) if after is not None and known else first
        lost = begin - after - 1 if after is not None and known else 0
        lines = list(itertools.islice(self._lines, begin - first, None))
        if since_s is not None:
            oldest = self.now() - since_s
            lines = [line for line in lines if line.at >= oldest]
        limit = max(limit, 0)
        lines = lines[:limit] if known else lines[len(lines) - min(limit, len(lines)) :]
        now = self.now()
        begun = [LogLine(None, now, stream, None, text) for stream, text in self.begun()]
        return Reading(lines, begun, self.last, lost)

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Until there is a line after ``after``, ``timeout_s`` seconds at most; whether there is one."""
        if after != self.last:
            return True  # newer ones, or the number is of another run
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            if future in self._waiting:
                self._waiting.remove(future)
        return True
