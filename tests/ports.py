"""Free ports for tests that run side by side.

What the system hands out (``bind`` to port 0, and every outgoing connection) it may hand out to another test a moment
later: between looking for a port and opening it lie the start of a program and the work of all other workers. So
these ports lie below the ephemeral ranges (Linux from 32768, others from 49152), and every process that runs tests has
a part of its own: whoever holds the first port of a part has the part.
"""

import atexit
import functools
import itertools
import random
import socket
from collections.abc import Iterator

from juggler.lifecycle.ports import is_free

_FIRST = 12_000
_LAST = 31_999
_EACH = 500


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has on ``host``, and that no other test gets until all of the part had their turn.

    Raises:
        OSError: ``host`` is no address of this machine.
        RuntimeError: Every port is taken.
    """
    for port in itertools.islice(_own_part(), _EACH):
        if is_free(host, port):
            return port
    raise RuntimeError("every port of this process's part is taken")


@functools.cache
def _own_part() -> Iterator[int]:
    """Its ports, over and over."""
    for first in range(_FIRST, _LAST, _EACH):
        holder = socket.socket()
        try:
            holder.bind(("127.0.0.1", first))
        except OSError:
            holder.close()
            continue
        atexit.register(holder.close)
        # Not from the beginning: whoever had the part before may have left something behind.
        ports = random.SystemRandom().sample(range(first + 1, first + _EACH), _EACH - 1)
        return itertools.cycle(ports)
    raise RuntimeError(f"every part from {_FIRST} to {_LAST} is taken")
