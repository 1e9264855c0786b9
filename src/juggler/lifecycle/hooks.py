"""Calling a backend module's hooks: bounded, given up when the process ends, and a mistake in one harms nobody."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from juggler.backends.base import Backend, Caller
from juggler.errors import BackendError
from juggler.lifecycle.launcher import LaunchHandle
from juggler.lifecycle.waiting import ProcessEnded, unless_ended
from juggler.units import SECONDS, format_duration

HOOK_LIMIT_S = 30 * SECONDS
"""The last resort for saving and restoring of state; modules bound themselves."""

UNLOAD_LIMIT_S = 60 * SECONDS
"""For an unload with its verification: koboldcpp ends and starts a worker for it (backends.md 4.5)."""

_log = logging.getLogger("juggler.lifecycle")


async def run_hook(backend: Backend, handle: LaunchHandle, work: Coroutine[Any, Any, None], name: str) -> None:
    """Run a hook whose failure costs speed later, not correctness: it is logged.

    Raises:
        ProcessEnded: It did, meanwhile.
    """
    instance = backend.settings.instance
    try:
        async with asyncio.timeout(HOOK_LIMIT_S):
            await unless_ended(handle, work, name)
    except ProcessEnded:
        raise
    except (OSError, BackendError) as error:  # includes TimeoutError
        _log.warning("%s: %s failed: %s", instance, name, error or f"not done after {HOOK_LIMIT_S:.0f} s")
    except Exception:
        _log.exception("%s: the %s module failed in %s", instance, backend.type_name, name)


async def unload_problem(backend: Backend, handle: LaunchHandle, caller: Caller) -> str | None:
    """Unload; None when verified, else half a sentence on what went wrong.

    Raises:
        ProcessEnded: It did, meanwhile.
    """
    try:
        async with asyncio.timeout(UNLOAD_LIMIT_S):
            verified = await unless_ended(handle, backend.unload(caller), "unload")
    except ProcessEnded:
        raise
    except TimeoutError as error:
        return str(error) or f"not done after {format_duration(UNLOAD_LIMIT_S)}"
    except (OSError, BackendError) as error:
        return str(error) or type(error).__name__
    except Exception as error:
        _log.exception("%s: the %s module failed in unload", backend.settings.instance, backend.type_name)
        return f"{type(error).__name__}: {error}"
    return None if verified else "the server did not confirm it"


def can_unload(backend: Backend) -> bool | None:
    """Whether the server that runs now can free its memory and stay; None if the module could not say."""
    try:
        return backend.settings.model_unloading and backend.capabilities.unload != "none"
    except Exception:
        _log.exception("%s: the %s module failed in capabilities", backend.settings.instance, backend.type_name)
        return None
