"""The history as others see it: one object, started with the engine and stopped before it goes.

::

    history = History(engine, clock, state_dir, HistoryLimits())   # limits None: nothing is written to the disk
    history.start(tasks)            # in the app's TaskGroup, before anything is loaded
    ...
    await history.stop()            # after the engine has finished; what was recorded last is written

    history.subscribe(callback)     # every quarter of a second at most: ``Batch`` of requests, spans, decisions
    await history.records(...)      # ended requests, the newest first; from memory and disk
    await history.spans(...)        # the timeline, with its thrash warnings
    await history.days(30)          # sums per day and endpoint
    await history.series(...)       # memory, loads, requests and bytes over time
    history.today()                 # sums of this day, at once
    history.metrics()               # the text for Prometheus, of type ``CONTENT_TYPE``

Everything that is returned is plain JSON data, with instants in seconds since 1970. What cannot be read from the disk
is left out. Nothing here raises.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from juggler.clock import Clock
from juggler.engine import Engine
from juggler.history.database import mark_end
from juggler.history.limits import HistoryLimits
from juggler.history.reading import HistoryReader, read_days
from juggler.history.recorder import Batch, Listener, Recorder, local_day
from juggler.history.series import STEP_S, joined, on_grid, step_for
from juggler.history.store import HistoryStore
from juggler.history.sums import WHOLE, BySums, Sums, add_all, plain_day
from juggler.history.thrash import thrashing
from juggler.history.timeline import Span
from juggler.units import HOURS

if TYPE_CHECKING:
    from juggler.history.metrics import Metrics

__all__ = ["CONTENT_TYPE", "Batch", "History", "HistoryLimits"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of ``History.metrics``: https://prometheus.io/docs/instrumenting/exposition_formats/."""

FILE_NAME = "history.sqlite3"
RECORDS_ANSWERED = 1000
SPANS_ANSWERED = 5000
DAYS_ANSWERED = 400
_DAY_S = 24 * HOURS


