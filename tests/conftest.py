"""For all tests: hypothesis judges what comes out, not how long it took on a machine that does other things too."""

from hypothesis import settings

settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
