"""Tests of the checks of the clock, the systemd unit, open files and disks."""

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

    def test_a_synchronised_clock_is_ok(self) -> None:
        self.assertEqual(self.state(NOW, 0), CheckState.OK)

    def test_an_unsynchronised_clock_is_a_warning(self) -> None:
        self.assertEqual(self.state(NOW, 5), CheckState.WARNING)

    def test_an_unknown_state_of_the_clock_is_unknown(self) -> None:
        self.assertEqual(self.state(NOW, None), CheckState.UNKNOWN)

    def test_a_clock_before_posds_first_release_is_a_fault(self) -> None:
        self.assertEqual(self.state(datetime(1970, 1, 1, tzinfo=UTC), 0), CheckState.FAULT)

    def test_this_kernel_tells_the_state_of_the_clock(self) -> None:
        self.assertIn(machine._kernel_clock(), (None, *range(-1, 6)))

    def test_the_databases_clock_may_differ_by_the_duration_of_the_query(self) -> None:
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
    """Return a systemctl that shows these units."""

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

    def test_a_running_unit_is_ok_and_has_its_status_text(self) -> None:
        (line,) = machine.examine_unit(None, shown(RUNNING))
        self.assertEqual((line.state, line.what), (CheckState.OK, "it runs: 7 terminals connected"))

    def test_a_waiting_unit_is_a_passing_fault(self) -> None:
        line = self.only(CheckState.FAULT, StatusText="waiting for database: connection refused")
        self.assertTrue(line.passing)
        self.assertIn("connection refused", line.what)

    def test_a_failed_unit_is_a_fault_and_a_stopped_one_a_warning(self) -> None:
        failed = self.only(CheckState.FAULT, ActiveState="failed", Result="exit-code")
        self.assertIn("exit-code", failed.what)
        stopped = self.only(CheckState.WARNING, ActiveState="inactive")
        self.assertEqual(stopped.remedy, "systemctl start posd")
        self.only(CheckState.WARNING, ActiveState="activating")

    def test_each_used_instance_is_reported(self) -> None:
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

    def test_a_changed_unit_needs_a_daemon_reload(self) -> None:
        line = self.only(CheckState.WARNING, NeedDaemonReload="yes")
        self.assertEqual(line.remedy, "systemctl daemon-reload")

    def test_a_unit_that_is_not_started_at_boot_is_a_warning(self) -> None:
        self.only(CheckState.WARNING, UnitFileState="disabled")
        socket = {"Id": "posd.socket", "ActiveState": "active", "UnitFileState": "enabled"}
        service = {**RUNNING, "UnitFileState": "disabled"}
        states = {line.state for line in machine.examine_unit(None, shown(service, socket))}
        self.assertEqual(states, {CheckState.OK})

    def test_without_a_unit_or_systemd_the_state_is_unknown(self) -> None:
        self.only(CheckState.UNKNOWN, LoadState="not-found")
        (line,) = machine.examine_unit(None, lambda arguments: None)
        self.assertEqual(line.state, CheckState.UNKNOWN)

    def test_the_limit_of_open_files_must_allow_all_connections(self) -> None:
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

    def test_a_socket_activated_daemon_is_recognised(self) -> None:
        self.assertTrue(self.sleeps("active", "inactive"))
        self.assertTrue(self.sleeps("active", "failed"))

    def test_a_running_daemon_is_not_socket_activated(self) -> None:
        self.assertFalse(self.sleeps("active", "active"))
        self.assertFalse(self.sleeps("inactive", "inactive"))
        self.assertFalse(machine.is_socket_activated(lambda arguments: None))


class DiskTests(SynchronousTestCase):
    def state(self, free: int, total: int) -> CheckState:
        usage = SimpleNamespace(total=total, free=free)
        self.patch(shutil, "disk_usage", lambda path: usage)
        return machine.examine_disk("disk", Path("/var/lib")).state

    def test_little_free_space_is_reported(self) -> None:
        self.assertEqual(self.state(50 * GIB, 100 * GIB), CheckState.OK)
        self.assertEqual(self.state(5 * GIB, 100 * GIB), CheckState.WARNING)
        self.assertEqual(self.state(1 * GIB, 100 * GIB), CheckState.FAULT)

    def test_a_small_part_of_a_large_disk_is_enough(self) -> None:
        self.assertEqual(self.state(500 * GIB, 8000 * GIB), CheckState.OK)

    def test_an_unreadable_folder_is_on_the_disk_of_its_parent(self) -> None:
        line = machine.examine_disk("disk", Path(self.mktemp()).absolute() / "not" / "there")
        self.assertNotEqual(line.state, CheckState.UNKNOWN)
