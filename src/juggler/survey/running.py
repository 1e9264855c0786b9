"""Whether a juggler runs already, and what it says of itself."""

from dataclasses import dataclass

from juggler.backends.base import Address
from juggler.lifecycle.caller import HttpCaller
from juggler.units import SECONDS

STATUS_LIMIT_S = 2 * SECONDS

_CONNECTABLE = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where one reaches what listens on these."""


@dataclass(frozen=True, slots=True)
class RunningJuggler:
    """What answers at a control address."""

    version: str | None
    endpoints: frozenset[str] | None
    """Full names: ``server/endpoint``; None, as the version: it tells only those who have its key."""


async def running_juggler(host: str, port: int) -> RunningJuggler | None:
    """The juggler whose control address this is; None if none answers there."""
    caller = HttpCaller(Address(_CONNECTABLE.get(host.lower(), host), port))
    try:
        document = (await caller.call("GET", "/api/v1/status", timeout_s=STATUS_LIMIT_S)).json_object()
    except OSError:  # TimeoutError is one
        return None
    error, endpoints = document.get("error"), document.get("endpoints")
    if isinstance(error, dict) and error.get("code") == "key_needed":
        return RunningJuggler(None, None)
    if not isinstance(endpoints, list) or "version" not in document:
        return None
    names = frozenset(str(one.get("endpoint")) for one in endpoints if isinstance(one, dict))
    return RunningJuggler(str(document["version"])[:40], names)
