"""Ports for backends: free when handed out, and not handed out twice."""

import socket
from collections.abc import Iterator

import pytest

from juggler.lifecycle import ports


@pytest.fixture(autouse=True)
def _fresh_memory() -> Iterator[None]:
    ports._handed_out.clear()
    yield
    ports._handed_out.clear()


def test_a_reserved_port_can_be_bound() -> None:
    """Nobody holds the port afterwards, the test bind included."""
    port = ports.reserve_port("127.0.0.1")
    with socket.socket() as backend:
        backend.bind(("127.0.0.1", port))


def test_no_port_is_handed_out_twice() -> None:
    """Backends that start together do not meet on one port, though none has bound yet."""
    reserved = [ports.reserve_port("127.0.0.1") for _ in range(300)]
    assert len(set(reserved)) == 300


def test_a_port_returns_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of ports is bounded in time."""
    ports.reserve_port("127.0.0.1")
    monkeypatch.setattr(ports, "HELD_BACK_S", 0.0)
    port = ports.reserve_port("127.0.0.1")
    assert list(ports._handed_out) == [port]


def test_the_memory_of_ports_is_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten first."""
    monkeypatch.setattr(ports, "HELD_BACK_MAX", 10)
    reserved = [ports.reserve_port("127.0.0.1") for _ in range(30)]
    assert list(ports._handed_out) == reserved[-10:]


def test_an_exhausted_range_repeats_rather_than_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system offers only ports that were handed out, the start is still tried."""
    first = ports.reserve_port("127.0.0.1")
    real_bind = socket.socket.bind
    monkeypatch.setattr(socket.socket, "bind", lambda self, address: real_bind(self, (address[0], first)))
    assert ports.reserve_port("127.0.0.1") == first


def test_a_foreign_address_is_an_error() -> None:
    """An address that is not ours is reported, not replaced (192.0.2.0/24 is for documentation, RFC 5737)."""
    with pytest.raises(OSError, match="assign"):
        ports.reserve_port("192.0.2.1")


@pytest.mark.parametrize("listen_on", ["127.0.0.1", "0.0.0.0"])
def test_a_listener_is_seen(listen_on: str) -> None:
    """Also one on the wildcard address, which SO_REUSEADDR could hide."""
    with socket.socket() as listener:
        listener.bind((listen_on, 0))
        listener.listen()
        assert not ports.is_free("127.0.0.1", listener.getsockname()[1])
    assert ports.is_free("127.0.0.1", ports.reserve_port())
