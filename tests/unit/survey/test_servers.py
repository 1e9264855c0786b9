"""Identification: by positive answers, the imitator first, whatever else a server does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from juggler.backends import registry
from juggler.backends.base import (
    Address,
    Backend,
    BackendSettings,
    Caller,
    Capabilities,
    LaunchPlan,
    ProbeResult,
)
from juggler.ids import InstanceId
from juggler.lifecycle.caller import HttpCaller
from juggler.routing.traffic import TrafficTable
from juggler.survey.servers import Identity, reach, who_answers
from tests.ports import free_port

ASKED: list[str] = []


class Named(Backend):
    """Identifies a server that answers ``GET /NAME`` with 200; asks as a real module does."""

    traffic: ClassVar[TrafficTable] = TrafficTable()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    def plan(self, address: Address, environ: object) -> LaunchPlan:
        raise AssertionError("nothing is started")

    async def probe(self, caller: Caller) -> ProbeResult:
        return ProbeResult.NOT_YET

    async def identify(self, caller: Caller) -> str | None:
        ASKED.append(self.type_name)
        answer = await caller.call("GET", f"/{self.type_name}")
        return f"{self.type_name} 1.0" if answer.status == 200 else None


class Stumbling(Named):
    """A module with a mistake in it."""

    type_name: ClassVar[str] = "vllm"

    async def identify(self, caller: Caller) -> str | None:
        raise KeyError("version")


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four modules, whatever the program has."""
    ASKED.clear()
    classes = {name: type(name, (Named,), {"type_name": name}) for name in ("ollama", "comfyui", "koboldcpp")}
    monkeypatch.setattr(registry, "BACKENDS", {**classes, "vllm": Stumbling})


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Address]:
    port = free_port()
    server = await asyncio.start_server(handler, "127.0.0.1", port)
    try:
        yield Address("127.0.0.1", port)
    finally:
        server.close()


def answering(*paths: str) -> Handler:
    """A server that answers 200 on some paths, else 404."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = b"200 OK" if head.split()[1].decode() in paths else b"404 Not Found"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    return handle


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    writer.close()


def identify(handler: Handler, expected: str | None = None, limit_s: float = 5) -> Identity | None:
    async def body() -> Identity | None:
        async with serving(handler) as address:
            backend = None
            if expected is not None:
                backend = registry.create(BackendSettings(InstanceId("i"), "e", expected))
            return await who_answers(HttpCaller(address), backend, limit_s=limit_s)

    return asyncio.run(asyncio.wait_for(body(), 20))


def test_a_server_is_known_by_its_own_word() -> None:
    """Whatever was expected there."""
    for expected in (None, "ollama", "comfyui"):
        assert identify(answering("/comfyui"), expected) == Identity("comfyui", "comfyui 1.0")


def test_the_imitator_is_asked_first() -> None:
    """koboldcpp answers as ollama and ComfyUI do; it is nothing but koboldcpp."""
    assert identify(answering("/ollama", "/comfyui", "/koboldcpp"), "ollama") == Identity("koboldcpp", "koboldcpp 1.0")
    assert ASKED == ["koboldcpp"]


def test_the_expected_program_is_asked_before_the_others() -> None:
    """Its settings may hold what a locked server wants to see; nobody else need be bothered."""
    assert identify(answering("/ollama"), "ollama") == Identity("ollama", "ollama 1.0")
    assert ASKED == ["koboldcpp", "ollama"]


@pytest.mark.parametrize("handler", [answering(), silent, rude])
def test_strangers(handler: Handler) -> None:
    """404 for everything, silence, another protocol: nobody that is known, in bounded time."""
    assert identify(handler, limit_s=0.2) is None


def test_addresses() -> None:
    """An open port is reached by either name; a closed one is refused; a name may be unknown."""

    async def body() -> None:
        async with serving(silent) as address:
            for host in ("127.0.0.1", "localhost"):
                assert await reach(f"http://{host}:{address.port}") == (address, "")
        found, why = await reach(f"http://127.0.0.1:{address.port}")
        assert found is None
        assert "refused" in why
        found, why = await reach("http://no-such-host.invalid:1")
        assert found is None
        assert why

    asyncio.run(asyncio.wait_for(body(), 20))
