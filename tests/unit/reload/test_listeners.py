"""What a reload does to the operator's listeners; the program with pretended processes."""

import asyncio
import contextlib
import datetime
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.certificates import make_pair
from tests.unit.reload.test_many_reloads import LIMIT_S, Rig, StandIn, ask, endpoint, eventually, running, server

from juggler import listeners
from juggler.app import App
from juggler.config.load import load_config
from juggler.config.resolve import ResolvedServer, resolve
from juggler.errors import ConfigError
from juggler.gateway import EndpointGateway
from juggler.ids import EndpointId
from juggler.proxy.replies import Reply
from juggler.reload.plan import ReloadPlan
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


def readers() -> list[threading.Thread]:
    """Those who read a certificate now."""
    return [one for one in threading.enumerate() if one.name == f"{LOOK} Certificate"]


@contextlib.contextmanager
def hanging_pair(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A certificate that nobody ever finishes reading; at the end all do, also who has not begun to until then."""
    monkeypatch.setattr(listeners, "FILES_LIMIT_S", 0.1)
    pair = make_pair(directory)
    hanging = directory / "hanging.pem"
    os.mkfifo(hanging)
    try:
        yield {"cert": str(hanging), "key": str(pair.key)}
        assert readers()
        assert all(one.daemon for one in readers()), "the loop would wait for it at its end"
    finally:
        end = time.monotonic() + LIMIT_S
        while readers() and time.monotonic() < end:
            with contextlib.suppress(OSError):  # nobody reads at this moment
                os.close(os.open(hanging, os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.005)


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


async def test_nobody_waits_long_for_a_name_while_a_listener_is_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it tried again by itself."""
    async with running(tmp_path) as rig:
        monkeypatch.setattr(listeners, "OPEN_LIMIT_S", 1.0)  # also enough to open the old one again
        resolve = asyncio.get_running_loop().getaddrinfo

        async def getaddrinfo(host: str, *more: Any, **further: Any) -> Any:
            if host == "nas.example":
                await asyncio.sleep(LIMIT_S)
            return await resolve(host, *more, **further)

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        await rig.reload(rig.document(server("S", rig.main, KEPT, B, host="nas.example")), "problems")
        last = rig.app.reloader.last
        assert last is not None
        assert "nas.example" in last.message
        assert not last.passing
        assert await ask(rig.main, "/kept/x") == 200


async def test_who_comes_while_a_reload_fails_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: list[EndpointId]
) -> None:
    """Two servers move to all addresses and the second cannot: the first has taken requests in by then."""
    async with running(tmp_path) as rig:
        home, other = server("S", rig.main, KEPT, B), server("T", rig.second, endpoint("c"))
        await rig.reload(rig.document(home, other))
        assert await ask(rig.main, "/kept/x") == 200
        renamed = {**home, "host": "0.0.0.0", "endpoints": [KEPT, endpoint("other")]}
        with socket.create_server(("127.0.0.2", rig.second)):  # the second tries for a second
            rig.path.write_text(json.dumps(rig.document(renamed, {**other, "host": "0.0.0.0"})))
            opened, open_one = list[str](), rig.app._doors._open

            async def noted(server: ResolvedServer, *args: Any, **more: Any) -> Any:
                door = await open_one(server, *args, **more)
                opened.append(server.name)
                return door

            monkeypatch.setattr(rig.app._doors, "_open", noted)
            reloading = asyncio.create_task(rig.app.reload(by="test"))
            await eventually(lambda: opened, "the first one has moved")
            questions = [asyncio.create_task(ask(rig.main, path)) for path in ("/kept/x", "/kept/slow", "/other/x")]
            await eventually(lambda: len(early) == 3, "they wait")
            assert (await reloading).result == "problems"
        assert await questions[0] == 200
        assert await questions[2] == 503, "there is no such endpoint"
        assert not questions[1].done(), "what runs may end"
        StandIn.go_on.set()
        assert await questions[1] == 200
        assert await ask(rig.main, "/b/x") == 200
        await eventually(lambda: not rig.app._doors._closing, "what was opened is closed")


async def test_who_comes_while_a_reload_is_overtaken_by_the_end_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: list[EndpointId]
) -> None:
    """At once; the reload ends when it does, and has no listener accept anything again."""
    monkeypatch.setattr(listeners, "_FREE_TRIES", 10_000)
    monkeypatch.setattr(listeners, "OPEN_LIMIT_S", LIMIT_S)
    async with running(tmp_path) as rig:
        rig.app.drain_s = LIMIT_S
        busy = asyncio.create_task(ask(rig.main, "/b/slow"))
        await eventually(lambda: rig.app.engine.leases, "it works")
        with socket.create_server(("127.0.0.2", rig.main)):
            home, other = server("S", rig.main, KEPT, B), server("T", rig.second, endpoint("c"))
            rig.path.write_text(json.dumps(rig.document(other, {**home, "host": "0.0.0.0"})))
            listener, reloading = rig.app.listeners["S"], asyncio.create_task(rig.app.reload(by="test"))
            await eventually(lambda: not listener.addresses, "it has left its address")
            question = asyncio.create_task(ask(rig.second, "/c/x"))
            await eventually(lambda: early, "it waits")
            rig.app.stop()
            assert await question == 503
            assert not reloading.done()
        assert (await reloading).result == "refused"
        assert not listener.addresses, "the address is free for the next juggler"
        with socket.create_server(("127.0.0.1", rig.main)):
            pass
        StandIn.go_on.set()
        assert await busy == 200


