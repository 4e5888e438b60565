"""One concept has one name, and one name has one concept: class names and purposes of packages."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import posd

ROOT = Path(posd.__file__).parent

SHARED: dict[str, str] = {}
"""Class names that two modules define, because they are the same on both sides of a connection."""

OLD = {
    *(
        "Exchange",
        "Roster",
        "Attendance",
        "Sighting",
        "Intake",
        "Notes",
        "Word",
        "Register",
        "Books",
        "Dismissals",
    ),
    *(
        "Polls",
        "Wish",
        "Harvest",
        "Hold",
        "Aside",
        "Numbering",
        "Dialect",
        "Unreadable",
        "Door",
        "Gate",
        "Rooms",
    ),
    *(
        "Crossing",
        "Addresses",
        "Reception",
        "Guest",
        "Ask",
        "Taken",
        "Given",
        "Refused",
        "Takeover",
        "Strangers",
    ),
    *("Mentions", "Parts", "Instruments", "Survey", "Lag", "Ending", "Next"),
}
"""Class names of the first version. CONTRIBUTING.md has a glossary of the terms that replace them."""


def classes() -> dict[str, list[str]]:
    """Return the modules that define each class name, at any depth."""
    found = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(ROOT)))
    return found


class ClassNameTests(SynchronousTestCase):
    def test_no_class_name_is_defined_twice(self) -> None:
        twice = {name for name, modules in classes().items() if len(modules) > 1}
        self.assertEqual(twice, SHARED.keys())

    def test_no_class_has_a_name_of_the_first_version(self) -> None:
        self.assertEqual({name.lstrip("_") for name in classes()} & OLD, set())


class PackageTests(SynchronousTestCase):
    def test_every_package_says_what_it_is_for_and_what_does_not_belong_in_it(self) -> None:
        for path in sorted(ROOT.glob("*/**/__init__.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            purpose, _, bounds = docstring.partition("\n\n")
            with self.subTest(package=str(path.parent.relative_to(ROOT))):
                self.assertRegex(purpose, r"[.:]$")
                self.assertTrue(bounds)
