"""Spans, made of the scheduler's own moves."""

import pytest

from juggler.history.timeline import CHANGED_MAX, PAUSE_S, SPANS_KEPT, Span, Timeline
from juggler.ids import InstanceId, RequestId
from juggler.scheduler import events as e
from juggler.scheduler.events import OrderKind
from juggler.scheduler.state import InstanceSpec
from tests.scheduler.script import A, B, Script, exclusive

OFFSET_S = 1_000_000.0


class World(Script):
    """A scheduler with a timeline that listens."""

    def __init__(self, *specs: InstanceSpec) -> None:
        super().__init__(*specs)
        self.offset_s = OFFSET_S
        self.loads: list[tuple[InstanceId, float]] = []
        self.failures: list[tuple[InstanceId, str]] = []
        self.woken = 0
        self.timeline = Timeline(
            lambda: self.offset_s,
            lambda one: str(one).upper(),
            self._wake,
            lambda instance, seconds: self.loads.append((instance, seconds)),
            lambda instance, kind: self.failures.append((instance, kind)),
        )
        self.scheduler.state.on_move = self.timeline.moved
        self._seen = 0

    def _wake(self) -> None:
        self.woken += 1

    def take(self) -> list[Span]:
        """As the recorder does it: decisions, who works, what has changed."""
        decisions = list(self.scheduler.state.decisions)
        for decision in decisions[self._seen :]:
            self.timeline.decided(decision)
        self._seen = len(decisions)
        self.timeline.look(self.scheduler.state.instances, self.now)
        return self.timeline.take_changed()

    def states(self, instance: InstanceId) -> list[tuple[str, float, float | None]]:
        return [
            (one.state, one.from_at - OFFSET_S, None if one.to_at is None else one.to_at - OFFSET_S)
            for one in self.timeline.kept()
            if one.instance == instance
        ]


def start(world: World, instance: InstanceId, seconds: float = 10.0) -> None:
    """A request loads the instance; it is let in when that is ready."""
    world.arrive(instance)
    world.tick(seconds)
    world.ready(instance)


def test_a_load_and_its_work() -> None:
    """The states follow each other, and work begins with the first request and ends with the last."""
    world = World(exclusive(A))
    assert world.take() == []
    start(world, A)
    world.take()
    world.tick(5.0)
    world.end(1)
    world.tick(PAUSE_S)
    world.take()
    assert world.states(A) == [("starting", 0.0, 10.0), ("busy", 10.0, 15.0), ("ready", 15.0, None)]
    assert world.loads == [(A, 10.0)]
    assert world.woken == 2
    assert not world.timeline.works


def test_work_between_two_looks() -> None:
    """Requests that came and went unseen are told afterwards, as long as they fell into this stay."""
    world = World(exclusive(A))
    world.load(A)
    world.tick(100.0)
    world.take()
    world.timeline.worked(A, 50.0, 51.0)
    world.timeline.worked(A, 60.0, 61.0)
    assert world.timeline.works
    assert world.states(A) == [("ready", 0.0, 50.0), ("busy", 50.0, None)]
    world.timeline.worked(B, 60.0, 61.0)
    assert world.states(B) == []


def test_a_pause_before_the_end() -> None:
    """One that is evicted right after its last request has worked until then, and no longer."""
    world = World(exclusive(A))
    start(world, A)
    world.tick(3.0)
    world.take()
    world.end(1)
    world.tick(1.5)
    world.take()
    world.post(e.OrderGiven(world.now, 1, A, OrderKind.STOP))
    assert world.states(A)[1:] == [("busy", 10.0, 13.0), ("ready", 13.0, 14.5), ("stopping", 14.5, None)]


def test_an_eviction_says_for_whom() -> None:
    """Also when the victim is gone before anybody looks."""
    world = World(exclusive(A), exclusive(B))
    start(world, A)
    world.end(1)
    world.tick(100.0)
    world.take()
    world.arrive(B)
    world.tick(1.0)
    world.gone(A)
    world.tick(10.0)
    world.ready(B)
    changed = world.take()
    (stopping,) = [one for one in changed if one.state == "stopping"]
    assert (stopping.why, stopping.evicted_by) == ("evicted by B, nothing else could make room", B)
    (starting,) = [one for one in changed if one.state == "starting"]
    assert starting.decision == stopping.decision == 2
    assert not [one for one in world.timeline.kept() if one.state == "draining"]  # it drained in no time
    assert world.timeline.freeing_s(B, world.scheduler.state.decisions[-1], 105.0) == pytest.approx(1.0)
    assert world.timeline.freeing_s(A, None, 0.0) == 0.0
    world.timeline.forget([A])
    assert world.timeline.freeing_s(B, world.scheduler.state.decisions[-1], 105.0) == 0.0


