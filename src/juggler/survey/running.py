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

    version: str
    endpoints: frozenset[str]
    """Full names: ``server/endpoint``."""


async def running_juggler(host: str, port: int) -> RunningJuggler | None:
    """The juggler whose control address this is; None if none answers there."""
    caller = HttpCaller(Address(_CONNECTABLE.get(host.lower(), host), port))
    try:
        document = (await caller.call("GET", "/api/status", timeout_s=STATUS_LIMIT_S)).json_object()
    except OSError:  # TimeoutError is one
        return None
    instances = document.get("instances")
    if not isinstance(instances, list) or "version" not in document:
        return None
    names = [one.get("endpoints") for one in instances if isinstance(one, dict)]
    endpoints = frozenset(str(name) for group in names if isinstance(group, list) for name in group)
    return RunningJuggler(str(document["version"])[:40], endpoints)
