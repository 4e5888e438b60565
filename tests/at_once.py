"""Run divided work without a reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Cooperator
from twisted.trial.unittest import SynchronousTestCase

from posd.web.http import stepwise as pieces


def run_pieces_at_once(case: SynchronousTestCase) -> None:
    """Let `in_pieces` run all pieces at once in this test, without other work in between."""

    def now(tick: Callable[[], None]) -> Any:
        tick()

    case.patch(pieces, "_cooperator", Cooperator(scheduler=now))
