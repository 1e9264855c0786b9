"""The whole history beside an engine, in virtual time."""

import asyncio
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from juggler.ended import ENDED_KEPT
from juggler.errors import JugglerError
from juggler.history.history import Batch, History
from juggler.history.limits import HistoryLimits
from juggler.history.recorder import local_day
from juggler.history.timeline import Timeline
from juggler.ids import RequestId
from juggler.proxy.contract import RequestInfo
from juggler.routing.traffic import TrafficClass
from juggler.scheduler.events import OrderKind, RequestCancelled
from juggler.testing.fake_launcher import FakeProgram
from juggler.testing.virtual_time import run_virtual
from tests.unit.history.make import ended
from tests.unit.history.world import CHAT, IMAGE, World, recorded_world, states

Plain = dict[str, Any]


async def requests_of(history: History, **more: Any) -> list[Plain]:
    await asyncio.sleep(0.6)
    return cast(list[Plain], (await history.records(**more))["requests"])


async def spans_of(world: World, history: History) -> list[Plain]:
    await asyncio.sleep(0.6)
    return cast(list[Plain], (await history.spans(0.0, world.wall()))["spans"])


def test_a_request_is_recorded_with_its_times(tmp_path: Path) -> None:
    """What it waited for, what it loaded, how long it took, and nothing else of it."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            await world.serve(CHAT, 4.0, target=b"/v1/chat?api_key=geheim&n=1")
            await world.serve(CHAT, 2.0, status=503)
            later, first = await requests_of(history)
            assert first["target"] == "/v1/chat?api_key=***&n=1"
            assert (first["endpoint"], first["instance"], first["method"]) == (CHAT, CHAT, "POST")
            assert (first["class"], first["outcome"], first["status"]) == ("work", "ok", 200)
            assert first["load_s"] == pytest.approx(10.0, abs=0.5)
            assert first["queue_s"] + first["load_s"] == pytest.approx(
                first["granted_at"] - first["arrived_at"], abs=0.01
            )
            assert first["ended_at"] - first["granted_at"] == pytest.approx(4.0, abs=0.01)
            assert first["first_byte_at"] - first["granted_at"] == pytest.approx(2.0, abs=0.01)
            assert first["evicted_s"] == 0.0
            assert (later["outcome"], later["error"], later["load_s"]) == ("error", None, 0.0)
            assert later["request"] > first["request"]
            assert later["record"] > first["record"]

    run_virtual(scenario())


def test_how_requests_can_end(tmp_path: Path) -> None:
    """Refused, cancelled by the operator, left by its client, broken: each has its word."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            engine = world.engine
            await world.serve(CHAT)
            with pytest.raises(JugglerError):
                await world.serve(IMAGE, traffic=TrafficClass.LIGHT)
            running = asyncio.ensure_future(world.serve(CHAT, 50.0, error="upstream_closed", status=200))
            await asyncio.sleep(1.0)
            leaves = asyncio.ensure_future(engine.acquire(world.route(IMAGE), RequestInfo(b"GET", b"/", "1.2.3.4")))
            cancelled = asyncio.ensure_future(world.serve(IMAGE))
            await asyncio.sleep(1.0)
            leaves.cancel()
            engine.post(RequestCancelled(engine.now(), RequestId(max(engine.waiters))))
            with pytest.raises(JugglerError):
                await cancelled
            await running
            await world.serve(CHAT, client_gone=True)
            found = await requests_of(history)
            assert [(one["outcome"], one["error"]) for one in found] == [
                ("client_left", None),
                ("error", "upstream_closed"),
                ("cancelled", "cancelled_by_operator"),
                ("client_left", None),
                ("refused", "not_ready"),
                ("ok", None),
            ]
            assert [one["request"] is None for one in found] == [False, False, True, True, True, False]

    run_virtual(scenario())


