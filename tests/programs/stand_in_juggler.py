"""A juggler reduced to its launcher: starts one program, prints its readiness line, and waits to be killed.

Usage: stand_in_juggler.py TEMP_FILE MARKER PROGRAM ARGS...
"""

import asyncio
import os
import sys

from juggler.backends.base import LaunchPlan, StopStep
from juggler.lifecycle.local import LocalLauncher


async def run() -> None:
    temp_file, marker, *command = sys.argv[1:]
    launcher = LocalLauncher()
    plan = LaunchPlan(
        argv=(sys.executable, *command),
        env={**os.environ, "JUGGLER_TEST_MARKER": marker},
        cwd=None,
        stop_ladder=(StopStep("SIGTERM", 5.0),),
        temp_files=(temp_file,),
    )
    handle = await launcher.start("stand-in", plan, await launcher.reserve())
    seen = asyncio.Event()

    def show(stream: str, line: str) -> None:
        print(line, flush=True)
        seen.set()

    handle.subscribe(show, replay=True)
    await asyncio.wait_for(seen.wait(), 20)
    await asyncio.sleep(60)


asyncio.run(run())
