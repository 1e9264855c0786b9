"""A hundred reloads of the whole program in one loop, with clients: what there is afterwards, and was before.

Processes are pretended, and one little server in this loop answers for all of them; listeners, clients, owners,
scheduler, keeper and history are the real ones.
"""

import asyncio
import contextlib
import gc
import json
import re
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from tests.certificates import make_pair
from tests.ports import free_port

from juggler.app import App
from juggler.backends.base import Address
from juggler.config.load import load_config
from juggler.config.resolve import resolve
from juggler.logs import book
from juggler.scheduler.invariants import check
from juggler.testing.fake_launcher import FakeLauncher

ROUNDS = 20
STEADY_AFTER = 4
"""Rounds until everything that is kept once has been made."""

LIMIT_S = 20.0

PAST = {"Decision", "Span", "LogLine", "RequestRecord", "Sums", "Rows", "Sample", "Learned", "FootprintRecord"}
"""Kept in bounded numbers, which a hundred reloads do not fill, or until they are written to the disk."""


class StandIn(asyncio.Protocol):
    """Answers every request with 200; one for ``/slow`` when it is let go on."""

    go_on: asyncio.Event

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._waiting: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        if b"/slow" in data.partition(b"\r\n")[0]:
            self._waiting = asyncio.get_running_loop().create_task(self._later(), name="slow answer")
        else:
            self._answer()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    async def _later(self) -> None:
        await self.go_on.wait()
        self._answer()

    def _answer(self) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


