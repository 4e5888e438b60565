"""Work that is done in pieces, done at once: for tests that run no reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Cooperator
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http import stepwise as pieces


def run_pieces_at_once(case: SynchronousTestCase) -> None:
    """In this test `in_pieces` gives no other connection a turn."""

    def now(tick: Callable[[], None]) -> Any:
        tick()

    case.patch(pieces, "_cooperator", Cooperator(scheduler=now))
