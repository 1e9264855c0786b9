"""A changed configuration, taken up by the running program.

trigger (signal, `juggler reload`, watch) -> Reloader: read, check -> match and plan (pure) -> prepare -> change
"""
