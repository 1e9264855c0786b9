"""Ignores every polite signal and lives for a minute."""

import signal
import sys
import time

for name in ("SIGTERM", "SIGINT", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
sys.stdout.write("ready\n")  # one write, even unbuffered
sys.stdout.flush()
time.sleep(60)
