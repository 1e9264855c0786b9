"""The control plane's own listener: uvicorn in this process, on the loop of everything else.

The sockets are opened at once, so that a busy port is told at the start; what serves them is imported in a thread
afterwards, and whoever connects in between waits in the kernel's queue.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from juggler.survey.threads import in_thread

if TYPE_CHECKING:
    import uvicorn

_log = logging.getLogger("juggler.control")

_BACKLOG = 128
_IMPORT_LIMIT_S = 60.0
_KEEP_ALIVE_S = 30
"""Idle connections; browsers and ``juggler ps --watch`` ask again within seconds."""
_CLOSE_LIMIT_S = 1
"""For answers under way, once the juggler has ended everything else."""
CONNECTIONS_MAX = 512
"""More get 503: dashboards hold one or two each."""
_HEAD_BYTES_MAX = 32 * 1024
_NO_IPV6 = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class ControlServer:
    """One address with an ASGI application behind it.

    Args:
        host: Name or numeric address; ``localhost`` means 127.0.0.1 and, where there is one, ::1.
        port: TCP port; 0 picks a free one.

    Raises:
        OSError: The address is taken or not ours; the text names it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._sockets = _open(host, port)
        self._server: uvicorn.Server | None = None
        self.addresses: list[tuple[str, int]] = []
        """Where it listens: numeric host and port."""
        for one in self._sockets:
            name = one.getsockname()
            self.addresses.append((name[0], name[1]))

    async def start(self, make_app: Callable[[], AsgiApp]) -> None:
        """Begin to answer.

        Args:
            make_app: Called in a thread, once: it imports the framework.

        Raises:
            TimeoutError: The disk did not deliver the program's own modules.
        """
        app = await in_thread(_IMPORT_LIMIT_S, make_app)
        module, connection = await in_thread(_IMPORT_LIMIT_S, _import_uvicorn)
        config = module.Config(
            app,
            http=connection,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_LIMIT_S,
            limit_concurrency=CONNECTIONS_MAX,
            h11_max_incomplete_event_size=_HEAD_BYTES_MAX,
            backlog=_BACKLOG,
        )
        config.load()
        for name in ("uvicorn.error", "uvicorn.asgi", "uvicorn.access"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it would tell its own story into ours
        server = module.Server(config)
        server.lifespan = config.lifespan_class(config)
        # Not ``serve``: that takes over the process's signals, and wakes up ten times a second to see to the date.
        await server.startup(sockets=self._sockets)
        self._server = server

    async def close(self) -> None:
        """Accept nothing more, let answers end for a moment, then cut them. Idempotent."""
        server, self._server = self._server, None
        try:
            if server is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CLOSE_LIMIT_S + 1):
                        await server.shutdown(sockets=self._sockets)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the sockets now."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.close()


def _import_uvicorn() -> Any:
    import uvicorn

    from juggler.control.connections import Connection

    return uvicorn, Connection


def _open(host: str, port: int) -> list[socket.socket]:
    if host != "localhost":
        return [_listening(host, port)]
    sockets = [_listening("127.0.0.1", port)]
    try:
        sockets.append(_listening("::1", sockets[0].getsockname()[1]))
    except OSError as error:
        # Not every machine has IPv6, but somebody else on our port would get half of our clients.
        if error.errno not in _NO_IPV6:
            sockets[0].close()
            raise
    return sockets


def _listening(host: str, port: int) -> socket.socket:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        one = socket.socket(family, kind, protocol)
        try:
            if hasattr(socket, "SO_REUSEPORT"):  # POSIX: take over from connections that only linger
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(_BACKLOG)
            one.setblocking(False)
        except BaseException:
            one.close()
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {shown}: {error.strerror or error}") from error
    return one
