"""Sockets that clients connect to: accepting, counting, sweeping, closing."""

import asyncio
import contextlib
import logging
import socket

from juggler.errors import AdmissionError
from juggler.proxy.client import NEVER, ClientConnection
from juggler.proxy.contract import Gateway
from juggler.proxy.limits import Limits
from juggler.proxy.responses import error_response

_log = logging.getLogger("juggler.proxy")

BACKLOG = 1024


class Listener:
    """All sockets of one server entry, and the connections that came in by them. Make it with ``start_listener``."""

    def __init__(self, gateway: Gateway, limits: Limits) -> None:
        self.gateway = gateway
        self.limits = limits
        self.addresses: list[tuple[str, int]] = []
        """Where clients can connect, ports as bound."""
        self._servers: list[asyncio.Server] = []
        self._connections: dict[ClientConnection, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._sweep_timer = self._loop.call_later(limits.sweep_interval_s, self._sweep)

    def adopt(self, connection: ClientConnection) -> asyncio.Task[None] | None:
        """Own a new connection's task; None (and the connection refused) above the limit."""
        if len(self._connections) >= self.limits.connections:
            error = AdmissionError("this address has too many connections open", retry_after_s=1.0)
            connection.write(error_response(error, close=True))
            if connection.transport is not None:
                connection.transport.close()
            return None
        task = self._loop.create_task(connection.serve(), name="client connection")
        self._connections[connection] = task
        task.add_done_callback(lambda _: self._connections.pop(connection, None))
        return task

    async def close(self, drain_s: float) -> None:
        """Accept nothing new, close idle connections, let running exchanges end for ``drain_s`` s, then abort."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.finish()
        end = self._loop.time() + drain_s
        while self._connections and self._loop.time() < end:
            await asyncio.wait(list(self._connections.values()), timeout=end - self._loop.time())
            await asyncio.sleep(0)
        self.abort()
        tasks = list(self._connections.values())
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def abort(self) -> None:
        """Close the sockets and cut every connection. Idempotent."""
        self._sweep_timer.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()

    async def open(self, host: str, port: int) -> None:
        """Bind and listen; see ``start_listener``."""
        if host != "localhost":
            await self._bind(host, port)
            return
        await self._bind("127.0.0.1", port)
        with contextlib.suppress(OSError):  # a machine without IPv6 still has its localhost
            await self._bind("::1", self.addresses[0][1])

    async def _bind(self, host: str, port: int) -> None:
        server = await self._loop.create_server(lambda: ClientConnection(self), host, port, backlog=BACKLOG)
        self._servers.append(server)
        for sock in server.sockets:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                address = sock.getsockname()
                self.addresses.append((str(address[0]), int(address[1])))

    def _sweep(self) -> None:
        """One look at all deadlines per second, instead of timers per request."""
        now = self._loop.time()
        for connection in [one for one in self._connections if one.deadline is not NEVER and one.deadline <= now]:
            connection.expire()
        self._sweep_timer = self._loop.call_later(self.limits.sweep_interval_s, self._sweep)


async def start_listener(gateway: Gateway, host: str, port: int, limits: Limits | None = None) -> Listener:
    """Listen for clients.

    Args:
        gateway: What stands behind this listener.
        host: Address or name; ``localhost`` binds 127.0.0.1 and, where there is IPv6, ::1.
        port: TCP port; 0 picks one.
        limits: Bounds; the defaults if None.

    Raises:
        OSError: The address cannot be bound; the text names it.
    """
    listener = Listener(gateway, limits or Limits())
    try:
        await listener.open(host, port)
    except OSError:
        listener.abort()
        raise
    return listener
