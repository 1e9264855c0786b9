"""The JSON API, version 1: what each path answers. ``docs/api.md`` has the list; ``openapi`` describes it to programs.

Handlers read snapshots and give orders; none of them touches the scheduler's state.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from juggler.config.jsonschema import build_schema
from juggler.control.connect import connections
from juggler.control.decisions import decisions
from juggler.control.guard import COOKIE_PATH, Keys, client_of, cookie_name
from juggler.control.openapi import document
from juggler.control.snapshot import Snapshots
from juggler.control.steering import seconds
from juggler.control.stream import EventStream
from juggler.control.subject import Subject
from juggler.control.trial import Trials
from juggler.errors import BadRequest, NotFound, ShuttingDown
from juggler.history.history import CONTENT_TYPE
from juggler.ids import EndpointId, InstanceId
from juggler.logs.book import WAIT_LIMIT_S
from juggler.scheduler.events import OrderKind
from juggler.units import HOURS

ORDER_LIMIT_S = 1 * HOURS
"""The longest that one call waits for its order; the order stands all the same."""
LOGIN_BYTES_MAX = 4096
_LISTS = ("endpoints", "instances", "pools", "waiting", "running")

Handler = Callable[[Request], Awaitable[Response]]


class Routes:
    """All routes of the API.

    Args:
        subject: What they are about.
        snapshots: Makes the snapshots of it.
        stream: The stream of events.
        keys: The admin key, for the login.
    """

    def __init__(self, subject: Subject, snapshots: Snapshots, stream: EventStream, keys: Keys) -> None:
        self._subject = subject
        self._snapshots = snapshots
        self._stream = stream
        self._keys = keys
        self._trials = Trials(subject)

    def all(self) -> list[Route]:
        """In the order in which they are tried."""
        endpoint = "/api/v1/endpoints/{endpoint:path}"
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/livez", self._livez),
            ("GET", "/readyz", self._readyz),
            ("GET", "/metrics", self._metrics),
            ("GET", "/openapi.json", self._openapi),
            ("GET", "/api/v1/status", self._status),
            ("GET", "/api/v1/events", self._events),
            *(("GET", f"/api/v1/{name}", self._part(name)) for name in _LISTS),
            ("GET", "/api/v1/requests", self._requests),
            ("GET", "/api/v1/decisions", self._decisions),
            ("GET", "/api/v1/timeline", self._timeline),
            ("GET", "/api/v1/history/days", self._days),
            ("GET", "/api/v1/history/series", self._series),
            ("GET", "/api/v1/config", self._config),
            ("GET", "/api/v1/config/schema", self._schema),
            ("GET", "/api/v1/connect", self._connect),
            ("GET", "/api/v1/logs", self._logs),
            ("GET", "/api/v1/logs/{log:path}", self._log),
            ("POST", f"{endpoint}/load", self._load),
            ("POST", f"{endpoint}/unload", self._order(OrderKind.UNLOAD)),
            ("POST", f"{endpoint}/stop", self._order(OrderKind.STOP)),
            ("POST", f"{endpoint}/restart", self._restart),
            ("PUT", f"{endpoint}/pin", self._pin(True)),
            ("DELETE", f"{endpoint}/pin", self._pin(False)),
            ("PUT", "/api/v1/lock", self._lock(True)),
            ("DELETE", "/api/v1/lock", self._lock(False)),
            ("DELETE", "/api/v1/requests/{request}", self._cancel),
            ("POST", "/api/v1/requests/{request}/front", self._front),
            ("POST", "/api/v1/reload", self._reload),
            ("POST", "/api/v1/try/{endpoint:path}", self._try),
            ("POST", "/api/v1/login", self._login),
            ("POST", "/api/v1/logout", self._logout),
        ]
        return [Route(path, handler, methods=[method]) for method, path, handler in table]

    # -- what there is -----------------------------------------------------------------------------------------

    async def _livez(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        reasons = []
        if self._subject.engine.scheduler.state.shutting_down:
            reasons.append("it is shutting down")
        elif not self._subject.engine.opened.is_set():
            reasons.append("the memory of this machine is not known yet")
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def _metrics(self, request: Request) -> Response:
        return Response(self._subject.history.metrics(), media_type=CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return _json(document())

    async def _status(self, request: Request) -> Response:
        return _json(self._snapshots.status())

    def _part(self, name: str) -> Handler:
        async def part(request: Request) -> Response:
            return _json({name: self._snapshots.collections()[name]})

        return part

    async def _events(self, request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers={"cache-control": "no-store"})
        messages = self._stream.open(request.headers.get("last-event-id"))
        return StreamingResponse(
            messages,
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _decisions(self, request: Request) -> Response:
        query = request.query_params
        instance = None
        if wanted := query.get("endpoint"):
            instance = self._subject.steering.instance_of(self._subject.steering.endpoint(wanted))
        kept = decisions(self._subject.engine, self._subject.engine.now(), instance)
        limit = _count(query, "limit", 1000, 1000)
        return _json(
            {
                "decisions": kept[max(len(kept) - limit, 0) :],
                "made": self._subject.engine.scheduler.state.decisions_made,
            }
        )

    # -- what was recorded -------------------------------------------------------------------------------------

    async def _requests(self, request: Request) -> Response:
        query = request.query_params
        endpoint: EndpointId | None = None
        if wanted := query.get("endpoint"):
            endpoint = self._subject.steering.endpoint(wanted)
        before = _count(query, "before", 2**62, 2**62) if "before" in query else None
        limit = _count(query, "limit", 100, 1000)
        return _json(await self._subject.history.records(before, limit, endpoint, query.get("outcome") or None))

    async def _timeline(self, request: Request) -> Response:
        from_at, to_at = _range(request.query_params, 1 * HOURS)
        return _json(await self._subject.history.spans(from_at, to_at))

    async def _days(self, request: Request) -> Response:
        return _json(await self._subject.history.days(_count(request.query_params, "days", 30, 400)))

    async def _series(self, request: Request) -> Response:
        from_at, to_at = _range(request.query_params, 1 * HOURS)
        step_s = _number(request.query_params, "step_s", 10.0, 1.0, 86400.0)
        return _json(await self._subject.history.series(from_at, to_at, step_s))

    # -- configuration and logs --------------------------------------------------------------------------------

    async def _config(self, request: Request) -> Response:
        return _json(self._subject.config_report())

    async def _schema(self, request: Request) -> Response:
        return _json(build_schema())

    async def _connect(self, request: Request) -> Response:
        return _json(connections(self._subject, request.url.hostname))

    async def _logs(self, request: Request) -> Response:
        return _json({"logs": self._subject.logs.listing()})

    async def _log(self, request: Request) -> Response:
        query, logs, name = request.query_params, self._subject.logs, request.path_params["log"]
        after = _count(query, "after", 2**62, 2**62) if "after" in query else None
        limit = _count(query, "limit", 500, 5000)
        since_s = _number(query, "since_s", 0.0, 0.0, 1e9) if "since_s" in query else None
        wait_s = seconds(query.get("wait_s"), "wait_s", WAIT_LIMIT_S)
        ansi = _truth(query, "ansi")
        if after is not None and wait_s:
            await logs.wait(name, after, wait_s)
        return _json({**logs.read(name, after, limit, since_s, ansi=ansi), "boot": self._snapshots.boot})

    # -- orders ------------------------------------------------------------------------------------------------

    async def _load(self, request: Request) -> Response:
        endpoint, instance, wait_s = self._wanted(request)
        order = self._subject.steering.load(endpoint, wait_s, _who(request))
        return _told(endpoint, instance, await while_asked(request, order))

    async def _restart(self, request: Request) -> Response:
        endpoint, instance, wait_s = self._wanted(request)
        order = self._subject.steering.restart(endpoint, wait_s, _who(request))
        return _told(endpoint, instance, await while_asked(request, order))

    def _order(self, kind: OrderKind) -> Handler:
        async def order(request: Request) -> Response:
            endpoint, instance, wait_s = self._wanted(request)
            given = self._subject.steering.order(endpoint, kind, wait_s)
            return _told(endpoint, instance, await while_asked(request, given))

        return order

    def _wanted(self, request: Request) -> tuple[EndpointId, InstanceId, float]:
        """What an order is for; by the time it is done, a new configuration may not have the endpoint any more."""
        self._check_running()
        endpoint = self._subject.steering.endpoint(request.path_params["endpoint"])
        wait_s = seconds(request.query_params.get("wait_s"), "wait_s", ORDER_LIMIT_S)
        return endpoint, self._subject.steering.instance_of(endpoint), wait_s

    def _pin(self, pinned: bool) -> Handler:
        async def pin(request: Request) -> Response:
            endpoint = self._subject.steering.endpoint(request.path_params["endpoint"])
            self._subject.steering.pin(endpoint, pinned)
            return _json({"endpoint": endpoint, "pinned": pinned})

        return pin

    def _lock(self, locked: bool) -> Handler:
        async def lock(request: Request) -> Response:
            self._subject.steering.lock(locked, _who(request))
            return _json({"locked": self._subject.steering.locked})

        return lock

    async def _cancel(self, request: Request) -> Response:
        number = _request_number(request)
        self._subject.steering.cancel(number)
        return _json({"request": number, "result": "cancelled"})

    async def _front(self, request: Request) -> Response:
        number = _request_number(request)
        self._subject.steering.move_to_front(number)
        return _json({"request": number, "position": 1})

    async def _reload(self, request: Request) -> Response:
        self._check_running()
        outcome = await self._subject.reload_by_api(dry_run=_truth(request.query_params, "dry_run"))
        return _json(outcome, 200 if outcome["ok"] else 422)

    async def _try(self, request: Request) -> Response:
        self._check_running()
        return await self._trials.answer(request)

    def _check_running(self) -> None:
        if self._subject.engine.scheduler.state.shutting_down:
            raise ShuttingDown("the juggler is shutting down")

    # -- the key -----------------------------------------------------------------------------------------------

    async def _login(self, request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > LOGIN_BYTES_MAX:
                raise BadRequest("a login is short", status=413, code="body_too_large")
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):  # the latter: a thousand brackets
            given = None
        if not isinstance(given, dict) or not isinstance(given.get("key"), str):
            raise BadRequest('a login is a JSON object: {"key": "..."}', code="bad_body")
        await self._keys.check(given["key"], client_of(request.scope))
        answer = _json({"key_needed": self._keys.needed})
        if self._keys.needed:
            name = cookie_name(request.headers.get("host", ""))
            answer.set_cookie(name, self._keys.session(), path=COOKIE_PATH, httponly=True, samesite="strict")
        return answer

    async def _logout(self, request: Request) -> Response:
        answer = _json({"key_needed": self._keys.needed})
        name = cookie_name(request.headers.get("host", ""))
        answer.delete_cookie(name, path=COOKIE_PATH, httponly=True, samesite="strict")
        return answer


async def while_asked(request: Request, order: Coroutine[Any, Any, str | None]) -> str | None:
    """What an order comes to; None as soon as who asked has gone, or connections that nobody has would pile up."""
    work = asyncio.ensure_future(order)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        gone.cancel()
        work.cancel()  # only the waiting: the order stands


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _told(endpoint: EndpointId, instance: InstanceId, result: str | None) -> Response:
    body = {"endpoint": endpoint, "instance": instance, "result": result or "under way", "done": result is not None}
    return _json(body, 200 if result is not None else 202)


def _request_number(request: Request) -> int:
    text = request.path_params["request"]
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise NotFound(f"{text[:20]!r} is no number of a request", hint="`juggler queue` lists those that wait")
    return int(text)


def _json(body: object, status: int = 200) -> Response:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=str)
    return Response(
        text.encode("utf-8", "replace"), status, media_type="application/json", headers={"cache-control": "no-store"}
    )


def _who(request: Request) -> str:
    """Who gave an order, for the decision log: the program calls itself by name, a browser is the dashboard."""
    agent = request.headers.get("user-agent", "")
    name = "juggler" if agent.startswith("juggler") else "dashboard" if "Mozilla" in agent else "API"
    address = request.client.host if request.client is not None else "?"
    return f"{name} at {address}"


def _truth(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise BadRequest(f"`{name}` is true or false", code="bad_parameter")
    return value in ("true", "1")


def _number(query: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise BadRequest(f"`{name}` is a number from {least:g} to {most:g}", code="bad_parameter")
    return value


def _count(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not 0 <= value <= most:
        raise BadRequest(f"`{name}` is a whole number from 0 to {most}", code="bad_parameter")
    return value


def _range(query: Mapping[str, str], default_s: float) -> tuple[float, float]:
    now: float = time.time()
    to_at = _number(query, "to_at", now, 0.0, 1e11)
    return _number(query, "from_at", to_at - default_s, 0.0, 1e11), to_at
