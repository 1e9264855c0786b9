"""TLS handshakes of a listener, bounded: whoever opens connections and says nothing costs 300 KiB each until they end.

Event loops tell of a TLS connection when its handshake is done, and of what they accept before that nobody knows. So
these are accepted here. A connection is let in, and counted with the others (``proxy.crowd``), when its handshake is
done; among those who are still at it the oldest makes room, so a crowd of silent ones shuts nobody out.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable

from juggler.proxy.tls import HANDSHAKE_LIMIT_S, Certificate
from juggler.units import SECONDS

_log = logging.getLogger("juggler.proxy")

MOST = 128
"""Handshakes at a time: 40 MiB at most, and one takes two round trips."""

_SLACK_S = 1 * SECONDS

_PAUSE_S = 1 * SECONDS
"""After an accept that failed, mostly for lack of descriptors."""


class Handshakes:
    """See the module.

    Args:
        certificate: What we prove ourselves with.
        protocol: Makes the protocol of a connection that is let in.
        shutdown_limit_s: For the transport to end a connection after everything was written.
    """

    def __init__(
        self, certificate: Certificate, protocol: Callable[[], asyncio.Protocol], shutdown_limit_s: float
    ) -> None:
        self._certificate = certificate
        self._protocol = protocol
        self._shutdown_limit_s = shutdown_limit_s
        self._loop = asyncio.get_running_loop()
        self._pending: dict[asyncio.Task[None], socket.socket] = {}
        self._accepting: set[asyncio.Task[None]] = set()

    def accept_on(self, listening: socket.socket, backlog: int) -> None:
        """Accept connections of a bound socket, through a descriptor of our own."""
        own = socket.socket(fileno=os.dup(listening.fileno()))
        own.setblocking(False)
        own.listen(backlog)
        self._accepting.add(self._loop.create_task(self._accept(own), name="accept TLS connections"))

    def stop_accepting(self) -> None:
        """Let nobody further come."""
        for task in self._accepting:
            task.cancel()
        self._accepting.clear()

    def abort(self) -> None:
        """Also cut all that have not been let in."""
        self.stop_accepting()
        for task in list(self._pending):
            self._cut(task)

    async def _accept(self, listening: socket.socket) -> None:
        with listening:
            while True:
                try:
                    accepted, _ = await self._loop.sock_accept(listening)
                except ConnectionError:
                    continue  # gone before we came to it
                except OSError as error:
                    _log.warning("no connection can be accepted: %s", error.strerror)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                if len(self._pending) >= MOST:
                    self._cut(next(iter(self._pending)))
                task = self._loop.create_task(self._shake(accepted), name="TLS handshake")
                self._pending[task] = accepted
                task.add_done_callback(lambda done: self._pending.pop(done, None))

    def _cut(self, task: "asyncio.Task[None]") -> None:
        accepted = self._pending.pop(task, None)
        if accepted is not None:
            with contextlib.suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)  # its transport is the event loop's: this makes it end by itself
        task.cancel()

    async def _shake(self, accepted: socket.socket) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT_S + _SLACK_S):
                await self._loop.connect_accepted_socket(
                    self._protocol,
                    accepted,
                    ssl=self._certificate.context,
                    ssl_handshake_timeout=HANDSHAKE_LIMIT_S,
                    ssl_shutdown_timeout=self._shutdown_limit_s,
                )
        except (OSError, TimeoutError):
            pass  # it left, speaks something else, or took too long
