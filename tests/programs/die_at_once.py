"""Ends with status 3 and a reason on stderr, without a line end after the last line."""

import sys

sys.stdout.write("loading\n")
sys.stderr.write("error: no such model\ngiving up")
sys.exit(3)
