"""The one task that takes over what happened: never on the way of a request, and asleep while nothing happens.

It is woken by the first request that ends, by the first that is let in, and by every move of an instance; it looks
every quarter of a second while something changes, every two seconds while something lasts, and not at all otherwise.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from juggler.clock import Clock
from juggler.ended import EndedRequest
from juggler.engine import Engine
from juggler.history.records import Facts, RequestRecord, facts_of, record_of
from juggler.history.series import Sample, Series
from juggler.history.store import HistoryStore, Rows
from juggler.history.sums import WHOLE, BySums, Sums, add_all
from juggler.history.tallies import Tallies
from juggler.history.timeline import Span, Timeline
from juggler.ids import InstanceId
from juggler.scheduler.commands import Decision
from juggler.scheduler.state import DECISIONS_KEPT, Instance
from juggler.scheduler.transitions import Move
from juggler.units import SECONDS

TICK_S = 0.25
SLOW_TICK_S = 2 * SECONDS
LINGER_S = 30 * SECONDS
"""So long after the last change it is looked on: what memory a model needs shows after a while."""
RECORDS_KEPT = 500
RECORDS_PER_TICK = 500
"""Requests that are kept one by one; of more only the sums are, or the disk would do nothing else."""

DAYS_REMEMBERED = 3
"""Days before, for a clock that is set back over midnight."""

_log = logging.getLogger("juggler.history")


@dataclass(slots=True)
class Batch:
    """What one look found."""

    requests: list[RequestRecord] = field(default_factory=list)
    skipped: int = 0
    """Requests that are in the sums only."""
    spans: list[Span] = field(default_factory=list)
    """New, or changed since."""
    decisions: list[Decision] = field(default_factory=list)
    """The same."""
    sample: Sample | None = None

    def __bool__(self) -> bool:
        return bool(self.requests or self.skipped or self.spans or self.decisions or self.sample)


Listener = Callable[[Batch], None]


class Recorder:
    """See the module.

    Args:
        engine: Whose requests and decisions are recorded; it is given the hooks that wake this.
        store: Where to keep them; None: in memory only.
    """

    def __init__(self, engine: Engine, clock: Clock, store: HistoryStore | None) -> None:
        self.records: deque[RequestRecord] = deque(maxlen=RECORDS_KEPT)
        """The last requests, the newest last."""
        self.tallies = Tallies()
        self.series = Series()
        self.timeline = Timeline(self.wall_offset, self.name_of, self.wake, self._on_loaded, self._on_failed)
        self.day = ""
        """The local day of ``sums``."""
        self.sums: BySums = {}
        """Of this day, by endpoint."""
        self._other_days: dict[str, BySums] = {}
        """The same of days before, in the order in which they were left."""
        self.base_missing = store is not None
        """What earlier runs have counted on this day is not in them yet."""
        self._engine = engine
        self._clock = clock
        self._store = store
        self._listeners: dict[int, Listener] = {}
        self._numbers = itertools.count()
        self._activity = asyncio.Event()
        self._fresh: BySums = {}
        """What comes on top of ``sums`` with the next batch."""
        self._last_record = 0
        self._decisions_seen = 0
        self._unsettled: dict[int, Decision] = {}
        """Decisions whose outcome is not known."""
        self._linger_until = 0.0
        self._complained = False

    # -- hooks -------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Have the engine tell this what happens."""
        self._engine.ended_requests.on_first = self.wake
        self._engine.on_first_lease = self.wake
        self._engine.scheduler.state.on_move = self._on_move
        self._decisions_seen = self._engine.scheduler.state.decisions_made

    def wake(self) -> None:
        """Something happened."""
        self._activity.set()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have each batch from now on; returns what ends that."""
        number = next(self._numbers)
        self._listeners[number] = listener

        def unsubscribe() -> None:
            self._listeners.pop(number, None)

        return unsubscribe

    def wall_offset(self) -> float:
        """What makes an instant since 1970 of a monotonic one."""
        return self._clock.wall() - self._clock.monotonic()

    def name_of(self, instance: InstanceId | str) -> str:
        """The operator's name of an instance, also of one that is gone."""
        known = self._engine.scheduler.state.instances.get(InstanceId(instance))
        return known.spec.name if known is not None else instance.rpartition("/")[2]

    def base_known(self, day: str, sums: BySums) -> None:
        """What earlier runs have counted on this day."""
        of_day = self.sums if day == self.day else self._other_days.get(day)
        if of_day is not None:
            add_all(of_day, sums)
        self.base_missing = False

    def _on_move(self, instance: Instance, move: Move, at: float) -> None:
        try:
            self.timeline.moved(instance, move, at)
        except Exception:  # the scheduler is in the middle of its work
            self._complain()

    def _on_loaded(self, instance: InstanceId, seconds: float) -> None:
        self.tallies.of_instance(instance).load.observe(seconds)
        self.series.counts.loads += 1
        self._fresh_whole().loads += 1

    def _on_failed(self, instance: InstanceId, kind: str) -> None:
        self.tallies.of_instance(instance).failures[kind] += 1

    # -- the task ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Record until cancelled."""
        while True:
            self._activity.clear()
            changed = self.tick()
            await asyncio.sleep(TICK_S)
            if not changed and not self._activity.is_set():
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(SLOW_TICK_S if self._goes_on() else None):
                await self._activity.wait()
        except TimeoutError:
            pass

    def _goes_on(self) -> bool:
        """Whether something may change without anybody telling."""
        state = self._engine.scheduler.state
        lasts = bool(state.requests) or bool(self._engine.leases) or self.timeline.works
        return lasts or self._clock.monotonic() < self._linger_until

    def end(self) -> None:
        """The program ends: what lasts is over."""
        self.timeline.end(self._clock.monotonic())
        self.tick(last=True)

    def tick(self, *, last: bool = False) -> bool:
        """Take over what has happened; returns whether anything has. Never raises.

        Args:
            last: Nothing comes after.
        """
        try:
            batch = self._batch(last)
        except Exception:  # what is recorded is not worth a single request
            self._complain()
            return True
        if not batch:
            return False
        if not (batch.sample and not (batch.requests or batch.skipped or batch.spans or batch.decisions)):
            self._linger_until = self._clock.monotonic() + LINGER_S
        self._keep(batch)
        for listener in list(self._listeners.values()):
            try:
                listener(batch)
            except Exception:
                self._complain()
        return True

    def _batch(self, last: bool) -> Batch:
        batch = Batch()
        now, offset = self._clock.monotonic(), self.wall_offset()
        self._turn_day(now + offset)
        ended = self._engine.ended_requests
        for _ in range(len(ended)):  # those that end meanwhile are for the next look
            self._take(ended.take(), batch, offset)
        self.tallies.lost_requests = ended.lost
        self._take_decisions(batch)
        self.timeline.look(self._engine.scheduler.state.instances, now)
        if last or self.series.due(now + offset):
            batch.sample = self.series.sample(now + offset, None if last else self._pools())
        batch.spans = self.timeline.take_changed()
        return batch

    def _take(self, ended: EndedRequest, batch: Batch, offset: float) -> None:
        facts = facts_of(ended)
        self.series.counts.requests += 1
        self.series.counts.bytes_down += facts.bytes_down
        if facts.endpoint in self._engine.endpoints:
            self.tallies.of_endpoint(facts.endpoint).count(facts)
        sums = self._fresh.get(facts.endpoint)
        if sums is None:
            sums = self._fresh[facts.endpoint] = Sums()
        sums.count(facts)
        if facts.works and ended.granted_at is not None:
            self.timeline.worked(ended.instance, ended.granted_at, ended.ended_at)
        if len(batch.requests) >= RECORDS_PER_TICK:
            batch.skipped += 1
            return
        self._last_record = max(self._last_record + 1, int((ended.ended_at + offset) * 1e6))
        record = record_of(ended, facts, self._last_record, offset, self._evicted_s(ended, facts))
        batch.requests.append(record)
        self.records.append(record)

    def _evicted_s(self, ended: EndedRequest, facts: Facts) -> float | None:
        if ended.granted_at is None:
            return None
        if facts.load_s <= 0.0:
            return 0.0
        made = self._engine.scheduler.state.decisions
        of_load = next((one for one in reversed(made) if one.target == ended.instance), None)
        return min(facts.queue_s, self.timeline.freeing_s(ended.instance, of_load, ended.arrived_at))

    def _take_decisions(self, batch: Batch) -> None:
        state = self._engine.scheduler.state
        new = min(state.decisions_made - self._decisions_seen, len(state.decisions))
        self._decisions_seen = state.decisions_made
        for number, decision in list(self._unsettled.items()):
            if decision.outcome:
                del self._unsettled[number]
                batch.decisions.append(decision)
        for decision in list(state.decisions)[-new:] if new else ():
            batch.decisions.append(decision)
            self.timeline.decided(decision)
            if decision.target is not None and not decision.outcome:
                self._unsettled[decision.number] = decision
            if decision.victims:
                self.tallies.swaps[decision.cause] += 1
                if decision.target is not None:
                    self._fresh_whole().swaps += 1
                    for victim, _ in decision.victims:
                        self.tallies.of_instance(victim).evictions += 1
        while len(self._unsettled) > DECISIONS_KEPT:  # a plan can be dropped without a word, as at the end
            del self._unsettled[next(iter(self._unsettled))]

    def _pools(self) -> dict[str, tuple[int, int]]:
        ledger = self._engine.scheduler.state.ledger
        return {pool: (ledger.used(pool), ledger.foreign.get(pool, 0)) for pool in ledger.capacity}

    # -- sums --------------------------------------------------------------------------------------------------

    def _turn_day(self, wall: float) -> None:
        day = local_day(wall)
        if day != self.day:
            if self._fresh:
                self._keep(Batch())
            self._other_days[self.day] = self.sums
            self.day, self.sums = day, self._other_days.pop(day, {})
            while len(self._other_days) > DAYS_REMEMBERED:
                del self._other_days[next(iter(self._other_days))]
            state = self._engine.scheduler.state
            self.tallies.keep(self._engine.endpoints, state.instances)
            self.timeline.forget(state.instances)

    def _fresh_whole(self) -> Sums:
        """What counts for no endpoint in particular."""
        return self._fresh.setdefault(WHOLE, Sums())

    def _keep(self, batch: Batch) -> None:
        """Have it written."""
        fresh, self._fresh = self._fresh, {}
        if fresh:
            whole = fresh.pop(WHOLE, Sums())
            for one in fresh.values():
                whole.add(one)
            fresh[WHOLE] = whole
        add_all(self.sums, fresh)
        if self._store is None:
            return
        days = {self.day: fresh} if fresh else {}
        ended = [span for span in batch.spans if span.to_at is not None]
        rows = Rows(batch.requests, ended, [batch.sample] if batch.sample is not None else [], days)
        if len(rows):
            self._store.put(rows)

    def _complain(self) -> None:
        if not self._complained:
            self._complained = True
            _log.exception("this is a bug in the juggler: something could not be recorded")


def local_day(wall: float) -> str:
    """``2026-11-28``, where the juggler runs."""
    return time.strftime("%Y-%m-%d", time.localtime(wall))