def test_a_swap_has_its_spans_and_its_reason(tmp_path: Path) -> None:
    """Loads, work and the eviction follow each other without gaps, and the evicted one says for whom it went."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, batches):
            await world.serve(CHAT, 5.0)
            await asyncio.sleep(60.0)
            await world.serve(IMAGE, 5.0)
            await asyncio.sleep(10.0)
            found = await spans_of(world, history)
            assert states(found, CHAT) == ["starting", "busy", "ready", "unloading", "unloaded"]
            assert states(found, IMAGE) == ["starting", "busy", "ready"]
            own = [one for one in found if one["instance"] == CHAT]
            assert all(one["to_at"] == other["from_at"] for one, other in pairwise(own))
            unloading = own[-2]
            assert unloading["why"] == "evicted by image, nothing else could make room"
            loading = next(one for one in found if one["instance"] == IMAGE)
            assert unloading["decision"] == loading["decision"]
            assert (unloading["evicted_by"], loading["evicted_by"]) == (loading["instance"], None)
            assert loading["from_at"] >= unloading["to_at"]
            assert found[-1]["to_at"] is None
            busy = own[1]
            assert busy["to_at"] - busy["from_at"] == pytest.approx(5.0, abs=0.01)
            image = (await requests_of(history))[0]
            assert image["evicted_s"] == pytest.approx(unloading["to_at"] - unloading["from_at"], abs=0.01)
            outcomes = [one.outcome for batch in batches for one in batch.decisions]
            assert outcomes[-1] == "ready"

    run_virtual(scenario())


def test_a_long_request_shows_as_busy_while_it_runs(tmp_path: Path) -> None:
    """Nothing tells of a request that is let in at an instance that is ready, but it is seen all the same."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            await world.serve(CHAT, 1.0)
            await asyncio.sleep(100.0)
            running = asyncio.ensure_future(world.serve(CHAT, 500.0))
            await asyncio.sleep(1.0)
            assert states(await spans_of(world, history), CHAT)[-1] == "busy"
            await running

    run_virtual(scenario())


def test_short_pauses_make_no_spans(tmp_path: Path) -> None:
    """A hundred requests in a row are one span of work, not a hundred."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            for _ in range(100):
                await world.serve(CHAT, 0.05)
                await asyncio.sleep(0.5)
            assert states(await spans_of(world, history), CHAT) == ["starting", "busy"]

    run_virtual(scenario())


def test_failures_are_told_and_counted(tmp_path: Path) -> None:
    """A start that fails, and an exit: the spans say it, and so do the metrics."""

    async def scenario() -> None:
        broken = FakeProgram(exits_after_s=3.0, exit_status=7, lingers_s=1.0)
        async with recorded_world(tmp_path, program=broken) as (world, history, _):
            with pytest.raises(JugglerError):
                await world.serve(CHAT)
            found = await spans_of(world, history)
            assert states(found, CHAT) == ["starting", "failed"]
            assert "exit status 7" in found[1]["why"]
            text = history.metrics().decode()
            assert f'juggler_instance_failures_total{{kind="start",model_instance="{CHAT}"}} 1.0' in text

    run_virtual(scenario())


def test_no_work_while_nothing_happens(tmp_path: Path) -> None:
    """A day of idleness costs not a single look; the first request wakes the recorder."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, batches):
            await world.serve(CHAT)
            await asyncio.sleep(120.0)
            looks = 0
            tick = history._recorder.tick

            def counted(*, last: bool = False) -> bool:
                nonlocal looks
                looks += 1
                return tick(last=last)

            history._recorder.tick = counted  # type: ignore[method-assign]
            await asyncio.sleep(24 * 3600.0)
            assert looks == 0
            batches.clear()
            await world.serve(CHAT)
            await asyncio.sleep(0.3)
            assert looks > 0
            assert sum(len(batch.requests) for batch in batches) == 1

    run_virtual(scenario())


