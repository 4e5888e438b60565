"""What the doctor says of the clock, the unit, open files and disks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import Config, DatabaseConfig, LimitsConfig
from posd.maintenance.doctor import CheckResult, CheckState, machine

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CONFIG = Config(DatabaseConfig("postgresql:///posd"))
RUNNING = {
    "Id": "posd.service",
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "StatusText": "7 terminals connected",
    "NeedDaemonReload": "no",
    "LimitNOFILE": "65536",
    "Result": "success",
}
GIB = 1 << 30


class ClockTests(SynchronousTestCase):
    def state(self, now: datetime, kernel: int | None) -> CheckState:
        (line,) = machine.examine_clock(now, lambda: kernel)
        return line.state

    def test_one_that_is_kept_right_is_good(self) -> None:
        self.assertEqual(self.state(NOW, 0), CheckState.OK)

    def test_one_that_nobody_keeps_right_is_worth_a_warning(self) -> None:
        self.assertEqual(self.state(NOW, 5), CheckState.WARNING)

    def test_where_the_kernel_says_nothing_nothing_is_said(self) -> None:
        self.assertEqual(self.state(NOW, None), CheckState.UNKNOWN)

    def test_one_from_before_posd_was_written_is_wrong(self) -> None:
        self.assertEqual(self.state(datetime(1970, 1, 1, tzinfo=UTC), 0), CheckState.FAULT)

    def test_this_kernel_can_be_asked(self) -> None:
        self.assertIn(machine._kernel_clock(), (None, *range(-1, 6)))

    def test_the_databases_clock_has_to_agree_but_for_the_time_it_took_to_ask(self) -> None:
        for seconds, took, state in (
            (1.0, 0.0, CheckState.OK),
            (-3.0, 2.0, CheckState.OK),
            (-3.0, 0.0, CheckState.WARNING),
            (61.0, 0.0, CheckState.FAULT),
        ):
            with self.subTest(seconds=seconds):
                database = NOW + timedelta(seconds=seconds)
                line = machine.compare_clocks(NOW, database, timedelta(seconds=took))
                self.assertEqual(line.state, state)


def shown(*units: Mapping[str, str]) -> Callable[[Sequence[str]], str]:
    """A systemctl that tells of these units."""

    def systemctl(arguments: Sequence[str]) -> str:
        assert arguments[:2] == ["show", "posd.service"]
        return "\n".join("".join(f"{n}={v}\n" for n, v in unit.items()) for unit in units)

    return systemctl


class UnitTests(SynchronousTestCase):
    def only(self, state: CheckState, **changes: str) -> CheckResult:
        lines = machine.examine_unit(None, shown({**RUNNING, **changes}))
        (line,) = [line for line in lines if line.state is not CheckState.OK]
        self.assertEqual(line.state, state)
        return line

    def test_one_that_runs_is_good_and_says_what_it_does(self) -> None:
        (line,) = machine.examine_unit(None, shown(RUNNING))
        self.assertEqual((line.state, line.what), (CheckState.OK, "it runs: 7 terminals connected"))

    def test_one_that_waits_for_something_is_nobodys_mistake(self) -> None:
        line = self.only(CheckState.FAULT, StatusText="waiting for database: connection refused")
        self.assertTrue(line.passing)
        self.assertIn("connection refused", line.what)

    def test_one_that_has_failed_and_one_that_is_stopped(self) -> None:
        failed = self.only(CheckState.FAULT, ActiveState="failed", Result="exit-code")
        self.assertIn("exit-code", failed.what)
        stopped = self.only(CheckState.WARNING, ActiveState="inactive")
        self.assertEqual(stopped.remedy, "systemctl start posd")
        self.only(CheckState.WARNING, ActiveState="activating")

    def test_of_several_instances_each_that_is_used_is_told_of(self) -> None:
        units = (
            {**RUNNING, "ActiveState": "inactive", "UnitFileState": "disabled"},
            {**RUNNING, "Id": "posd@1.service"},
            {**RUNNING, "Id": "posd@2.service", "ActiveState": "failed"},
            {**RUNNING, "Id": "posd@3.service", "ActiveState": "inactive"},
        )
        lines = [(line.part, line.state) for line in machine.examine_unit(None, shown(*units))]
        self.assertEqual(
            lines, [("daemon posd@1", CheckState.OK), ("daemon posd@2", CheckState.FAULT)]
        )

    def test_a_unit_that_is_not_what_systemd_has_read(self) -> None:
        line = self.only(CheckState.WARNING, NeedDaemonReload="yes")
        self.assertEqual(line.remedy, "systemctl daemon-reload")

    def test_a_unit_that_neither_boot_nor_a_till_starts(self) -> None:
        self.only(CheckState.WARNING, UnitFileState="disabled")
        socket = {"Id": "posd.socket", "ActiveState": "active", "UnitFileState": "enabled"}
        service = {**RUNNING, "UnitFileState": "disabled"}
        states = {line.state for line in machine.examine_unit(None, shown(service, socket))}
        self.assertEqual(states, {CheckState.OK})

    def test_where_there_is_no_unit_or_no_systemd_nothing_is_said(self) -> None:
        self.only(CheckState.UNKNOWN, LoadState="not-found")
        (line,) = machine.examine_unit(None, lambda arguments: None)
        self.assertEqual(line.state, CheckState.UNKNOWN)

    def test_each_till_is_an_open_file(self) -> None:
        many = evolve(CONFIG, limits=LimitsConfig(connections=70_000))
        for config, allowed, state in (
            (CONFIG, "65536", CheckState.OK),
            (CONFIG, "infinity", CheckState.OK),
            (CONFIG, "1024", CheckState.FAULT),
            (many, "65536", CheckState.FAULT),
        ):
            with self.subTest(allowed=allowed):
                *_, line = machine.examine_unit(config, shown({**RUNNING, "LimitNOFILE": allowed}))
                self.assertEqual((line.part, line.state), ("open files", state))


class SocketTests(SynchronousTestCase):
    def sleeps(self, socket: str, service: str) -> bool:
        socket_unit = {"Id": "posd.socket", "ActiveState": socket}
        return machine.is_socket_activated(shown({**RUNNING, "ActiveState": service}, socket_unit))

    def test_a_daemon_that_systemd_would_start_for_the_first_till_is_not_woken(self) -> None:
        self.assertTrue(self.sleeps("active", "inactive"))
        self.assertTrue(self.sleeps("active", "failed"))

    def test_one_that_runs_and_one_without_a_socket_can_be_asked(self) -> None:
        self.assertFalse(self.sleeps("active", "active"))
        self.assertFalse(self.sleeps("inactive", "inactive"))
        self.assertFalse(machine.is_socket_activated(lambda arguments: None))


class DiskTests(SynchronousTestCase):
    def state(self, free: int, total: int) -> CheckState:
        usage = SimpleNamespace(total=total, free=free)
        self.patch(shutil, "disk_usage", lambda path: usage)
        return machine.examine_disk("disk", Path("/var/lib")).state

    def test_room_is_good_and_what_is_scarce_is_told(self) -> None:
        self.assertEqual(self.state(50 * GIB, 100 * GIB), CheckState.OK)
        self.assertEqual(self.state(5 * GIB, 100 * GIB), CheckState.WARNING)
        self.assertEqual(self.state(1 * GIB, 100 * GIB), CheckState.FAULT)

    def test_of_a_large_disk_a_small_part_is_much(self) -> None:
        self.assertEqual(self.state(500 * GIB, 8000 * GIB), CheckState.OK)

    def test_a_folder_that_may_not_be_seen_is_on_the_disk_of_the_one_above(self) -> None:
        line = machine.examine_disk("disk", Path(self.mktemp()).absolute() / "not" / "there")
        self.assertNotEqual(line.state, CheckState.UNKNOWN)
