"""Machines, models and clients drawn at random: everybody is served, within the bound, and no timer goes in a circle.

What is drawn differs from the simulation's storms: sizes up to the whole card, residues, several placements, memory of
others, and clients that never give up. A failure prints its seed.
"""

import random

import pytest

from juggler.ids import InstanceId, PoolId, RequestId
from juggler.scheduler import events as e
from juggler.scheduler.policy import Policy
from juggler.scheduler.state import InstanceSpec
from tests.simulation.world import Nature, World

GPU0, GPU1, RAM = PoolId("gpu0"), PoolId("gpu1"), PoolId("ram")
MAX_WAIT_S = 20.0
ASK_UNTIL_S, END_S = 150.0, 1500.0
POLICY = Policy(first_load_s=2.0)
NATURE = Nature(
    load_s=(0.5, 3.0), stop_s=(0.1, 1.0), service_s=(0.3, 3.0), start_fails=0.0, wake_fails=0.0, busy_chance=0.1
)
SAME_TIME_MOST = 50
"""Timers for one moment before it counts as a circle."""


def drawn_spec(rng: random.Random, letter: str) -> InstanceSpec:
    """One model, from an embedder to one as large as the card."""
    size = rng.choice([4, 6, 8, 10, 12, 16, 20, 24])
    footprint = {GPU0: size}
    if rng.random() < 0.3:
        footprint[RAM] = rng.choice([2, 4])
    soft = rng.random() < 0.35
    on_either = size <= 12 and RAM not in footprint and rng.random() < 0.3
    return InstanceSpec(
        InstanceId(letter),
        letter,
        footprint,
        {GPU0: rng.choice([0, 1, 2]), RAM: rng.choice([0, 4])} if soft else {},
        slots=rng.choice([1, 2, 4]),
        soft_unload=soft,
        placements=({GPU0: size}, {GPU1: size}) if on_either else (),
        sure=rng.random() < 0.8,
        loads_alone=rng.random() < 0.2,
        probes_busy=rng.random() < 0.2,
        idle_unload_s=10.0 if rng.random() < 0.15 else None,
    )


class DrawnWorld(World):
    """Closed-loop clients, each with its own think time, most of them true to one model."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        specs = [drawn_spec(rng, letter) for letter in "abcdefgh"[: rng.randint(3, 8)]]
        super().__init__(seed, specs, {GPU0: 24, GPU1: 12, RAM: rng.choice([8, 16])}, NATURE, POLICY)
        self.rng = rng
        self.asked_by: dict[RequestId, tuple[int, InstanceId]] = {}
        self.think_s = [rng.choice([0.0, 0.0, 1.0, 5.0, 30.0]) for _ in range(rng.randint(3, 14))]
        self.timers: tuple[float, int] = (-1.0, 0)
        self.on_answer = self.answered
        self.foreign = {RAM: 1} if rng.random() < 0.4 else {}
        self.at(0.0, lambda: self.post(e.PoolsMeasured(self.now, dict(self.foreign), {})))
        for client in range(len(self.think_s)):
            self.ask_later(client, rng.choice(specs).id, rng.uniform(0, 20))

    def post(self, event: e.Event) -> None:
        if isinstance(event, e.TimerFired):
            at, times = self.timers
            self.timers = (event.now, times + 1 if at == event.now else 0)
            assert times < SAME_TIME_MOST, f"the timer goes in a circle: {self.log[-2:]}"
        super().post(event)

    def ask_later(self, client: int, name: InstanceId, delay_s: float) -> None:
        def ask() -> None:
            if self.now < ASK_UNTIL_S:
                priority = -10 if client % 4 == 3 else 0
                request = self.arrive(name, priority=priority, max_wait_s=MAX_WAIT_S, timeout_s=1e6, client=str(client))
                self.asked_by[request] = (client, name)

        self.at(delay_s, ask)

    def answered(self, request: RequestId) -> None:
        if request not in self.asked_by:
            return  # refused as it came
        client, name = self.asked_by[request]
        if self.rng.random() < 0.2:
            name = self.rng.choice(list(self.scheduler.state.instances))
        self.ask_later(client, name, self.think_s[client])


def bound_s(models: int) -> float:
    """The bound of docs/scheduling.md, with this world's worst times."""
    load_s, stop_s, service_s = NATURE.load_s[1], NATURE.stop_s[1], NATURE.service_s[1]
    round_trip_s = 2 * (load_s + stop_s)
    turn_s = load_s + (POLICY.beta + POLICY.hard) * round_trip_s + service_s + stop_s
    return MAX_WAIT_S + models * turn_s + load_s


@pytest.mark.parametrize("seed", [0, 5, 20, 25, 27, 34, 40, *range(100, 112)])
def test_everybody_is_served_in_time(seed: int) -> None:
    world = DrawnWorld(seed)
    world.run(END_S)
    waiting = [outcome.instance for outcome in world.requests.values() if not outcome.answers]
    assert not waiting, f"seed {seed}: {waiting} wait for ever"
    served = [outcome for outcome in world.requests.values() if outcome.forwarded_at is not None]
    longest = max(outcome.forwarded_at - outcome.arrived_at for outcome in served if outcome.forwarded_at is not None)
    assert longest <= bound_s(len(world.scheduler.state.instances)), f"seed {seed}: {longest:.0f} s"
