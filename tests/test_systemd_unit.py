"""The unit with which systemd runs posd says what the daemon relies on, and systemd accepts it."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from unittest import SkipTest

from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]
from twisted.trial.unittest import SynchronousTestCase

from posd import resources

TEXT = resources.unit().read_text("utf-8")


def parsed() -> configparser.ConfigParser:
    # Not strict: a unit may say the same key twice, and means both.
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(TEXT)
    return unit


class TheUnit(SynchronousTestCase):
    def setUp(self) -> None:
        self.unit = parsed()
        self.service = self.unit["Service"]

    def test_systemd_is_told_of_readiness_and_of_life_by_the_daemon_itself(self) -> None:
        self.assertEqual(self.service["Type"], "notify")
        self.assertEqual(self.service["NotifyAccess"], "main")
        self.assertTrue(self.service["WatchdogSec"].endswith("s"))

    def test_it_always_comes_back_unless_the_configuration_is_wrong(self) -> None:
        self.assertEqual(self.service["Restart"], "always")
        self.assertEqual(self.unit["Unit"]["StartLimitIntervalSec"], "0")
        self.assertEqual(self.service["RestartPreventExitStatus"], str(os.EX_CONFIG))

    def test_a_reload_is_the_signal_that_the_daemon_knows(self) -> None:
        self.assertEqual(self.service["ExecReload"], "/bin/kill -HUP $MAINPID")

    def test_it_runs_as_a_user_that_postgresql_can_know(self) -> None:
        self.assertEqual((self.service["User"], self.service["Group"]), ("posd", "posd"))
        self.assertNotIn("DynamicUser", self.service)

    def test_there_are_descriptors_for_more_tills_than_are_let_in_as_installed(self) -> None:
        self.assertGreater(int(self.service["LimitNOFILE"]), 20_000 * 2)

    def test_twistd_stays_in_the_foreground_and_leaves_no_file_behind(self) -> None:
        program, *arguments = shlex.split(self.service["ExecStart"])
        self.assertEqual(Path(program).name, "twistd")
        self.assertTrue(Path(program).is_absolute())
        own, plugins = arguments[: arguments.index("posd")], arguments[arguments.index("posd") :]
        options = ServerOptions()
        options.parseOptions(own)
        self.assertTrue(options["nodaemon"])
        self.assertEqual(options["pidfile"], "")
        self.assertEqual(plugins, ["posd", "--config", "/etc/posd/posd.toml"])

    def test_twistd_leaves_the_log_to_the_configuration(self) -> None:
        for option in ("--logger", "--logfile", "--syslog"):
            self.assertNotIn(option, self.service["ExecStart"])

    def test_systemd_has_nothing_to_say_against_it(self) -> None:
        # It exits 0 for a key that it does not know, so what counts is that it is silent.
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            raise SkipTest("systemd-analyze is not installed")
        program = shlex.split(self.service["ExecStart"])[0]
        there = shutil.which("true")
        assert there is not None
        unit = Path(self.mktemp()).absolute() / "posd.service"
        unit.parent.mkdir()
        # A program that is there, since posd is not installed where it is tested.
        unit.write_text(TEXT.replace(program, there), "utf-8")
        said = subprocess.run(
            [analyze, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
        )
        self.assertEqual((said.returncode, said.stdout, said.stderr), (0, "", ""))
