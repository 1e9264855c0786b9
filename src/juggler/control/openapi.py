"""The API described to programs (OpenAPI 3.1); ``schemas`` has the objects that answers are made of."""

from juggler import __version__
from juggler.control.schemas import SCHEMAS, Schema, listed, obj, ref
from juggler.control.trial import METHODS, TARGET_PATTERN

_NAME = "Full name (`SERVER/ENDPOINT`, percent-encoded as one segment), or its own name where that is unique."


def document() -> dict[str, object]:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Model Juggler",
            "version": __version__,
            "summary": "What is loaded, who waits for what and why; and the few things an operator may ask for.",
            "description": "Durations (`*_s`) are seconds, sizes (`*_bytes`) bytes, instants (`*_at`) seconds since "
            "1970. What changes something is POST, PUT or DELETE and may be sent twice.",
        },
        "paths": _paths(),
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`control.key` of the configuration; needed only where that is set.",
                }
            },
        },
        "security": [{}, {"key": []}],
    }


def _paths() -> dict[str, object]:
    endpoint = {"name": "endpoint", "in": "path", "required": True, "schema": _text(), "description": _NAME}
    request = {"name": "request", "in": "path", "required": True, "schema": _whole(0, 2**53)}
    log = {"name": "log", "in": "path", "required": True, "schema": _text(), "description": "`juggler`, or an instance"}
    wait = _query("wait_s", _number(0, 3600), "How long to wait until it is done; then 202 says that it goes on.")
    of_endpoint = _query("endpoint", _text(), _NAME)
    from_at = _query("from_at", _number(0, 1e11), "Default: an hour before `to_at`.")
    to_at = _query("to_at", _number(0, 1e11), "Default: now.")
    order = "/api/v1/endpoints/{endpoint}/"
    return {
        "/livez": {"get": _operation("The process answers.", text="text/plain")},
        "/readyz": {
            "get": _operation("Whether it takes requests, and why not.", ref("Ready"), also={503: ref("Ready")})
        },
        "/metrics": {"get": _operation("Metrics for Prometheus.", text="text/plain")},
        "/openapi.json": {"get": _operation("This description.", obj({}))},
        "/api/v1/status": {"get": _operation("Everything there is now.", ref("Status"))},
        "/api/v1/events": {
            "get": _operation(
                "A stream of events: `snapshot`, `change`, `finished`, `decisions`, `spans`.",
                text="text/event-stream",
                parameters=[
                    {
                        "name": "Last-Event-ID",
                        "in": "header",
                        "schema": _text(),
                        "description": "Go on behind this event, if it is not too long ago.",
                    }
                ],
                errors=(503,),
            )
        },
        "/api/v1/endpoints": {"get": _operation("Routes.", listed("endpoints", "Endpoint"))},
        "/api/v1/instances": {"get": _operation("What is or can be loaded.", listed("instances", "Instance"))},
        "/api/v1/pools": {"get": _operation("Memory, and who holds it.", listed("pools", "Pool"))},
        "/api/v1/waiting": {"get": _operation("Requests that wait, and for what.", listed("waiting", "Waiting"))},
        "/api/v1/running": {"get": _operation("Requests that run.", listed("running", "Running"))},
        "/api/v1/requests": {
            "get": _operation(
                "Requests that are over, the newest first.",
                obj({"requests": {"type": "array", "items": ref("Request")}, "more": {"type": "boolean"}}),
                [
                    _query("before", _whole(0, 2**53), "Those before this `record`."),
                    _query("limit", _whole(0, 1000), "Default: 100."),
                    of_endpoint,
                    _query("outcome", _text(), "Only those that ended so."),
                ],
                errors=(400, 404),
            )
        },
        "/api/v1/requests/{request}": {
            "delete": _operation(
                "Take a waiting request out of its queue; it is answered with an error.",
                obj({"request": _whole(), "result": _text()}),
                [request],
                errors=(404, 409),
            )
        },
        "/api/v1/requests/{request}/front": {
            "post": _operation(
                "Serve a waiting request before all others.",
                obj({"request": _whole(), "position": _whole()}),
                [request],
                errors=(404, 409),
            )
        },
        "/api/v1/decisions": {
            "get": _operation(
                "Why memory changed hands.",
                obj({"decisions": {"type": "array", "items": ref("Decision")}, "made": _whole()}),
                [of_endpoint, _query("limit", _whole(0, 1000), "The latest of them.")],
                errors=(400, 404),
            )
        },
        "/api/v1/timeline": {
            "get": _operation(
                "Where each model was, and why it had to go.", ref("Timeline"), [from_at, to_at], errors=(400,)
            )
        },
        "/api/v1/history/days": {
            "get": _operation(
                "Sums per day, the newest first.",
                obj({"days": {"type": "array", "items": ref("Day")}}),
                [_query("days", _whole(0, 400), "Default: 30.")],
                errors=(400,),
            )
        },
        "/api/v1/history/series": {
            "get": _operation(
                "Memory, loads, requests and bytes over time.",
                ref("Series"),
                [from_at, to_at, _query("step_s", _number(1, 86400), "Default: 10.")],
                errors=(400,),
            )
        },
        "/api/v1/config": {"get": _operation("The configuration and its problems, secrets masked.", ref("Config"))},
        "/api/v1/config/schema": {"get": _operation("JSON Schema of configuration files.", obj({}))},
        "/api/v1/connect": {"get": _operation("Settings for clients.", ref("Connect"))},
        "/api/v1/logs": {"get": _operation("Which logs there are.", listed("logs", "Log"))},
        "/api/v1/logs/{log}": {
            "get": _operation(
                "Lines of a log.",
                ref("LogLines"),
                [
                    log,
                    _query("after", _whole(0, 2**53), "Lines behind this one."),
                    _query("limit", _whole(0, 5000), "Default: 500."),
                    _query("wait_s", _number(0, 30), "With `after`: wait so long for a line if there is none."),
                    _query("since_s", _number(0, 1e9), "Lines of the last seconds."),
                    _query("ansi", {"type": "boolean"}, "Keep colours."),
                ],
                errors=(400, 404),
            )
        },
        f"{order}load": {"post": _order("Load an endpoint as a request would.", [endpoint, wait])},
        f"{order}unload": {"post": _order("Free its memory once what runs has ended.", [endpoint, wait])},
        f"{order}stop": {"post": _order("End its process once what runs has ended.", [endpoint, wait])},
        f"{order}restart": {"post": _order("End its process and load it again.", [endpoint, wait])},
        f"{order}pin": {
            "put": _operation("Never send it away for others.", ref("Pin"), [endpoint], errors=(404,)),
            "delete": _operation("Send it away as any other.", ref("Pin"), [endpoint], errors=(404,)),
        },
        "/api/v1/lock": {
            "put": _operation("Let nothing give way by itself.", ref("LockState")),
            "delete": _operation("Swap again.", ref("LockState")),
        },
        "/api/v1/reload": {
            "post": _operation(
                "Read the configuration again, and change what changed.",
                ref("Reload"),
                [_query("dry_run", {"type": "boolean"}, "Only say what would change.")],
                errors=(400, 409, 500, 503),
                also={422: ref("Reload")},
            )
        },
        "/api/v1/try/{endpoint}": {
            "post": _operation(
                "Send a request through the endpoint's own listener. The answer's body comes back as it is; "
                "`X-Try-Status` and `X-Try-Type` are its status and type, `X-Try-Queue` and `X-Try-Load` the seconds "
                "that it waited.",
                text="application/octet-stream",
                parameters=[
                    endpoint,
                    _query("path", {"type": "string", "pattern": TARGET_PATTERN}, "Path and query. Default: /."),
                    _query("method", {"enum": list(METHODS)}, "Default: POST."),
                ],
                body={},
                body_needed=False,
                errors=(400, 404, 413, 429, 502, 503),
            )
        },
        "/api/v1/login": {
            "post": _operation(
                "Get the cookie that stands for the key in a browser.",
                obj({"key_needed": {"type": "boolean"}}),
                body=obj({"key": _text()}),
                errors=(400, 401, 413, 429),
            )
        },
        "/api/v1/logout": {"post": _operation("Give the cookie back.", obj({"key_needed": {"type": "boolean"}}))},
    }


