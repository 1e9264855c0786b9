"""Writes the given number of MiB to stdout as fast as it can, then its own figures to stderr; stdin is ignored."""

import os
import sys
import time

line = b"0123456789abcde " * 7 + b"0123456789abcde\n"
block = line * 512
total = int(sys.argv[1]) * 1024 * 1024
started = time.monotonic()
written = 0
while written < total:
    written += os.write(1, block)
print(f"flood: {written} bytes in {time.monotonic() - started:.2f} s", file=sys.stderr)
