"""Requests that wait or run, as they are shown."""

from types import SimpleNamespace
from typing import cast

from juggler.control.waiting import _waiting, running
from juggler.engine import Engine
from juggler.routing.traffic import TrafficClass
from juggler.scheduler.events import Kind
from juggler.scheduler.queue import Waiting

INFO = SimpleNamespace(method=b"GET", target=b"/x?api_key=hunter2&a=1", client="10.0.0.7")
TIMES = {"arrived_at": 1.0, "granted_at": 2.0, "queue_s": 1.0, "load_s": 0.0}


def test_secrets_in_the_query_are_masked() -> None:
    """As in the history: what runs or waits now is shown to the same people."""
    route = SimpleNamespace(traffic=TrafficClass.WORK)
    lease = SimpleNamespace(request=1, endpoint="S/a", instance="S/a", info=INFO, route=route, **TIMES)
    asked = SimpleNamespace(endpoint="S/a", info=INFO)
    one = SimpleNamespace(id=2, kind=Kind.WORK, priority=0, arrived_at=1.0, due_at=9.0, timeout_at=99.0)
    engine = cast(Engine, SimpleNamespace(leases={1: lease}, waiters={2: asked}))
    told = [*running(engine, 0.0), _waiting(engine, cast(Waiting, one), 1, "", 1.0, 0.0)]
    assert [item["target"] for item in told] == ["/x?api_key=***&a=1"] * 2
