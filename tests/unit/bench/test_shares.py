"""Two clients on models that exclude one another, simulated with the shipped scheduler: the shares that are promised.

Times are exact here; ``tests/e2e/test_fairness.py`` shows the same with real processes, at a tenth of the time.
"""

import pytest
from bench.schedsim.juggler_policy import INTERACTIVE_WAIT_S, Juggler
from bench.schedsim.model import GB, Client, Machine, Model, Turn, Workload
from bench.schedsim.rivals.llama_swap import LlamaSwap
from bench.schedsim.world import World

from juggler.scheduler.policy import DIALS, Policy

LOAD_S, STOP_S, SERVE_S = 10.0, 0.5, 2.0
ROUND_TRIP_S = 2 * (LOAD_S + STOP_S)
MODELS = tuple(Model(name, 1, 22 * GB, start_s=LOAD_S, stop_s=STOP_S) for name in "ab")


def closed(name: str, turns: int) -> Client:
    """Asks again the moment it is answered."""
    return Client(name, tuple(Turn(name, 0.0, 0.1, SERVE_S - 0.1) for _ in range(turns)))


def share(world: World) -> float:
    """Of the time in which both clients ask, how much is serving."""
    end = min(max(one.ended_at or 0.0 for one in world.requests if one.model == name) for name in "ab")
    return sum(SERVE_S for one in world.requests if one.ended_at is not None and one.ended_at <= end) / end


@pytest.mark.parametrize(("dial", "least"), [("balanced", 0.70), ("throughput", 0.80)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_closed_loop_clients(dial: str, least: float, seed: int) -> None:
    """70 % of the time is serving by default, 80 % for throughput, and nobody waits past the bound."""
    workload = Workload("closed", MODELS, (closed("a", 300), closed("b", 300)), Machine(load_noise=0.1))
    policy = Policy(kappa=DIALS[dial])
    world = World(workload, seed, lambda world: Juggler(world, policy))
    world.run()
    assert share(world) >= least
    waits = [one.first_byte_at - one.arrived_at for one in world.requests if one.first_byte_at is not None]
    noisy = 1.1 * ROUND_TRIP_S
    turn_s = LOAD_S + (policy.beta + policy.hard) * noisy + SERVE_S + STOP_S
    assert max(waits) <= INTERACTIVE_WAIT_S + turn_s + LOAD_S
    assert max(waits) <= 1.1 * (policy.kappa + 0.5) * noisy, "far below it: the other's turn, and the swap"


def test_the_rival_swaps_at_every_turn() -> None:
    """What the same clients get of llama-swap's rule."""
    workload = Workload("closed", MODELS, (closed("a", 50), closed("b", 50)), Machine(load_noise=0.0))
    world = World(workload, 1, LlamaSwap)
    world.run()
    assert share(world) == pytest.approx(SERVE_S / (SERVE_S + LOAD_S + STOP_S), abs=0.01)
