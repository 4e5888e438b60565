"""Mutants that are written down (`python.toml`, `sql.toml`), and equivalent ones (`equivalent.toml`)."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from attrs import frozen

from posd.errors import PosdError
from tests.documents import ROOT

HERE = Path(__file__).parent
LISTS = ("python", "sql")


@frozen
class Mutant:
    """A file of the checkout with one change. `tests` should fail: trial's arguments, tried in turn."""

    name: str
    path: str
    was: str
    now: str
    text: str
    """The whole changed file."""
    tests: tuple[str, ...]


class Stale(PosdError):
    """A mutant that is written down does not fit the code any more."""


@frozen
class Equivalent:
    """Mutants that no test can notice: `was` and `now` are regular expressions, `path` is a pattern."""

    why: str
    path: str
    was: str
    now: str

    def fits(self, mutant: Mutant) -> bool:
        return (
            fnmatch(mutant.path, self.path)
            and re.fullmatch(self.was, mutant.was, re.S) is not None
            and re.fullmatch(self.now, mutant.now, re.S) is not None
        )


def equivalents() -> list[Equivalent]:
    """All of `equivalent.toml`."""
    return [
        Equivalent(each["why"], each.get("path", "*"), each["was"], each.get("now", ".*"))
        for each in _read("equivalent")["mutant"]
    ]


def mutants(listed: str) -> list[Mutant]:
    """All of `python.toml` or `sql.toml`. Raises `Stale`."""
    return [_mutant(each) for each in _read(listed)["mutant"]]


def _mutant(row: dict[str, Any]) -> Mutant:
    name, path, was, now = row["name"], row["path"], row["was"], row["now"]
    file = ROOT / path
    text = file.read_text("utf-8") if file.exists() else ""
    if text.count(was) != 1:
        raise Stale(f"{name}: {path} has {was!r} {text.count(was)} times, and should have it once")
    return Mutant(name, path, was, now, text.replace(was, now), tuple(row["tests"]))


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / f"{name}.toml").read_text("utf-8"))
