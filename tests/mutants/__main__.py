"""Try mutants: `python -m tests.mutants --seed 1 --sample 400 --packages "publishing store"`.

Those that are written down are tried first, then a sample. The last lines are the mutants that no test
noticed, and the score. The exit status is 1 if tests notice less than 95 % of the mutants that are not
equivalent.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import click

from tests.mutants import by_hand, samples
from tests.mutants.by_hand import Mutant
from tests.mutants.score import report
from tests.mutants.trees import Tree

_PATIENCE: Final = 600.0
"""Seconds for the tests of a package without a mutant."""


class Run:
    """Mutants that are tested in several copies of the checkout at once, until the time is over."""

    def __init__(self, folder: Path, jobs: int, minutes: float) -> None:
        self._jobs = jobs
        self._until = time.monotonic() + 60 * minutes
        self._trees: SimpleQueue[Tree] = SimpleQueue()
        for number in range(jobs):
            self._trees.put(Tree.copy(folder / str(number)))
        self._limits: dict[str, float] = {}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.survivors: list[Mutant] = []

    def try_all(self, kind: str, mutants: Iterable[Mutant]) -> None:
        """Test each mutant, and print what became of it. Without a `kind` its package is that."""
        mutants = [*mutants]
        known = by_hand.equivalents()
        with ThreadPoolExecutor(self._jobs) as pool:
            tests = dict.fromkeys(each for mutant in mutants for each in mutant.tests)
            [*pool.map(self._measure, tests.keys() - self._limits.keys())]
            for mutant, outcome in zip(mutants, pool.map(self._outcome, mutants), strict=True):
                if outcome == "survived" and any(each.fits(mutant) for each in known):
                    outcome = "equivalent"
                if outcome == "survived":
                    self.survivors.append(mutant)
                self.outcomes[kind or mutant.path.split("/")[1], outcome] += 1
                click.echo(f"{outcome:10} {mutant.name}")

    def _measure(self, tests: str) -> None:
        tree = self._trees.get()
        try:
            began = time.monotonic()
            if tree.run(tests, _PATIENCE):
                raise click.ClickException(f"{tests} fail without a mutant")
            self._limits[tests] = 60 + 5 * (time.monotonic() - began)
        finally:
            self._trees.put(tree)

    def _outcome(self, mutant: Mutant) -> str:
        if time.monotonic() > self._until:
            return "not run"
        tree = self._trees.get()
        try:
            limit = max(self._limits[each] for each in mutant.tests)
            return "killed" if tree.notices(mutant, limit) else "survived"
        finally:
            self._trees.put(tree)


@click.command(context_settings={"show_default": True})
@click.option("--seed", default=1, help="Draws the sample.")
@click.option("--sample", "size", default=400, help="The size of the sample.")
@click.option("--packages", default=" ".join(samples.PACKAGES), help="What the sample is of.")
@click.option("--lists", default=" ".join(by_hand.LISTS), help="Lists that are tried first.")
@click.option("--jobs", default=os.cpu_count() or 1, help="Mutants at once.")
@click.option("--minutes", default=60.0, help="Begin with no mutant later than this.")
def main(seed: int, size: int, packages: str, lists: str, jobs: int, minutes: float) -> None:
    """Try mutants of the core."""
    with tempfile.TemporaryDirectory(prefix="posd-mutants-") as folder:
        run = Run(Path(folder), jobs, minutes)
        for listed in lists.split():
            run.try_all(listed, by_hand.mutants(listed))
        if size:
            # Packages mixed, so that what is not run when the time is over is a sample too.
            run.try_all("", samples.sample(packages.split(), seed, size))
    raise SystemExit(report(run.outcomes, run.survivors))


if __name__ == "__main__":
    main()
