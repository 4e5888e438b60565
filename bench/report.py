"""What was measured, as a table and as JSON: medians with the least and the greatest, ratios first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from attrs import define, field

from bench.rows import Figures, Row, Target

_UNIMPORTANT: Final = ("client busy",)
_BUSY: Final = 0.9


@define(eq=False)
class Result:
    """The figures of a row: of each subject, one for each round; and why a subject was not run."""

    row: Row
    figures: dict[str, list[Figures]] = field(factory=dict)
    not_run: dict[str, str] = field(factory=dict)

    def values(self, subject: str, figure: str) -> list[float]:
        return [each[figure] for each in self.figures.get(subject, ())]

    def ratios(self, figure: str, other: str) -> list[float]:
        """posd's figure to the other's, round by round."""
        pairs = zip(self.values("posd", figure), self.values(other, figure), strict=False)
        return [mine / theirs for mine, theirs in pairs if theirs]

    def lines(self) -> list[str]:
        """The row for people."""
        lines = [f"{self.row.name}: {self.row.title}"]
        for figure, target in self.row.targets.items():
            lines.append(f"  {figure:24} {self._judged(figure, target)}")
        for subject in self.row.subjects:
            if subject in self.not_run:
                lines.append(f"  {subject:12} not run: {self.not_run[subject]}")
                continue
            rounds = self.figures[subject]
            shown = [
                f"{name} {spread([each[name] for each in rounds])}"
                for name in rounds[0]
                if name not in _UNIMPORTANT
            ]
            busy = median(each.get("client busy", 0.0) for each in rounds)
            if busy > _BUSY:
                shown.append(f"the load client was busy for {busy:.0%}: a lower bound")
            lines.append(f"  {subject:12} " + "; ".join(shown))
        return lines

    def _judged(self, figure: str, target: Target) -> str:
        if target.of is None:
            found, unit = self.values("posd", figure), ""
        else:
            found, unit = self.ratios(figure, target.of), " ×"
        if not found:
            return f"no ratio; target {target}"
        value = median(found)
        met = value <= target.bound if target.at_most else value >= target.bound
        return f"{spread(found)}{unit}; target {target}: {'met' if met else 'missed'}"

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.row.title,
            "targets": {
                figure: {
                    "target": str(target),
                    "found": self.values("posd", figure)
                    if target.of is None
                    else self.ratios(figure, target.of),
                }
                for figure, target in self.row.targets.items()
            },
            "figures": self.figures,
            "not_run": self.not_run,
        }


def spread(values: Sequence[float]) -> str:
    """The median, and in parentheses the least and the greatest."""
    if not values:
        return "–"
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def as_json(results: Sequence[Result], more: Mapping[str, Any]) -> dict[str, Any]:
    return {**more, "rows": {result.row.name: result.as_json() for result in results}}
