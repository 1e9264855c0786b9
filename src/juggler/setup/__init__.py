"""``juggler init``: a configuration for this machine, with a reason beside every choice.

``programs``, ``models`` and ``servers`` look, ``estimate`` and ``plan`` decide, ``draft`` and ``document`` write it
down, ``write`` puts it in its place. The only thing that is ever changed is the one file asked for.
"""
