"""A family that is hard to end: a child, and a grandchild in a session of its own, double-forked.

Usage: tree.py [exit]. Children ignore SIGTERM, unless the second argument is ``polite``. Prints ``ready <main>
<child> <grandchild>``. With ``exit`` the main process ends at once, with status 7.
"""

import os
import signal
import sys
import time


def live(generation: int) -> None:
    if "polite" not in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.write(ready, b"%d %d\n" % (generation, os.getpid()))
    time.sleep(60)
    os._exit(0)


reader, ready = os.pipe()
if os.fork() == 0:
    live(1)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        live(2)
    os._exit(0)
told = ""
while told.count("\n") < 2:
    told += os.read(reader, 100).decode()
child, grandchild = (line.split()[1] for line in sorted(told.splitlines()))
os.write(1, f"ready {os.getpid()} {child} {grandchild}\n".encode())  # one write: no reader sees half a line
if "exit" in sys.argv:
    os._exit(7)
time.sleep(60)
