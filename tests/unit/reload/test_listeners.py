"""What a reload does to the operator's listeners; the program with pretended processes."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.certificates import make_pair
from tests.unit.reload.test_many_reloads import Rig, StandIn, ask, endpoint, eventually, running, server

from juggler import listeners
from juggler.app import App
from juggler.config.load import load_config
from juggler.config.resolve import resolve
from juggler.errors import ConfigError
from juggler.gateway import EndpointGateway
from juggler.ids import EndpointId
from juggler.proxy.replies import Reply
from juggler.survey.threads import LOOK

KEPT, B = endpoint("kept", "kept"), endpoint("b")


def keep_replies(rig: Rig, *endpoints: str) -> None:
    """As if light requests had been answered there."""
    replies = rig.app._doors._replies
    for name in endpoints:
        replies.store((EndpointId(name), b"question"), Reply(b"", b"answer", replies.clock()))


def with_replies(rig: Rig) -> set[str]:
    return {endpoint for endpoint, _ in rig.app._doors._replies._replies}


async def test_replies_of_an_endpoint_that_is_removed_are_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        keep_replies(rig, "S/kept", "S/b")
        await rig.reload(rig.document(server("S", rig.main, KEPT)))
        assert with_replies(rig) == {"S/kept"}


async def test_replies_of_endpoints_that_swap_their_processes_are_forgotten(tmp_path: Path) -> None:
    """Both processes stay, and each is asked under the other's name from now on."""
    async with running(tmp_path) as rig:
        third = endpoint("third", "third")
        await rig.reload(rig.document(server("S", rig.main, KEPT, B, third)))
        keep_replies(rig, "S/kept", "S/b", "S/third")
        await rig.reload(rig.document(server("S", rig.main, endpoint("kept"), endpoint("b", "kept"), third)))
        assert {one: policy.instance for one, policy in rig.app.engine.endpoints.items()} == {
            "S/kept": "S/b",
            "S/b": "S/kept",
            "S/third": "S/third",
        }
        assert with_replies(rig) == {"S/third"}


async def test_replies_of_a_process_that_is_replaced_go_with_it(tmp_path: Path) -> None:
    """It answers light requests until the last of its work has ended."""
    async with running(tmp_path) as rig:
        busy = asyncio.create_task(ask(rig.main, "/b/slow"))
        await eventually(lambda: rig.app.engine.leases, "it works")
        keep_replies(rig, "S/kept", "S/b")
        await rig.reload(rig.document(server("S", rig.main, KEPT, endpoint("b", "another"))))
        assert with_replies(rig) == {"S/kept"}
        keep_replies(rig, "S/b")
        StandIn.go_on.set()
        assert await busy == 200
        await eventually(lambda: not rig.app._world._successors, "the old process is gone")
        assert with_replies(rig) == {"S/kept"}