class History:
    """See the module.

    Args:
        engine: What is recorded.
        state_dir: Where the file is; it exists.
        limits: Bounds of the file; None: everything is kept in memory only.
    """

    def __init__(self, engine: Engine, clock: Clock, state_dir: Path, limits: HistoryLimits | None) -> None:
        self._clock = clock
        self._store: HistoryStore | None = None
        self._reader: HistoryReader | None = None
        if limits is not None:
            self._store = HistoryStore(state_dir / FILE_NAME, limits, self._opened)
            self._reader = HistoryReader(state_dir / FILE_NAME)
        self._recorder = Recorder(engine, clock, self._store)
        self._engine = engine
        self._metrics: Metrics | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun_on = ""

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Record from now on."""
        self._loop = asyncio.get_running_loop()
        self._begun_on = local_day(self._clock.wall())
        self._recorder.attach()
        self._recorder.tick()
        if self._store is not None:
            self._store.start()
        self._task = tasks.create_task(self._recorder.run(), name="history")

    async def stop(self) -> None:
        """End the task and write what is left; takes seconds at most."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._recorder.end()
        if self._store is not None:
            await self._store.close()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have each batch from now on, in the loop; returns what ends that."""
        return self._recorder.subscribe(listener)

    @property
    def path(self) -> Path | None:
        """The file; None: nothing is written."""
        return self._store.path if self._store is not None else None

    # -- what was recorded -------------------------------------------------------------------------------------

    async def records(
        self, before: int | None = None, limit: int = 100, endpoint: str | None = None, outcome: str | None = None
    ) -> dict[str, object]:
        """Ended requests, the newest first: ``{"requests": [...], "more": bool}``.

        Args:
            before: Only those with a smaller ``record`` (not ``request``): the last one of the page before.
        """
        self._recorder.tick()
        limit = max(1, min(RECORDS_ANSWERED, limit))
        kept = list(self._recorder.records)
        found = [
            one
            for one in reversed(kept)
            if (before is None or one.record < before)
            and (endpoint is None or one.endpoint == endpoint)
            and (outcome is None or one.outcome == outcome)
        ][: limit + 1]
        if len(found) <= limit and self._reader is not None:
            older: list[int] = [kept[0].record] if kept else []
            older += [before] if before is not None else []
            missing = limit + 1 - len(found)
            found += await self._reader.requests(min(older, default=None), missing, endpoint, outcome)
        return {"requests": [one.plain() for one in found[:limit]], "more": len(found) > limit}

    async def spans(self, from_at: float, to_at: float) -> dict[str, object]:
        """The timeline: ``{"spans": [...], "from_at", "to_at", "thrash": [...]}``; of many spans the last ones."""
        self._recorder.tick()
        kept = self._recorder.timeline.kept()
        found = [one for one in kept if one.from_at <= to_at and (one.to_at is None or one.to_at >= from_at)]
        oldest = self._recorder.timeline.spans[0] if self._recorder.timeline.spans else None
        if self._reader is not None and (oldest is None or from_at < oldest.from_at):
            before = oldest.span if oldest is not None else None
            known = {one.span for one in found}
            stored = await self._reader.spans(from_at, to_at, before, SPANS_ANSWERED)
            found = sorted([*(one for one in stored if one.span not in known), *found], key=lambda one: one.span)
        found = found[-SPANS_ANSWERED:]
        thrash = thrashing(found, self._clock.wall(), self._recorder.name_of)
        return {
            "spans": [one.plain() for one in found],
            "from_at": from_at,
            "to_at": to_at,
            "thrash": [one.plain() for one in thrash],
        }

    def last_spans(self) -> list[Span]:
        """The last spans and all that last, by their beginning, at once."""
        return self._recorder.timeline.kept()

    async def days(self, days: int = 30) -> dict[str, object]:
        """Sums of the last days, the newest first: ``{"days": [...]}``; a day without requests is left out."""
        self._recorder.tick()
        wanted = max(1, min(DAYS_ANSWERED, days))
        since = local_day(self._clock.wall() - (wanted - 1) * _DAY_S)
        found = await self._reader.days(since) if self._reader is not None else {}
        of_day: BySums = {}
        if self._recorder.base_missing:
            of_day = found.get(self._recorder.day, {})
        add_all(of_day, self._recorder.sums)
        found[self._recorder.day] = of_day  # what is on the disk may be a moment behind
        newest_first = sorted(found.items(), reverse=True)
        return {"days": [plain_day(day, sums) for day, sums in newest_first if sums or day == self._recorder.day]}

    def today(self) -> dict[str, object]:
        """Sums of this day."""
        current = self._recorder.day == local_day(self._clock.wall())
        return (self._recorder.sums.get(WHOLE, Sums()) if current else Sums()).plain()

    async def series(self, from_at: float, to_at: float, step_s: float = 10.0) -> dict[str, object]:
        """Memory, loads, requests and bytes: see ``series.on_grid``."""
        newer = sorted(self._recorder.series.samples, key=attrgetter("at"))  # a clock may have been set back
        if self._reader is not None and (not newer or from_at < newer[0].at):
            earliest = from_at - step_for(from_at, to_at, step_s)
            newer = joined(await self._reader.samples(earliest, to_at), newer)
        return on_grid(newer, from_at, to_at, step_s)

    def metrics(self) -> bytes:
        """The text for Prometheus."""
        if self._metrics is None:
            # Here, because the client library takes longer to import than all that must be there before the first
            # request, and most never ask.
            from juggler.history.metrics import Metrics

            self._metrics = Metrics(self._engine, self._recorder.tallies, self._lost_rows, self._store_up)
        self._recorder.tick()
        return self._metrics.render()

    # -- the store ---------------------------------------------------------------------------------------------

    def _opened(self, connection: sqlite3.Connection) -> None:
        """In the writer's thread: what earlier runs have left."""
        mark_end(connection, STEP_S)
        sums: BySums = read_days(connection, self._begun_on).get(self._begun_on, {})
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._recorder.base_known, self._begun_on, sums)

    def _lost_rows(self) -> int:
        return self._store.dropped if self._store is not None else 0

    def _store_up(self) -> bool | None:
        return self._store.up if self._store is not None else None
