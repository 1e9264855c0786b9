"""What the service manager is told, with a real datagram socket in its place."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from juggler.service.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def environ(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), "HOME": "/root", **more}


def heard(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_the_life_of_a_service(manager: socket.socket) -> None:
    notifier = Notifier(environ(manager))
    notifier.ready()
    notifier.status("1 of 3  loaded\n2 waiting")
    notifier.status("1 of 3  loaded\n2 waiting")
    notifier.reloading()
    notifier.ready()
    notifier.stopping(90.0)
    ready, status, reloading, again, stopping = heard(manager)
    assert (ready, again) == ("READY=1", "READY=1")
    assert status == "STATUS=1 of 3 loaded 2 waiting", "one line, and sent once"
    first, second = reloading.split("\n")
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    assert stopping.split("\n") == ["STOPPING=1", "STATUS=Shutting down", "EXTEND_TIMEOUT_USEC=90000000"]
    notifier.close()
    notifier.ready()
    assert heard(manager) == []


def test_backends_do_not_inherit_it(manager: socket.socket) -> None:
    variables = environ(manager, WATCHDOG_USEC="1000000", WATCHDOG_PID="7")
    notifier = Notifier(variables, pid=7)
    assert variables == {"HOME": "/root"}
    assert notifier.watchdog_s == 1.0
    notifier.close()


@pytest.mark.parametrize(
    ("variables", "watched"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_ours_only(variables: dict[str, str], watched: float | None) -> None:
    assert Notifier(dict(variables), pid=7).watchdog_s == watched


async def test_the_loop_itself_tells_the_watchdog(manager: socket.socket) -> None:
    """Twice within its time; a loop that hangs says nothing."""
    notifier = Notifier(environ(manager, WATCHDOG_USEC="40000"))
    running = asyncio.create_task(notifier.run(lambda: "fine"))
    loop = asyncio.get_running_loop()
    end = loop.time() + 10
    told: list[str] = []
    while told.count("WATCHDOG=1") < 3 and loop.time() < end:
        await asyncio.sleep(0.005)
        told += heard(manager)
    running.cancel()
    assert told[0] == "STATUS=fine"
    assert told.count("WATCHDOG=1") >= 3
    assert told.count("STATUS=fine") == 1
    notifier.close()


async def test_without_a_service_manager_nothing_is_done() -> None:
    notifier = Notifier({"HOME": "/root"})
    assert not notifier.wanted
    await asyncio.wait_for(notifier.run(lambda: pytest.fail("asked for nothing")), 5)
    notifier.ready()


def test_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"juggler-test-notify-{os.getpid()}"
        sock.bind(f"\0{name}")
        sock.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.ready()
        notifier.close()
        assert heard(sock) == ["READY=1"]


def test_a_manager_that_is_gone_or_does_not_read_harms_nothing(tmp_path: Path, manager: socket.socket) -> None:
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    gone.ready()
    gone.close()
    full = Notifier(environ(manager))
    for number in range(5000):
        full.status(f"{number}")
    full.close()


def test_an_address_of_another_kind_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier({"NOTIFY_SOCKET": "vsock:2:1234"}).wanted
    assert "vsock:2:1234" in caplog.text
