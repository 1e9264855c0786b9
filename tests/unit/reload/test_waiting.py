"""Requests that are under way while a reload comes; the program with pretended processes."""

import asyncio
import time
from pathlib import Path

import pytest
from tests.unit.reload.test_many_reloads import Rig, StandIn, ask, endpoint, eventually, running, server

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
