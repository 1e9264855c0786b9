"""Closes its stdin, stdout and stderr and lives on."""

import os
import time

os.write(1, b"closing\n")
for fd in (0, 1, 2):
    os.close(fd)
time.sleep(60)
