#!/bin/bash
# A start script as web UIs ship it: bash stays, the program runs in its foreground. Usage: wrapper.sh PROGRAM ARGS...
echo "wrapper $$"
"$@"
echo "wrapper saw status $?"
