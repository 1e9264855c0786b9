"""``juggler doctor``: what is wrong with a configuration on this machine, and what to do about it.

``examine`` asks, ``backends``, ``options``, ``files`` and ``places`` judge, ``report`` prints. Nothing is started
that serves, nothing is changed.
"""
