"""Loading before anyone asks: the entries of ``warmup``, one after the other, in the order of the file.

Each entry loads as a request would, so what stays resident at the end is what requests in that order would leave:
on a pool that holds one model the last entry is loaded, and those before it that can be soft-unloaded are still up.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from juggler.engine import Engine
from juggler.errors import JugglerError
from juggler.ids import EndpointId, InstanceId
from juggler.units import MINUTES, format_duration

PATIENCE_S = 60 * MINUTES
"""Clients give up sooner (``queue_timeout``); a warm-up has nobody to tell, and several take their turns."""

_log = logging.getLogger("juggler.warmup")


@dataclass(slots=True)
class WarmupEntry:
    """One entry and what became of it; shown by ``juggler ps``."""

    endpoint: EndpointId
    state: str = "pending"
    """``pending``, ``loading``, ``done`` or ``failed``."""
    error: str | None = None
    seconds: float | None = None


class Warmup:
    """Runs in the background; failures are logged and visible, and end nothing."""

    def __init__(self, endpoints: Sequence[EndpointId]) -> None:
        self.entries = [WarmupEntry(endpoint) for endpoint in endpoints]

    def change(
        self,
        endpoints: Sequence[EndpointId],
        before: Mapping[EndpointId, InstanceId],
        after: Mapping[EndpointId, InstanceId],
        anew: Collection[InstanceId],
    ) -> None:
        """A new configuration: models that come to the list are loaded, others not again for having another name.

        Args:
            endpoints: Its list.
            before: Where endpoints led until now.
            after: Where they lead from now on.
            anew: Processes that are new; they are loaded in any case.
        """
        known = {before[one.endpoint]: one for one in reversed(self.entries) if before[one.endpoint] not in anew}
        self.entries = []
        for endpoint in endpoints:
            entry = known.get(after[endpoint])
            if entry is None:
                entry = WarmupEntry(endpoint)
            elif any(entry is one for one in self.entries):  # a second name of the same model
                entry = replace(entry, state="pending" if entry.state == "loading" else entry.state)
            entry.endpoint = endpoint
            self.entries.append(entry)

    async def run(self, engine: Engine) -> None:
        """Load what is pending, also what comes to it meanwhile."""
        while (entry := next((one for one in self.entries if one.state == "pending"), None)) is not None:
            began = time.monotonic()
            entry.state = "loading"
            try:
                await engine.load(entry.endpoint, "warm-up", PATIENCE_S)
            except JugglerError as error:
                entry.state, entry.error = "failed", error.message
                _log.warning("warm-up of %s failed: %s", entry.endpoint, error.message)
            else:
                entry.state = "done"
                _log.info("warm-up of %s took %s", entry.endpoint, format_duration(time.monotonic() - began))
            entry.seconds = time.monotonic() - began
