"""An executor that returns the rows of a test, for tests of the code behind the statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Answers:
    """An executor. It returns the given rows for each function or table of `sql/`."""

    def __init__(self, **rows: Sequence[tuple[Any, ...]]) -> None:
        self.rows = rows
        self.asked: list[str] = []

    async def query(self, statement: str, values: object = ()) -> Sequence[tuple[Any, ...]]:
        name = next(name for name in self.rows if name in statement)
        self.asked.append(name)
        return self.rows[name]
