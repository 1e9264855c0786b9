"""Requests that are under way while a reload comes; the program with pretended processes."""

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.reload.test_many_reloads import LIMIT_S, Rig, StandIn, ask, endpoint, eventually, running, server

from juggler.config.resolve import ResolvedServer
from juggler.ids import EndpointId, PoolId
from juggler.lifecycle.launcher import MachineMemory, MemoryPool
from juggler.lifecycle.supervisor import Supervisor

KEPT = endpoint("kept", "kept")


async def test_a_server_that_is_renamed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request is still looking for its program, and another waits; both are served, also after the next reload."""
    look = Supervisor.look_for_program

    def slow(self: Supervisor) -> None:
        time.sleep(0.3)  # a disk that wakes up; in a thread of its own
        look(self)

    async with running(tmp_path) as rig:
        monkeypatch.setattr(Supervisor, "look_for_program", slow)
        busy = asyncio.create_task(ask(rig.main, "/kept/slow"))
        await eventually(lambda: rig.app.engine.leases, "it works")
        waiting = asyncio.create_task(ask(rig.main, "/kept/x"))
        await eventually(lambda: rig.app.engine.waiters, "it waits")
        looking = asyncio.create_task(ask(rig.main, "/b/x"))
        await asyncio.sleep(0.1)
        await rig.reload(rig.document(server("Other", rig.main, KEPT, endpoint("b"))))
        assert await looking == 200
        assert [one.endpoint for one in rig.app.engine.waiters.values()] == ["Other/kept"]
        await rig.reload(rig.document(server("Third", rig.main, KEPT, endpoint("b"))))
        StandIn.go_on.set()
        assert (await busy, await waiting) == (200, 200)


async def test_a_restart_of_one_whose_server_is_renamed_meanwhile(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        busy = asyncio.create_task(ask(rig.main, "/kept/slow"))
        await eventually(lambda: rig.app.engine.leases, "it works")
        restart = asyncio.create_task(rig.app.steering.restart(EndpointId("S/kept"), LIMIT_S, "test"))
        await asyncio.sleep(0)
        await rig.reload(rig.document(server("Other", rig.main, KEPT, endpoint("b"))))
        assert not restart.done()
        StandIn.go_on.set()
        assert (await restart, await busy) == ("loaded", 200)


def sized(rig: Rig, pool: str, memory: str) -> dict[str, object]:
    both = [endpoint(name, name, memory=memory if name == "kept" else "10GiB") for name in ("kept", "b")]
    return rig.document(server("S", rig.main, *both), memory={"pools": {"gpu0": pool}})


async def test_pools_and_memory_change_together(tmp_path: Path) -> None:
    """Who waits for a model that fits as it is declared now is not refused for what was declared before."""
    before, after = ("24GiB", "20GiB"), ("12GiB", "10GiB")
    async with running(tmp_path) as rig:
        await rig.reload(sized(rig, *before))
        busy = asyncio.create_task(ask(rig.main, "/b/slow"))
        await eventually(lambda: rig.app.engine.leases, "it works")
        waiting = asyncio.create_task(ask(rig.main, "/kept/x"))
        await eventually(lambda: rig.app.engine.waiters, "it waits")
        for sizes in (after, before, after):
            await rig.reload(sized(rig, *sizes))
        StandIn.go_on.set()
        assert (await busy, await waiting) == (200, 200)


async def test_a_new_model_that_is_started_by_the_change_itself(tmp_path: Path) -> None:
    """Who waits goes to it, and it is placed on one of two GPUs, of which nothing is measured."""
    async with running(tmp_path) as rig:
        places = [{"CUDA_VISIBLE_DEVICES": str(one)} for one in range(2)]
        gpus = [MemoryPool(PoolId(f"gpu{one}"), "", 0, placement=place) for one, place in enumerate(places)]
        rig.app.keeper._machine = MachineMemory(tuple(gpus))
        busy = asyncio.create_task(ask(rig.main, "/b/slow"))
        await eventually(lambda: rig.app.engine.leases, "it works")
        waiting = asyncio.create_task(ask(rig.main, "/b/x"))
        await eventually(lambda: rig.app.engine.waiters, "it waits")
        await rig.reload(rig.document(server("S", rig.main, KEPT, endpoint("c"), endpoint("b", "new"))))
        assert await waiting == 200
        StandIn.go_on.set()
        assert await busy == 200


class SlowLook:
    """Programs that are looked for until they are let be found, as on a disk that wakes up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        look = Supervisor.look_for_program

        def slow(supervisor: Supervisor) -> None:
            self.begun.set()
            self.go_on.wait(LIMIT_S)
            look(supervisor)

        monkeypatch.setattr(Supervisor, "look_for_program", slow)


