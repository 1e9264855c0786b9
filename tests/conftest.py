"""For all tests: what must not depend on how, or on how busy a machine, they are run.

Hypothesis judges what comes out, not how long it took. Programs that tests start hear Ctrl-C and the end of a
terminal, also where the tests themselves were started in the background of a script, or by ``nohup``: what is ignored
is inherited.
"""

import signal

from hypothesis import settings

settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # what handles a signal is not inherited
