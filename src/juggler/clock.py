"""Time as a value that is passed in. Leaf module."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where "now" comes from; tests pass a clock that they move themselves."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start, never going back."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, for people and files; may jump."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
