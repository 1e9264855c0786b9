"""Who may connect to a listener: bounds on all connections and on those of one client, and who makes room.

Nobody can fill a listener by doing nothing: where it is full, a connection that has sent no request for a while is
closed for the new one, as its client would have to expect at any time. Whoever has a request in work, or has just
come, keeps his place; then the new one is refused.

A client is an address, of IPv6 the network that one client usually has (/64). Connections from this machine are not
counted: a reverse proxy in front makes all clients one address, and whoever runs programs here has other ways to do
harm. Refusing takes connections, too, so their number is bounded: further ones are cut without a word.
"""

import asyncio
import ipaddress
import logging
from collections import OrderedDict
from typing import Protocol

from juggler.errors import JugglerError, TooManyConnections, TooManyOfOneClient
from juggler.proxy.limits import Limits
from juggler.units import MINUTES, SECONDS

_log = logging.getLogger("juggler.proxy")

_REFUSED = 64
"""Connections over a limit that are told so; each lives on until its answer was read."""

_LOOKS = 32
"""Connections looked at to make room for one: a flood must not cost a walk over thousands each time."""

_IDLE_S = 1 * SECONDS
"""Younger ones may be about to send their first request, or the next."""

_SLOW_HEAD_S = 5 * SECONDS
"""Heads come in one piece, or within a few round trips."""

_TELL_EVERY_S = 1 * MINUTES


class Member(Protocol):
    """What a crowd needs of a connection."""

    address: bytes

    @property
    def idle(self) -> bool: ...
    def quiet_s(self, now: float) -> float: ...
    def cut(self, code: str | None) -> None: ...


def client_of(address: bytes) -> bytes:
    """Whom an address is counted as; empty for this machine, which is not counted."""
    if b":" not in address:
        return b"" if address.startswith(b"127.") else address
    try:
        parsed = ipaddress.IPv6Address(address.decode("latin-1"))
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return client_of(str(parsed.ipv4_mapped).encode())
    return b"" if parsed.is_loopback else parsed.packed[:8]


class Crowd:
    """The connections of one listener, refused ones included.

    Args:
        limits: The bounds.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._clients: OrderedDict[Member, bytes | None] = OrderedDict()
        """Whom each connection counts for; None: it was refused. In the order in which they are looked at."""
        self._counts: dict[bytes, int] = {}
        self._refused = 0
        self._quiet_until = 0.0

    def change(self, limits: Limits) -> None:
        """Other bounds, for who comes from now on."""
        self._limits = limits

    def come(self, member: Member) -> JugglerError | None:
        """A connection was accepted; an error means that it is one too many, and is to be told so."""
        client = client_of(member.address)
        refusal = self._refusal(member, client)
        if refusal is None:
            self._clients[member] = client
            if client:
                self._counts[client] = self._counts.get(client, 0) + 1
            return None
        self._clients[member] = None
        self._refused += 1
        self._tell(refusal)
        if self._refused > _REFUSED:
            member.cut(None)
        return refusal

    def go(self, member: Member) -> None:
        """A connection is gone."""
        client = self._clients.pop(member, b"")
        if client is None:
            self._refused -= 1
        elif client:
            left = self._counts[client] - 1
            if left:
                self._counts[client] = left
            else:
                del self._counts[client]

    def _refusal(self, member: Member, client: bytes) -> JugglerError | None:
        limits = self._limits
        if client and 0 < limits.connections_per_client <= self._counts.get(client, 0):
            return TooManyOfOneClient(
                f"{member.address.decode('latin-1')} has {limits.connections_per_client} connections open already, "
                "as many as one client may have.",
                hint="the operator can raise `connections_per_client`; a proxy in front makes all clients one",
                retry_after_s=1,
            )
        if len(self._clients) - self._refused >= limits.connections and not self._make_room():
            return TooManyConnections(
                f"{limits.connections} connections are open already.",
                hint="the operator can raise `connections`",
                retry_after_s=1,
            )
        return None

    def _make_room(self) -> bool:
        """Close a connection that nobody uses, if one is found soon."""
        now = self._loop.time()
        for _ in range(min(_LOOKS, len(self._clients))):
            member = next(iter(self._clients))
            self._clients.move_to_end(member)
            left_alone_s = _IDLE_S if member.idle else _SLOW_HEAD_S
            if self._clients[member] is not None and member.quiet_s(now) >= left_alone_s:
                member.cut(None)
                self.go(member)  # it is reported lost in the next turn of the loop only
                return True
        return False

    def _tell(self, refusal: JugglerError) -> None:
        """The log says so, but not thousands of times."""
        now = self._loop.time()
        if now >= self._quiet_until:
            self._quiet_until = now + _TELL_EVERY_S
            _log.warning("a connection was refused: %s", refusal.message)
