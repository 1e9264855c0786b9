"""Prints what a program finds when it is started: descriptors, signals, session, directory, environment."""

import json
import os
import sys
from pathlib import Path

# The directory listing itself is one more descriptor.
fds = sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir())[:-1]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(
    json.dumps(
        {
            "fds": fds,
            "stdin": str(Path("/proc/self/fd/0").readlink()),
            "ignored": status["SigIgn"].strip(),
            "blocked": status["SigBlk"].strip(),
            "leader": os.getpid() == os.getsid(0) == os.getpgrp(),
            "cwd": str(Path.cwd()),
            "env": dict(os.environ),
            "argv": sys.argv[1:],
        }
    )
)
