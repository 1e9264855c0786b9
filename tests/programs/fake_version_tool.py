"""A stand-in for a model server's program as ``doctor`` and ``init`` meet it: it tells its version and its options.

    fake_version_tool.py --version    FAKE_VERSION (default "version: 7777 (abcdef0)")
    fake_version_tool.py --help       a list of options as llama.cpp prints it, those of FAKE_OPTIONS among them
    fake_version_tool.py ANYTHING     writes the file FAKE_SERVED and waits: it has been started as a server

FAKE_STATUS   exit status after --version or --help
FAKE_FIRST    a line before everything else
FAKE_CALLS    a file to which each call adds its arguments, one line each
FAKE_HABIT    ``hang``: --version never ends; ``flood``: it prints for ever; ``child``: it leaves a child in a session
              of its own that sleeps; ``dies``: it kills itself
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-m,    --model FNAME                    model path to load, see also --no-such-thing
                                        (env: LLAMA_ARG_MODEL)
-c,    --ctx-size N                     size of the prompt context
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM
-fa,   --flash-attn [on|off|auto]       set Flash Attention use
-r,    --reverse-prompt PROMPT          halt generation at PROMPT
--lora-scaled FNAME SCALE               path to LoRA adapter with user defined scaling
--mmap, --no-warmup                     whatever
"""


def main() -> None:
    """Do what the arguments and the environment say."""
    arguments = sys.argv[1:]
    habit = os.environ.get("FAKE_HABIT", "")
    if calls := os.environ.get("FAKE_CALLS"):
        with Path(calls).open("a") as file:
            file.write(" ".join(arguments) + "\n")
    if first := os.environ.get("FAKE_FIRST"):
        print(first, file=sys.stderr, flush=True)
    if arguments == ["--version"]:
        if habit == "child":
            subprocess.Popen(["/bin/sleep", "300"], start_new_session=True, stdin=subprocess.DEVNULL)
        if habit == "dies":
            os.kill(os.getpid(), signal.SIGILL)
        while habit == "flood":
            print("x" * 200)
        if habit == "hang":
            time.sleep(300)
        print(os.environ.get("FAKE_VERSION", "version: 7777 (abcdef0)"))
        print("built with cc (Debian 12.2.0) for x86_64-linux-gnu")
    elif arguments[-1:] == ["--help"]:
        if habit == "hang":
            time.sleep(300)
        print(HELP + "".join(f"{option}\n" for option in os.environ.get("FAKE_OPTIONS", "").split()))
    else:
        if served := os.environ.get("FAKE_SERVED"):
            Path(served).write_text(" ".join(arguments))
        time.sleep(300)
    sys.exit(int(os.environ.get("FAKE_STATUS", "0")))


main()
