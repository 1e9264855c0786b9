"""The exception tree, but for what a single command raises. Each class says whose fault it is and what to do about it.

Errors that reach a client carry an HTTP status and a machine-readable ``code``; the text is one sentence that
names the endpoint. ``proxy.responses`` turns them into bytes.
"""

from collections.abc import Sequence
from typing import ClassVar


class JugglerError(Exception):
    """Anything this program reports on purpose.

    Args:
        message: One sentence for a person, without a trailing newline.
        hint: What to do about it, one sentence, or None.
        endpoint: Name of the endpoint concerned, or None.
        phase: Where in the life of the request it happened: ``routing``, ``queued``, ``starting``, ``forward``.
        retry_after_s: Seconds after which a retry may succeed; None where a retry cannot help.
        exit_status: Exit status of the backend process (negative: signal number), or None.
        log_tail: The backend's last lines of output, oldest first.
        details: Further plain JSON data for the ``juggler`` object of the error body.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    repeatable: ClassVar[bool] = True
    """Whether a client library may repeat the request unasked, where ``retry_after_s`` says when."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        endpoint: str | None = None,
        phase: str | None = None,
        retry_after_s: float | None = None,
        exit_status: int | None = None,
        log_tail: Sequence[str] = (),
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.endpoint = endpoint
        self.phase = phase
        self.retry_after_s = retry_after_s
        self.exit_status = exit_status
        self.log_tail = tuple(log_tail)
        self.details = details or {}


class ConfigError(JugglerError):
    """The operator's file is wrong. The message lists every problem; the program ends with status 2."""

    code = "config_error"


class RoutingError(JugglerError):
    """The client asked for a path or form of target that no endpoint serves."""

    status = 404
    code = "no_such_endpoint"


class BlockedRoute(RoutingError):
    """The client asked for a control route of the backend that is not open to clients."""

    status = 403
    code = "route_blocked"


class BadRequest(JugglerError):
    """The client sent something that is not HTTP/1.1 as we accept it, or that we refuse to pass on."""

    status = 400
    code = "bad_request"

    def __init__(self, message: str, *, status: int = 400, code: str = "bad_request", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status  # type: ignore[misc]  # one class, several client-side statuses (413, 414, 431, ...)
        self.code = code  # type: ignore[misc]


class AdmissionError(JugglerError):
    """Too much load for now; the client may come back."""

    status = 503
    code = "overloaded"


class TooManyConnections(AdmissionError):
    """The listener has as many connections open as it may have, and all are in use."""

    code = "too_many_connections"


class TooManyOfOneClient(TooManyConnections):
    """The client has as many connections open as one client may have."""

    status = 429


class QueueFull(AdmissionError):
    """The endpoint's queue is at its bound (``queue_limit``)."""

    status = 429
    code = "queue_full"


class QueueTimeout(AdmissionError):
    """The request waited as long as a request may wait (``queue_timeout``)."""

    code = "queue_timeout"


class Cancelled(AdmissionError):
    """The operator took the request out of its queue."""

    code = "cancelled_by_operator"
    repeatable = False
    """It would wait again for what the operator did not want it to wait for."""


class EndpointRemoved(AdmissionError):
    """A new configuration, taken up while the request waited, has no such endpoint any more."""

    code = "endpoint_removed"
    repeatable = False


class NotReady(AdmissionError):
    """A request that wakes nothing (a poll, a list, an asset) met a backend that is not up."""

    code = "not_ready"


class NotLoaded(NotReady):
    """As ``NotReady``, and nothing loads it: asking again changes nothing."""

    repeatable = False


class ShuttingDown(AdmissionError):
    """The juggler is going down and takes no new work."""

    code = "shutting_down"


class MemoryHeld(AdmissionError):
    """Attached servers, which we must not stop, hold the memory that the request needs. The operator's to free."""

    code = "memory_held"


class BackendError(JugglerError):
    """A backend that we run did not do its part."""

    status = 503
    code = "backend_error"


class StartFailed(BackendError):
    """The process could not be started, ended before it was ready, or failed again too recently."""

    code = "backend_start_failed"
    repeatable = False
    """Each try would cost a whole load, and mostly fail as the one before."""


class AttachFailed(BackendError):
    """The server to attach to does not answer, or is another program. The operator's to start."""

    code = "backend_unreachable"
    repeatable = False


class ReadyTimeout(StartFailed):
    """The process lives but did not answer its readiness probe within ``start_timeout``."""

    code = "backend_ready_timeout"


class OutOfMemory(StartFailed):
    """The program ran out of device or main memory while it loaded."""

    code = "backend_out_of_memory"


class BackendExited(BackendError):
    """The process ended while it should have served."""

    code = "backend_exited"


class BackendStopped(BackendError):
    """The operator (or a shutdown) stopped or unloaded the backend while the request waited for it."""

    code = "backend_stopped"


class DoesNotFit(BackendError):
    """The endpoint's footprint is larger than the pool: it can never be loaded. The operator's configuration."""

    code = "does_not_fit"


class UpstreamError(JugglerError):
    """The backend broke the conversation."""

    status = 502
    code = "upstream_error"


class ConnectFailed(UpstreamError):
    """The backend's port refused or did not accept the connection."""

    code = "upstream_connect_failed"


class UpstreamClosed(UpstreamError):
    """The backend closed the connection, or sent something that is not HTTP, before its answer was complete."""

    code = "upstream_closed"


class UpstreamTimeout(UpstreamError):
    """The backend did not answer within a configured time."""

    status = 504
    code = "upstream_timeout"


class WrongKey(JugglerError):
    """The admin key is missing or wrong."""

    status = 401
    code = "key_needed"


class TooManyGuesses(JugglerError):
    """Several wrong keys are being looked at."""

    status = 429
    code = "too_many_guesses"


class NotFound(JugglerError):
    """There is no such thing (any more)."""

    status = 404
    code = "not_found"


class Conflict(JugglerError):
    """It cannot be done in this state."""

    status = 409
    code = "conflict"


class TooManyReaders(AdmissionError):
    """As many streams are open as there may be."""

    code = "too_many_streams"


class TooManyTrials(AdmissionError):
    """Several requests of the dashboard are under way."""

    status = 429
    code = "too_many_trials"


class InvalidTransition(AssertionError):
    """A bug in this program: an event met a state in which it cannot happen. Never caught below the engine."""
