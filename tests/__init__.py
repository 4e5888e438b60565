"""Tests of posd, one file for each module; run them with `python -m tests -j4 tests` (`tests.__main__`).

Hypothesis uses the same examples in every run, so that a result depends on the change and not on chance.
HYPOTHESIS_PROFILE=explore uses new examples, and ten times as many. There are no time limits for an
example, because the tests run on busy machines.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore", settings.get_profile("steady"), derandomize=False, max_examples=1000
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
