"""A session whose answers a test gives, for what is behind the statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Answers:
    """Answers a function or a table of `sql/` with the rows that are given for it."""

    def __init__(self, **rows: Sequence[tuple[Any, ...]]) -> None:
        self.rows = rows
        self.asked: list[str] = []

    async def query(self, statement: str, values: object = ()) -> Sequence[tuple[Any, ...]]:
        name = next(name for name in self.rows if name in statement)
        self.asked.append(name)
        return self.rows[name]
