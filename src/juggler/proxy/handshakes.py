"""TLS handshakes of a listener, bounded: whoever begins one and does not end it costs 300 KiB until the time is up.

Event loops tell of a TLS connection when its handshake is done, and of what they accept before that nobody knows. So
these are accepted here. A connection is let in, and counted with the others (``proxy.crowd``), when its handshake is
done. Until its first byte it costs little; then it waits for its turn where too many are at it, for the milliseconds
that handshakes take: a program that opens hundreds of connections at once gets them all. Whoever is silent, or slow,
while others wait makes room.

Who begins with a letter speaks plain HTTP (handshakes begin with the byte 22, RFC 8446 5.1), and is told that this
port wants HTTPS.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from juggler.proxy.connection import wake
from juggler.proxy.contract import LocalResponse
from juggler.proxy.responses import local_response
from juggler.proxy.tls import HANDSHAKE_LIMIT_S, Certificate
from juggler.units import KIB, MINUTES, SECONDS

_log = logging.getLogger("juggler.proxy")

MOST = 128
"""Handshakes at a time: 40 MiB at most, and one takes two round trips."""

MOST_CALLERS = 512
"""Connections that are accepted and not let in; further ones wait in the kernel."""

SILENCE_S = 1 * SECONDS
"""After so long without a word a connection makes room; clients begin at once, but for those that open hundreds."""

PATIENCE_S = 2 * SECONDS
"""Who has waited for so long for its turn takes the place of one that has been at it for as long."""

_ROOM_EVERY_S = 0.02 * SECONDS

_SLACK_S = 1 * SECONDS

_PAUSE_S = 1 * SECONDS
"""After an accept that failed, mostly for lack of descriptors."""

_TELL_EVERY_S = 1 * MINUTES

_PLAIN_HTTP = LocalResponse(
    400,
    b"This port speaks HTTPS: the address wants https://, not http://.\n",
    "text/plain; charset=utf-8",
    (("X-Juggler", "error"),),
)


@dataclass(slots=True)
class _Caller:
    """A connection that has not been let in."""

    socket: socket.socket
    since: float
    """When it was accepted, or its turn came, in seconds of the loop's clock."""
    speaks: bool = False
    """A byte of it has come."""
    impatient: asyncio.TimerHandle | None = None
    """Runs while it waits for its turn."""


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
        self._pending: dict[asyncio.Task[None], _Caller] = {}
        """All of them, in the order in which they came."""
        self._turns = asyncio.Semaphore(MOST)
        self._shaking: dict[asyncio.Task[None], _Caller] = {}
        """Those whose turn it is, in the order in which it came."""
        self._accepting: dict[asyncio.Task[None], socket.socket] = {}
        self._quiet_until = 0.0

    def accept_on(self, listening: socket.socket, backlog: int) -> None:
        """Accept connections of a bound socket, through a descriptor of our own.

        Raises:
            OSError: No descriptor is left, or somebody else listens on the address.
        """
        own = socket.socket(fileno=os.dup(listening.fileno()))
        try:
            own.setblocking(False)
            own.listen(backlog)
        except OSError:
            own.close()
            raise
        task = self._loop.create_task(self._accept(own), name="accept TLS connections")
        self._accepting[task] = own
        task.add_done_callback(lambda done: self._accepting.pop(done, None))

    def stop_accepting(self) -> None:
        """Let nobody further come."""
        for task, own in self._accepting.items():
            _cancel(task, own)

    async def stopped(self) -> None:
        """After ``stop_accepting``: the addresses are free again."""
        if self._accepting:
            await asyncio.wait(list(self._accepting))

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
                    self._tell(error)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                try:
                    await self._room()
                except BaseException:
                    accepted.close()
                    raise
                caller = _Caller(accepted, self._loop.time())
                task = self._loop.create_task(self._shake(caller), name="TLS handshake")
                self._pending[task] = caller
                task.add_done_callback(lambda done: self._pending.pop(done, None))
                await asyncio.sleep(0)  # accepting alone would not suspend while others wait to be accepted

    async def _room(self) -> None:
        """Wait until one more may be let begin; the oldest of those who are silent makes room."""
        while len(self._pending) >= MOST_CALLERS:
            silent = next((task for task, caller in self._pending.items() if not caller.speaks), None)
            if silent is not None and self._loop.time() - self._pending[silent].since >= SILENCE_S:
                self._cut(silent)
            else:
                await asyncio.sleep(_ROOM_EVERY_S)

    @contextlib.asynccontextmanager
    async def _turn(self, caller: _Caller) -> AsyncIterator[None]:
        """While it holds, the caller is one of ``MOST``."""
        if self._turns.locked():
            caller.impatient = self._loop.call_later(PATIENCE_S, self._cut_slowest, caller)
        try:
            await self._turns.acquire()
        finally:
            if caller.impatient is not None:
                caller.impatient.cancel()
        task = asyncio.current_task()
        assert task is not None
        caller.since = self._loop.time()
        self._shaking[task] = caller
        try:
            yield
        finally:
            self._shaking.pop(task, None)
            self._turns.release()

    def _cut_slowest(self, waiting: _Caller) -> None:
        """Make room for one that has waited for long enough, now or as soon as somebody was at it for as long."""
        enough = self._loop.time() - PATIENCE_S
        slowest = next(iter(self._shaking), None)
        if slowest is not None and self._shaking[slowest].since <= enough:
            self._cut(slowest)  # the turn may be that of another who waits
        next_slowest = next(iter(self._shaking.values()), None)
        pause_s = next_slowest.since - enough if next_slowest is not None else 0.0
        waiting.impatient = self._loop.call_later(max(pause_s, _ROOM_EVERY_S), self._cut_slowest, waiting)

    def _tell(self, error: OSError) -> None:
        now = self._loop.time()
        if now >= self._quiet_until:
            self._quiet_until = now + _TELL_EVERY_S
            _log.warning("no connection can be accepted (%s); trying again every second", error.strerror)

    def _cut(self, task: "asyncio.Task[None]") -> None:
        self._shaking.pop(task, None)
        caller = self._pending.pop(task, None)
        if caller is not None:
            with contextlib.suppress(OSError):
                caller.socket.shutdown(socket.SHUT_RDWR)  # its transport is the event loop's: it ends by itself
            _cancel(task, caller.socket)

    async def _shake(self, caller: _Caller) -> None:
        accepted = caller.socket
        ours = True  # until a transport has it
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT_S + _SLACK_S):
                if not await self._speaks_http(caller):
                    async with self._turn(caller):
                        ours = False
                        await self._loop.connect_accepted_socket(
                            self._protocol,
                            accepted,
                            ssl=self._certificate.context,
                            ssl_handshake_timeout=HANDSHAKE_LIMIT_S,
                            ssl_shutdown_timeout=self._shutdown_limit_s,
                        )
        except (OSError, TimeoutError):
            pass  # it left, speaks something else, or took too long
        finally:
            if ours:
                accepted.close()

    async def _speaks_http(self, caller: _Caller) -> bool:
        """Whether a client speaks plain HTTP; then it was told, and has gone."""
        accepted = caller.socket
        accepted.setblocking(False)
        first = await self._first_byte(accepted)
        caller.speaks = True
        if not first.isalpha():
            return False
        await self._loop.sock_sendall(accepted, local_response(_PLAIN_HTTP, close=True))
        accepted.shutdown(socket.SHUT_WR)
        # Closed with its request unread, the connection would be reset, and the answer might get lost.
        while await self._loop.sock_recv(accepted, 64 * KIB):
            pass
        return True

    async def _first_byte(self, accepted: socket.socket) -> bytes:
        """What a client begins with, left in the socket; empty: it has ended its half."""
        readable = self._loop.create_future()
        self._loop.add_reader(accepted, wake, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(accepted)
        return accepted.recv(1, socket.MSG_PEEK)


def _cancel(task: "asyncio.Task[None]", owned: socket.socket) -> None:
    """Cancel a task that closes a socket on its way out; one that has not begun has no way out."""
    if inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_CREATED:  # type: ignore[arg-type]
        owned.close()
    task.cancel()
