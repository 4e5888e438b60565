"""`posctl`: its help texts and its errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from posd import __version__
from posd.cli import posctl as command
from posd.cli.commands import SECTIONS, CommandGroup
from tests.cli_runner import posctl

NOWHERE = "host=/nowhere-at-all dbname=posd"


class HelpTests(SynchronousTestCase):
    def test_every_command_is_listed_with_a_summary(self) -> None:
        listed = posctl("--help").out
        for names in SECTIONS.values():
            for name in names:
                self.assertRegex(listed, rf"\n  {name} +[A-Z].*\.\n")

    def test_every_command_explains_itself_with_an_example(self) -> None:
        for path in _paths(command):
            with self.subTest(path=path):
                shown = posctl(*path, "--help")
                self.assertEqual(shown.code, 0)
                self.assertIn(f"posctl {' '.join(path)}", shown.out.split("Example", 1)[1])

    def test_the_version_is_that_of_the_package(self) -> None:
        self.assertEqual(posctl("--version").out, f"posctl, version {__version__}\n")

    def test_nothing_at_all_is_answered_with_the_help(self) -> None:
        ran = posctl()
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn("Set up:", ran.err)

    def test_it_runs_as_a_module_without_loading_what_the_command_does_not_need(self) -> None:
        watched = "import sys, posd.cli; posd.cli.posctl(['--version'], standalone_mode=False);"
        ran = subprocess.run(
            [sys.executable, "-c", watched + "print('autobahn' in sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(ran.stdout, f"posctl, version {__version__}\nFalse\n")


class ConfigurationTests(SynchronousTestCase):
    def test_with_a_dsn_it_may_be_one_that_the_user_must_not_read(self) -> None:
        # For example as PostgreSQL's superuser, who sets up the database.
        unreadable = self.mktemp()
        Path(unreadable).touch()
        self.patch(os, "access", lambda path, mode, **_: str(path) != unreadable)
        ran = posctl("--config", unreadable, "migrate", dsn=NOWHERE)
        self.assertEqual(ran.code, os.EX_UNAVAILABLE, ran.err)


class FailureTests(SynchronousTestCase):
    def test_an_unknown_command_is_one_line_with_what_was_meant(self) -> None:
        ran = posctl("migrat")
        self.assertEqual((ran.code, ran.out), (os.EX_USAGE, ""))
        self.assertEqual(
            ran.err,
            "posctl: No such command 'migrat'. Did you mean 'migrate'? See `posctl --help`.\n",
        )

    def test_an_unknown_option_names_the_command_to_ask(self) -> None:
        ran = posctl("key", "list", "--tenent", "kitchen")
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertEqual(ran.err.count("\n"), 1)
        self.assertIn("See `posctl key list --help`.", ran.err)

    def test_a_malformed_connection_string_is_not_repeated(self) -> None:
        ran = posctl("migrate", dsn="postgresql://posd:hush@[::1/posd")
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn("write a connection string such as", ran.err)
        self.assertNotIn("hush", ran.err)

    def test_without_a_database_every_command_says_so_in_one_line(self) -> None:
        for arguments in (
            ("bootstrap",),
            ("migrate",),
            ("adopt", "kitchen"),
            ("tenant", "add", "kitchen", "--name", "The Kitchen"),
            ("tenant", "list"),
            ("tenant", "disable", "kitchen"),
            ("key", "create", "--kind", "platform"),
            ("key", "list"),
            ("key", "revoke", "1"),
            ("status",),
            ("stream", "reset", "--yes"),
            ("audit",),
        ):
            with self.subTest(arguments=arguments):
                ran = posctl(*arguments, dsn=NOWHERE)
                self.assertEqual((ran.code, ran.out), (os.EX_UNAVAILABLE, ""))
                self.assertRegex(ran.err, r"\Aposctl: .*nowhere-at-all.*\n\Z")

    def test_a_configuration_that_is_not_there_is_named(self) -> None:
        ran = posctl("--config", "/nowhere/posd.toml", "migrate")
        self.assertEqual(ran.code, os.EX_CONFIG)
        self.assertRegex(ran.err, r"\A/nowhere/posd\.toml: .*\n\Z")

    def test_the_environment_names_the_configuration(self) -> None:
        ran = posctl("migrate", environ={"POSD_CONFIG": "/elsewhere/posd.toml"})
        self.assertIn("/elsewhere/posd.toml", ran.err)


def _paths(group: CommandGroup) -> list[tuple[str, ...]]:
    """Yield the words of every command that is not a group."""
    paths: list[tuple[str, ...]] = []
    context = group.make_context("posctl", ["--version"], resilient_parsing=True)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        inner = getattr(found, "commands", None)
        paths.extend([(name, each) for each in inner] if inner else [(name,)])
    return paths
