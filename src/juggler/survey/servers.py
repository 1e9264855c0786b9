"""Which model server answers at an address, by its own positive word.

Each backend type can tell its own program from others (``Backend.identify``). koboldcpp imitates ollama, ComfyUI and
A1111 (backends.md section 4.6), so it is asked first: who says to be koboldcpp is.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from juggler.backends import registry
from juggler.backends.base import Address, Backend, BackendSettings, Caller
from juggler.ids import InstanceId
from juggler.lifecycle.attaching import connect_trouble, worse
from juggler.survey.threads import in_thread
from juggler.survey.versions import shortened
from juggler.tls import ServerTls, Trouble
from juggler.units import SECONDS

ASK_LIMIT_S = 2 * SECONDS
"""For one question; servers answer it within milliseconds, a busy Python one within a second."""

RESOLVE_LIMIT_S = 2 * SECONDS
_ADDRESSES_MAX = 4
_IMITATOR = "koboldcpp"
_NOT_ASKED = frozenset({"command", "demo"})
"""Types that stand for no program of others."""

_log = logging.getLogger("juggler.survey")


@dataclass(frozen=True, slots=True)
class Identity:
    """A server that said who it is."""

    type: str
    """The backend type of its program."""
    text: str
    """Program and version: ``"ComfyUI 0.3.64"``."""


async def reach(url: str) -> tuple[Address | None, str]:
    """The first address of ``http://host:port`` that accepts a connection, else None and why none does."""
    found = await find(url)
    return (found, "") if isinstance(found, Address) else (None, found.why)


async def find(url: str, tls: ServerTls | None = None) -> Address | Trouble:
    """The first address of a URL that accepts a connection, else why none does and what helps.

    ``localhost`` is both loopbacks, IPv4 first, as for the data plane. Each address gets a second, three with TLS.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or (80 if tls is None else 443)
    if host.lower() == "localhost":
        addresses = [Address("127.0.0.1", port, tls), Address("::1", port, tls)]
    else:
        try:
            infos = await in_thread(RESOLVE_LIMIT_S, _resolve, host, port)
        except (OSError, UnicodeError):  # TimeoutError is an OSError
            return Trouble(f"the name {host!r} cannot be resolved")
        addresses = [Address(one, port, tls) for one in dict.fromkeys(infos)][:_ADDRESSES_MAX]
    trouble = Trouble("the name has no address")
    for address in addresses:
        found = await connect_trouble(address)
        if found is None:
            return address
        trouble = worse(trouble, found)
    return trouble


def _resolve(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def who_answers(
    caller: Caller, expected: Backend | None = None, *, limit_s: float = ASK_LIMIT_S
) -> Identity | None:
    """Ask what answers; None if it says nothing that a known program says.

    Args:
        expected: Asked right after the imitator; its settings may hold what a locked server wants to see. A
            ``Backend`` of its type is made otherwise.
        limit_s: Seconds for each of three rounds of questions.
    """
    first = {} if expected is None or expected.type_name in _NOT_ASKED else {expected.type_name: expected}
    backends = {**first, **{name: backend for name, backend in _one_of_each().items() if name not in first}}
    rounds: Sequence[Sequence[str]] = [
        [name for name in backends if name == _IMITATOR],
        [name for name in first if name != _IMITATOR],
        [name for name in backends if name not in first and name != _IMITATOR],
    ]
    for names in rounds:
        answers = await asyncio.gather(*(_ask(backends[name], caller, limit_s) for name in names))
        found = next((answer for answer in answers if answer is not None), None)
        if found is not None:
            return found
    return None


async def _ask(backend: Backend, caller: Caller, limit_s: float) -> Identity | None:
    try:
        async with asyncio.timeout(limit_s):
            text = await backend.identify(caller)
    except (OSError, TimeoutError):
        return None
    except Exception:  # whatever strange server stumbled a module: it is not that module's program
        _log.debug("%s could not judge an answer", backend.type_name, exc_info=True)
        return None
    return Identity(backend.type_name, shortened(text)) if text else None


def _one_of_each() -> dict[str, Backend]:
    backends = {}
    for name in registry.BACKENDS:
        if name not in _NOT_ASKED:
            settings = BackendSettings(InstanceId("survey"), "survey", name, attach_to="http://127.0.0.1")
            backends[name] = registry.create(settings)
            backends[name].attached = True
    return backends
