"""What a request is answered with when its backend does not answer it: our own words, or the backend's earlier ones.

Pure.
"""

from typing import NamedTuple

from juggler.errors import JugglerError
from juggler.proxy.body import Request
from juggler.proxy.contract import LocalResponse, Route
from juggler.proxy.questions import UNABLE
from juggler.proxy.replies import Replies
from juggler.proxy.responses import error_response, local_response
from juggler.proxy.waiting_room import Wait


class OwnAnswer(NamedTuple):
    """What is sent, and whether the connection ends after it."""

    data: bytes
    closes: bool


def own_answer(
    said: LocalResponse | JugglerError,
    request: Request,
    route: Route | None,
    wait: Wait | None,
    replies: Replies,
    *,
    draining: bool,
    now: float,
) -> OwnAnswer:
    """A whole answer, or the end of the one that was begun while the request waited.

    Args:
        said: What it has to say. Where the backend is merely unable, an earlier reply is better.
        request: Whose answer it is.
        route: Where the request goes; None: it was not routed.
        wait: Of the request, if it waited.
        replies: Earlier ones.
        draining: No further request is taken.
        now: Seconds on the loop's clock.
    """
    if wait is not None and wait.stream is not None:
        last = wait.failed(said) if isinstance(said, JugglerError) else wait.answered_here(said)
        return OwnAnswer(last, wait.stream.closes or draining)
    head = request.head
    head_only = head.method == b"HEAD"
    # HTTP/1.0: our own answers do not say keep-alive, so the client waits for the end.
    closes = not (head.keep_alive and head.minor and request.body.complete) or draining
    added = wait.timing(now) if wait is not None else []
    if isinstance(said, LocalResponse):
        return OwnAnswer(local_response(said, head_only=head_only, close=closes, added=added), closes)
    if isinstance(said, UNABLE) and route is not None and route.cacheable:
        reply = replies.find(route, head, request.body)
        if reply is not None:
            message = reply.message(replies.clock(), head_only=head_only, close=closes, added=added)
            return OwnAnswer(message, closes)
    return OwnAnswer(error_response(said, head, route, close=closes, added=added), closes)
