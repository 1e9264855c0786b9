"""Requests that are understood by their body, while their backend is not up: what they are, and who may answer them.

Only here a body is waited for before anything else is done, and only short ones are: by then the request would wait
anyway, or be refused.
"""

import asyncio
import logging

from juggler.errors import BackendError, JugglerError, NotReady, UpstreamError
from juggler.proxy.body import Request
from juggler.proxy.contract import LocalResponse, Route
from juggler.proxy.replies import QUESTION_BYTES_MAX, Replies
from juggler.routing.stand_in import Question
from juggler.routing.traffic import LOOK_BYTES_MAX, TrafficClass

UNABLE = (NotReady, BackendError, UpstreamError)
"""The backend cannot answer now; not among them are refusals of the request and a juggler that goes down."""

BODY_LIMIT_S = 2.0
"""For the rest of a short body: clients send it with the head, or right behind it."""

_log = logging.getLogger("juggler.proxy")

_NOT_UP = (NotReady, BackendError)
"""No process is there that could know better: so a stand-in's answer is true."""


async def by_its_body(route: Route, request: Request) -> Route:
    """The route of a request that is about to be held: as light, if its body says that it is no work after all."""
    if route.light_if is None or not (body := await _body(request, LOOK_BYTES_MAX)):
        return route
    return route.as_light() if route.light_if(body) else route


async def answered_in_place(
    said: LocalResponse | JugglerError, request: Request, route: Route | None, replies: Replies
) -> LocalResponse | JugglerError:
    """What is said instead of the refusal ``said``, if anybody can answer in the backend's place.

    An earlier reply goes first: it is the backend's own. Where there is one, or nobody knows, ``said`` is returned.
    """
    if route is None or not isinstance(said, UNABLE):
        return said
    asks = route.cacheable and request.head.method == b"POST"
    if not asks and route.stand_in is None:
        return said
    body = b"" if request.body.complete and not request.body.size else await _body(request, QUESTION_BYTES_MAX)
    if body is None or route.stand_in is None or not isinstance(said, _NOT_UP):
        return said
    if route.traffic is not TrafficClass.LIGHT or replies.find(route, request.head, request.body) is not None:
        return said
    path = route.target.partition(b"?")[0]
    try:
        answer = await route.stand_in.answer(Question(request.head.method, path, body))
    except Exception:
        _log.exception("%s: nothing could be said in place of the backend", route.endpoint_name)
        return said
    if answer is None:
        return said
    return LocalResponse(answer.status, answer.body, answer.content_type, (("X-Juggler", answer.source),))


async def _body(request: Request, most_bytes: int) -> bytes | None:
    """The body, once it is here; None if it is too long, does not come in time, or comes only when it is asked for."""
    head, body = request.head, request.body
    if head.chunked or head.expects_continue or (head.content_length or 0) > most_bytes:
        return None
    if not body.complete:
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        body.on_complete = lambda: None if arrived.done() else arrived.set_result(None)
        try:
            async with asyncio.timeout(BODY_LIMIT_S):
                await arrived
        except TimeoutError:
            return None
        finally:
            body.on_complete = None
    return body.whole
