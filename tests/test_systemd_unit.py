"""The systemd units have the settings that the daemon relies on, and systemd accepts them."""

from __future__ import annotations

import configparser
import difflib
import os
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from unittest import SkipTest

from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import LimitsConfig
from posd.daemon import service as daemon
from posd.database import resources
from posd.web.http.bounded_request import MOST_UNFINISHED_BYTES
from posd.web.http.long_answers import MOST_BYTES

SERVICES = ("posd.service", "posd@.service")
SOCKETS = ("posd.socket", "posd@.socket")


def text(name: str) -> str:
    return resources.systemd_unit(name).read_text("utf-8")


def parsed(name: str) -> configparser.ConfigParser:
    # Not strict, because a unit may repeat a key.
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text(name))
    return unit


def settings(name: str) -> list[str]:
    """Return the lines that systemd reads."""
    return [line for line in text(name).splitlines() if line and not line.startswith("#")]


class TheUnit(SynchronousTestCase):
    def setUp(self) -> None:
        self.unit = parsed("posd.service")
        self.service = self.unit["Service"]

    def test_a_stop_ends_before_the_timeout_of_systemd(self) -> None:
        for name in SERVICES:
            patience = float(parsed(name)["Service"]["TimeoutStopSec"].removesuffix("s"))
            self.assertLess(daemon._STOP_SECONDS, daemon._FORCED_EXIT_SECONDS)
            self.assertLess(daemon._FORCED_EXIT_SECONDS, patience)

    def test_the_daemon_notifies_systemd_of_readiness_and_the_watchdog(self) -> None:
        self.assertEqual(self.service["Type"], "notify")
        self.assertEqual(self.service["NotifyAccess"], "main")
        self.assertTrue(self.service["WatchdogSec"].endswith("s"))

    def test_systemd_restarts_posd_unless_its_configuration_is_wrong(self) -> None:
        self.assertEqual(self.service["Restart"], "always")
        self.assertEqual(self.unit["Unit"]["StartLimitIntervalSec"], "0")
        self.assertEqual(self.service["RestartPreventExitStatus"], str(os.EX_CONFIG))

    def test_a_reload_is_the_signal_that_the_daemon_knows(self) -> None:
        self.assertEqual(self.service["ExecReload"], "/bin/kill -HUP $MAINPID")

    def test_posd_runs_as_a_user_with_a_fixed_name(self) -> None:
        self.assertEqual((self.service["User"], self.service["Group"]), ("posd", "posd"))
        self.assertNotIn("DynamicUser", self.service)

    def test_there_are_descriptors_for_more_tills_than_the_default_limit(self) -> None:
        self.assertGreater(int(self.service["LimitNOFILE"]), 20_000 * 2)

    def test_a_fault_of_posd_cannot_exhaust_the_machine(self) -> None:
        for name in SERVICES:
            service = parsed(name)["Service"]
            self.assertEqual((service["MemoryMax"], service["TasksMax"]), ("1G", "64"))
            self.assertNotIn("MemoryHigh", service)

    def test_the_limits_of_the_unit_are_above_those_of_posd(self) -> None:
        limits = LimitsConfig()
        held = limits.send_queue_total + MOST_BYTES + MOST_UNFINISHED_BYTES
        # The same again for the interpreter, tills and current work.
        self.assertLess(2 * held, 2**30)

    def test_long_answers_are_given_back_to_the_system(self) -> None:
        for name in SERVICES:
            (line,) = (each for each in settings(name) if each.startswith("Environment=MALLOC"))
            given = dict(each.split("=") for each in line.partition("=")[2].split())
            self.assertEqual(
                {*given},
                {f"MALLOC_{each}" for each in ("ARENA_MAX", "MMAP_THRESHOLD_", "TRIM_THRESHOLD_")},
            )
            self.assertLess(int(given["MALLOC_MMAP_THRESHOLD_"]), 128 * 1024)

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


class TheInstances(SynchronousTestCase):
    def test_an_instance_differs_only_in_its_own_settings(self) -> None:
        the_one, an_instance = map(settings, SERVICES)
        compared = difflib.ndiff(the_one, an_instance)
        differing = {line[2:].partition("=")[0] for line in compared if line[0] in "+-"}
        own = {"BindPaths", "Description", "RuntimeDirectory", "SyslogIdentifier"}
        self.assertEqual(differing, {*own, "Environment", "ExecStart", "Requires"})

    def test_an_instance_reads_the_common_configuration_by_default(self) -> None:
        self.assertIn("Environment=POSD_CONFIG=/etc/posd/posd.toml", settings("posd@.service"))
        self.assertNotIn("--config", parsed("posd@.service")["Service"]["ExecStart"])


class TheSockets(SynchronousTestCase):
    def test_they_open_the_port_for_the_listener_of_the_configuration(self) -> None:
        example = tomllib.loads(resources.example_config().read_text("utf-8"))
        (listener,) = example["listen"]
        for name in SOCKETS:
            opened = parsed(name)["Socket"]
            self.assertEqual(opened["FileDescriptorName"], listener["name"])
            self.assertIn(f":port={opened['ListenStream']}:", listener["endpoint"])
            self.assertEqual(opened["BindIPv6Only"], "both")

    def test_the_backlog_of_sockets_is_that_of_posds_listeners(self) -> None:
        for name in SOCKETS:
            self.assertEqual(parsed(name)["Socket"]["Backlog"], str(daemon.BACKLOG))

    def test_those_of_the_instances_share_the_port(self) -> None:
        self.assertEqual(parsed("posd@.socket")["Socket"]["ReusePort"], "yes")


class UserAndFolders(SynchronousTestCase):
    def test_there_are_the_user_of_the_unit_and_the_folders_of_the_configuration(self) -> None:
        user = settings("sysusers.d/posd.conf")
        self.assertEqual([line.split()[:3] for line in user], [["u", "posd", "-"]])
        folders = [line.split() for line in settings("tmpfiles.d/posd.conf")]
        self.assertIn(["d", "/etc/posd/tls", "0750", "root", "posd"], folders)
        self.assertIn(["d", "/etc/posd/conf.d", "0750", "root", "posd"], folders)


class ToSystemd(SynchronousTestCase):
    def setUp(self) -> None:
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            raise SkipTest("not run: systemd-analyze is not installed")
        self.analyze = analyze
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        there = shutil.which("true")
        assert there is not None
        for name in (*SERVICES, *SOCKETS):
            # A program that exists, because posd is not installed where this test runs.
            (self.folder / name).write_text(text(name).replace("/opt/posd/bin/twistd", there))

    def said(self, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            (self.analyze, *arguments),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    def test_there_is_nothing_to_say_against_the_units(self) -> None:
        # systemd-analyze exits with 0 for an unknown key, so check that it prints nothing.
        paths = [f"./{name}" for name in (*SERVICES, *SOCKETS)]
        self.assertEqual(self.said("verify", *paths), (0, "", ""))

    def test_the_daemon_is_hardly_exposed(self) -> None:
        for name in SERVICES:
            status, listed, _ = self.said("security", "--offline=true", "--threshold=15", name)
            self.assertEqual(status, 0, listed)
