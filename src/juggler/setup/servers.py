"""Model servers that run already, on the usual ports of this machine."""

import asyncio
import contextlib
from dataclasses import dataclass

from juggler.backends.base import Address
from juggler.lifecycle.caller import HttpCaller
from juggler.setup.places import USUAL_PORTS, Surroundings
from juggler.survey.listeners import Holder, holder_of
from juggler.survey.servers import Identity, reach, who_answers
from juggler.survey.threads import in_thread
from juggler.units import SECONDS

ASK_LIMIT_S = 1 * SECONDS
PORT_LIMIT_S = 6 * SECONDS
"""For everything about one port: two connects and three rounds of questions."""

HOLDER_LIMIT_S = 2 * SECONDS


@dataclass(frozen=True, slots=True)
class Seen:
    """A port that somebody listens on."""

    port: int
    host: str
    """Where it answers: 127.0.0.1, or ::1 alone."""
    identity: Identity | None
    """None: no program known here, or it did not say so in time."""
    holder: Holder | None
    """Whose port it is, where that can be seen."""

    @property
    def url(self) -> str:
        return f"http://{Address(self.host, self.port)}"

    @property
    def usual(self) -> str:
        """The type one would expect there."""
        return USUAL_PORTS.get(self.port, "another program")


async def find_servers(around: Surroundings, own_pid: int | None = None) -> list[Seen]:
    """Ask all ports at once; takes ``PORT_LIMIT_S`` at most.

    Args:
        own_pid: Of a juggler that runs here. Its own ports are passed over: attaching it to itself helps nobody.
    """
    seen = await asyncio.gather(*(_look(port) for port in dict.fromkeys(around.ports)))
    return [one for one in seen if one is not None and (one.holder is None or one.holder.pid != own_pid)]


async def _look(port: int) -> Seen | None:
    address: Address | None = None
    identity: Identity | None = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PORT_LIMIT_S):
            address, _ = await reach(f"http://localhost:{port}")
            if address is not None:
                identity = await who_answers(HttpCaller(address), limit_s=ASK_LIMIT_S)
    if address is None:
        return None
    holder: Holder | None = None
    with contextlib.suppress(OSError, TimeoutError):
        holder = await in_thread(HOLDER_LIMIT_S, holder_of, port)
    return Seen(port, address.host, identity, holder)
