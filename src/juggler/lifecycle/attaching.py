"""Servers that somebody else runs: found where the configuration says, watched, and never ended.

An attached server is behind the same ``LaunchHandle`` as a started one, so that the owner treats both alike; stopping
its handle only lets go of it.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from juggler.backends.base import Address, Backend, ProbeResult, StopStep
from juggler.clock import Clock
from juggler.errors import AttachFailed, BackendExited
from juggler.lifecycle.caller import HttpCaller, TlsFailed, connect
from juggler.lifecycle.launcher import ExitReport
from juggler.lifecycle.output import Stream, Subscriber
from juggler.tls import HANDSHAKE_LIMIT_S, Trouble
from juggler.units import SECONDS, format_duration

CONNECT_LIMIT_S = 1 * SECONDS
"""Per address of the target; a server in the same room accepts within milliseconds."""

RESOLVE_LIMIT_S = 2 * SECONDS
ADDRESSES_LIMIT = 4
"""Addresses of one host name that are tried."""

PROBE_LIMIT_S = 3 * SECONDS

LOADING_LIMIT_S = 30 * SECONDS
"""For a server that accepts connections and is not ready yet, where one could be started instead."""

LOOK_EVERY_S = 5 * SECONDS
"""How often the target is looked for while it is down, and looked after while it is up. One connect each time."""

SECOND_LOOK_S = 0.5 * SECONDS
"""After one failed look: a server whose backlog was full for a moment is not dead."""

_POLL_S = 0.25 * SECONDS


class AttachedHandle:
    """An attached server as ``LaunchHandle``: it ends when ``lost`` says so or when it is let go of."""

    def __init__(self, launch_id: str, address: Address, clock: Clock) -> None:
        self.launch_id = launch_id
        self.address = address
        self.exit: ExitReport | None = None
        self._clock = clock
        self._since = clock.monotonic()
        self._ended = asyncio.Event()

    def lost(self) -> ExitReport:
        """Nothing answers there any more."""
        return self._end()

    async def wait(self) -> ExitReport:
        await self._ended.wait()
        return self._end()

    async def signal(self, name: str) -> None:
        """Nothing: signals are for processes of ours."""

    async def stop(self, ladder: Sequence[StopStep] | None = None) -> ExitReport:
        """Let go of the server; it lives on."""
        return self._end()

    async def kill(self) -> ExitReport:
        """Let go of the server; it lives on."""
        return self._end()

    def output(self, lines: int = 20) -> list[str]:
        """Nothing: it writes to somebody else's terminal."""
        return []

    def subscribe(self, callback: Subscriber, *, replay: bool = False) -> Callable[[], None]:
        return lambda: None

    def begun(self) -> Sequence[tuple[Stream, str]]:
        return ()

    def _end(self) -> ExitReport:
        if self.exit is None:
            self.exit = ExitReport(0, self._clock.monotonic() - self._since)
            self._ended.set()
        return self.exit


