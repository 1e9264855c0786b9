"""What is looked at around a load: the program before anybody has to go for it, and memory before it is taken."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from juggler.ids import InstanceId
from juggler.keeper import MemoryKeeper
from juggler.lifecycle.supervisor import Supervisor
from juggler.lifecycle.waiting import succeeded
from juggler.scheduler import events
from juggler.scheduler.ledger import Amounts
from juggler.scheduler.state import Instance
from juggler.scheduler.transitions import GONE
from juggler.survey.threads import in_thread
from juggler.units import SECONDS

LOOK_LIMIT_S = 3 * SECONDS

_log = logging.getLogger("juggler.engine")


class Looks:
    """See the module.

    Args:
        supervisors: Know where their programs are.
        post: Takes events for the scheduler.
    """

    def __init__(self, supervisors: Mapping[InstanceId, Supervisor], post: Callable[[events.Event], None]) -> None:
        self._supervisors = supervisors
        self._post = post
        self._programs: dict[InstanceId, asyncio.Task[None]] = {}
        """Looks for programs under way, shared by all who ask."""
        self._beginning: dict[InstanceId, asyncio.Task[None]] = {}
        """Loads whose memory is being looked for: nothing of them exists yet."""

    async def for_program(self, instance: Instance) -> None:
        """Nothing has to go for a program that is not there.

        Raises:
            StartFailed: It is not there.
        """
        if instance.residency not in GONE or instance.spec.attaches or len(instance.queue):
            return
        looking = self._programs.get(instance.id)
        if looking is None or looking.done():
            look = in_thread(LOOK_LIMIT_S, self._supervisors[instance.id].look_for_program)
            looking = asyncio.get_running_loop().create_task(look, name="look for program")
            looking.add_done_callback(succeeded)  # all who asked may have left
            self._programs[instance.id] = looking
        with contextlib.suppress(TimeoutError):  # a disk that sleeps: the start itself will tell
            await asyncio.shield(looking)

    def begin(
        self, keeper: MemoryKeeper, instance: InstanceId, generation: int, needed: Amounts, go_on: Callable[[], None]
    ) -> None:
        """Call ``go_on`` once the memory of a load is seen free, or have the scheduler told that it is not."""

        async def look() -> None:
            try:
                deferred = await keeper.before_load(instance, generation, needed)
            except Exception:  # a mistake in it costs the look, not the load
                _log.exception("%s: the memory for it could not be looked at", instance)
                deferred = None
            del self._beginning[instance]
            if deferred is None:
                go_on()
            else:
                self._post(deferred)

        self._beginning[instance] = asyncio.get_running_loop().create_task(look(), name=f"memory for {instance}")

    def give_up(self, instance: InstanceId) -> bool:
        """Look no longer for the memory of a load; returns whether that was under way."""
        beginning = self._beginning.pop(instance, None)
        if beginning is not None:
            beginning.cancel()
        return beginning is not None

    def forget(self, instance: InstanceId) -> None:
        """Another one may come by this name, with another program."""
        self._programs.pop(instance, None)
