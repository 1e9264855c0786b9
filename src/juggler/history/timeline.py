"""Where the memory of each instance was, as spans of time with the reason of each eviction.

An instance that is stopped, or a server that is not there, has no span: what is not shown was not there. Moves are told
as they happen (``moved``). Whether one that is ready works is looked at from time to time: ``worked`` tells of requests
that are over, ``look`` of those that run. Short pauses in the work make no span of their own, or the timeline would be
as long as the list of requests.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from juggler.history.evictions import eviction_text
from juggler.ids import InstanceId
from juggler.scheduler.commands import Decision
from juggler.scheduler.state import Instance
from juggler.scheduler.transitions import GONE, LEAVING, LOADING, Move, Residency
from juggler.units import SECONDS

SPANS_KEPT = 2000
PAUSE_S = 2 * SECONDS
"""A shorter pause between two requests counts as work."""
CHANGED_MAX = 4 * SPANS_KEPT
"""Spans that may have changed before they are taken; the oldest of more is not told to anybody."""

FAILURES = {
    Move.START_FAILED: "start",
    Move.EXITED: "exit",
    Move.UNLOAD_FAILED: "unload",
    Move.UNLOAD_REFUSED: "unload",
}
"""Moves that something went wrong for, and what that was."""


@dataclass(slots=True, eq=False)
class Span:
    """One stay of an instance in one state; instants since 1970."""

    span: int
    """Counts up over all runs, as a record of a request does, by when it began."""
    instance: str
    state: str
    from_at: float
    to_at: float | None = None
    """None: it lasts."""
    why: str = ""
    decision: int | None = None
    """Number of the decision that it came of, in its run."""
    evicted_by: str | None = None
    """The instance that the memory was freed for."""

    def plain(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "span": self.span,
            "instance": self.instance,
            "state": self.state,
            "from_at": round(self.from_at, 3),
            "to_at": None if self.to_at is None else round(self.to_at, 3),
            "why": self.why,
            "decision": self.decision,
            "evicted_by": self.evicted_by,
        }


class Timeline:
    """See the module.

    Args:
        wall_offset: What makes an instant since 1970 of a monotonic one, now.
        name_of: The operator's name of an instance.
        woken: Called when there is something to take.
        loaded: Told of each load that succeeded: the instance and how long it took, in seconds.
        failed: Told of each failure: the instance and its kind, one of ``FAILURES``.
    """

    def __init__(
        self,
        wall_offset: Callable[[], float],
        name_of: Callable[[InstanceId], str],
        woken: Callable[[], None],
        loaded: Callable[[InstanceId, float], None],
        failed: Callable[[InstanceId, str], None],
    ) -> None:
        self.spans: deque[Span] = deque(maxlen=SPANS_KEPT)
        """By their beginning; with those that last, as long as there is room."""
        self._wall_offset = wall_offset
        self._name_of = name_of
        self._woken = woken
        self._loaded = loaded
        self._failed = failed
        self._open: dict[InstanceId, tuple[Span, float]] = {}
        """The span that lasts, and when it began in monotonic seconds."""
        self._loading: dict[InstanceId, tuple[float, float]] = {}
        """The last load of each: monotonic seconds from and to."""
        self._changed: dict[int, Span] = {}
        self._last = 0

    # -- what happens ------------------------------------------------------------------------------------------

    def moved(self, instance: Instance, move: Move, at: float) -> None:
        """An instance made a move of the table; ``at`` in monotonic seconds. Cheap, never raises."""
        kind = FAILURES.get(move)
        if kind is not None:
            self._failed(instance.id, kind)
        before = self._open.get(instance.id)
        if before is not None:
            if before[0].state in _LOADS:
                self._loading[instance.id] = (before[1], at)
                if move is Move.BECAME_READY:
                    self._loaded(instance.id, at - before[1])
            elif before[0].state == "busy" and not instance.running and instance.last_used < at:
                self._turn(instance.id, "ready", instance.last_used)  # the pause has become one after all
        residency = instance.residency
        self._close(instance.id, at)
        if residency is Residency.STOPPED or (residency in GONE and not instance.spec.starts):
            self._woken()
            return
        span = self._begin(instance.id, residency.value, at)
        if residency in LOADING and instance.swap is not None:
            span.decision = instance.swap.number
        elif residency in LEAVING and kind is not None:
            span.why = _WORDS[kind]  # its error is not known before it is gone
        elif residency is Residency.FAILED and instance.failure is not None:
            span.why = instance.failure.message
        self._woken()

    def worked(self, instance: InstanceId, granted_at: float, ended_at: float) -> None:
        """A request that works was let in and is over, in monotonic seconds."""
        last = self._open.get(instance)
        if last is None or last[0].state != "ready" or ended_at <= last[1]:
            return
        self._turn(instance, "busy", granted_at)

    def look(self, instances: Mapping[InstanceId, Instance], now: float) -> None:
        """Who works and who does not, and who is no more: a new configuration replaces and removes without a move."""
        for name, last in list(self._open.items()):
            instance = instances.get(name)
            if instance is None or instance.residency is Residency.STOPPED:
                self._close(name, now)
            elif instance.residency is not Residency.READY:
                continue
            elif instance.running:
                if last[0].state == "ready":
                    began = min((one.forwarded_at or now for one in instance.running.values()), default=now)
                    self._turn(instance.id, "busy", began)
            elif last[0].state == "busy" and instance.idle_since is not None and now - instance.idle_since >= PAUSE_S:
                self._turn(instance.id, "ready", instance.idle_since)

    @property
    def works(self) -> bool:
        """Whether somebody is shown as working: who does so must be looked at again."""
        return any(span.state == "busy" for span, _ in self._open.values())

    def decided(self, decision: Decision) -> None:
        """A decision that was made just now: those who went for it learn why."""
        for victim, _ in decision.victims:
            last = self._open.get(victim)
            if last is None or last[0].state not in _LEAVES or last[1] != decision.at:
                last = self._ended_leaving(victim, decision.at)
            if last is not None and last[0].decision is None:
                span = last[0]
                span.why = eviction_text(decision, victim, self._name_of) or span.why
                span.decision = decision.number
                span.evicted_by = decision.target
                self._changed[span.span] = span

    def _ended_leaving(self, victim: InstanceId, at: float) -> tuple[Span, float] | None:
        """The span of one that went so fast that it has ended before its decision was looked at."""
        wall_at = at + self._wall_offset()
        for span in reversed(self.spans):
            if span.instance == victim and span.state in _LEAVES:
                return (span, at) if abs(span.from_at - wall_at) < _SAME_S else None
        return None

    def freeing_s(self, instance: InstanceId, decision: Decision | None, arrived_at: float) -> float:
        """Seconds for which a request that waited for the last load waited for memory to be freed."""
        load = self._loading.get(instance)
        if load is None or decision is None or not decision.victims:
            return 0.0
        return max(0.0, load[0] - max(decision.at, arrived_at))

    def end(self, now: float) -> None:
        """The program ends: nothing lasts longer."""
        for instance in list(self._open):
            self._close(instance, now)

    def forget(self, known: Iterable[InstanceId]) -> None:
        """Only these instances exist from now on."""
        for instance in set(self._loading) - set(known):
            del self._loading[instance]

    def kept(self) -> list[Span]:
        """The last spans and all that last, by their beginning."""
        missing = [span for span, _ in self._open.values() if not self.spans or span.span < self.spans[0].span]
        return [*sorted(missing, key=lambda one: one.span), *self.spans]

    def take_changed(self) -> list[Span]:
        """What is new or has changed since this was asked last, by its beginning."""
        changed = [self._changed[number] for number in sorted(self._changed)]
        self._changed.clear()
        return changed

    # -- spans -------------------------------------------------------------------------------------------------

    def _turn(self, instance: InstanceId, state: str, at: float) -> None:
        span, began = self._open[instance]
        at = max(at, began)
        if at - began < _SAME_S:  # nothing was seen of what it was before
            span.state = state
            self._note(span)
            return
        self._close(instance, at)
        self._begin(instance, state, at)

    def _begin(self, instance: InstanceId, state: str, at: float) -> Span:
        from_at = at + self._wall_offset()
        self._last = max(self._last + 1, int(from_at * 1e6))
        span = Span(self._last, instance, state, from_at)
        self._open[instance] = (span, at)
        self.spans.append(span)
        self._note(span)
        return span

    def _close(self, instance: InstanceId, at: float) -> None:
        last = self._open.pop(instance, None)
        if last is None:
            return
        span, began = last
        if at <= began and self._changed.pop(span.span, None) is not None:
            self.spans.remove(span)  # a state that was passed through at once, and that nobody was told of
            return
        span.to_at = span.from_at + max(0.0, at - began)
        self._note(span)

    def _note(self, span: Span) -> None:
        self._changed[span.span] = span
        while len(self._changed) > CHANGED_MAX:
            del self._changed[next(iter(self._changed))]


_LOADS = frozenset(one.value for one in LOADING)
_LEAVES = frozenset(one.value for one in LEAVING)
_SAME_S = 0.001
_WORDS = {"start": "its start failed", "exit": "it ended by itself", "unload": "it did not free its memory"}
