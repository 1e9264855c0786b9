"""Servers that run on the ports one looks at."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from juggler.setup import servers
from juggler.setup.places import Surroundings
from juggler.setup.servers import Seen, find_servers
from tests.ports import free_port
from tests.unit.doctor.tools import answering


async def look(*ports: int, own_pid: int | None = None) -> list[Seen]:
    return await asyncio.wait_for(find_servers(Surroundings({}, Path("/nonexistent"), ports=ports), own_pid), 30)


def test_servers_are_told_apart() -> None:
    """ollama by its own word, a stranger as nobody, a closed port not at all; nothing but questions is asked."""
    asked: list[str] = []

    async def body() -> list[Seen]:
        genuine = {"/api/version": '{"version":"0.33.0"}', "/": "Ollama is running"}
        async with answering(genuine, asked) as ollama, answering({"/": "<html>"}, asked) as stranger:
            found = await look(stranger, ollama, free_port(), ollama)
            assert [one.port for one in found] == [stranger, ollama]
            return found

    stranger, ollama = asyncio.run(body())
    assert stranger.identity is None
    assert ollama.identity is not None
    assert ollama.identity.type == "ollama"
    assert "0.33.0" in ollama.identity.text
    assert ollama.url == f"http://127.0.0.1:{ollama.port}"
    assert all(line.startswith(("GET ", "HEAD ")) for line in asked)


def test_an_imitator_is_itself() -> None:
    """koboldcpp on ollama's port is not ollama."""
    answers = {
        "/api/extra/version": '{"result":"KoboldCpp","version":"1.116.1"}',
        "/api/version": '{"version":"0.7.0"}',
    }

    async def body() -> list[Seen]:
        async with answering(answers) as port:
            return await look(port)

    (found,) = asyncio.run(body())
    assert found.identity is not None
    assert found.identity.type == "koboldcpp"


def test_a_silent_server_costs_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts and says nothing: taken, by nobody known, within the bound; the others do not wait for it."""
    monkeypatch.setattr(servers, "PORT_LIMIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (found,) = asyncio.run(look(silent.getsockname()[1]))
        assert found.identity is None
        assert found.holder is None or found.holder.pid == os.getpid()


def test_ports_of_our_own_juggler_are_passed_over() -> None:
    """Attaching a juggler to itself would be a loop."""

    async def body() -> list[Seen]:
        async with answering({}) as port:
            return await look(port, own_pid=os.getpid())

    found = asyncio.run(body())
    assert found == [] or found[0].holder is None  # None: the holder cannot be seen on this system


def test_what_one_would_expect() -> None:
    """For the remark about a port that is taken."""
    assert Seen(11434, "127.0.0.1", None, None).usual == "ollama"
    assert Seen(4711, "127.0.0.1", None, None).usual == "another program"
    assert Seen(11434, "::1", None, None).url == "http://[::1]:11434"
