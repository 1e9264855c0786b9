"""Tells systemd how it goes: ready, reloading, stopping, one line of status, and that the loop still turns.

The protocol is a datagram of ``NAME=value`` lines to the socket named in ``NOTIFY_SOCKET`` (sd_notify(3)). A reload is
``RELOADING=1``, with ``MONOTONIC_USEC`` for units of ``Type=notify-reload``, then ``READY=1``. Where there is no such
socket, nothing is done at all; what goes wrong with it harms nothing else.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from juggler.units import SECONDS

STATUS_EVERY_S = 5 * SECONDS
"""Shortest time between two lines of status."""
_OWN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_log = logging.getLogger("juggler.service")


class Notifier:
    """One process's side of it. Takes its variables out of the environment: backends are not the service.

    Args:
        environ: The process's environment.
        pid: Of this process.
    """

    def __init__(self, environ: MutableMapping[str, str], pid: int | None = None) -> None:
        pid = os.getpid() if pid is None else pid
        values = {name: environ.pop(name, "") for name in _OWN}
        self._address = _address(values["NOTIFY_SOCKET"])
        self._socket: socket.socket | None = None
        self._status = ""
        self.watchdog_s: float | None = None
        """The service manager wants to hear from us this often, or it ends us; None: it does not watch."""
        if values["WATCHDOG_USEC"].isdigit() and values["WATCHDOG_PID"] in ("", str(pid)):
            self.watchdog_s = int(values["WATCHDOG_USEC"]) / 1e6 or None
        if self._address is not None:
            try:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            except (AttributeError, OSError) as error:
                _log.warning("the service manager cannot be told anything: %s", error)

    @property
    def wanted(self) -> bool:
        """Whether somebody listens."""
        return self._socket is not None

    def ready(self) -> None:
        """All listeners are open."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is read again; ``ready`` follows, whatever comes of it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, drain_s: float) -> None:
        """It ends; running requests have ``drain_s`` seconds, for which the unit's own patience may be too short."""
        self._send(f"STOPPING=1\nSTATUS=Shutting down\nEXTEND_TIMEOUT_USEC={int(drain_s * 1e6)}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent if it is another one than before."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + " ".join(text.split()))

    async def run(self, status: Callable[[], str]) -> None:
        """Keep the service manager informed until cancelled; returns at once where nobody listens.

        The watchdog is told by the loop itself: one that hangs is ended and started anew.

        Args:
            status: What to say now.
        """
        if not self.wanted:
            return
        pause_s = STATUS_EVERY_S if self.watchdog_s is None else min(STATUS_EVERY_S, self.watchdog_s / 2)
        while True:
            self.status(status())
            if self.watchdog_s is not None:
                self._send("WATCHDOG=1")
            await asyncio.sleep(pause_s)

    def close(self) -> None:
        """Say nothing more. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as error:  # it is gone, or its queue is full: the next message says more than this one did
            _log.debug("the service manager was not told %r: %s", text.partition("\n")[0], error)


def _address(name: str) -> str | None:
    """The socket's address; a name that begins with ``@`` is in Linux's abstract namespace (unix(7))."""
    if name.startswith("/"):
        return name
    if name.startswith("@") and len(name) > 1:
        return "\0" + name[1:]
    if name:
        _log.warning("NOTIFY_SOCKET is %r, which is no address that is known here", name)
    return None
