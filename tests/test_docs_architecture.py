"""docs/architecture.md, held against the code: no package is missing, no name is gone."""

from __future__ import annotations

import inspect
from importlib import import_module

from twisted.trial.unittest import SynchronousTestCase

from tests import documents
from tests.documents import words_in_code
from tests.test_layering import MODULES, objections

PAGE = "docs/architecture.md"


def rows() -> list[tuple[set[str], set[str]]]:
    """Of each row of packages: their full names, and what they must not import."""
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
    """The table of packages."""

    def test_every_package_is_in_one_row_and_every_name_is_one(self) -> None:
        named = [name for names, _ in rows() for name in names]
        top = {name for name in MODULES if name.count(".") == 1}
        self.assertEqual(top - {*named}, set())
        self.assertEqual({*named} - MODULES.keys(), set())
        self.assertEqual(len(named), len({*named}))

    def test_what_the_page_forbids_is_forbidden(self) -> None:
        for names, forbidden in rows():
            for name in names:
                for target in forbidden:
                    with self.subTest(module=name, target=target):
                        self.assertNotEqual(list(objections(name, target)), [])


class NameTests(SynchronousTestCase):
    """Functions and classes that the page names."""

    def test_every_name_of_a_module_is_in_that_module(self) -> None:
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
