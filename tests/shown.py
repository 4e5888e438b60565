"""Whether what a page shows is what a terminal showed.

A line `…` of the page stands for any lines, and a `…` within a line for anything. What is another one in
each run may differ: times and dates, and how wide the columns of a table are.
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
    """Whether a page shows what came, but for chance and what it leaves out."""
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
