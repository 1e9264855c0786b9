"""How long an instance that keeps failing must wait for its next start. Pure: time is passed in.

A start that failed, or a process that ended by itself soon after it was ready, is a *failure*. After the first one
in a row the next start may follow at once, because most failures are accidents; then the pauses are 1, 2, 4, ... up
to 60 s. A run of 60 healthy seconds ends the row. Being stopped on purpose is neither: it does not end a row, for
else a scheduler under pressure would restart a broken model without pause.
"""

from juggler.units import MINUTES, SECONDS

FIRST_PAUSE_S = 1 * SECONDS
"""After the second failure in a row."""

PAUSE_LIMIT_S = 60 * SECONDS
"""Long enough that a model of many gigabytes is not read in a loop, short enough that a repair is soon noticed."""

HEALTHY_AFTER_S = 1 * MINUTES
"""Ready for this long, an instance is taken to work."""


class CrashBackoff:
    """The back-off of one instance.

    All ``now`` are seconds of one monotonic clock, as ``Clock.monotonic`` gives them.
    """

    def __init__(self) -> None:
        self._failures = 0
        """In a row."""
        self._ready_since: float | None = None
        """None while the instance is not ready."""
        self._blocked_until: float | None = None
        """The next start is allowed from then on; None while nothing has failed."""

    def failures(self, now: float) -> int:
        """Failures in a row."""
        self._forget_if_healthy(now)
        return self._failures

    def wait_s(self, now: float) -> float:
        """Seconds until the next start is allowed; 0 when it is allowed now."""
        self._forget_if_healthy(now)
        return 0.0 if self._blocked_until is None else max(0.0, self._blocked_until - now)

    def ready(self, now: float) -> None:
        """The instance is ready, by a start or a wake."""
        self._forget_if_healthy(now)
        self._ready_since = now

    def stopped(self, now: float) -> None:
        """It was stopped or unloaded on purpose."""
        self._forget_if_healthy(now)
        self._ready_since = None

    def failed(self, now: float) -> float:
        """A start or wake failed, or the process ended by itself; the same as ``wait_s`` afterwards.

        One that had been ready for ``HEALTHY_AFTER_S`` begins a new row.
        """
        self._forget_if_healthy(now)
        self._ready_since = None
        self._failures += 1
        pause_s = 0.0
        if self._failures > 1:
            # The exponent is bounded, so that a row of thousands stays a float.
            pause_s = min(PAUSE_LIMIT_S, FIRST_PAUSE_S * 2.0 ** min(self._failures - 2, 32))
        self._blocked_until = now + pause_s
        return pause_s

    def reset(self) -> None:
        """Forget everything: the operator asked for a start, or the configuration changed."""
        self._failures, self._ready_since, self._blocked_until = 0, None, None

    def _forget_if_healthy(self, now: float) -> None:
        if self._ready_since is not None and now - self._ready_since >= HEALTHY_AFTER_S:
            self._failures, self._blocked_until = 0, None