def test_operators_and_failures() -> None:
    """Who stopped it, that it failed, and with what."""
    world = World(exclusive(A))
    world.load(A)
    world.tick(10.0)
    world.post(e.OrderGiven(world.now, 1, A, OrderKind.STOP))
    world.tick(1.0)
    (stopping,) = [one for one in world.take() if one.state == "stopping"]
    assert stopping.why == "by order of the operator"
    world.gone(A)
    assert world.states(A)[-1][2] == 11.0  # nothing is shown of one that is not there
    world.arrive(A)
    world.tick(2.0)
    world.fail(A)
    world.tick(1.0)
    world.gone(A)
    last = world.timeline.kept()[-2:]
    assert [(one.state, one.why) for one in last] == [("stopping", "its start failed"), ("failed", "boom")]
    assert world.failures == [(A, "start")]


def test_numbers_rise_although_the_clock_goes_back() -> None:
    """The numbers of spans are their order; lengths are those of the monotonic clock."""
    world = World(exclusive(A), exclusive(B))
    start(world, A)
    world.offset_s -= 3600.0
    world.tick(5.0)
    world.end(1)
    world.take()
    world.post(e.OrderGiven(world.now, 1, A, OrderKind.STOP))
    spans = world.timeline.kept()
    assert [one.span for one in spans] == sorted(one.span for one in spans)
    assert all(one.to_at is None or one.to_at > one.from_at for one in spans)


def test_what_is_kept_is_bounded() -> None:
    """The last spans, and one that has lasted all the time; what nobody takes is bounded too."""
    world = World(exclusive(A), InstanceSpec(B, "b", {}))
    world.load(B)
    for number in range(CHANGED_MAX):
        world.timeline._begin(A, "ready" if number % 2 else "busy", world.now)
        world.tick(1.0)
        world.timeline._close(A, world.now)
    kept = world.timeline.kept()
    assert len(world.timeline.spans) == SPANS_KEPT
    assert len(kept) == SPANS_KEPT + 1
    assert (kept[0].instance, kept[0].to_at) == (B, None)
    assert len(world.timeline.take_changed()) == CHANGED_MAX
    assert world.timeline.take_changed() == []


def test_a_new_configuration() -> None:
    """One that failed and is replaced or removed has failed until then, and no longer."""
    for replaced in (True, False):
        world = World(exclusive(A))
        world.arrive(A)
        world.fail(A)
        world.tick(1.0)
        world.gone(A)
        world.take()
        world.tick(5.0)
        state = world.scheduler.state
        if replaced:
            state.replace(state.instances[A], exclusive(A))
        else:
            state.forget(state.instances[A])
        (failed,) = world.take()
        assert (failed.state, failed.to_at) == ("failed", OFFSET_S + 6.0)


def test_the_end() -> None:
    """What lasts ends with the program."""
    world = World(exclusive(A))
    start(world, A)
    world.timeline.end(15.0)
    assert world.states(A) == [("starting", 0.0, 10.0), ("ready", 10.0, 15.0)]
    world.timeline.look(world.scheduler.state.instances, 16.0)
    world.timeline.worked(A, 15.0, 16.0)
    assert len(world.timeline.kept()) == 2


def test_an_attached_server_that_is_away_has_no_span() -> None:
    """It is looked for now and then; only while it is there it is shown."""
    world = World(exclusive(A, attaches=True, starts=False))
    world.arrive(A)
    world.tick(1.0)
    assert world.states(A) == [("attaching", 0.0, None)]
    world.post(e.InstanceReady(world.now, A, 1, attached=True))
    world.tick(4.0)
    world.post(e.RequestEnded(world.now, RequestId(1)))
    world.take()
    assert [one[0] for one in world.states(A)] == ["attaching", "ready"]
