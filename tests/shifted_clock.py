"""A wrong clock in this process, while that of the database is right.

Every module of posd gets a `datetime` with a shifted `now()`. `time.time` is shifted for all.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta, tzinfo
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

_time = time.time


def shift(case: SynchronousTestCase, by: timedelta) -> None:
    """Shift the clock until the end of a test."""

    class Alike(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime)

    class Shifted(datetime, metaclass=Alike):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + by

    case.patch(time, "time", lambda: _time() + by.total_seconds())
    for name, module in list(sys.modules.items()):
        if name.startswith("posd.") and getattr(module, "datetime", None) is datetime:
            case.patch(module, "datetime", Shifted)
