"""What the routes answer to nonsense, and when things vanish while somebody waits for them."""

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from juggler.config.resolve import ControlAddress
from juggler.control.application import application
from juggler.control.routes import while_asked
from juggler.control.snapshot import Snapshots
from juggler.control.steering import Steering
from juggler.control.stream import EventStream
from juggler.control.subject import Subject
from juggler.engine import Engine
from juggler.scheduler.events import OrderKind


class FakeEngine:
    """One endpoint whose orders are done when ``done`` is set."""

    def __init__(self) -> None:
        self.endpoints: dict[str, Any] = {"S/a": SimpleNamespace(instance="S/a")}
        self.done = asyncio.Event()
        self.scheduler = SimpleNamespace(state=SimpleNamespace(shutting_down=False, requests={}))

    async def order(self, instance: str, kind: OrderKind) -> str:
        await self.done.wait()
        return "stopped"


class World:
    """The application before a fake engine."""

    def __init__(self, key: str | None = None) -> None:
        self.engine = FakeEngine()
        self.steering = Steering(cast(Engine, self.engine))
        server = SimpleNamespace(name="S", tls=None, endpoints=[SimpleNamespace(id="S/a", prefix="/a")])
        subject = SimpleNamespace(
            engine=self.engine,
            steering=self.steering,
            config=SimpleNamespace(servers=[server]),
            listeners={"S": SimpleNamespace(addresses=[("127.0.0.1", 9)])},
        )
        address = ControlAddress("127.0.0.1", 8020, key, ())
        stream = cast(EventStream, None)
        self._app = application(cast(Subject, subject), address, cast(Snapshots, None), stream)

    async def ask(
        self,
        method: str,
        path: str,
        query: str = "",
        body: bytes = b"",
        fields: Sequence[tuple[bytes, bytes]] = (),
        *,
        gone: bool = False,
    ) -> tuple[int, Any]:
        """Status and data of the answer."""
        sent: list[Any] = []
        left = [{"type": "http.request", "body": body, "more_body": gone}]

        async def receive() -> Any:
            if left:
                return left.pop()
            if gone:
                return {"type": "http.disconnect"}
            return await asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(b"host", b"127.0.0.1:8020"), *fields],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8020),
            "scheme": "http",
        }
        await self._app(scope, receive, send)
        return sent[0]["status"], json.loads(b"".join(one.get("body", b"") for one in sent[1:]) or b"null")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 4000, 400),
        (b'{"key":' * 500, 400),
        (b"\xff\xfe", 400),
        (b"1" * 4000, 400),
        (b'{"key":"\\ud800"}', 401),
        (b"[" * 5000, 413),
    ],
)
async def test_a_login_of_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, body: bytes, status: int) -> None:
    """It needs no key, so whatever anybody sends must be an answer, and no line in the log."""
    monkeypatch.setattr("juggler.control.guard._WRONG_KEY_PAUSE_S", 0)
    assert (await World(key="correct-horse-battery").ask("POST", "/api/v1/login", body=body))[0] == status


async def test_who_leaves_during_a_login_is_no_mistake_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    assert (await World().ask("POST", "/api/v1/login", body=b'{"ke', gone=True))[0] == 400
    assert not caplog.records


@pytest.mark.parametrize("number", ["1", "9" * 5000, "9" * 20, "x", "-1", "²"])
async def test_a_request_that_does_not_wait_is_not_found(number: str) -> None:
    world = World()
    for method, path in (("DELETE", number), ("POST", f"{number}/front")):
        status, data = await world.ask(method, f"/api/v1/requests/{path}")
        assert (status, data["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("kind", [b"text/\xff", b"a\x7fb"])
async def test_a_trial_with_a_type_that_cannot_be_sent_is_refused(kind: bytes) -> None:
    fields = [(b"content-type", kind)]
    status, data = await World().ask("POST", "/api/v1/try/a", "path=/x", b"{}", fields)
    assert (status, data["error"]["code"]) == (400, "bad_parameter")


async def test_an_endpoint_may_be_removed_while_its_order_is_carried_out() -> None:
    """A new configuration does not have it any more: the answer still says what came of it."""
    world = World()
    asked = asyncio.create_task(world.ask("POST", "/api/v1/endpoints/a/stop", "wait_s=20"))
    while not world.steering.orders:
        await asyncio.sleep(0)
    world.engine.endpoints.clear()
    world.engine.done.set()
    assert await asked == (200, {"endpoint": "S/a", "instance": "S/a", "result": "stopped", "done": True})


async def test_who_has_gone_waits_for_no_order() -> None:
    """Or each client that gave up would hold a place on the listener for an hour; the order itself stands."""
    world = World()
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return messages.pop()

    request = Request({"type": "http", "headers": []}, receive)
    async with asyncio.timeout(10):
        order = world.steering.order(cast(Any, "S/a"), OrderKind.STOP, 3600)
        assert await while_asked(request, order) is None
    assert world.steering.orders == 1
    world.engine.done.set()
    assert await world.steering.order(cast(Any, "S/a"), OrderKind.STOP, 20) == "stopped"


@pytest.mark.parametrize(("limit", "told"), [("0", []), ("2", [2, 3]), ("3", [1, 2, 3]), ("9", [1, 2, 3])])
async def test_so_many_decisions_at_most(monkeypatch: pytest.MonkeyPatch, limit: str, told: list[int]) -> None:
    """The latest ones; none, where none is wanted."""
    monkeypatch.setattr("juggler.control.routes.decisions", lambda *_: [1, 2, 3])
    world = World()
    cast(Any, world.engine).now = lambda: 0.0
    world.engine.scheduler.state.decisions_made = 3
    status, data = await world.ask("GET", "/api/v1/decisions", f"limit={limit}")
    assert (status, data["decisions"]) == (200, told)


async def test_who_gave_an_order_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line by its name."""
    asked: list[str] = []
    world = World()
    monkeypatch.setattr(world.steering, "lock", lambda _, by: asked.append(by))
    await world.ask("PUT", "/api/v1/lock", fields=[(b"user-agent", b"juggler/0.1")])
    assert asked == ["juggler at 127.0.0.1"]
