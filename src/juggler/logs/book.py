"""All logs there are: one per instance, and one of our own records.

For the control API:

    logs.listing()                                -> [{"log", "lines", "last", "running"}]
    logs.read(log, after=SEQ, limit=500, since_s=600, ansi=False)
        -> {"log", "lines": [{"seq", "at", "stream", "level", "text"}], "begun": [the same, "seq": null],
            "last": seq, "lost": n}           RoutingError (404) where there is no such log
    await logs.wait(log, after, timeout_s)        -> whether there is something newer; read again then

``after`` is the ``seq`` of the last line the reader has (``lines[-1]``, or ``last`` where that was the end); without
it, one gets the last ``limit`` lines. An instance that was never started has an empty log. For the composition root:
``logs.of(instance, backend)`` for each owner, ``logs.open()`` in the running loop to record our own, ``logs.close()``.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Protocol

from juggler.errors import RoutingError
from juggler.ids import InstanceId
from juggler.lifecycle.output import strip_escapes
from juggler.logs.handler import RingHandler
from juggler.logs.launches import LaunchLog, only_colours
from juggler.logs.masking import Masker, inherited_secrets
from juggler.logs.ring import LogLine, LogRing

OWN_LOG = "juggler"
"""The log of our own records."""

LOGS_MAX = 500
"""More are only there after many reloads; then those that were silent longest go."""

READ_LIMIT = 5000
"""Lines in one answer."""

WAIT_LIMIT_S = 30.0


class HasSecrets(Protocol):
    """Who knows what must not be seen (``Backend``)."""

    @property
    def secrets(self) -> tuple[str, ...]: ...


class Logs:
    """See the module; all calls belong to the loop's thread.

    Args:
        now: The wall clock.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._rings: dict[str, LogRing] = {}
        self._inherited = inherited_secrets(os.environ)
        self._secrets: dict[str, tuple[str, ...]] = {}
        self._own_masker = Masker(self._inherited)
        self._handler: RingHandler | None = None
        self._ring(OWN_LOG)

    def of(self, instance: InstanceId, source: HasSecrets) -> LaunchLog:
        """The log of an instance, to be written by its owner.

        Args:
            source: Tells the words to mask, at each start: some are known only then.
        """

        def known() -> tuple[str, ...]:
            self._secrets[instance] = (*source.secrets, *self._inherited)
            self._own_masker = Masker(word for words in self._secrets.values() for word in words)
            return self._secrets[instance]

        self._ring(instance)
        known()
        return LaunchLog(lambda: self._ring(instance), known)

    def open(self) -> None:
        """Record what we log ourselves; in the running loop."""
        self._handler = RingHandler(self._add_own)
        self._ring(OWN_LOG).running = True
        logging.getLogger("juggler").addHandler(self._handler)

    def close(self) -> None:
        """Stop recording; what there is can still be read. Idempotent."""
        if self._handler is not None:
            logging.getLogger("juggler").removeHandler(self._handler)
            self._ring(OWN_LOG).running = False
            self._handler = None

    def listing(self) -> list[dict[str, object]]:
        """Which logs there are, our own first."""
        return [
            {"log": name, "lines": len(ring), "last": ring.last, "running": ring.running}
            for name, ring in self._rings.items()
        ]

    def read(
        self,
        log: str,
        after: int | None = None,
        limit: int = 500,
        since_s: float | None = None,
        *,
        ansi: bool = False,
    ) -> dict[str, object]:
        """Lines of a log as plain JSON data (see the module).

        Args:
            ansi: Keep colours.

        Raises:
            RoutingError: There is no such log.
        """
        reading = self._known(log).read(after, min(limit, READ_LIMIT), since_s)
        return {
            "log": log,
            "lines": [_plain(line, ansi) for line in reading.lines],
            "begun": [_plain(line, ansi) for line in reading.begun],
            "last": reading.last,
            "lost": reading.lost,
        }

    async def wait(self, log: str, after: int, timeout_s: float) -> bool:
        """Until the log has a line after ``after``, ``WAIT_LIMIT_S`` at most; whether it has one.

        Raises:
            RoutingError: There is no such log.
        """
        return await self._known(log).wait(after, min(timeout_s, WAIT_LIMIT_S))

    def _known(self, log: str) -> LogRing:
        ring = self._rings.get(log)
        if ring is None:
            raise RoutingError(f"{log!r} is no log; there are: {', '.join(self._rings)}", phase="routing")
        return ring

    def _ring(self, log: str) -> LogRing:
        ring = self._rings.get(log)
        if ring is None:
            self._make_room()
            ring = self._rings[log] = LogRing(self._now)
        return ring

    def _make_room(self) -> None:
        if len(self._rings) >= LOGS_MAX:
            silent = [name for name, ring in self._rings.items() if not ring.running and name != OWN_LOG]
            oldest = min(silent, key=lambda name: self._rings[name].written_at, default=None)
            if oldest is not None:
                del self._rings[oldest]
                self._secrets.pop(oldest, None)

    def _add_own(self, text: str, level: str, at: float) -> None:
        self._ring(OWN_LOG).add("juggler", self._own_masker.mask(only_colours(text)), level, at)


def _plain(line: LogLine, ansi: bool) -> dict[str, object]:
    text = line.text if ansi or "\x1b" not in line.text else strip_escapes(line.text)
    return {"seq": line.seq, "at": round(line.at, 3), "stream": line.stream, "level": line.level, "text": text}
