"""Tests of posd, one file for each module; run them with `python -m tests -j4 tests` (`tests.__main__`).

Hypothesis looks at the same examples in every run, so that a run says something about the change
and not about luck; HYPOTHESIS_PROFILE=explore looks at new ones, and at ten times as many. Time
limits for an example are off: these tests run on busy machines.
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
