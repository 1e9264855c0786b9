"""File descriptors: each client connection takes one, with a request in work two, and the system limits them.

The soft limit of a shell or a service is often 1024, for the sake of old programs that use ``select``; whoever needs
more raises it up to the hard limit by himself, as we do. Programs that we start get the limit that we were given:
some of them use ``select``, or walk over all numbers up to the limit.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from typing import Any

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

_log = logging.getLogger("juggler.app")

RESERVED = 256
"""For backends' pipes, files, kept connections and listening sockets."""

_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_TELL_EVERY_S = 60.0

PER_CONNECTION = 2
"""The client's socket and the one to its backend."""

_given: int | None = None
"""The soft limit from before it was raised; None: it was not."""


def limit_for_others() -> int | None:
    """The soft limit that programs are to be started with; None: they inherit the right one."""
    return _given


def make_room(connections: Sequence[int]) -> int | None:
    """Raise the limit as far as it may be needed.

    Args:
        connections: How many each listener may have.

    Returns:
        How many each listener can have instead, as the log says; None: as many as it may.
    """
    global _given
    if resource is None:
        return None
    wanted = RESERVED + PER_CONNECTION * sum(connections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        _given = soft if _given is None else _given
    except (OSError, ValueError):  # macOS takes no more than kern.maxfilesperproc, whatever the hard limit says
        limit = soft
    if limit >= wanted:
        return None
    fitting = max(1, (limit - RESERVED) // (PER_CONNECTION * len(connections)))
    if all(one <= fitting for one in connections):
        return None
    _log.warning(
        "%d file descriptors are too few for %d connections: each server takes %d at most; raise the hard limit "
        "(`ulimit -Hn`, `LimitNOFILE=` of a service), or lower `connections`",
        limit,
        sum(connections),
        fitting,
    )
    return fitting


def told_in_moderation(clock: Callable[[], float]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """An exception handler for the event loop: that nobody can be accepted is a line once a minute.

    asyncio tries again every second, and writes pages about it.

    Args:
        clock: Seconds.
    """
    quiet_until = 0.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal quiet_until
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES and "accept" in context["message"]):
            loop.default_exception_handler(context)
        elif clock() >= quiet_until:
            quiet_until = clock() + _TELL_EVERY_S
            _log.warning("no connection can be accepted (%s); trying again every second", error.strerror)

    return handle
