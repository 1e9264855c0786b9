"""The parameters of the policy, each with its unit and the reason for its default.

Swap times are measured in ``K``, the round trip of a swap (scheduling.md section 3), so that one set of defaults
fits a 1 s and a 40 s swap.
"""

from dataclasses import dataclass

from juggler.units import MINUTES, SECONDS

ABANDON_AFTER_S = 5 * SECONDS
"""A page that is loaded again, or a client that tries again, is back sooner."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Defaults are those the policy was simulated with."""

    beta: float = 3.0
    """Least residence of a busy endpoint, in K: keeps at least 2*beta/(2*beta+1) of the time free of swaps."""

    kappa: float = 1.75
    """Waiting that ends a hold of an idle endpoint for a client that may return, in K: the dial between many swaps
    and long waits."""

    kappa_class: float = 1.0
    """Waiting that buys out work of a worse class, in K."""

    hard: float = 12.0
    """Longest time, in K, that an endpoint whose gate is shut still serves its older queue."""

    batch_weight: float = 0.25
    """Weight of a waiting second of batch work (negative priority); interactive work has 1."""

    first_load_s: float = 10 * SECONDS
    """Load time assumed before the first load was seen."""

    first_unload_s: float = 1 * SECONDS
    """Unload or stop time assumed before the first was seen."""

    first_service_s: float = 5 * SECONDS
    """Service time assumed before the first request was seen."""

    busy_probe_every_s: float = 2 * SECONDS
    """How often a drained backend that says it is busy is asked again. Asked more than about once a second, llama.cpp
    does not notice that a client hung up and goes on generating (seen with xllamacpp 2026.10.11549)."""

    idle_believed_s: float = 10 * SECONDS
    """How long the backend's own word "idle" is believed: others than we may give it work."""

    busy_limit_s: float = 60 * MINUTES
    """How long the backend's own word "busy" can delay a swap once none of our requests runs on it. Longer than any
    job that people run: what waits gives up before (``queue_timeout``), and a job that is cut is lost."""

    light_grace_s: float = 10 * SECONDS
    """How long a drain waits for light exchanges (polls, downloads) that are still open."""

    back_off_first_s: float = 1 * SECONDS
    """Pause before the second restart in a row; the first is immediate. Doubles up to ``back_off_limit_s``."""

    back_off_limit_s: float = 60 * SECONDS

    ask_again_s: float = 10 * SECONDS
    """Pause before an attached server that did not free its memory is asked again."""

    healthy_after_s: float = 60 * SECONDS
    """A process that was ready for this long starts with a clean slate when it exits."""

    abandon_after_s: float | None = ABANDON_AFTER_S
    """A start that nobody waits for any more is given up after this long; None: it is carried through."""

    read_ahead: bool = True
    """Files of an endpoint that must wait are read into the page cache meanwhile."""

    measured_for_s: float = 2 * SECONDS
    """How long a measurement of foreign memory is believed before anybody is evicted or refused for its sake."""

    out_of_memory_factor: float = 1.1
    """A load that ran out of memory needs at least this much more than was thought, or than was free."""

    one_load_per_pool: bool = False
    """All starts on one memory pool follow one another; otherwise only those that must (``Instance.loads_alone``)."""


DIALS = {"fair": 0.5, "balanced": 1.75, "throughput": 3.0}
"""``kappa`` by the name of the dial. Of two clients that ask again at once one waits ``kappa`` round trips per turn,
half a round trip of it while the other's model loads: ``(kappa - 0.5) / kappa`` of the time is serving. ``balanced``
is about the least that serves for 70 % of it."""


def weight_of(priority: int, policy: Policy) -> float:
    """Cost per waiting second of a request."""
    return 1.0 if priority >= 0 else policy.batch_weight
