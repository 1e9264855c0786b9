"""Ending processes: by their polite ladder, by force until nothing is left, and one last time on the way out."""

import asyncio
import logging

from juggler.errors import BackendError
from juggler.ids import InstanceId
from juggler.lifecycle.launcher import LaunchHandle
from juggler.lifecycle.waiting import settle, succeeded
from juggler.units import SECONDS

KILL_LIMIT_S = 10 * SECONDS
"""For one SIGKILL to empty the group. A process stuck in a driver survives it; then it is tried again."""

KILL_PAUSE_LIMIT_S = 30 * SECONDS

_log = logging.getLogger("juggler.lifecycle")


async def end_politely(instance: InstanceId, handle: LaunchHandle, limit_s: float) -> bool:
    """Walk the ladder; False when SIGKILL must follow."""
    try:
        async with asyncio.timeout(limit_s):
            await handle.stop()
        return True
    except TimeoutError:
        _log.error("%s does not end within its grace times", instance)
    except (OSError, BackendError) as error:
        _log.error("%s could not be stopped: %s", instance, error)
    except Exception:
        _log.exception("%s: stopping it failed", instance)
    return False


async def end_by_force(instance: InstanceId, handle: LaunchHandle) -> None:
    """Return when nothing of the process is left, however often that must be tried.

    Never gives up: memory that is reported as free and is not would be given to the next model.
    """
    pause_s = 1 * SECONDS
    while True:
        try:
            async with asyncio.timeout(KILL_LIMIT_S):
                await handle.kill()
            return
        except TimeoutError:
            _log.error("%s survives SIGKILL, probably stuck in a driver; trying again", instance)
        except (OSError, BackendError) as error:
            _log.error("%s could not be killed: %s; trying again", instance, error)
        except Exception:
            _log.exception("%s: killing it failed; trying again", instance)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, KILL_PAUSE_LIMIT_S)


async def kill_on_the_way_out(instance: InstanceId, handle: LaunchHandle) -> bool:
    """One SIGKILL in spite of a cancellation, ``KILL_LIMIT_S`` at most; whether nothing is left.

    Raises:
        CancelledError: The caller was cancelled meanwhile; raised only afterwards.
    """
    killing = asyncio.create_task(handle.kill(), name=f"{instance} last kill")
    try:
        await settle(killing, KILL_LIMIT_S, KILL_LIMIT_S)
    finally:
        if not succeeded(killing):
            killing.cancel()
            why = killing.exception() if killing.done() and not killing.cancelled() else "it takes too long"
            _log.error("%s could not be killed: %s", instance, why)
    return succeeded(killing)
