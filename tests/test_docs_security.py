"""Compare docs/security.md with the code: its tests exist, and its limits have the values of the code."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

from attrs import fields
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import Config, load
from posd.config.units import parse_duration, parse_size
from tests import documents
from tests.documents import ROOT, words_in_code

PAGE = "docs/security.md"
_NAMED = re.compile(r"((?:[a-z]\w*\.)*?test_\w+)(?:\.(\w+))?")


def modules() -> dict[str, Path]:
    """Return the paths of test modules by their names, with the package except `integration`."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        package = path.parent.relative_to(ROOT / "tests").parts
        found[".".join((*(each for each in package if each != "integration"), path.stem))] = path
    return found


def names(path: Path) -> set[str]:
    """Return the names of the classes, functions and methods of a module."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, kinds)
    }


class ProofTests(SynchronousTestCase):
    """Tests for the names of tests on the page."""

    def test_every_named_test_exists(self) -> None:
        there, checked = modules(), 0
        for word in sorted(words_in_code(documents.text(PAGE))):
            named = _NAMED.fullmatch(word)
            if named is None:
                continue
            checked += 1
            with self.subTest(name=word):
                self.assertIn(named[1], there)
                if named[2] is not None:
                    self.assertIn(named[2], names(there[named[1]]))
        self.assertGreater(checked, 50)

    def test_every_attack_names_a_test(self) -> None:
        for table in documents.tables(PAGE):
            if len(table.rows[0]) == 3 and table.section not in (
                "What posd protects",
                "Limits",
                "Secrets",
            ):
                for row in table.rows:
                    with self.subTest(section=table.section, row=row[0]):
                        self.assertTrue(any(map(_NAMED.fullmatch, words_in_code(row[2]))))


class LimitTests(SynchronousTestCase):
    """Tests for the table of limits."""

    def test_every_limit_has_the_value_of_the_code(self) -> None:
        configured = self.configured()
        for what, figure, place in documents.table(PAGE, "Limits").rows:
            with self.subTest(limit=what):
                module, _, name = place.strip("`").rpartition(".")
                if name.islower():
                    actual = getattr(getattr(configured, module), name)
                else:
                    actual = getattr(import_module(f"posd.{module}"), name)
                self.assertEqual(actual, number(figure))

    def test_the_table_has_every_limit_of_the_configuration(self) -> None:
        named = {
            place.removeprefix("limits.")
            for place in documents.table(PAGE, "Limits").column(2)
            if place.startswith("limits.") and place.islower()
        }
        described = {each.name for each in fields(type(self.configured().limits))}
        self.assertEqual(named, described)

    def configured(self) -> Config:
        """Return the configuration with all defaults."""
        path = Path(self.mktemp()).absolute()
        path.mkdir()
        path /= "posd.toml"
        path.write_text(
            '[database]\ndsn = "dbname=posd"\n[[listen]]\nname = "a"\nendpoint = "tcp:9010"\n'
        )
        return load(path, {})


def number(figure: str) -> float:
    """Parse a figure of the table: a size, a duration, or a number."""
    if figure.endswith("B"):
        return parse_size(figure)
    return parse_duration(figure) if figure.endswith("s") else float(figure)
