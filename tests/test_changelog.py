"""CHANGELOG.md: a merge keeps the entries of both branches, and the result is valid."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

import posd
from tests import documents

_VERSION = re.compile(r"^## \[(.+?)\]", re.M)


def entries(text: str) -> list[str]:
    """Return the entries, each in one line."""
    found = re.findall(r"^- (?:.+\n)(?:  .+\n)*", text, re.M)
    return [" ".join(each[2:].split()) for each in found]


class ChangelogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = documents.text("CHANGELOG.md")

    def test_a_merge_keeps_the_entries_of_both_branches(self) -> None:
        self.assertIn("CHANGELOG.md merge=union\n", documents.text(".gitattributes"))

    def test_it_begins_with_what_is_not_released(self) -> None:
        versions = _VERSION.findall(self.text)
        self.assertEqual(versions[0], "Unreleased")
        # Before its first release posd has a version, but the changelog has none.
        self.assertIn(versions[1:2], ([], [posd.__version__]))

    def test_no_heading_and_no_entry_is_there_twice(self) -> None:
        """A merge could duplicate them."""
        for part in _VERSION.split(self.text):
            headings = re.findall(r"^### .+$", part, re.M)
            self.assertEqual(sorted(headings), sorted(set(headings)))
        found = entries(self.text)
        self.assertEqual(sorted(found), sorted(set(found)))

    def test_each_entry_is_a_sentence(self) -> None:
        found = entries(self.text)
        self.assertGreater(len(found), 50)
        for each in found:
            with self.subTest(each[:60]):
                self.assertRegex(each, r"[.:]$")

    def test_everything_is_an_entry_or_a_heading(self) -> None:
        """An unresolved conflict, or a line that a merge has separated from its entry, is neither."""
        _, _, body = self.text.partition("## [Unreleased]\n")
        left = re.sub(r"^- (?:.+\n)(?:  .+\n)*|^###? .+\n|^\n", "", body, flags=re.M)
        self.assertEqual(left, "")
