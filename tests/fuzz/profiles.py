"""How hard the fuzzers try: ``short`` in CI, the same cases each time; ``long`` by ``make fuzz``, other ones each time.

``FUZZ_PROFILE`` picks one. The default profile of the other tests stays what it is.
"""

import os

from hypothesis import HealthCheck, settings

_CHECKS = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
)
_LONG_FACTOR = int(os.environ.get("FUZZ_FACTOR", "40"))
"""Examples of the long profile for each one of the short profile."""

NAME = os.environ.get("FUZZ_PROFILE", "short")


def register() -> None:
    """Make both profiles known to hypothesis, as ``fuzz-short`` and ``fuzz-long``."""
    settings.register_profile(
        "fuzz-short", deadline=None, derandomize=True, database=None, suppress_health_check=_CHECKS
    )
    settings.register_profile("fuzz-long", deadline=None, print_blob=True, suppress_health_check=_CHECKS)


def tries(examples: int) -> settings:
    """Settings of a test that makes ``examples`` examples in the short profile."""
    register()
    factor = _LONG_FACTOR if NAME == "long" else 1
    return settings(settings.get_profile(f"fuzz-{NAME}"), max_examples=examples * factor)