@contextlib.contextmanager
def hanging_pair(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A certificate that nobody ever finishes reading."""
    monkeypatch.setattr(listeners, "FILES_LIMIT_S", 0.1)
    pair = make_pair(directory)
    hanging = directory / "hanging.pem"
    os.mkfifo(hanging)
    try:
        yield {"cert": str(hanging), "key": str(pair.key)}
        readers = [one for one in threading.enumerate() if one.name == f"{LOOK} Certificate"]
        assert readers
        assert all(one.daemon for one in readers), "the loop would wait for it at its end"
    finally:
        with contextlib.suppress(OSError):  # nobody reads any more
            os.close(os.open(hanging, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes of this kind")
async def test_a_certificate_that_cannot_be_read_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a reload it is a problem like others; at the start the juggler does not start. Both end."""
    with hanging_pair(tmp_path, monkeypatch) as hanging:
        async with running(tmp_path) as rig:
            secure = server("W", rig.secure, endpoint("f"), tls=hanging)
            document = rig.document(server("S", rig.main, KEPT, B), secure)
            rig.path.write_text(json.dumps(document))
            outcome = await rig.app.reload(by="test")
            assert outcome.result == "problems"
            assert "hanging.pem" in outcome.message
            assert "could not be read within" in outcome.message
        loaded = load_config(rig.path)
        with pytest.raises(ConfigError, match="could not be read within"):
            await App(resolve(loaded), loaded=loaded).run()


async def stolen(rig: Rig) -> socket.socket:
    """The address of the only listener, taken in the moment in which that has left it."""
    while rig.app.listeners["S"].addresses:
        await asyncio.sleep(0.001)
    return socket.create_server(("127.0.0.1", rig.main))


async def test_an_address_that_was_lost_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program took it while a reload, which failed then, had it free; it may be lost once more."""
    monkeypatch.setattr(listeners, "REOPEN_EVERY_S", 0.02)
    monkeypatch.setattr(listeners, "_FREE_TRIES", 5)
    caplog.set_level("INFO", "juggler.app")
    async with running(tmp_path) as rig:
        home = server("S", rig.main, KEPT, B)
        wider = rig.document({**home, "host": "0.0.0.0"})
        for _ in range(2):
            caplog.clear()
            stealing = asyncio.create_task(stolen(rig))
            with socket.create_server(("127.0.0.2", rig.main)):
                await rig.reload(wider, "problems")
                last = rig.app.reloader.last
                assert last is not None
                assert not last.passing, "to try again by itself would shut the listener again and again"
                with await stealing:
                    assert not rig.app.listeners["S"].addresses
                    await rig.reload(rig.document(home), "nothing")
                    await rig.reload(wider, "problems")
                    await asyncio.sleep(0.1)
            await eventually(lambda: rig.app.listeners["S"].addresses, "it listens again")
            assert await ask(rig.main, "/kept/x") == 200
            assert caplog.text.count("listens again") == 1


async def test_a_listener_that_is_moved_away_does_not_want_its_lost_address_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "REOPEN_EVERY_S", 0.02)
    monkeypatch.setattr(listeners, "_FREE_TRIES", 5)
    async with running(tmp_path) as rig:
        home = server("S", rig.main, KEPT, B)
        stealing = asyncio.create_task(stolen(rig))
        with socket.create_server(("127.0.0.2", rig.main)):
            await rig.reload(rig.document({**home, "host": "0.0.0.0"}), "problems")
        with await stealing:
            await rig.reload(rig.document({**home, "port": rig.second}))
        await asyncio.sleep(0.1)
        assert await ask(rig.second, "/kept/x") == 200
        with socket.create_server(("127.0.0.1", rig.main)):
            pass


async def test_certificates_are_read_before_a_listener_leaves_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with them costs nobody a connection."""
    nowhere = {"cert": str(tmp_path / "none.pem"), "key": str(tmp_path / "none.key")}
    async with running(tmp_path) as rig:
        home, other = server("S", rig.main, KEPT, B), server("T", rig.second, endpoint("c"))
        await rig.reload(rig.document(home, other))
        paused: list[str] = []
        for name, listener in rig.app.listeners.items():
            monkeypatch.setattr(listener, "pause", lambda name=name: paused.append(name))
        rig.path.write_text(json.dumps(rig.document({**home, "host": "0.0.0.0"}, {**other, "tls": nowhere})))
        outcome = await rig.app.reload(by="test")
        assert "none.pem" in outcome.message
        assert not paused


async def test_descriptors_are_seen_to_when_all_is_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not taken up neither raises the limit nor warns of it."""
    wanted: list[list[int]] = []

    def make_room(connections: list[int]) -> int:
        wanted.append(connections)
        return 7

    async with running(tmp_path) as rig:
        monkeypatch.setattr(listeners, "make_room", make_room)
        home = server("S", rig.main, KEPT, B)
        both = rig.document(home, server("T", rig.second, endpoint("c"), limits={"connections": 9}))
        with socket.create_server(("127.0.0.1", rig.second)):
            await rig.reload(both, "problems")
        last = rig.app.reloader.last
        assert last is not None
        assert last.passing
        assert wanted == []
        await rig.reload(both)
        assert [len(one) for one in wanted] == [2]
        assert [one.limits.connections for one in rig.app.listeners.values()] == [7, 7]


@pytest.mark.parametrize("part", ["world", "gateway"])
async def test_a_bug_in_the_middle_leaves_no_listener_that_nobody_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """What was opened is closed, what was there before serves on, and all of it ends with the juggler."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with running(tmp_path) as rig:
        document = rig.document(server("T", rig.second, endpoint("c")), server("S", rig.main, KEPT, B))
        with monkeypatch.context() as patched:
            patched.setattr(*{"world": (rig.app._world, "change"), "gateway": (EndpointGateway, "change")}[part], fail)
            await rig.reload(document, "problems")
        last = rig.app.reloader.last
        assert last is not None
        assert last.half_done
        assert set(rig.app.listeners) == {"S"}
        assert await ask(rig.main, "/kept/x") == 200
        with socket.create_server(("127.0.0.1", rig.second)):
            pass
        if part == "world":  # nothing at all was changed
            await rig.reload(document)
            assert await ask(rig.second, "/c/x") == 200
