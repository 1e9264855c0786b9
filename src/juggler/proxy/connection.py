"""The states of a client connection (``proxy.client``), and what it needs of its surroundings."""

import asyncio
import contextlib
import enum
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Protocol

from juggler.errors import JugglerError
from juggler.proxy.contract import Gateway
from juggler.proxy.limits import Limits
from juggler.proxy.replies import Replies
from juggler.proxy.turns import Turns
from juggler.units import SECONDS

if sys.platform == "linux":
    import fcntl
    import termios

if TYPE_CHECKING:
    from juggler.proxy.client import ClientConnection
    from juggler.proxy.exchange import Exchange


HOLD_AGAIN_AFTER_S = (0.02 * SECONDS, 0.2 * SECONDS, 0.8 * SECONDS)
"""Pauses before a request is held anew whose backend refused the connection: the end of a process is known within
milliseconds, that of an attached server after a second look."""


class State(enum.Enum):
    """See ``proxy.client``."""

    HEAD = "head"
    BUSY = "busy"
    TUNNEL = "tunnel"
    CLOSING = "closing"


class ListenerSide(Protocol):
    """What a connection needs of its listener."""

    gateway: Gateway
    limits: Limits
    replies: Replies
    draining: bool
    secure: bool
    turns: Turns

    def opened(self, connection: "ClientConnection") -> JugglerError | None: ...
    def closed(self, connection: "ClientConnection") -> None: ...
    def unread(self, connection: "ClientConnection") -> None: ...


class ClientSide(Protocol):
    """What an exchange needs of the client's connection."""

    address: bytes
    write_paused: bool
    """The client does not take what was written; the upstream must not be read."""
    closes: bool
    """Whether the connection ends after this exchange."""
    cut_code: str | None
    """Why we, not the client, ended a request early."""

    @property
    def draining(self) -> bool: ...
    @property
    def secure(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def abort(self) -> None: ...
    def reset(self) -> None: ...
    def update_reading(self) -> None: ...
    def start_tunnel(self) -> bytes: ...
    def tunnel_activity(self) -> None: ...
    def forget_head(self) -> None: ...
    def exchange_over(self, exchange: "Exchange") -> None: ...


class Unreached(Exception):
    """No connection to the backend, and nothing of the request was sent: it can be held again."""

    def __init__(self, error: JugglerError) -> None:
        super().__init__(error.message)
        self.error = error


def reset_when_closed(transport: asyncio.Transport) -> None:
    """Have the end of a connection be seen as an error, where a mere end would look like the answer's.

    Not after it was cut: uvloop has closed its descriptor then, and another connection may have the number.
    """
    with contextlib.suppress(OSError):
        option = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)


def untaken_by_peer(transport: asyncio.Transport) -> int:
    """Bytes written that the other side has not acknowledged, as far as the system tells (Linux: tcp(7), ``SIOCOUTQ``).

    What the transport itself holds shrinks in leaps of a third of the kernel's buffer, megabytes perhaps.
    """
    size = transport.get_write_buffer_size()
    if size and sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):  # ValueError: it has just been closed
            (queued,) = struct.unpack("i", fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4)))
            size += queued
    return size


def wake(waiter: "asyncio.Future[None]") -> None:
    """Let who waits go on; he may have gone already."""
    if not waiter.done():
        waiter.set_result(None)
