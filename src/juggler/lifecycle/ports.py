"""Free ports for backends: tested by binding, and not handed out twice in a row."""

import errno
import socket
import threading
import time
from collections import OrderedDict

from juggler.units import SECONDS

HELD_BACK_S = 60 * SECONDS
"""A port handed out is not handed out again for so long: its backend may bind it only after loading for a while."""
HELD_BACK_MAX = 4096
"""Bound of the memory of ports; the oldest are forgotten first (the Linux ephemeral range has 28 232 ports)."""
ATTEMPTS_MAX = 128

_handed_out: OrderedDict[int, float] = OrderedDict()
"""Port to the monotonic time at which it was handed out, oldest first; of the whole process, guarded by the lock."""
_lock = threading.Lock()


def reserve_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listened on a moment ago.

    The system chooses it at random from its ephemeral range. There is no ``SO_REUSEADDR``: with it, a bind can
    succeed beside a listener on the wildcard address. The socket is closed again, so somebody else can still take
    the port before the backend does; a backend must be asked who it is.

    Raises:
        OSError: ``host`` is no address of this machine, or no port is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with _lock:
        _forget(time.monotonic())
        for attempt in range(ATTEMPTS_MAX):
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((host, 0))
                port = int(probe.getsockname()[1])
            # In a range so narrow that chance does not find a fresh port, a repeated one is better than none.
            if port not in _handed_out or attempt == ATTEMPTS_MAX - 1:
                _handed_out[port] = time.monotonic()
                _handed_out.move_to_end(port)
                return port
    raise AssertionError("unreachable")


def is_free(host: str, port: int) -> bool:
    """Whether ``port`` can be bound on ``host`` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def _forget(now: float) -> None:
    while _handed_out:
        port, at = next(iter(_handed_out.items()))
        if now - at < HELD_BACK_S and len(_handed_out) < HELD_BACK_MAX:
            return
        del _handed_out[port]
