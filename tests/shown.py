"""Compare an example output in a document with the real output.

A line `…` of the document stands for any lines, and `…` within a line for any text. Times, dates and the
widths of table columns may differ.
"""

from __future__ import annotations

import re
from typing import Final

_MONTHS: Final = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_CHANCE: Final = (
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "(date)"),
    (re.compile(rf"\b\d{{1,2}} ({_MONTHS})[a-z]* \d{{4}}\b"), "(date)"),
    (re.compile(rf"\b({_MONTHS}) +\d{{1,2}}\b"), "(date)"),
    (re.compile(r"\b\d\d:\d\d(:\d\d)?\b"), "(time)"),
    (re.compile(r"\(time\) \d{4} GMT\b"), "(time) GMT"),
    (re.compile(r"─+"), "─"),
    (re.compile(r"[ \t]+"), " "),
)


def matches_output(page: str, came: str) -> bool:
    """Return whether an output matches the document."""
    pattern = ""
    for line in _lines(page):
        if line == "…":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += r"[^\n]*".join(map(re.escape, line.split("…"))) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(came))) is not None


def _lines(text: str) -> list[str]:
    lines = []
    for line in text.strip().splitlines():
        for chance, word in _CHANCE:
            line = chance.sub(word, line)
        lines.append(line.strip())
    return lines
