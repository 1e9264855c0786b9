"""The ASGI application: routes, the page, errors as JSON, the guard around all of it."""

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from juggler.config.resolve import ControlAddress
from juggler.control.guard import Guard, Keys, error_document
from juggler.control.pages import Pages
from juggler.control.routes import Routes
from juggler.control.server import AsgiApp
from juggler.control.snapshot import Snapshots
from juggler.control.stream import EventStream
from juggler.control.subject import Subject
from juggler.errors import BadRequest, JugglerError

_log = logging.getLogger("juggler.control")


def application(subject: Subject, address: ControlAddress, snapshots: Snapshots, stream: EventStream) -> AsgiApp:
    """What answers on the control listener."""
    keys = Keys(address.key)
    routes = Routes(subject, snapshots, stream, keys).all()
    app = Starlette(
        routes=[*routes, *Pages().routes()],
        exception_handlers={JugglerError: _told, HTTPException: _refused, ClientDisconnect: _left, Exception: _mistake},
    )
    app.router.redirect_slashes = False
    return Guard(app, (address.host, *address.names), keys)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, JugglerError)
    headers = {"x-juggler": "error", "cache-control": "no-store"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return JSONResponse(error_document(error), error.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hints = {
        404: ("no_such_route", f"no such route: {request.url.path[:200]}", "GET /openapi.json lists the routes"),
        405: ("method_not_allowed", "not with this method", "what changes something is POST, PUT or DELETE"),
    }
    code, message, hint = hints.get(error.status_code, ("bad_request", str(error.detail), None))
    answer = await _told(request, BadRequest(message, status=error.status_code, code=code, hint=hint))
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody gets it


async def _mistake(request: Request, error: Exception) -> Response:
    _log.error("%s %.200r failed", request.method, request.url.path, exc_info=error)
    return await _told(request, JugglerError("The juggler made a mistake; its log says more."))