class StandInLauncher(FakeLauncher):
    """All processes are at one address."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def reserve(self) -> Address:
        self.handles = self.live  # those that are gone are of no interest, and would count as a leak
        return Address("127.0.0.1", self._port)


class Client:
    """One connection that stays, to one listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator["Client"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(self, path: str, method: str = "POST") -> int:
        """The status of the answer."""
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n".encode())
        async with asyncio.timeout(LIMIT_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await self._reader.readexactly(int(length[1]) if length else 0)
        return int(head.split(b" ")[1])


async def ask(port: int, path: str, method: str = "POST") -> int:
    """One request on a connection of its own."""
    async with Client.to(port) as client:
        return await client.ask(path, method)


@dataclass
class Rig:
    """The program, its file, and the ports that it uses."""

    directory: Path
    stand_in: int
    launcher: "StandInLauncher" = field(init=False)
    app: App = field(init=False)
    main: int = field(default_factory=free_port)
    second: int = field(default_factory=free_port)
    third: int = field(default_factory=free_port)
    secure: int = field(default_factory=free_port)

    @property
    def path(self) -> Path:
        return self.directory / "config.json"

    def document(self, *servers: dict[str, Any], **more: Any) -> dict[str, Any]:
        attached = {"type": "command", "attach_to": f"http://127.0.0.1:{self.stand_in}"}
        return {
            "temp_dir": str(self.directory / "t"),
            "state_dir": str(self.directory / "s"),
            "control": False,
            "memory": {"pools": {"gpu0": "24GiB"}},
            "backends": {"program": {"type": "command", "binary": sys.executable}, "theirs": attached},
            "servers": list(servers),
            **more,
        }

    async def reload(self, document: dict[str, Any] | str, result: str = "done") -> None:
        self.path.write_text(document if isinstance(document, str) else json.dumps(document))
        outcome = await self.app.reload(by="test")
        assert outcome.result == result, outcome
        check(self.app.engine.scheduler.state)


def server(name: str, port: int, *endpoints: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "port": port, "endpoints": list(endpoints), **more}


def endpoint(name: str, *parameters: str, **more: Any) -> dict[str, Any]:
    own = {"name": name, "path_prefix": f"/{name}", "backend": "program", "memory": "1GiB", "concurrency": 1}
    return {**own, "parameters": list(parameters), **more}


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Rig]:
    StandIn.go_on = asyncio.Event()
    loop = asyncio.get_running_loop()
    behind = await loop.create_server(StandIn, "127.0.0.1", 0)
    rig = Rig(directory, behind.sockets[0].getsockname()[1])
    rig.path.write_text(json.dumps(rig.document(server("S", rig.main, endpoint("kept", "kept"), endpoint("b")))))
    loaded = load_config(rig.path)
    listening = asyncio.Event()
    rig.launcher = StandInLauncher(rig.stand_in)
    rig.app = App(resolve(loaded), 0.0, rig.launcher, lambda app: listening.set(), loaded=loaded)
    task = loop.create_task(rig.app.run(), name="app")
    try:
        await eventually(lambda: task.done() or (listening.is_set() and rig.app.engine.opened.is_set()), "it listens")
        if task.done():
            task.result()  # why it did not
        yield rig
    finally:
        behind.close()
        rig.app.stop()
        async with asyncio.timeout(LIMIT_S):
            await task


async def eventually(condition: Any, what: str) -> None:
    try:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(what) from None


def count(*several: Sized) -> int:
    return sum(len(one) for one in several)


def census(app: App) -> Counter[str]:
    """How many there are of everything that a reload makes, changes or drops."""
    engine, world, doors, history = app.engine, app._world, app._doors, app.history._recorder
    state = engine.scheduler.state
    labels = set(re.findall(rb'(?:endpoint|model_instance)="([^"]*)"', app.history.metrics()))
    counts = {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0,
        "supervisors": len(engine.supervisors),
        "engine": count(engine.endpoints, engine.waiters, engine.leases, engine._orders, engine._tasks),
        "pools of connections": len(engine._pools) + len(engine._addresses),
        "looks": len(engine._looks._programs) + len(engine._looks._beginning),
        "doubts": len(engine._doubts._open),
        "world": count(world._backends, world._owners, world._successors),
        "keeper": len(engine.keeper._known) + len(engine.keeper.files._reading) if engine.keeper is not None else 0,
        "scheduler": len(state.instances) + len(state.plans) + len(state.requests) + len(list(state.ledger.holders())),
        "clients awaited": count(*state._may_return.values()),
        "listeners": count(doors._doors, doors._closing, app.listeners),
        "connections": sum(len(one.connections) for one in app.listeners.values()),
        "logs": len(app.logs._rings) + len(app.logs._secrets),
        "labels": len(labels),
        "tallies": len(history.tallies.endpoints) + len(history.tallies.instances),
        "timeline": len(history.timeline._open),
        "warm-up": len(app.warmup.entries),
        "told of reloads": len(app.reloader._listeners),
    }
    counts |= {f"task {name}": number for name, number in tasks().items()}
    return Counter(counts)


def tasks() -> Counter[str]:
    """What runs in this loop, by name; numbers of unnamed tasks do not count."""
    return Counter(one.get_name().rstrip("0123456789") for one in asyncio.all_tasks())


def objects(app: App) -> Counter[str]:
    """How many objects of our own there are by type, the past left out."""
    app.engine.scheduler.state.story.clear()
    gc.collect()
    kinds = [(str(kind.__module__), kind.__qualname__) for kind in map(type, gc.get_objects())]
    return Counter(f"{module}.{name}" for module, name in kinds if module.startswith("juggler.") and name not in PAST)


async def round_of_reloads(rig: Rig, pair: dict[str, str], number: int) -> None:
    """Whatever can be changed, with one client whose request runs meanwhile and one who waits behind it."""
    kept, b = endpoint("kept", "kept"), endpoint("b")
    StandIn.go_on.clear()
    runs = asyncio.create_task(ask(rig.main, "/b/slow"), name="runs")
    await eventually(lambda: rig.app.engine.leases, "it runs")
    waits = asyncio.create_task(ask(rig.main, "/b/x"), name="waits")
    await eventually(lambda: rig.app.engine.waiters, "it waits")

    # 1: another program behind one endpoint, a further listener, a further endpoint, and one of somebody else's server
    theirs = endpoint("theirs", backend="theirs")
    other = server("T", rig.second, endpoint("c"), theirs)
    warm = {"server": "T", "endpoint": "c"}
    await rig.reload(rig.document(server("S", rig.main, kept, endpoint("b", str(number))), other, warmup=[warm]))
    assert not waits.done()
    StandIn.go_on.set()
    assert (await runs, await waits) == (200, 200)
    assert [await ask(rig.second, path) for path in ("/c/x", "/theirs/x")] == [200, 200]

    # 2, 3: files that are not in order, or cannot be had
    await rig.reload("{", "problems")
    with socket.create_server(("127.0.0.1", rig.third)):
        opens = server("X", rig.secure, endpoint("x"))
        await rig.reload(rig.document(server("S", rig.main, kept), opens, server("U", rig.third, b)), "problems")
    assert await ask(rig.second, "/c/x") == 200

    # 4: other names for a model and a listener, and a listener with HTTPS; all by file watch
    renamed = server("V", rig.second, endpoint("d"), endpoint("e", str(number)))
    secure = server("W", rig.secure, endpoint("f", backend="theirs"), tls=pair)
    await rig.reload(rig.document(server("S", rig.main, kept, b), renamed, secure, reload="watch"))
    assert await ask(rig.second, "/e/x") == 200

    # 5: who waits for an endpoint that goes, and one at another address
    StandIn.go_on.clear()
    runs = asyncio.create_task(ask(rig.second, "/e/slow"), name="runs")
    await eventually(lambda: rig.app.engine.leases, "it runs")
    waits = asyncio.create_task(ask(rig.second, "/e/x"), name="waits")
    await eventually(lambda: rig.app.engine.waiters, "it waits")
    await rig.reload(rig.document(server("S", rig.main, kept, b), server("V", rig.third, endpoint("d"))))
    assert await waits == 503
    StandIn.go_on.set()
    assert await runs == 200

    # 6: and back
    await rig.reload(rig.document(server("S", rig.main, kept, b)))
    await rig.reload(rig.document(server("S", rig.main, kept, b)), "nothing")


async def at_rest(rig: Rig) -> None:
    """Until nothing of what was changed is on its way out."""
    names, app = {"S/kept", "S/b"}, rig.app
    await eventually(
        lambda: (
            set(app.engine.scheduler.state.instances) == set(app.engine.supervisors) == names
            and not app._doors._closing
            and not app.engine.leases
            and not app.engine._tasks
            and all(one.order is None for one in app.engine.scheduler.state.instances.values())
            and "close listener" not in tasks()
            and sum(name.startswith("supervisor") for name in tasks().elements()) == len(names)
        ),
        "the last reload has come to its end",
    )
    app.history._recorder.tick()


async def left_over(count_more: Callable[[], Counter[str]]) -> Counter[str]:
    """What there is more than before, once it has had time to go: a socket is closed a turn of the loop later."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LIMIT_S):
            while count_more():
                await asyncio.sleep(0.05)
    return count_more()


async def test_a_hundred_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    """Tasks, descriptors, entries by name, objects: as many at the end as soon after the beginning."""
    cert, key = make_pair(tmp_path)[:2]
    pair = {"cert": str(cert), "key": str(key)}
    async with running(tmp_path) as rig, contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.to(rig.main))
        assert await client.ask("/kept/x") == 200
        kept = rig.launcher.live[0]
        before, objects_before = Counter[str](), Counter[str]()
        for number in range(ROUNDS):
            await round_of_reloads(rig, pair, number)
            assert await client.ask("/kept/x") == 200, "the connection to a listener that stays is dropped"
            if number == STEADY_AFTER:
                await at_rest(rig)
                before, objects_before = census(rig.app), objects(rig.app)
        await at_rest(rig)
        assert await left_over(lambda: census(rig.app) - before) == Counter()
        assert await left_over(lambda: objects(rig.app) - objects_before) == Counter()
        assert not kept.empty.is_set(), "the process that was never mentioned was stopped"
    assert not {name for name in tasks() if not name.startswith("Task-")} - {"app"}


async def test_ever_new_names_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names a model anew each day: nothing is kept by its name but what is bounded."""
    monkeypatch.setattr(book, "LOGS_MAX", 12)
    async with running(tmp_path) as rig:
        before = Counter[str]()
        for number in range(40):
            fresh = endpoint(f"n{number}", str(number))
            one = server(f"T{number}", rig.second, fresh)
            await rig.reload(rig.document(server("S", rig.main, endpoint("kept", "kept"), endpoint("b"), fresh), one))
            assert await ask(rig.second, f"/n{number}/x") == 200
            await rig.reload(rig.document(server("S", rig.main, endpoint("kept", "kept"), endpoint("b"))))
            if number in (19, 39):
                await at_rest(rig)
                if number == 19:
                    before = census(rig.app)
        assert await left_over(lambda: census(rig.app) - before) == Counter()
        assert len(rig.app.logs.listing()) <= 12
