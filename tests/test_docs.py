"""All documents: their links are valid, their commands exist, and the output on the first page is right."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath

from markdown_it import MarkdownIt
from twisted.trial.unittest import SynchronousTestCase

from posd.cli.commands import SECTIONS
from tests import documents
from tests.documents import ROOT

PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
_LONGEST = 110
_FIRST_SCREEN = 24
_PATIENCE = 300.0

# Texts that differ in each run: process ids, folders, times of day, and durations.
_CHANCE = re.compile(
    r"process \d+|[^\s']*/posd-(pg|demo)-\w+|^\d\d:\d\d:\d\d|[\d.]+ ms$|PostgreSQL \d+", re.M
)


def anchors(name: str) -> set[str]:
    """Return the anchors of the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", documents.text(name), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class LinkTests(SynchronousTestCase):
    """Links within the checkout."""

    def test_every_link_leads_to_a_file_and_a_heading(self) -> None:
        checked = 0
        for page in PAGES:
            for token in MarkdownIt("commonmark").enable("table").parse(documents.text(page)):
                for child in token.children or ():
                    if child.type == "text":
                        self.assertNotIn("](", child.content, f"a broken link in {page}")
                    target = str(child.attrs.get("href", ""))
                    if child.type != "link_open" or "://" in target:
                        continue
                    checked += 1
                    with self.subTest(page=page, target=target):
                        self.check(page, target)
        self.assertGreater(checked, 20)

    def check(self, page: str, target: str) -> None:
        path, _, anchor = target.partition("#")
        named = str(PurePosixPath(page).parent / path) if path else page
        self.assertTrue((ROOT / named).exists(), f"there is no {named}")
        if anchor:
            self.assertIn(anchor, anchors(named))

    def test_no_line_of_prose_is_too_long(self) -> None:
        for page in PAGES:
            fenced = False
            for number, line in enumerate(documents.text(page).splitlines(), 1):
                fenced ^= line.startswith("```")
                if not fenced and not line.startswith("|"):
                    with self.subTest(page=page, line=number):
                        self.assertLessEqual(len(line), _LONGEST)


def typed(page: str, program: str) -> set[str]:
    """Return the first words after a program's name, in all examples of a page."""
    calls = [line for block in documents.blocks(page) for line in block.text.splitlines()]
    calls += documents.words_in_code(documents.text(page))
    words = re.compile(rf"{program}(?: --\w+ \S+)* ([a-z][a-z-]*)(?!\S)")
    return {found[1] for call in calls if (found := words.match(call.strip()))}


class CommandTests(SynchronousTestCase):
    """Commands of the documents."""

    def check(self, program: str, known: set[str]) -> None:
        used = {name for page in PAGES for name in typed(page, program)}
        self.assertGreater(len(used), 2)
        self.assertEqual(used - known, set())

    def test_every_command_of_posctl_exists(self) -> None:
        self.check("posctl", {name for section in SECTIONS.values() for name in section})

    def test_every_target_of_make_exists(self) -> None:
        makefile = (ROOT / "Makefile").read_text("utf-8")
        self.check("make", set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M)))


class FirstScreenTests(SynchronousTestCase):
    """The first page of the README."""

    def test_it_has_the_commands_for_the_demonstration_and_the_tests(self) -> None:
        screen = documents.text("README.md").splitlines()[:_FIRST_SCREEN]
        for command in ("make demo", "make test"):
            self.assertEqual(len([line for line in screen if line.startswith(command)]), 1)

    def test_the_demonstration_prints_what_stands_there(self) -> None:
        (block,) = (each for each in documents.blocks("README.md") if each.of("text", "demo"))
        self.assertEqual(self.demo(orders=2), _CHANCE.sub("…", two_orders(block.text)))

    def demo(self, orders: int) -> str:
        """Return the output of the demonstration until so many orders have arrived."""
        # If posctl is in PATH, the printed commands are short.
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "posctl").symlink_to(sys.executable)
        process = subprocess.Popen(
            [sys.executable, "-m", "posd.cli", "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "PATH": f"{folder}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
            },
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if f"DEMO-{orders:04}" in line:
                break
        process.send_signal(signal.SIGINT)
        process.wait(_PATIENCE)
        return _CHANCE.sub("…", re.sub(r"localhost:\d+", "localhost:9010", "".join(lines)))


def two_orders(shown: str) -> str:
    """Return the beginning of an output, up to the second order."""
    end = shown.index("\n", shown.index("DEMO-0002")) + 1
    return shown[:end]
