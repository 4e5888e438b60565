"""The machine that the other tests use."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.system import machine
from tests.system.machine import CommandFailed


class Machines(SynchronousTestCase):
    def test_a_service_runs_in_it_and_is_heard_in_its_journal(self) -> None:
        booted = machine.boot(self)
        booted.run("systemd-run", "--wait", "--unit=hello", "echo", "hello out there")
        self.assertIn("hello out there", booted.journal("hello"))

    def test_nothing_that_happens_in_it_happens_here(self) -> None:
        booted = machine.boot(self)
        booted.run("sh", "-c", "echo changed > /etc/changed-in-a-machine")
        self.assertEqual(booted.path("/etc/changed-in-a-machine").read_text(), "changed\n")
        self.assertEqual(booted.run("cat", "/etc/changed-in-a-machine"), "changed\n")
        self.assertFalse(Path("/etc/changed-in-a-machine").exists())

    def test_a_command_that_fails_says_how(self) -> None:
        booted = machine.boot(self)
        with self.assertRaises(CommandFailed) as caught:
            booted.run("sh", "-c", "echo why >&2; exit 7")
        self.assertEqual((caught.exception.status, caught.exception.output), (7, "why\n"))
