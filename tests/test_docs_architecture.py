"""Compare docs/architecture.md with the code: it has every package, and every name on it exists."""

from __future__ import annotations

import inspect
from importlib import import_module

from twisted.trial.unittest import SynchronousTestCase

from tests import documents
from tests.documents import words_in_code
from tests.test_layering import MODULES, objections

PAGE = "docs/architecture.md"


def rows() -> list[tuple[set[str], set[str]]]:
    """Return, for each row of the table of packages, the full names and the forbidden imports."""
    start = documents.text(PAGE).index("## Packages")
    sections = {
        line.lstrip("# ") for line in documents.text(PAGE)[start:].splitlines() if "# " in line
    }
    return [
        ({f"posd.{name}" for name in words_in_code(row[0])}, words_in_code(row[2]))
        for table in documents.tables(PAGE)
        if table.section in sections
        for row in table.rows
    ]


class PackageTests(SynchronousTestCase):
    """Tests for the table of packages."""

    def test_every_package_is_in_exactly_one_row(self) -> None:
        named = [name for names, _ in rows() for name in names]
        top = {name for name in MODULES if name.count(".") == 1}
        self.assertEqual(top - {*named}, set())
        self.assertEqual({*named} - MODULES.keys(), set())
        self.assertEqual(len(named), len({*named}))

    def test_the_layering_table_forbids_the_imports_that_the_page_forbids(self) -> None:
        for names, forbidden in rows():
            for name in names:
                for target in forbidden:
                    with self.subTest(module=name, target=target):
                        self.assertNotEqual(list(objections(name, target)), [])


class NameTests(SynchronousTestCase):
    """Tests for the functions and classes that the page names."""

    def test_every_function_and_class_exists(self) -> None:
        checked = 0
        for word in sorted(words_in_code(documents.text(PAGE))):
            module = f"posd.{word}"
            while module not in MODULES and "." in module:
                module = module.rpartition(".")[0]
            names = f"posd.{word}"[len(module) + 1 :]
            if "." not in word or module == "posd" or not names:
                continue
            checked += 1
            found: object = import_module(module)
            for name in names.split("."):
                with self.subTest(name=word):
                    self.assertTrue(hasattr(found, name), f"{word}: there is no {name}")
                found = inspect.getattr_static(found, name)
        self.assertGreater(checked, 40)
