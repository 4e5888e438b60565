"""Format the results of a benchmark: as text, as a table, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

from attrs import define, field

from bench.rows import Figures, Row, Target

_CLIENT: Final = "client "
"""The prefix of figures of the load client, which are not printed for a subject."""
_BUSY: Final = 0.9


@define(eq=False)
class Result:
    """The figures of a row: for each subject, one set for each round.

    `not_run` has the reason why a subject was not started, `failed` the errors of its rounds.
    """

    row: Row
    figures: dict[str, list[Figures]] = field(factory=dict)
    not_run: dict[str, str] = field(factory=dict)
    failed: dict[str, list[str]] = field(factory=dict)

    def values(self, subject: str, figure: str) -> list[float]:
        return [each[figure] for each in self.figures.get(subject, ())]

    def ratios(self, figure: str, other: str) -> list[float]:
        """Return the ratio of posd's figure to that of another subject for each round."""
        pairs = zip(self.values("posd", figure), self.values(other, figure), strict=False)
        return [mine / theirs for mine, theirs in pairs if theirs]

    def lines(self) -> list[str]:
        """Return the lines to print for the row."""
        lines = [f"{self.row.name}: {self.row.title}"]
        for figure, target in self.row.targets.items():
            lines.append(f"  {figure:24} {self._judge(figure, target)}")
        lines += self._costs()
        for subject in self.row.subjects:
            if subject in self.not_run:
                lines.append(f"  {subject:12} not run: {self.not_run[subject]}")
            lines += [f"  {subject:12} failed: {what}" for what in self.failed.get(subject, ())]
            rounds = self.figures.get(subject)
            if not rounds:
                continue
            shown = [
                f"{name} {spread([each[name] for each in rounds])}"
                for name in rounds[0]
                if not name.startswith(_CLIENT)
            ]
            busy = median(each.get("client busy", 0.0) for each in rounds)
            if busy > _BUSY:
                shown.append(f"the load client was {busy:.0%} busy, so this is a lower bound")
            lines.append(f"  {subject:12} " + "; ".join(shown))
        return lines

    def _costs(self) -> list[str]:
        """Return lines with ratios of processor time, which other load on the machine changes least."""
        others = {target.of: None for target in self.row.targets.values() if target.of}
        names = {name: None for each in self.figures.get("posd", ()) for name in each}
        return [
            f"  {name:24} {spread(self.ratios(name, other))} × {other}"
            for name in names
            if name.startswith("server µs") and name not in self.row.targets
            for other in others
            if self.ratios(name, other)
        ]

    def _judge(self, figure: str, target: Target) -> str:
        found = self.found(figure, target)
        if not found:
            return f"no ratio; target {target}"
        unit = "" if target.of is None else " ×"
        return f"{spread(found)}{unit}; target {target}: {verdict(found, target)}"

    def found(self, figure: str, target: Target) -> list[float]:
        """Return the value that the target compares, for each round: a ratio, or the figure itself."""
        if target.of is None:
            return self.values("posd", figure)
        return self.ratios(figure, target.of)

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.row.title,
            "targets": {
                figure: {
                    "target": str(target),
                    "found": self.found(figure, target),
                }
                for figure, target in self.row.targets.items()
            },
            "figures": self.figures,
            "not_run": self.not_run,
            "failed": self.failed,
        }


def table(results: Sequence[Result]) -> list[str]:
    """Return a table of the targets of all rows: ratios, posd's figures, and those of the other subject."""
    lines = [
        "| row | what | found | target | | posd | compared with |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for figure, target in result.row.targets.items():
            found = result.found(figure, target)
            cells = (
                *(result.row.name, figure),
                spread(found) + (" ×" if found and target.of else ""),
                *(str(target), verdict(found, target) if found else "not run"),
                spread(result.values("posd", figure)),
                spread(result.values(target.of, figure)) if target.of else "",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def ceiling(results: Sequence[Result]) -> str | None:
    """Return a sentence about the maximal rate of the load client, from its processor time per message."""
    cheapest = [
        each["client µs/message"]
        for result in results
        if result.row.name == "fanout"
        for rounds in result.figures.values()
        for each in rounds
    ]
    if not cheapest:
        return None
    return f"The load client can receive {number(1e6 / min(cheapest))} messages/s."


def verdict(found: Sequence[float], target: Target) -> str:
    value = median(found)
    met = value <= target.bound if target.at_most else value >= target.bound
    return "met" if met else "**missed**"


def spread(values: Sequence[float]) -> str:
    """Format the median, with the minimum and maximum in parentheses."""
    if not values:
        return "–"
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def from_json(rows: Iterable[Row], stored: Mapping[str, Any]) -> list[Result]:
    """Return the results that `as_json` has stored, in the order of `rows`. Missing rows are left out."""
    found = stored["rows"]
    return [
        Result(row, **{name: found[row.name][name] for name in ("figures", "not_run", "failed")})
        for row in rows
        if row.name in found
    ]


def as_json(results: Sequence[Result], more: Mapping[str, Any]) -> dict[str, Any]:
    return {**more, "rows": {result.row.name: result.as_json() for result in results}}
