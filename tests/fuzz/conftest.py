"""The profiles of the fuzzers; see ``profiles``."""

from tests.fuzz import profiles

profiles.register()