def test_the_sums_of_the_day(tmp_path: Path) -> None:
    """The number that says how much of all request time went into loads; sockets that stay open do not dilute it."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            await world.serve(CHAT, 30.0)
            await world.serve(CHAT, 500.0, traffic=TrafficClass.HELD_OPEN)
            await world.serve(IMAGE, 10.0)
            await asyncio.sleep(0.6)
            today = history.today()
            assert (today["requests"], today["failures"], today["swaps"], today["loads"]) == (3, 0, 1, 2)
            assert cast(float, today["loading_s"]) == pytest.approx(21.0, abs=1.0)
            assert cast(float, today["total_s"]) == pytest.approx(61.0, abs=1.0)
            assert cast(float, today["share_waiting"]) == pytest.approx(0.34, abs=0.02)
            days = cast(list[Plain], (await history.days(30))["days"])
            assert len(days) == 1
            assert {name: one["requests"] for name, one in days[0]["endpoints"].items()} == {CHAT: 2, IMAGE: 1}
            assert {**today, "day": days[0]["day"], "endpoints": days[0]["endpoints"]} == days[0]

    run_virtual(scenario())


def test_a_new_day_begins_at_zero(tmp_path: Path) -> None:
    """Each day has its own sums, and the one before stays on the disk."""

    async def scenario() -> None:
        async with recorded_world(tmp_path, limits=HistoryLimits()) as (world, history, _):
            await world.serve(CHAT)
            await asyncio.sleep(26 * 3600.0)
            assert history.today()["requests"] == 0
            await world.serve(CHAT)
            await world.serve(CHAT)
            await asyncio.sleep(0.6)
            assert history.today()["requests"] == 2
        async with recorded_world(tmp_path, limits=HistoryLimits()) as (world, history, _):
            await asyncio.sleep(26 * 3600.0)
            days = cast(list[Plain], (await history.days(30))["days"])
            assert [one["requests"] for one in days][-2:] == [2, 1]

    run_virtual(scenario())


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    """Requests, spans, sums and series of an earlier run are found beside those of this one."""

    async def scenario() -> None:
        async with recorded_world(tmp_path, limits=HistoryLimits()) as (world, history, _):
            for _ in range(5):
                await world.serve(CHAT)
            await asyncio.sleep(20.0)
            before = await requests_of(history)
            spans_before = await spans_of(world, history)
        await asyncio.sleep(1000.0)
        async with recorded_world(tmp_path, limits=HistoryLimits()) as (world, history, _):
            await world.serve(IMAGE)
            found = await requests_of(history)
            assert [one["record"] for one in found[1:]] == [one["record"] for one in before]
            assert found[1:] == before
            page = await history.records(limit=2)
            assert page["more"] is True
            older = await history.records(before=found[1]["record"], limit=10)
            assert older == {"requests": found[2:], "more": False}
            assert await requests_of(history, endpoint=IMAGE) == found[:1]
            assert await requests_of(history, outcome="refused") == []
            spans = await spans_of(world, history)
            assert [one["span"] for one in spans][: len(spans_before)] == [one["span"] for one in spans_before]
            assert all(one["to_at"] is not None for one in spans[: len(spans_before)])
            await asyncio.sleep(15.0)
            series = cast(Plain, await history.series(spans[0]["from_at"] - 5.0, world.wall(), 10.0))
            assert (sum(series["loads"]), sum(series["requests"])) == (2, 6)
            assert None in series["pools"]["exclusive"]["used_bytes"]  # between the two
            for _ in range(1000):  # what was counted before comes from the writer's thread
                if history.today()["requests"] == 6:
                    break
                await asyncio.to_thread(time.sleep, 0.01)
            assert history.today()["requests"] == 6

    run_virtual(scenario())


def test_two_models_in_turns(tmp_path: Path) -> None:
    """Two that push each other out more than they serve are named."""

    async def scenario() -> None:
        async with recorded_world(tmp_path, load_s=20.0) as (world, history, _):
            for _ in range(4):
                await world.serve(CHAT, 1.0)
                await world.serve(IMAGE, 1.0)
            await asyncio.sleep(0.6)
            answer = await history.spans(0.0, world.wall())
            (pair,) = cast(list[Plain], answer["thrash"])
            assert pair["instances"] == [CHAT, IMAGE]
            assert pair["swaps"] >= 4
            assert pair["text"].startswith("chat and image took turns")

    run_virtual(scenario())


def test_memory_over_time(tmp_path: Path) -> None:
    """What is loaded shows in the series; where nothing happened the last value holds."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            begun = world.wall()
            await asyncio.sleep(3610.0)
            await world.serve(CHAT)
            await asyncio.sleep(3600.0)
            await world.engine.order(CHAT, OrderKind.STOP)
            await asyncio.sleep(20.0)
            answer = cast(Plain, await history.series(begun, world.wall(), 600.0))
            used = answer["pools"]["exclusive"]["used_bytes"]
            assert used == [0] * 7 + [1] * 6
            last = cast(Plain, await history.series(world.wall(), world.wall(), 10.0))
            assert last["pools"]["exclusive"]["used_bytes"] == [0]
            assert sum(answer["requests"]) == sum(answer["loads"]) == 1

    run_virtual(scenario())


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_clock_is_set_back(tmp_path: Path, on_disk: bool) -> None:
    """By an hour, which was over midnight: what was counted on each day stays, and the series are in order."""

    async def on_this_day(world: World, history: History) -> object:
        days = cast(list[Plain], (await history.days(3))["days"])
        return {one["day"]: one["requests"] for one in days}[local_day(world.wall())]

    async def scenario() -> None:
        limits = HistoryLimits() if on_disk else None
        async with recorded_world(tmp_path, limits=limits) as (world, history, _):
            until_midnight_s = 86400.0 - (time.localtime(world.wall()).tm_hour * 3600.0)
            await asyncio.sleep(until_midnight_s - 1800.0)
            await world.serve(CHAT)
            await asyncio.sleep(3600.0)
            await world.serve(CHAT)
            await world.serve(CHAT)
            await asyncio.sleep(20.0)
            before = await requests_of(history)
            world.clock.WALL_START_S -= 3600.0
            assert await on_this_day(world, history) == 1
            await world.serve(CHAT)
            await asyncio.sleep(20.0)
            assert await on_this_day(world, history) == history.today()["requests"] == 2
            found = await requests_of(history)
            assert found[1:] == before
            now = world.wall()
            series = cast(Plain, await history.series(now - 7200.0, now + 7200.0, 600.0))
            assert sum(series["requests"]) == 4
            for from_at, requests in ((now - 600.0, 2), (now + 3000.0, 2), (now - 2400.0, 0)):
                series = cast(Plain, await history.series(from_at, from_at + 600.0, 10.0))
                assert sum(series["requests"]) == requests
            await asyncio.sleep(3600.0)
            await world.serve(CHAT)
            await asyncio.sleep(1.0)
            assert await on_this_day(world, history) == history.today()["requests"] == 3

    run_virtual(scenario())


