"""Where an instance's memory is, and every move between those places.

Theory of operation. An instance is in exactly one ``Residency``. The scheduler moves it by giving an order
(START, ATTACH, WAKE, UNLOAD, STOP, SHUT, OPEN, RETIRE), the outside world by reporting (BECAME_READY, START_FAILED,
DEFERRED, NOT_ATTACHED, UNLOADED, UNLOAD_FAILED, UNLOAD_REFUSED, EXITED, GONE, GONE_AFTER_FAILURE). ``TABLE`` lists
every move there is; an unlisted one raises ``InvalidTransition`` and changes nothing.

::

    stopped --START--> starting --BECAME_READY--> ready <--SHUT/OPEN--> draining
    ready, draining --UNLOAD--> unloading --UNLOADED--> unloaded --WAKE--> waking --BECAME_READY--> ready
    anything alive --STOP / EXITED / START_FAILED / UNLOAD_FAILED--> stopping --GONE--> stopped
                                                                     stopping --GONE_AFTER_FAILURE--> failed
    failed --START--> starting
    failed --RETIRE--> stopped        (a new configuration: the next start is not another try of the same)
    starting --DEFERRED--> stopped, waking --DEFERRED--> unloaded       (the memory is not there after all)
    stopped, failed --ATTACH--> attaching --BECAME_READY--> ready
                                attaching --NOT_ATTACHED--> stopped

A server that somebody else runs is attached to, not started, and never stopped: for it STOP means to let go of it,
and an unload that it refuses leads back to ``ready``.

Memory is held in full from START (or from BECAME_READY after ATTACH) to GONE, and only the small residue in
``unloaded``: a process that has been told to go still holds its memory until it is gone.

An order and a report can cross: we order a stop while the report "ready" is under way. Such a late report meets
``stopping``; ``CROSSINGS`` lists the reports that are then dropped on purpose. Every process is reported gone
exactly once, so nothing is lost by it.
"""

import enum

from juggler.errors import InvalidTransition


class Residency(enum.Enum):
    """Where the memory of an instance is."""

    __hash__ = object.__hash__  # members are singletons; the hash of Enum, written in Python, was a tenth of a decision

    STOPPED = "stopped"
    STARTING = "starting"
    ATTACHING = "attaching"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    WAKING = "waking"
    STOPPING = "stopping"
    FAILED = "failed"


class Move(enum.Enum):
    """Orders (imperative) and reports (past)."""

    START = "start"
    ATTACH = "attach"
    WAKE = "wake"
    SHUT = "shut"
    OPEN = "open"
    UNLOAD = "unload"
    STOP = "stop"
    RETIRE = "retire"
    BECAME_READY = "became ready"
    START_FAILED = "start failed"
    DEFERRED = "deferred"
    NOT_ATTACHED = "not attached"
    UNLOADED = "unloaded"
    UNLOAD_FAILED = "unload failed"
    UNLOAD_REFUSED = "unload refused"
    EXITED = "exited"
    GONE = "gone"
    GONE_AFTER_FAILURE = "gone after failure"


_R = Residency
_M = Move

TABLE: dict[tuple[Residency, Move], Residency] = {
    (_R.STOPPED, _M.START): _R.STARTING,
    (_R.FAILED, _M.START): _R.STARTING,
    (_R.FAILED, _M.RETIRE): _R.STOPPED,
    (_R.STOPPED, _M.ATTACH): _R.ATTACHING,
    (_R.FAILED, _M.ATTACH): _R.ATTACHING,
    (_R.ATTACHING, _M.BECAME_READY): _R.READY,
    (_R.ATTACHING, _M.NOT_ATTACHED): _R.STOPPED,
    (_R.ATTACHING, _M.STOP): _R.STOPPING,
    (_R.STARTING, _M.BECAME_READY): _R.READY,
    (_R.STARTING, _M.START_FAILED): _R.STOPPING,
    (_R.STARTING, _M.DEFERRED): _R.STOPPED,
    (_R.WAKING, _M.DEFERRED): _R.UNLOADED,
    (_R.STARTING, _M.STOP): _R.STOPPING,
    (_R.READY, _M.SHUT): _R.DRAINING,
    (_R.READY, _M.UNLOAD): _R.UNLOADING,
    (_R.READY, _M.STOP): _R.STOPPING,
    (_R.READY, _M.EXITED): _R.STOPPING,
    (_R.DRAINING, _M.OPEN): _R.READY,
    (_R.DRAINING, _M.UNLOAD): _R.UNLOADING,
    (_R.DRAINING, _M.STOP): _R.STOPPING,
    (_R.DRAINING, _M.EXITED): _R.STOPPING,
    (_R.UNLOADING, _M.UNLOADED): _R.UNLOADED,
    (_R.UNLOADING, _M.UNLOAD_FAILED): _R.STOPPING,
    (_R.UNLOADING, _M.UNLOAD_REFUSED): _R.READY,
    (_R.UNLOADING, _M.STOP): _R.STOPPING,
    (_R.UNLOADING, _M.EXITED): _R.STOPPING,
    (_R.UNLOADED, _M.WAKE): _R.WAKING,
    (_R.UNLOADED, _M.STOP): _R.STOPPING,
    (_R.UNLOADED, _M.EXITED): _R.STOPPING,
    (_R.WAKING, _M.BECAME_READY): _R.READY,
    (_R.WAKING, _M.START_FAILED): _R.STOPPING,
    (_R.WAKING, _M.STOP): _R.STOPPING,
    (_R.WAKING, _M.EXITED): _R.STOPPING,
    (_R.STOPPING, _M.GONE): _R.STOPPED,
    (_R.STOPPING, _M.GONE_AFTER_FAILURE): _R.FAILED,
}

CROSSINGS: frozenset[tuple[Residency, Move]] = frozenset(
    (_R.STOPPING, move)
    for move in (_M.BECAME_READY, _M.START_FAILED, _M.DEFERRED, _M.UNLOADED, _M.UNLOAD_FAILED, _M.EXITED)
)

UP = frozenset({Residency.READY, Residency.DRAINING})
"""May have work forwarded to it."""

LOADING = frozenset({Residency.STARTING, Residency.WAKING})
LEAVING = frozenset({Residency.UNLOADING, Residency.STOPPING})
LOADABLE = frozenset({Residency.STOPPED, Residency.FAILED, Residency.UNLOADED})
"""A request for an instance in one of these needs a start or a wake."""

GONE = frozenset({Residency.STOPPED, Residency.FAILED})
"""No process, no memory."""


def next_residency(current: Residency, move: Move) -> Residency:
    """Where ``move`` leads.

    Raises:
        InvalidTransition: The table has no such move.
    """
    try:
        return TABLE[current, move]
    except KeyError:
        raise InvalidTransition(f"no move {move.value!r} from {current.value!r}") from None
