"""Idle endpoints are held for clients that are likely to come straight back, and for no others."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.scheduler import commands as c
from juggler.scheduler import events as e
from juggler.scheduler.estimates import Estimates
from juggler.scheduler.policy import Policy
from juggler.scheduler.thinktimes import BINS, EDGES, Histogram, Return, Stakes, ThinkTimes, best_hold_s, bin_of
from juggler.scheduler.transitions import Residency
from tests.scheduler.script import A, B, Script, exclusive


def agent(think: ThinkTimes, seconds: float, turns: int = 20, client: str = "agent") -> float:
    """A client that thinks for the same time again and again; returns when it was answered last."""
    now = 0.0
    for _ in range(turns):
        think.answered(client, now)
        now += seconds
        think.asked(client, now)
        now += 1.0
    think.answered(client, now)
    return now


STAKES = Stakes(away_s=15.0, back_s=12.0, service_s=1.0, waiting=1.0, limit_s=30.0)


def hold(think: ThinkTimes, now: float, stakes: Stakes = STAKES) -> float:
    coming = think.returning(now)
    return 0.0 if coming is None else best_hold_s(coming, stakes)


def test_bins_cover_all_times() -> None:
    assert bin_of(0.0) == 0
    assert bin_of(EDGES[-1]) == BINS - 1
    assert bin_of(EDGES[-1] * 1.01) == BINS
    assert bin_of(math.inf) == BINS
    for index, edge in enumerate(EDGES):
        assert bin_of(edge) == index


def test_an_agent_is_held_for_about_its_think_time() -> None:
    think = ThinkTimes()
    now = agent(think, 2.0)
    assert 2.0 <= hold(think, now) <= 5.0


def test_a_client_that_never_returns_is_not_held() -> None:
    think = ThinkTimes()
    for turn in range(20):
        client = f"visitor {turn}"
        think.answered(client, float(turn))
        think.answered_elsewhere(client, turn + 0.5)
    think.answered("visitor 21", 30.0)
    assert hold(think, 30.0) < 0.5, "a fraction of a swap at most"


def test_long_thinkers_are_not_held_for() -> None:
    think = ThinkTimes()
    now = agent(think, 300.0)
    assert hold(think, now) == 0.0


def test_who_is_overdue_by_its_own_habit_is_not_waited_for_any_longer() -> None:
    think = ThinkTimes()
    now = agent(think, 2.0)
    assert hold(think, now) > 0
    assert hold(think, now + 60.0) == 0.0


def test_many_waiting_shorten_the_hold() -> None:
    think = ThinkTimes()
    now = agent(think, 6.0)
    many = Stakes(STAKES.away_s, STAKES.back_s, STAKES.service_s, waiting=30.0, limit_s=30.0)
    assert hold(think, now) > 0.0
    assert hold(think, now, many) == 0.0


def test_an_answer_elsewhere_counts_only_for_requests_made_later() -> None:
    """Parallel sub-agents of one client do not look as if it had left."""
    think = ThinkTimes()
    think.answered("swarm", 10.0)
    assert not think.answered_elsewhere("swarm", arrived_at=5.0)
    assert think.returning(10.0) is not None
    assert think.answered_elsewhere("swarm", arrived_at=11.0)
    assert think.returning(12.0) is None


def test_clients_are_bounded_and_the_table_survives_a_restart() -> None:
    think = ThinkTimes()
    for number in range(2000):
        think.answered(f"client {number}", float(number))
    assert think.last_answer("client 0") is None
    assert think.last_answer("client 1999") == 1999.0
    agent(think, 2.0)
    again = ThinkTimes()
    again.restore(think.exported())
    assert again.overall.total == pytest.approx(think.overall.total, abs=0.01)
    again.restore(["junk"])
    again.restore([math.nan] * (BINS + 1))
    assert again.overall.total == pytest.approx(think.overall.total, abs=0.01)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0.01, 3000.0), max_size=30),
    st.floats(0.0, 100.0),
    st.floats(0.1, 100.0),
    st.floats(0.1, 10.0),
)
def test_a_hold_is_never_longer_than_its_limit(
    thinks: list[float], elapsed: float, limit_s: float, waiting: float
) -> None:
    think, now = ThinkTimes(), 0.0
    for seconds in thinks:
        think.answered("x", now)
        now += seconds
        think.asked("x", now)
    think.answered("x", now)
    stakes = Stakes(20.0, 10.0, 1.0, waiting, limit_s)
    assert 0.0 <= hold(think, now + elapsed, stakes) <= limit_s


def test_survival_falls_from_one_and_never_rises() -> None:
    generator = random.Random(7)
    think, now = ThinkTimes(), 0.0
    for _ in range(50):
        think.answered("x", now)
        now += generator.expovariate(0.2)
        think.asked("x", now)
    think.answered("x", now)
    coming = think.returning(now + 1.0)
    assert isinstance(coming, Return)
    steps = coming.steps(200.0)
    chances = [1.0, *(left for _, left in steps)]
    assert all(earlier >= later >= 0.0 for earlier, later in itertools.pairwise(chances))
    assert steps[-1][0] == 200.0


def test_decay_forgets() -> None:
    histogram = Histogram()
    for _ in range(100):
        histogram.add(1.0)
    for _ in range(100):
        histogram.add(math.inf)
    assert histogram.weights[BINS] / histogram.total > 0.99


# -- in the scheduler --------------------------------------------------------------------------------------------------


def teach(script: Script, turns: int = 10, think_s: float = 1.0) -> None:
    """An agent works on ``a`` in quick turns."""
    for _ in range(turns):
        script.arrive(A, client="agent")
        if script.at(A).residency is Residency.STARTING:
            script.tick(10.0)
            script.ready(A)
        script.tick(1.0)
        script.end(script.requests)
        script.tick(think_s)


def test_an_idle_endpoint_is_held_for_its_agent_and_then_given_up() -> None:
    script = Script(exclusive(A), exclusive(B))
    teach(script)
    script.arrive(A, client="agent")
    script.tick(1.0)
    script.end(script.requests)
    assert script.arrive(B) == [], "the agent is about to come back"
    assert script.at(A).residency is Residency.READY
    assert script.tick(40.0) == [c.StopInstance(A, 1)], "it did not"
    considered = script.scheduler.state.decisions[-1].considered
    assert [one.instance for one in considered] == [A]


def test_the_agent_that_comes_back_is_served_without_a_swap() -> None:
    script = Script(exclusive(A), exclusive(B))
    teach(script)
    script.arrive(A, client="agent")
    script.tick(1.0)
    script.end(script.requests)
    script.arrive(B)
    script.tick(1.0)
    assert script.arrive(A, client="agent") == [c.Forward(script.requests, A)]  # type: ignore[arg-type]


def test_without_a_hold_the_swap_is_made_at_once() -> None:
    """kappa 0 is a policy that never holds."""
    script = Script(exclusive(A), exclusive(B), policy=Policy(kappa=0.0))
    teach(script)
    assert script.arrive(B) == [c.StopInstance(A, 1)]


def test_a_due_request_ends_every_hold() -> None:
    script = Script(exclusive(A), exclusive(B))
    teach(script)
    script.arrive(A, client="agent")
    script.end(script.requests)
    assert script.arrive(B, max_wait_s=1.2) == []
    assert script.tick(1.2) == [c.StopInstance(A, 1)]


def test_nobody_is_held_for_strangers() -> None:
    script = Script(exclusive(A), exclusive(B))
    script.load(A)
    script.arrive(A)
    script.tick(1.0)
    script.end(2)
    assert script.arrive(B) == [c.StopInstance(A, 1)]


# -- first bytes -------------------------------------------------------------------------------------------------------


def test_what_a_reload_costs_in_prompts_is_learned() -> None:
    """The first answer after a load takes 9 s, later ones 1 s: 8 s are lost."""
    script = Script(exclusive(A))
    for _ in range(3):
        script.arrive(A, client="x")
        script.ready(A)
        script.tick(9.0)
        script.post(e.FirstByte(script.now, script.requests))  # type: ignore[arg-type]
        script.end(script.requests)
        script.arrive(A, client="x")
        script.tick(1.0)
        script.post(e.FirstByte(script.now, script.requests))  # type: ignore[arg-type]
        script.end(script.requests)
        script.post(e.OrderGiven(script.now, 1, A, e.OrderKind.STOP))
        script.gone(A)
        script.tick(1.0)
    assert script.at(A).estimates.lost_s() == pytest.approx(8.0)


def test_the_least_first_byte_stands_in_for_a_warm_one() -> None:
    estimates = Estimates(Policy())
    assert estimates.lost_s() == 0.0
    for seconds in (9.0, 2.0, 9.0, 9.0):
        estimates.first_byte(seconds, warm=False)
    assert estimates.lost_s() > 4.0


def test_load_times_are_learned_by_where_the_files_are() -> None:
    estimates = Estimates(Policy())
    estimates.size_known(8_000_000_000)
    assert estimates.load_s(0.0) == pytest.approx(10.0)
    assert estimates.load_s(1.0) == pytest.approx(3.0)
    estimates.loaded(20.0, 0.0)
    estimates.loaded(4.0, 1.0)
    assert estimates.load_s(0.0) == 20.0
    assert estimates.load_s(0.5) == 12.0
    assert estimates.load_s(None) == 4.0
    again = Estimates(Policy())
    again.restore(estimates.exported())
    assert again.load_s(0.5) == 12.0
    again.restore({"load_cold": ["x", 3], "wake": [1.0], "stop": [-1.0, 2], "service": [2.0, 5]})
    assert again.load_s(0.5) == 12.0
    assert again.service.value == 2.0
