"""Free ports for tests that run side by side.

What the system hands out (``bind`` to port 0, and every outgoing connection) it may hand out to another test a moment
later: between looking for a port and opening it lie the start of a program and the work of all other workers. So
these ports lie below the ephemeral ranges (Linux from 32768, others from 49152), and every worker of pytest-xdist has
a part of its own.
"""

import itertools
import os
import random

from juggler.lifecycle.ports import is_free

_FIRST = 12_000
_PER_WORKER = 2_000
_WORKERS_MAX = 10


def _own_range() -> range:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS_MAX
    first = _FIRST + worker * _PER_WORKER
    return range(first, first + _PER_WORKER)


# In an order of its own, for another run of the suite on this machine goes through the same range; from the system,
# for tests may seed `random`.
_in_turn = itertools.cycle(random.SystemRandom().sample(_own_range(), _PER_WORKER))


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has on ``host``, and that no other test gets until all of the range had their turn.

    Raises:
        OSError: ``host`` is no address of this machine.
        RuntimeError: Every port of the range is taken.
    """
    for port in itertools.islice(_in_turn, _PER_WORKER):
        if is_free(host, port):
            return port
    raise RuntimeError(f"no free port in {_own_range()}")
