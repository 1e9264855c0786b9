"""What this machine holds: programs, servers that answer, model files, GPUs, ports. For ``doctor`` and ``init``.

Everything here only looks. Nothing is changed or loaded, no process is left behind, and every look has a deadline.
"""