def test_a_listener_that_fails_harms_nobody(tmp_path: Path) -> None:
    """The others hear all the same, and the recorder goes on."""

    def broken(batch: Batch) -> None:
        raise ValueError(len(batch.requests))

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, batches):
            history.subscribe(broken)
            stop = history.subscribe(batches.append)
            await world.serve(CHAT)
            await asyncio.sleep(1.0)
            assert sum(len(batch.requests) for batch in batches) == 2
            stop()
            stop()
            await world.serve(CHAT)
            await asyncio.sleep(1.0)
            assert sum(len(batch.requests) for batch in batches) == 3

    run_virtual(scenario())


def test_more_than_can_be_taken_is_said_to_be_lost(tmp_path: Path) -> None:
    """A loop that stood still while very many ended: the oldest are lost, and counted."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            for _ in range(ENDED_KEPT + 3):
                world.engine.ended_requests.add(ended())
            text = history.metrics().decode()
            assert "juggler_history_lost_requests_total 3.0" in text
            assert history.today()["requests"] == ENDED_KEPT

    run_virtual(scenario())


def test_a_mistake_in_the_recorder_harms_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a look that fails nor a move that cannot be told stops anything; the log says so once."""

    def broken(*_: object) -> None:
        raise ValueError("a mistake")

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            with monkeypatch.context() as patched:
                patched.setattr(Timeline, "moved", broken)
                patched.setattr(Timeline, "look", broken)
                await world.serve(CHAT)
                await world.serve(IMAGE)
            await world.serve(IMAGE)
            assert len(await requests_of(history)) >= 1
            assert history.today()["requests"] != 0

    run_virtual(scenario())
    assert caplog.text.count("something could not be recorded") == 1


def test_a_flood_is_summed_up(tmp_path: Path) -> None:
    """More requests than can be kept one by one are in the sums and metrics, and said to be left out."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, batches):
            await world.serve(CHAT)
            await asyncio.sleep(1.0)
            batches.clear()
            for _ in range(700):
                await world.serve(CHAT, 0.0)
            await asyncio.sleep(1.0)
            assert sum(batch.skipped for batch in batches) == 200
            assert history.today()["requests"] == 701
            assert len(await requests_of(history, limit=1000)) == 500
            assert f'juggler_requests_total{{endpoint="{CHAT}",outcome="ok"}} 701.0' in history.metrics().decode()

    run_virtual(scenario())