def started(rig: Rig) -> set[str]:
    return {name for name, one in rig.app.engine.scheduler.state.instances.items() if one.generation}


RIGHT, WRONG = endpoint("b"), endpoint("b", "wrong")


def two_servers(rig: Rig, main: str, second: str) -> dict[str, object]:
    return rig.document(server(main, rig.main, KEPT, RIGHT), server(second, rig.second, WRONG))


@pytest.mark.parametrize("then", [None, ("U", "V"), ("S", "T")])
@pytest.mark.parametrize("swap", [False, True])
async def test_a_server_that_takes_the_name_of_another(
    swap: bool, then: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that looks for its program meanwhile gets the model it was routed to, also after one more change."""
    async with running(tmp_path) as rig:
        if swap:
            await rig.reload(two_servers(rig, "S", "T"))
        look = SlowLook(monkeypatch)
        looking = asyncio.create_task(ask(rig.main, "/b/x"))
        await eventually(look.begun.is_set, "it looks for its program")
        await rig.reload(two_servers(rig, "T", "S"))
        if then is not None:
            await rig.reload(two_servers(rig, *then))
        look.go_on.set()
        assert await looking == 200
        assert started(rig) == {"S/b"}


@pytest.mark.parametrize("where", ["another name", "another server"])
async def test_an_endpoint_that_moves(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that looks for its program goes with it; its old name may be another's."""
    async with running(tmp_path) as rig:
        look = SlowLook(monkeypatch)
        looking = asyncio.create_task(ask(rig.main, "/b/x"))
        await eventually(look.begun.is_set, "it looks for its program")
        moved = {**RIGHT, "name": "moved"}
        if where == "another name":
            await rig.reload(rig.document(server("S", rig.main, KEPT, moved)))
        else:
            await rig.reload(rig.document(server("T", rig.main, KEPT), server("S", rig.second, WRONG, moved)))
        look.go_on.set()
        assert await looking == 200
        assert started(rig) == {"S/b"}


@pytest.mark.parametrize("works", [False, True])
async def test_a_server_that_takes_the_name_of_one_that_goes(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for the program of the one that goes, or waits for it, is refused."""
    async with running(tmp_path) as rig:
        await rig.reload(two_servers(rig, "S", "T"))
        if works:
            busy = asyncio.create_task(ask(rig.main, "/b/slow"))
            await eventually(lambda: rig.app.engine.leases, "it works")
        look = SlowLook(monkeypatch)
        asking = asyncio.create_task(ask(rig.main, "/b/x"))
        await eventually(lambda: look.begun.is_set() or rig.app.engine.waiters, "it looks for its program, or waits")
        await rig.reload(rig.document(server("S", rig.second, WRONG)))
        look.go_on.set()
        assert await asking == 503
        if works:
            StandIn.go_on.set()
            assert await busy == 200
        assert "T/b" not in started(rig)


async def test_a_request_that_is_refused_after_a_change_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told under the name of today, and of the model that there is."""
    async with running(tmp_path) as rig:
        ended = rig.app.engine.ended_requests
        monkeypatch.setattr(ended, "on_first", None)  # nobody takes them but us
        busy = asyncio.create_task(ask(rig.main, "/kept/slow"))
        await eventually(lambda: rig.app.engine.leases, "it works")
        waiting = asyncio.create_task(ask(rig.main, "/kept/x"))
        await eventually(lambda: rig.app.engine.waiters, "it waits")
        await rig.reload(rig.document(server("Other", rig.main, KEPT, endpoint("b"))))
        waiting.cancel()
        await eventually(lambda: len(ended), "it has left")
        told = ended.take()
        assert (told.endpoint, told.instance) == ("Other/kept", "S/kept")
        StandIn.go_on.set()
        assert await busy == 200


@pytest.mark.parametrize("is_up", [False, True])
async def test_a_request_on_a_server_that_was_removed(is_up: bool, tmp_path: Path) -> None:
    """Its head was still on its way; it does not get the model of the server that has taken the name over."""
    async with running(tmp_path) as rig:
        await rig.reload(two_servers(rig, "S", "T"))
        if is_up:
            assert await ask(rig.second, "/b/x") == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.main)
        writer.write(b"POST /b/x HTTP/1.1\r\nHost: h\r\n")
        door = rig.app.listeners["S"]
        await eventually(lambda: any(one._buffer for one in door.connections), "half of the head is there")
        await rig.reload(rig.document(server("S", rig.second, WRONG)))
        writer.write(b"Content-Length: 0\r\n\r\n")
        async with asyncio.timeout(LIMIT_S):
            assert b" 503 " in await reader.readline()
        writer.close()
        assert started(rig) == ({"T/b"} if is_up else set())


async def test_an_endpoint_that_goes_before_another_of_its_name_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looked for the program of the first gets nothing of the second, one configuration later."""
    async with running(tmp_path) as rig:
        await rig.reload(two_servers(rig, "S", "T"))
        look = SlowLook(monkeypatch)
        looking = asyncio.create_task(ask(rig.main, "/b/x"))
        await eventually(look.begun.is_set, "it looks for its program")
        await rig.reload(rig.document(server("T", rig.second, WRONG)))
        await rig.reload(rig.document(server("S", rig.second, WRONG)))
        look.go_on.set()
        assert await looking == 503
        assert not started(rig)


async def test_a_new_server_with_a_name_of_long_ago_that_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: list[EndpointId]
) -> None:
    """Who came to it does not get the model that once had this name."""
    async with running(tmp_path) as rig:
        await rig.reload(rig.document(server("T", rig.main, KEPT, RIGHT)))
        asking: list[asyncio.Task[int]] = []
        open_one = rig.app._doors._open

        async def slow(one: ResolvedServer, *others: Any, **named: Any) -> Any:
            if one.name == "U":
                asking.append(asyncio.create_task(ask(rig.second, "/b/x")))
                await eventually(lambda: early, "it waits")
            return await open_one(one, *others, **named)

        monkeypatch.setattr(rig.app._doors, "_open", slow)
        kept, new = server("T", rig.main, KEPT, RIGHT), server("S", rig.second, WRONG)
        with socket.create_server(("127.0.0.1", rig.third)):
            await rig.reload(rig.document(kept, new, server("U", rig.third, endpoint("u"))), "problems")
        assert (early, await asking[0]) == (["S/b"], 503)
        assert not started(rig)


@pytest.mark.parametrize("routed", ["before", "after"])
async def test_a_request_that_is_refused_as_its_endpoint_is_gone(
    routed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told under the name that it asked for, and of no model of another's."""
    async with running(tmp_path) as rig:
        await rig.reload(two_servers(rig, "S", "T"))
        ended = rig.app.engine.ended_requests
        monkeypatch.setattr(ended, "on_first", None)  # nobody takes them but us
        look = SlowLook(monkeypatch)
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.main)
        head, rest = b"POST /b/x HTTP/1.1\r\nHost: h\r\n", b"Content-Length: 0\r\n\r\n"
        door = rig.app.listeners["S"]
        writer.write(head + rest if routed == "before" else head)
        await eventually(
            lambda: look.begun.is_set() or any(one._buffer for one in door.connections), "it is there, or half of it"
        )
        await rig.reload(rig.document(server("S", rig.second, WRONG)))
        if routed == "after":
            writer.write(rest)
        look.go_on.set()
        async with asyncio.timeout(LIMIT_S):
            assert b" 503 " in await reader.readline()
        writer.close()
        told = ended.take()
        assert (told.endpoint, told.instance) == ("S/b", "S/b")
