"""The reports of a supervisor, written down."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from juggler.backends.base import Address
from juggler.errors import BackendError
from juggler.ids import InstanceId

WAIT_LIMIT_S = 3600.0
"""In virtual time: long enough for any bound of the supervisor's, and an end for a test that waits in vain."""


@dataclass(frozen=True, slots=True)
class Report:
    """One call of ``Reports``."""

    kind: str
    generation: int
    at_s: float
    """The loop's time."""
    detail: object = None
    """The address, the error, the text or the flag, where the report has one."""


class RecordedReports:
    """A ``Reports`` that remembers and can be waited on."""

    def __init__(self) -> None:
        self.all: list[Report] = []
        self.on_report: Callable[[Report], None] | None = None
        """Called inside the report, as the engine would act on it."""
        self._news = asyncio.Event()

    @property
    def kinds(self) -> list[str]:
        """``"instance_ready 1"`` and so on, in order."""
        return [f"{report.kind} {report.generation}" for report in self.all]

    async def until(self, kind: str, generation: int = 1) -> Report:
        """The first such report, past or to come.

        Raises:
            TimeoutError: None within an hour of the loop's time.
        """
        async with asyncio.timeout(WAIT_LIMIT_S):
            while True:
                for report in self.all:
                    if (report.kind, report.generation) == (kind, generation):
                        return report
                self._news.clear()
                await self._news.wait()

    def instance_ready(
        self,
        instance: InstanceId,
        generation: int,
        upstream_address: Address,
        *,
        attached: bool = False,
        soft_unload: bool | None = None,
    ) -> None:
        self._add("attached" if attached else "instance_ready", generation, upstream_address)

    def attachable(self, instance: InstanceId) -> None:
        self._add("attachable", 0)

    def not_attached(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        self._add("not_attached", generation, error)

    def start_failed(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        self._add("start_failed", generation, error)

    def unloaded(self, instance: InstanceId, generation: int) -> None:
        self._add("unloaded", generation)

    def unload_failed(self, instance: InstanceId, generation: int, detail: str) -> None:
        self._add("unload_failed", generation, detail)

    def stopped(self, instance: InstanceId, generation: int) -> None:
        self._add("stopped", generation)

    def exited(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        self._add("exited", generation, error)

    def busy_probed(self, instance: InstanceId, generation: int, busy: bool) -> None:
        self._add("busy_probed", generation, busy)

    def _add(self, kind: str, generation: int, detail: object = None) -> None:
        report = Report(kind, generation, asyncio.get_running_loop().time(), detail)
        self.all.append(report)
        self._news.set()
        if self.on_report is not None:
            self.on_report(report)
