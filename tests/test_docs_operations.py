"""The operator's documents, held against posctl and the alerts. `make system` runs their commands."""

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
    ("sh", "root"): "typed on the server, and run by the test",
    ("sh", "till"): "typed in a second terminal, and run too",
    ("sh", "elsewhere"): "typed on another machine or about one, and only read",
    ("dockerfile", "elsewhere"): "builds an image; not run",
    ("text", "shows"): "all that the block before has printed",
    ("text", "till"): "all that the second terminal has printed",
}
# A call ends where the shell's own words begin.
_CALL = re.compile(r"(?<![-/\w])posctl ((?:[^\n;|&>)\"]|\"[^\"]*\")+)")


def blocks() -> Iterator[tuple[str, documents.Block]]:
    """Each block of the pages, after the page and line where it begins."""
    for page in PAGES:
        for block in documents.blocks(page):
            yield f"{page}:{block.line}", block


def calls() -> Iterator[tuple[str, list[str]]]:
    """Each call of posctl in a block, after the page and line where the block begins."""
    for place, block in blocks():
        if block.language == "sh":
            for found in _CALL.findall(block.text.replace("\\\n", " ")):
                yield place, shlex.split(found, comments=True)


def parse(command: click.Command, words: list[str]) -> str:
    """Have a command and its subcommands parse their options; the name of the last one."""
    context = click.Context(command)
    _, rest, _ = command.make_parser(context).parse_args(list(words))
    if not isinstance(command, click.Group):
        return str(command.name)
    name, found, left = command.resolve_command(context, rest)
    assert name is not None and found is not None
    return parse(found, left)


def alarms() -> dict[str, str]:
    """How urgent each alarm is, by its name."""
    groups = yaml.safe_load((ROOT / "docs/alerts.yml").read_text("utf-8"))["groups"]
    return {
        rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]
    }


class BlockTests(SynchronousTestCase):
    def test_every_block_says_whose_it_is(self) -> None:
        for place, block in blocks():
            with self.subTest(place=place):
                self.assertIn((block.language, *block.words), _KINDS)

    def test_few_commands_are_left_out_when_the_page_is_run(self) -> None:
        of = dict.fromkeys(_KINDS, 0)
        for _, block in blocks():
            of[block.language, block.words[0]] += 1
        self.assertLess(of["sh", "elsewhere"] * 4, of["sh", "root"])

    def test_posctl_has_every_command_and_option_that_is_typed(self) -> None:
        found = set()
        for place, words in calls():
            with self.subTest(place=place, words=words):
                found.add(parse(posctl, words))
        self.assertGreater(len(found), 10)


class AlarmTests(SynchronousTestCase):
    def test_what_to_do_stands_there_for_every_alarm_in_their_order(self) -> None:
        headings = re.findall(r"^### (Posd\w+)$", documents.text(RUNBOOK), re.M)
        self.assertEqual(headings, [*alarms()])

    def test_it_is_as_urgent_there_as_it_is_for_prometheus(self) -> None:
        said = re.findall(r"^### (Posd\w+)\n\n\*(\w+)\.\*", documents.text(RUNBOOK), re.M)
        self.assertEqual(dict(said), alarms())


class AgreementTests(SynchronousTestCase):
    """How what the page shows is compared."""

    def test_times_and_dates_may_differ_and_how_wide_a_table_is(self) -> None:
        page = " POS_1   2026-11-25 13:38   2 \n───────\nbefore 27 February 2029, 13:38:41\n"
        came = " POS_1      2031-01-02 03:04        2\n────────────\nbefore 1 May 2030, 01:02:03\n"
        self.assertTrue(matches_output(page, came))

    def test_nothing_else_may(self) -> None:
        self.assertFalse(matches_output("2 received", "3 received"))
        self.assertFalse(matches_output("one\nthree", "one\ntwo\nthree"))
        self.assertFalse(matches_output("one", "one\ntwo"))
        self.assertFalse(matches_output("a.b", "axb"))

    def test_an_ellipsis_stands_for_what_is_left_out(self) -> None:
        self.assertTrue(matches_output("one\n…\nthree", "one\ntwo\n\ntwo\nthree"))
        self.assertTrue(matches_output("one\n…\nthree", "one\nthree"))
        self.assertTrue(matches_output("is … here", "is anything here"))
        self.assertFalse(matches_output("is … here", "is\nhere"))
