"""Asking a backend module for its launch plan: file work, hence in a thread, and bounded."""

import asyncio
from collections.abc import Mapping

from juggler.backends.base import Address, Backend, LaunchPlan
from juggler.errors import StartFailed
from juggler.lifecycle.guardian import remove_paths
from juggler.lifecycle.waiting import succeeded
from juggler.units import SECONDS, format_duration

PLAN_LIMIT_S = 30 * SECONDS
"""A plan may read a model file's header from a slow disk; a dead network file system must not hold us for ever."""


async def planned(backend: Backend, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
    """The plan for one start; its private files are removed if nobody waits for it any more.

    Raises:
        StartFailed: Not ready within ``PLAN_LIMIT_S``, or the settings cannot work.
    """
    planning = asyncio.create_task(
        asyncio.to_thread(backend.plan, address, environ), name=f"{backend.settings.instance} plan"
    )
    try:
        # The thread cannot be cancelled; a plan that comes too late must not leave its private files behind.
        done, _ = await asyncio.wait((planning,), timeout=PLAN_LIMIT_S)
    except asyncio.CancelledError:
        planning.add_done_callback(_discard)
        raise
    if not done:
        planning.add_done_callback(_discard)
        raise StartFailed(
            f"the command was not ready after {format_duration(PLAN_LIMIT_S)}",
            hint="the disk with its files may be slow or gone",
        )
    return planning.result()


def _discard(planning: asyncio.Task[LaunchPlan]) -> None:
    if succeeded(planning):
        remove_paths(list(planning.result().temp_files))
