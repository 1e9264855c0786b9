"""Records, spans and decisions for tests."""

from juggler.ended import EndedRequest
from juggler.history.records import RequestRecord
from juggler.history.timeline import Span
from juggler.ids import EndpointId, InstanceId, RequestId
from juggler.proxy.contract import ExchangeResult, LeaseTiming, RequestInfo, Route
from juggler.routing.traffic import TrafficClass


def record(number: int, endpoint: str = "main/chat", outcome: str = "ok") -> RequestRecord:
    """A record that is as long as most are."""
    at = number / 1e6
    return RequestRecord(
        number,
        number,
        endpoint,
        endpoint,
        "POST",
        "/v1/chat/completions",
        "127.0.0.1",
        "work",
        at - 3.0,
        at - 2.0,
        1.0,
        0.0,
        0.0,
        0.5,
        at,
        200,
        outcome,
        None,
        1234,
        56789,
    )


def span(number: int, state: str = "ready", *, instance: str = "main/chat", **more: object) -> Span:
    """A span of one second that began ``number`` microseconds after 1970."""
    at = number / 1e6
    return Span(number, instance, state, at, at + 1.0, **more)  # type: ignore[arg-type]


def ended(
    *,
    queue_s: float = 0.0,
    load_s: float = 0.0,
    serve_s: float = 1.0,
    traffic: TrafficClass = TrafficClass.WORK,
    target: bytes = b"/v1/chat",
    result: ExchangeResult | None = None,
    error: str | None = None,
    granted: bool = True,
) -> EndedRequest:
    """A request that arrived at 100."""
    route = Route(EndpointId("main/chat"), "chat", target, traffic)
    info = RequestInfo(b"POST", target, "127.0.0.1")
    granted_at = 100.0 + queue_s + load_s
    one = EndedRequest(
        InstanceId("main/chat"), route, info, 100.0, granted_at + serve_s, LeaseTiming(queue_s, load_s), error
    )
    if granted:
        one.request, one.granted_at = RequestId(7), granted_at
        one.result = result or ExchangeResult(200, first_byte_s=0.25, bytes_up=10, bytes_down=20)
    return one