class AttachTarget:
    """Where a server is expected to run.

    Args:
        url: ``http://host:port`` or ``https://host:port``, as the configuration check lets it through.
        backend: Asked whether what answers there is its program.
    """

    def __init__(self, url: str, backend: Backend, clock: Clock) -> None:
        self.url = url
        self._backend = backend
        self._clock = clock
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._tls = backend.settings.attach_tls
        self._port = parts.port or (80 if self._tls is None else 443)

    async def find(self) -> HttpCaller:
        """A caller for the server, once it is ready for traffic.

        Waits while something accepts connections there and is not ready: up to the endpoint's ``start_timeout``, at
        most ``LOADING_LIMIT_S`` where a process could be started instead.

        Raises:
            AttachFailed: Nothing answers, not in time, or another program does.
        """
        settings = self._backend.settings
        limit_s = (
            settings.start_timeout_s if settings.binary is None else min(LOADING_LIMIT_S, settings.start_timeout_s)
        )
        began = self._clock.monotonic()
        while True:
            caller = await self._connected()
            result = await self._probe(caller)
            if result is ProbeResult.READY:
                return caller
            if result is ProbeResult.WRONG_SERVER:
                raise self._wrong()
            if self._clock.monotonic() - began >= limit_s:
                raise self._failed(f"it was not ready after {format_duration(limit_s)}")
            await asyncio.sleep(_POLL_S)

    async def answers(self) -> bool:
        """Whether the right server is there and ready; one look, a few seconds at most."""
        try:
            return await self._probe(await self._connected()) is ProbeResult.READY
        except AttachFailed:
            return False

    def lost(self) -> BackendExited:
        """The error for a server that was there and does not accept connections any more."""
        settings = self._backend.settings
        return BackendExited(
            f"{settings.endpoint_name}: the attached {self._backend.type_name} server at {self.url} is gone",
            hint="start it again; the next request looks for it" if settings.binary is None else None,
            endpoint=settings.endpoint_name,
            phase="forward",
        )

    async def _probe(self, caller: HttpCaller) -> ProbeResult:
        try:
            async with asyncio.timeout(PROBE_LIMIT_S):
                return await self._backend.probe(caller)
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET

    async def _connected(self) -> HttpCaller:
        """A caller for the first address that accepts a connection.

        Raises:
            AttachFailed: None does.
        """
        told = Trouble("the name has no address")
        for address in await self._addresses():
            trouble = await connect_trouble(address)
            if trouble is None:
                return HttpCaller(address)
            told = worse(told, trouble)
        raise self._failed(told.why, told.hint)

    async def _addresses(self) -> list[Address]:
        """``localhost`` is both loopbacks, IPv4 first: a name service may know only one of them."""
        if self._host.lower() == "localhost":
            return [Address("127.0.0.1", self._port, self._tls), Address("::1", self._port, self._tls)]
        try:
            async with asyncio.timeout(RESOLVE_LIMIT_S):
                found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # includes TimeoutError
            raise self._failed(f"the name {self._host!r} cannot be resolved") from error
        hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
        return [Address(host, self._port, self._tls) for host in hosts][:ADDRESSES_LIMIT]

    def _wrong(self) -> AttachFailed:
        return self._failed(
            f"the server there is no {self._backend.type_name}",
            hint=f"`attach_to` must name a {self._backend.type_name} server; `juggler doctor` tells what answers there",
        )

    def _failed(self, why: str, hint: str | None = None) -> AttachFailed:
        settings = self._backend.settings
        return AttachFailed(
            f"{settings.endpoint_name}: cannot attach to the {self._backend.type_name} server at {self.url}: {why}",
            hint=hint or "start that server, or set `binary` so that the juggler starts one when it is not there",
            endpoint=settings.endpoint_name,
            phase="starting",
            retry_after_s=LOOK_EVERY_S,
        )


async def connect_problem(address: Address) -> str:
    """Why no connection can be made to ``address``, within seconds; empty if one can."""
    trouble = await connect_trouble(address)
    return trouble.why if trouble is not None else ""


async def connect_trouble(address: Address) -> Trouble | None:
    """Why no connection can be made to ``address``, and what helps; None if one can. A second, three with TLS."""
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S if address.tls is None else HANDSHAKE_LIMIT_S):
            _, writer = await connect(address, look=True)
    except TlsFailed as error:
        return error.trouble
    except TimeoutError:
        if address.tls is not None and await connect_trouble(Address(address.host, address.port)) is None:
            return Trouble("it does not answer a TLS handshake", 'does `attach_to` want "http://"?')
        return Trouble(f"it does not accept connections ({address})")
    except OSError as error:
        return Trouble("the connection is refused" if isinstance(error, ConnectionRefusedError) else str(error))
    if address.tls is not None:
        # Cut off behind its handshake, many a server would log an error, every few seconds.
        writer.close()
        asyncio.get_running_loop().call_later(CONNECT_LIMIT_S, writer.transport.abort)
    else:
        writer.transport.abort()
    return None


def worse(one: Trouble, other: Trouble) -> Trouble:
    """Which of two addresses' troubles to tell of: the later one, unless there is advice for the earlier.

    Where ``localhost`` is both loopbacks, mostly nobody listens on one.
    """
    return one if one.hint is not None and other.hint is None else other


async def has_died(address: Address) -> bool:
    """Whether an attached server is gone: no connection twice in a row."""
    if not await connect_problem(address):
        return False
    await asyncio.sleep(SECOND_LOOK_S)
    return bool(await connect_problem(address))