def _order(summary: str, parameters: list[dict[str, object]]) -> dict[str, object]:
    return _operation(summary, ref("Order"), parameters, errors=(400, 404, 409, 500, 503), also={202: ref("Order")})


def _operation(
    summary: str,
    answer: Schema | None = None,
    parameters: list[dict[str, object]] | None = None,
    *,
    text: str | None = None,
    body: Schema | None = None,
    body_needed: bool = True,
    errors: tuple[int, ...] = (),
    also: dict[int, Schema] | None = None,
) -> dict[str, object]:
    """One operation.

    Args:
        answer: JSON of 200.
        text: Media type of 200, where it is not JSON.
        errors: Statuses with our error object.
        also: Further statuses with objects of their own.
    """
    answers: dict[str, object] = {"200": _answer("Done.", answer, text)}
    for status, schema in (also or {}).items():
        answers[str(status)] = _answer("See there.", schema)
    for status in (401, 403, *errors):
        answers.setdefault(str(status), _answer("What is wrong, and what to do.", ref("Error")))
    operation: dict[str, object] = {"summary": summary, "parameters": parameters or [], "responses": answers}
    if body is not None:
        operation["requestBody"] = {"required": body_needed, "content": {"application/json": {"schema": body}}}
    return operation


def _answer(description: str, schema: Schema | None, text: str | None = None) -> dict[str, object]:
    content = {"application/json": {"schema": schema}} if text is None else {text: {"schema": {"type": "string"}}}
    return {"description": description, "content": content}


def _query(name: str, schema: Schema, description: str) -> dict[str, object]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _text() -> Schema:
    return {"type": "string"}


def _whole(least: int | None = None, most: int | None = None) -> Schema:
    schema: Schema = {"type": "integer"}
    if least is not None:
        schema["minimum"] = least
    if most is not None:
        schema["maximum"] = most
    return schema


def _number(least: float, most: float) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most}
