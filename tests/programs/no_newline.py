"""Writes 10 MB without a single line end, then a begun line behind a carriage return, and lives on."""

import os
import time

for _ in range(100):
    data = b"x" * 100_000
    while data:
        data = data[os.write(1, data) :]
os.write(1, b"\rbegun")
time.sleep(60)
