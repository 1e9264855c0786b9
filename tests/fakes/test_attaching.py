"""Finding the server to attach to: real sockets, a scripted probe."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from tests.ports import free_port

from juggler.backends.base import Address, BackendSettings
from juggler.clock import SystemClock
from juggler.errors import AttachFailed
from juggler.ids import InstanceId
from juggler.lifecycle import attaching
from juggler.lifecycle.attaching import AttachedHandle, AttachTarget, connect_problem, has_died
from juggler.testing.fake_backend import NOT_YET, READY, WRONG_SERVER, FakeBackend
from juggler.testing.scripted import Act


@asynccontextmanager
async def listening(host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A port on which something accepts and stays silent."""
    held: list[asyncio.StreamWriter] = []
    port = free_port(host)
    server = await asyncio.start_server(lambda reader, writer: held.append(writer), host, port)
    try:
        yield port
    finally:
        for writer in held:
            writer.transport.abort()
        server.close()
        await server.wait_closed()


def target(
    url: str, probes: Iterable[Act] = (READY,), *, binary: str | None = None, timeout_s: float = 600
) -> AttachTarget:
    settings = BackendSettings(
        InstanceId("S/chat"), "chat", "fake", binary=binary, attach_to=url, start_timeout_s=timeout_s
    )
    return AttachTarget(url, FakeBackend(settings, script={"probe": probes}), SystemClock())


async def test_it_is_found() -> None:
    async with listening() as port:
        caller = await target(f"http://localhost:{port}").find()
        assert caller.address == Address("127.0.0.1", port)
        assert await target(f"http://127.0.0.1:{port}").answers()


async def test_localhost_is_both_loopbacks() -> None:
    """A server on ::1 alone is found, whatever the name service says of localhost."""
    async with listening("::1") as port:
        caller = await target(f"http://localhost:{port}").find()
        assert caller.address == Address("::1", port)


async def test_one_that_still_loads_is_waited_for() -> None:
    async with listening() as port:
        await target(f"http://localhost:{port}", [NOT_YET, NOT_YET, READY]).find()
        assert not await target(f"http://localhost:{port}", [NOT_YET]).answers()


async def test_one_that_never_gets_ready_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint's own, or a short one where a process can be started instead."""
    async with listening() as port:
        with pytest.raises(AttachFailed, match="not ready after"):
            await target(f"http://localhost:{port}", [NOT_YET], timeout_s=0.3).find()
        monkeypatch.setattr(attaching, "LOADING_LIMIT_S", 0.3)
        with pytest.raises(AttachFailed, match="not ready after"):
            await target(f"http://localhost:{port}", [NOT_YET], binary="/x").find()


async def test_another_program_is_named_as_such() -> None:
    async with listening() as port:
        with pytest.raises(AttachFailed, match="is no fake"):
            await target(f"http://localhost:{port}", [WRONG_SERVER]).find()


@pytest.mark.parametrize(("host", "why"), [("127.0.0.1", "refused"), ("no-such-host.invalid", "resolved")])
async def test_nothing_there(host: str, why: str) -> None:
    """The error names endpoint, address and reason, and when to come back."""
    port = free_port()
    with pytest.raises(AttachFailed, match=why) as caught:
        await target(f"http://{host}:{port}").find()
    assert f"http://{host}:{port}" in caught.value.message
    assert caught.value.endpoint == "chat"
    assert caught.value.retry_after_s


async def test_death_needs_two_failed_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose backlog was full for a moment is alive."""
    monkeypatch.setattr(attaching, "SECOND_LOOK_S", 0.01)
    async with listening() as port:
        address = Address("127.0.0.1", port)
        assert not await has_died(address)
        problems = iter(["busy", ""])

        async def moody(_address: Address) -> str:
            return next(problems)

        monkeypatch.setattr(attaching, "connect_problem", moody)
        assert not await has_died(address)
        monkeypatch.undo()
    assert await connect_problem(address)


async def test_the_handle_ends_when_it_is_let_go() -> None:
    """Nothing is signalled; whoever waits is told."""
    handle = AttachedHandle("S/chat#1", Address("127.0.0.1", 1), SystemClock())
    waiting = asyncio.create_task(handle.wait())
    await handle.signal("SIGTERM")
    await asyncio.sleep(0)
    assert handle.exit is None
    report = await handle.stop()
    assert await waiting == report == await handle.kill() == handle.lost()
    assert handle.output() == []
