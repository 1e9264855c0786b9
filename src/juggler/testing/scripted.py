"""Reactions written down in advance, for the fakes."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Act:
    """One reaction: do something, wait, then answer or fail."""

    value: object = None
    """The answer."""
    error: Exception | None = None
    """Raised instead of answering."""
    after_s: float = 0.0
    """Before the answer, in the loop's time."""
    hangs: bool = False
    """Never answers; can only be cancelled."""
    stubborn: bool = False
    """Never answers, and ignores the first cancellation for another 60 s, as no code should."""
    then: Callable[[], None] | None = None
    """Called first: lets other things happen in the middle of a call."""

    async def play(self) -> object:
        """Do it."""
        if self.then is not None:
            self.then()
        if self.after_s:
            await asyncio.sleep(self.after_s)
        if self.hangs:
            await asyncio.Event().wait()
        if self.stubborn:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(60)
                raise
        if self.error is not None:
            raise self.error
        return self.value


class Script:
    """Acts played one after the other; the last one is played again for ever."""

    def __init__(self, acts: Iterable[Act]) -> None:
        self._acts = deque(acts)
        if not self._acts:
            raise ValueError("a script needs at least one act")

    def next(self) -> Act:
        """The act whose turn it is."""
        return self._acts.popleft() if len(self._acts) > 1 else self._acts[0]