async def test_two_who_make_a_listener_listen_again_do_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tries from time to time, the other belongs to a reload that failed; the first is not wanted any more."""
    monkeypatch.setattr(listeners, "REOPEN_EVERY_S", 0)
    async with running(tmp_path) as rig:
        door = rig.app._doors._doors["S"]
        listener = door.listener
        go_on, resume, diary = asyncio.Event(), listener.resume, list[str]()

        async def slowly() -> None:
            diary.append("begin")
            await go_on.wait()
            await resume()
            diary.append("end")

        monkeypatch.setattr(listener, "resume", slowly)
        listener.pause()
        rig.app._doors._reopen_later(door)
        await eventually(lambda: diary, "the first one is at it")
        door.lost = False
        prepared = listeners.Prepared({}, asyncio.Event(), paused=[door])
        giving_up = asyncio.create_task(rig.app._doors.give_up(prepared))
        await asyncio.sleep(0)
        go_on.set()
        await giving_up
        assert diary == ["begin", "end"] * 2
        await eventually(lambda: door.reopening is not None and door.reopening.done(), "it has given up")
        assert [port for _, port in listener.addresses] == [rig.main]
        assert await ask(rig.main, "/kept/x") == 200


@pytest.mark.parametrize("fails", [False, True], ids=["", "as the program fails"])
async def test_a_reload_that_is_cancelled_while_it_is_given_up_leaves_no_listener_shut(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless everything ends: then nothing more is begun, and the end is not taken for a mistake of the reload."""
    monkeypatch.setattr(listeners, "REOPEN_EVERY_S", 0.02)
    async with asyncio.TaskGroup() as over:
        pass
    async with running(tmp_path) as rig:
        listener = rig.app.listeners["S"]
        stealing = asyncio.create_task(stolen(rig))
        with socket.create_server(("127.0.0.2", rig.main)):
            rig.path.write_text(json.dumps(rig.document(server("S", rig.main, KEPT, B, host="0.0.0.0"))))
            resume, trying = listener.resume, asyncio.Event()

            async def noted() -> None:
                trying.set()
                await resume()

            monkeypatch.setattr(listener, "resume", noted)
            reloading = asyncio.create_task(rig.app.reload(by="test"))
            with await stealing, monkeypatch.context() as patched:
                await asyncio.wait_for(trying.wait(), LIMIT_S)
                if fails:
                    patched.setattr(rig.app._doors, "_tasks", over)
                reloading.cancel()
                await asyncio.gather(reloading, return_exceptions=True)
                assert reloading.cancelled()
        if not fails:
            await eventually(lambda: listener.addresses, "it listens again")
            assert await ask(rig.main, "/kept/x") == 200


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


async def test_an_expired_certificate_is_told_when_it_is_taken_into_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, however often it was read before for a change that could not be taken up; also by a listener that stays."""

    def secure(name: str) -> dict[str, Any]:
        old = make_pair(tmp_path, name=name, not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        return server("T", rig.secure, endpoint("c"), tls={"cert": str(old.cert), "key": str(old.key)})

    async with running(tmp_path) as rig:
        home, busy = server("S", rig.main, KEPT, B), server("U", rig.second, endpoint("d"))
        for name in ("first", "second"):
            document = rig.document(home, secure(name), busy)
            with socket.create_server(("127.0.0.1", rig.second)):
                for _ in range(2):
                    await rig.reload(document, "problems")
            assert "clients will refuse it" not in caplog.text
            await rig.reload(document)
            assert caplog.text.count(f"{name}.pem has expired: clients will refuse it") == 1
            await rig.reload(rig.document(home, secure(name)))
            await eventually(lambda: not rig.app._doors._closing, "the address of the other one is free")
            caplog.clear()


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


async def test_a_bug_between_the_change_and_its_end_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: list[EndpointId]
) -> None:
    """New listeners are in use, and what came to them too early has not been told."""
    async with running(tmp_path) as rig:
        anteroom: list[asyncio.Task[int]] = []
        prepare, drain = rig.app._doors.prepare, rig.app._doors._drain

        def fail(door: Any) -> None:
            drain(door)
            raise ZeroDivisionError

        async def slowly(plan: ReloadPlan, went_live: asyncio.Event) -> listeners.Prepared:
            prepared = await prepare(plan, went_live)
            anteroom.append(asyncio.create_task(ask(rig.second, "/c/x")))
            await eventually(lambda: early, "it waits")
            return prepared

        monkeypatch.setattr(rig.app._doors, "prepare", slowly)
        monkeypatch.setattr(rig.app._doors, "_drain", fail)
        old = server("S", rig.third, KEPT, B)  # one is to be drained
        await rig.reload(rig.document(server("T", rig.second, endpoint("c")), old), "problems")
        assert "T" in rig.app.listeners
        assert await anteroom[0] == 200


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
