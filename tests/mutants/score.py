"""What came of a run: the mutants that no test noticed, and the score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import click

from tests.mutants.by_hand import Mutant

ENOUGH: Final = 0.95


def report(outcomes: Counter[tuple[str, str]], survivors: Iterable[Mutant]) -> int:
    """Print the survivors and the score; the exit status."""
    for each in survivors:
        click.echo(f"\n{each.name} survived {', '.join(each.tests)}")
        click.echo("".join(f"  - {line}\n" for line in each.was.splitlines()), nl=False)
        click.echo("".join(f"  + {line}\n" for line in each.now.splitlines()), nl=False)
    click.echo()
    for kind in dict.fromkeys(kind for kind, _ in outcomes):
        found = {outcome: n for (of, outcome), n in outcomes.items() if of == kind}
        click.echo(
            f"{kind}: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(found.items()))
        )
    counted: Counter[str] = Counter()
    for (_, outcome), n in outcomes.items():
        counted[outcome] += n
    killed, tried = counted["killed"], counted["killed"] + counted["survived"]
    if counted["not run"]:
        click.echo(f"not run: {counted['not run']} mutants, since the time was over")
    score = killed / tried if tried else 0.0
    click.echo(f"score: {score:.1%} ({killed} of {tried} mutants killed; {ENOUGH:.0%} are asked)")
    return 0 if score >= ENOUGH else 1
