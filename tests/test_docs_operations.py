"""Compare docs/install.md, operations.md and runbook.md with posctl and the alerts.

`make system` runs the commands of these pages.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import yaml
from twisted.trial.unittest import SynchronousTestCase

from posd.cli import posctl
from tests import documents
from tests.documents import ROOT
from tests.shown import matches_output

PAGES = ("docs/install.md", "docs/operations.md", "docs/runbook.md")
RUNBOOK = "docs/runbook.md"
_KINDS = {
    ("sh", "root"): "typed on the server; the system test runs it",
    ("sh", "till"): "typed in a second terminal; the system test runs it",
    ("sh", "elsewhere"): "typed on another machine; not run",
    ("dockerfile", "elsewhere"): "builds an image; not run",
    ("text", "shows"): "the whole output of the previous block",
    ("text", "till"): "the whole output of the second terminal",
}
# A call ends at an operator of the shell.
_CALL = re.compile(r"(?<![-/\w])posctl ((?:[^\n;|&>)\"]|\"[^\"]*\")+)")


def blocks() -> Iterator[tuple[str, documents.Block]]:
    """Yield the place and the content of each block: `page:line`, block."""
    for page in PAGES:
        for block in documents.blocks(page):
            yield f"{page}:{block.line}", block


def calls() -> Iterator[tuple[str, list[str]]]:
    """Yield the place of the block and the arguments of each call of posctl."""
    for place, block in blocks():
        if block.language == "sh":
            for found in _CALL.findall(block.text.replace("\\\n", " ")):
                yield place, shlex.split(found, comments=True)


def parse(command: click.Command, words: list[str]) -> str:
    """Parse the options of a command and its subcommands. Return the name of the last command."""
    context = click.Context(command)
    _, rest, _ = command.make_parser(context).parse_args(list(words))
    if not isinstance(command, click.Group):
        return str(command.name)
    name, found, left = command.resolve_command(context, rest)
    assert name is not None and found is not None
    return parse(found, left)


def alerts() -> dict[str, str]:
    """Return the severity of each alert by its name."""
    groups = yaml.safe_load((ROOT / "docs/alerts.yml").read_text("utf-8"))["groups"]
    return {
        rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]
    }


class BlockTests(SynchronousTestCase):
    """Tests for the blocks of the three pages."""

    def test_every_block_names_its_reader(self) -> None:
        for place, block in blocks():
            with self.subTest(place=place):
                self.assertIn((block.language, *block.words), _KINDS)

    def test_most_commands_are_run(self) -> None:
        of = dict.fromkeys(_KINDS, 0)
        for _, block in blocks():
            of[block.language, block.words[0]] += 1
        self.assertLess(of["sh", "elsewhere"] * 4, of["sh", "root"])

    def test_every_command_and_option_of_posctl_exists(self) -> None:
        found = set()
        for place, words in calls():
            with self.subTest(place=place, words=words):
                found.add(parse(posctl, words))
        self.assertGreater(len(found), 10)


class AlertTests(SynchronousTestCase):
    """Tests for the sections of the runbook about alerts."""

    def test_the_runbook_has_a_section_for_each_alert_in_the_same_order(self) -> None:
        headings = re.findall(r"^### (Posd\w+)$", documents.text(RUNBOOK), re.M)
        self.assertEqual(headings, [*alerts()])

    def test_the_runbook_has_the_severity_of_each_alert(self) -> None:
        said = re.findall(r"^### (Posd\w+)\n\n\*(\w+)\.\*", documents.text(RUNBOOK), re.M)
        self.assertEqual(dict(said), alerts())


class OutputMatchingTests(SynchronousTestCase):
    """Tests for the comparison of a page with the output of a command."""

    def test_times_dates_and_widths_of_tables_may_differ(self) -> None:
        page = " POS_1   2026-11-25 13:38   2 \n───────\nbefore 27 February 2029, 13:38:41\n"
        came = " POS_1      2031-01-02 03:04        2\n────────────\nbefore 1 May 2030, 01:02:03\n"
        self.assertTrue(matches_output(page, came))

    def test_nothing_else_may_differ(self) -> None:
        self.assertFalse(matches_output("2 received", "3 received"))
        self.assertFalse(matches_output("one\nthree", "one\ntwo\nthree"))
        self.assertFalse(matches_output("one", "one\ntwo"))
        self.assertFalse(matches_output("a.b", "axb"))

    def test_an_ellipsis_stands_for_omitted_output(self) -> None:
        self.assertTrue(matches_output("one\n…\nthree", "one\ntwo\n\ntwo\nthree"))
        self.assertTrue(matches_output("one\n…\nthree", "one\nthree"))
        self.assertTrue(matches_output("is … here", "is anything here"))
        self.assertFalse(matches_output("is … here", "is\nhere"))
