"""Listening sockets, and the connections accepted on them."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator

from juggler.errors import JugglerError
from juggler.proxy.client import ClientConnection
from juggler.proxy.contract import Gateway
from juggler.proxy.crowd import Crowd
from juggler.proxy.handshakes import Handshakes
from juggler.proxy.hangup import HangUps, cut_in_any_case
from juggler.proxy.limits import Limits
from juggler.proxy.replies import Replies
from juggler.proxy.tls import Certificate, server_options
from juggler.proxy.turns import Turns
from juggler.units import SECONDS

_log = logging.getLogger("juggler.proxy")

_BACKLOG = 1024
"""Connections the kernel accepts on our behalf during a busy turn of the loop."""

_TURN_ACCEPTS = 16
"""Connections that asyncio accepts in one turn, so that a flood leaves time for everybody else. Out of descriptors, it
fails and logs as often before it pauses for a second."""

_TURN_S = 0.01 * SECONDS
"""After so long a sweep gives way: a look into a waiting request of 1 MiB takes 5 to 15 ms (``proxy.sse``)."""

_PROBES = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""A client that vanished without a word is given up after two minutes. Go's servers begin to probe after 15 s."""

_NO_IPV6 = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


class Listener:
    """One configured address: its sockets and all their client connections.

    Args:
        gateway: The product behind it.
        limits: Bounds for its connections.
        replies: Earlier replies of light requests; several listeners may share them. None: its own.
        certificate: For HTTPS; None: plain HTTP.
    """

    def __init__(
        self,
        gateway: Gateway,
        limits: Limits,
        replies: Replies | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self.gateway = gateway
        self.limits = limits
        self.replies = replies if replies is not None else Replies()
        self.secure = certificate is not None
        """Its clients speak TLS."""
        self._certificate = certificate
        self._handshakes: Handshakes | None = None
        if certificate is not None and os.name == "posix":
            self._handshakes = Handshakes(certificate, lambda: ClientConnection(self), limits.flush_timeout_s)
        self.turns = Turns()
        """Large pieces of requests wait here for their turn."""
        self.draining = False
        """No further request is accepted on any connection."""
        self.addresses: list[tuple[str, int]] = []
        """Where it listens: numeric host and port."""
        self._left: list[tuple[str, int]] = []
        """Where it listened until it was paused."""
        self.connections: set[ClientConnection] = set()
        self._crowd = Crowd(limits)
        self._hang_ups = HangUps()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.get_running_loop()
        self._sweep_timer: asyncio.Handle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def bind(self, host: str, port: int) -> None:
        """Open one more socket; its address is appended to ``addresses``.

        Raises:
            OSError: The address is taken or not ours; the text names it.
        """
        server: asyncio.Server | None = None
        try:
            server = await self._loop.create_server(
                lambda: ClientConnection(self),
                host or None,
                port,
                backlog=_TURN_ACCEPTS if os.name == "posix" else _BACKLOG,
                reuse_address=os.name == "posix",
                start_serving=False,  # which takes a turn, in which we may be cancelled: then it has to be ours
                **(server_options(self._certificate, self.limits.flush_timeout_s) if self._handshakes is None else {}),
            )
            for one in server.sockets:
                _probe_silent_peers(one)  # accepted connections inherit it
            if self._handshakes is None:
                await server.start_serving()
            for one in server.sockets:
                if self._handshakes is not None:
                    self._handshakes.accept_on(one, _BACKLOG)
                else:
                    _lengthen_backlog(one)
        except BaseException as error:
            if server is not None:
                server.close()
            if not isinstance(error, OSError | UnicodeError):
                raise
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise OSError(getattr(error, "errno", None), f"cannot listen on {shown}: {_reason(error)}") from error
        self._servers.append(server)
        for one in server.sockets:
            name = one.getsockname()
            self.addresses.append((name[0], name[1]))

    def change(self, limits: Limits) -> None:
        """Other bounds from now on, also for the connections there are."""
        self.limits = limits
        self._crowd.change(limits)
        for connection in self.connections:
            connection.bound_by(limits)

    def pause(self) -> None:
        """Leave the addresses, for now or for good; connections go on."""
        self._stop_accepting()
        self._left += self.addresses
        self.addresses = []

    async def resume(self) -> None:
        """Take the addresses back that ``pause`` has left.

        Raises:
            OSError: As for ``bind``; it may be tried again.
        """
        while self._left:
            await self.bind(*self._left[0])
            del self._left[0]

    async def close(self, drain_s: float) -> None:
        """Accept nothing more, let running exchanges finish for up to ``drain_s`` seconds, then cut them. Idempotent.

        Returns when every connection is gone; cancelling it cuts them at once.
        """
        self._stop_accepting()
        self.draining = True
        for connection in list(self.connections):
            connection.finish()
        try:
            await self._wait_until_empty(drain_s)
        finally:
            self.abort()
        # An aborted connection is reported lost in the next turns of the loop.
        await self._wait_until_empty(1.0)
        if self._handshakes is not None:
            await self._handshakes.stopped()

    def abort(self) -> None:
        """Accept nothing more and cut every connection now."""
        self._stop_accepting()
        self.draining = True
        if self._handshakes is not None:
            self._handshakes.abort()
        for connection in list(self.connections):
            cut_in_any_case(connection, "shutting_down")

    def opened(self, connection: ClientConnection) -> JugglerError | None:
        """A connection reports in; an error means it is one too many."""
        self.connections.add(connection)
        self._empty.clear()
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(self.limits.sweep_interval_s, self._sweep)
        refusal = self._crowd.come(connection)
        if self.draining:
            connection.cut("shutting_down")  # its TLS handshake took until now
        return refusal

    def closed(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._crowd.go(connection)
        if not self.connections:
            self._hang_ups.stop()
            if self._sweep_timer is not None:
                self._sweep_timer.cancel()
                self._sweep_timer = None
            self._empty.set()

    def unread(self, connection: ClientConnection) -> None:
        """A connection is not being read for now; somebody else has to notice its end."""
        self._hang_ups.watch(connection)

    def _stop_accepting(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._handshakes is not None:
            self._handshakes.stop_accepting()

    async def _wait_until_empty(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()

    def _sweep(self) -> None:
        """The only timer of all connections; runs while there are any."""
        self._look_at(iter(list(self.connections)))

    def _look_at(self, rest: Iterator[ClientConnection]) -> None:
        """A sweep, or what is left of one: as many connections as fit into one turn of the loop."""
        now = self._loop.time()
        for connection in rest:
            if connection not in self.connections:
                continue  # it ended while others were looked at
            try:
                connection.check(now)
            except Exception:
                # A bug here must not stop the clock of all the others.
                _log.exception("a client connection could not be looked at; it is cut")
                cut_in_any_case(connection, JugglerError.code)
            if self._loop.time() - now > _TURN_S:
                self._sweep_timer = self._loop.call_soon(self._look_at, rest)
                return
        self._sweep_timer = None
        if self.connections:
            self._sweep_timer = self._loop.call_later(self.limits.sweep_interval_s, self._sweep)


def _reason(error: OSError | UnicodeError) -> str:
    """Why an address cannot be listened on; the event loops' own texts name it once more."""
    if isinstance(error, UnicodeError):
        return "this is no name of a machine"
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)  # its numbers are none of the system's
    return os.strerror(error.errno)


def _lengthen_backlog(listening: socket.socket) -> None:
    """Tell the kernel's bound apart from the event loop's, which are one number to ``create_server``."""
    if os.name == "posix":
        with socket.socket(fileno=os.dup(listening.fileno())) as again:
            again.listen(_BACKLOG)


def _probe_silent_peers(listening: socket.socket) -> None:
    """Have the kernel find out which clients are gone without having closed; accepted sockets inherit it.

    Who waits for an answer sends nothing and is sent nothing: a closed laptop would keep its place, or its model in
    memory, for ever.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES:
        if hasattr(socket, name):  # where one is missing, the system's two hours count
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def start_listener(
    gateway: Gateway,
    host: str,
    port: int,
    limits: Limits | None = None,
    replies: Replies | None = None,
    certificate: Certificate | None = None,
) -> Listener:
    """Listen on an address. ``localhost`` means 127.0.0.1 and, where there is one, ::1.

    Args:
        gateway: The product behind it.
        host: Name or numeric address; empty for all.
        port: TCP port; 0 picks a free one, the same for both addresses of ``localhost``.
        limits: Bounds for its connections.
        replies: See ``Listener``.
        certificate: See ``Listener``.

    Raises:
        OSError: The address is taken or not ours; the text names it.
    """
    listener = Listener(gateway, limits or Limits(), replies, certificate)
    try:
        if host != "localhost":
            await listener.bind(host, port)
            return listener
        await listener.bind("127.0.0.1", port)
        try:
            await listener.bind("::1", listener.addresses[0][1])
        except OSError as error:
            # Not every machine has IPv6, but somebody else on our port would get half of our clients.
            if error.errno not in _NO_IPV6:
                raise
    except BaseException:
        await listener.close(0)
        raise
    return listener
