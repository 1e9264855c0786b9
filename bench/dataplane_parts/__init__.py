"""The pieces of ``bench/dataplane.py``.

``backend.c`` and ``load.c`` stand on both sides of each proxy, ``proxy.go`` is the proxy to compare with.
``processes`` builds, starts and ends them and tells what they cost, ``contenders`` says how each is configured,
``measures`` runs the loads, ``report`` compares within rounds, judges and prints.
"""
