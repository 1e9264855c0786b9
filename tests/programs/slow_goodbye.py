"""Needs some time after SIGTERM, as a server that finishes its work, and says so when it is done."""

import signal
import sys
import time


def on_term(number: int, frame: object) -> None:
    time.sleep(float(sys.argv[1]))
    sys.stdout.write("finished politely\n")
    sys.stdout.flush()
    sys.exit(0)


signal.signal(signal.SIGTERM, on_term)
sys.stdout.write("ready\n")  # one write, even unbuffered
sys.stdout.flush()
time.sleep(60)
