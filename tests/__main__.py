"""trial, whose processes each take the tests of a module together: `python -m tests -j4 tests`.

`trial -j4` hands out single tests, so each of the four processes makes what the tests of a module share: a
daemon, a database's template, the day of a shop. Here a process takes all tests of a module. A process that
finds no other module helps with the one of which most tests are left. Options are those of trial.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Final

from attrs import define, field
from twisted.scripts import trial
from twisted.trial._dist.distreporter import DistReporter
from twisted.trial._dist.disttrial import DistTrialRunner
from twisted.trial._dist.worker import LocalWorkerAMP
from twisted.trial.itrial import ITestCase

LONGEST: Final = (
    "tests.integration.test_wire_closing",
    "tests.integration.test_schemathesis",
)
"""Modules with a test that takes half a minute: they begin first, so that no process ends with one alone."""


@define(eq=False)
class Deal:
    """Tests by module, for several processes."""

    _waiting: deque[deque[ITestCase]]
    _begun: list[deque[ITestCase]] = field(init=False, factory=list)

    @classmethod
    def of(cls, tests: Iterable[ITestCase]) -> Deal:
        """Modules are dealt in the order of `LONGEST`, then those of tests.integration, then all others."""
        modules: dict[str, deque[ITestCase]] = {}
        for test in tests:
            modules.setdefault(type(test).__module__, deque()).append(test)
        return cls(deque(modules[name] for name in sorted(modules, key=_turn)))

    def hand(self) -> Iterator[ITestCase]:
        """The tests of one process: a module after the other, then what others have not come to yet."""
        while self._waiting or any(self._begun):
            if self._waiting:
                self._begun.append(self._waiting.popleft())
                module = self._begun[-1]
            else:
                module = max(self._begun, key=len)
            while module:
                yield module.popleft()


def _turn(module: str) -> tuple[int, str]:
    if module in LONGEST:
        return LONGEST.index(module), module
    return len(LONGEST) + (not module.startswith("tests.integration.")), module


@define
class ModuleRunner(DistTrialRunner):
    """trial's runner of several processes, but for what it gives a process next."""

    _round: Iterable[ITestCase] | None = field(init=False, default=None)
    _deal: Deal = field(init=False)

    async def _driveWorker(
        self, result: DistReporter, testCases: Iterable[ITestCase], worker: LocalWorkerAMP
    ) -> None:
        # The processes of one round, of which `--until-failure` has many, are given the same iterator.
        if testCases is not self._round:
            self._round, self._deal = testCases, Deal.of(testCases)

        def wanted(_: ITestCase) -> bool:
            return not self._exitFirst or bool(result.original.wasSuccessful())

        await super()._driveWorker(result, takewhile(wanted, self._deal.hand()), worker)


if __name__ == "__main__":
    trial.DistTrialRunner = ModuleRunner  # type: ignore[attr-defined]
    trial.run()
