"""`posctl doctor` as a whole, on valid and broken installations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from posd.cli import doctor
from posd.maintenance.doctor import database, files, listeners, machine
from posd.protocol import jsontext
from posd.security.private_ca import make
from posd.testing.ports import reserve
from posd.testing.postgres import test_server
from tests.cli_runner import as_role, migrated_database, posctl
from tests.maintenance.doctor.test_database import SAFE

BROKEN = {"fault", "warning", "ok", "unknown"}


class DoctorCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "posd.toml"
        # Do not check this machine.
        self.patch(files, "file_reader", lambda *_: None)
        self.patch(machine, "_kernel_clock", lambda: 0)
        self.patch(machine, "_systemctl", lambda arguments: None)

    def configure(self, dsn: str) -> None:
        """Write a complete configuration with a certificate, for a port that is free."""
        made = make(self.folder / "tls", ["localhost"])
        with reserve() as reservation:
            port = reservation.number
        quoted = jsontext.encode(dsn).decode()
        self.path.write_text(
            f"[database]\ndsn = {quoted}\nadmin_dsn = {quoted}\n"
            f'[[listen]]\nname = "https"\nendpoint = "tcp:port={port}:interface=127.0.0.1"\ntls = true\n'
            f'[tls]\ncertificate = "{made.certificate_path}"\nprivate_key = "{made.key_path}"\n'
        )

    def asked(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        ran = posctl("--config", self.path, *arguments, "doctor", "--json")
        self.assertEqual(ran.err, "")
        assert isinstance(ran.json, dict)
        lines = ran.json["lines"]
        assert isinstance(lines, list)
        self.assertEqual(ran.json["ok"], ran.code == 0)
        return ran.code, lines


class HealthyTests(DoctorCase):
    def setUp(self) -> None:
        super().setUp()
        self.dsn = migrated_database()
        self.addCleanup(test_server().drop_database, self.dsn)
        self.configure(as_role(self.dsn, "posd"))
        # The test server runs with fast, unsafe settings.
        safe = database._settings
        self.patch(database, "_settings", lambda found: safe({**found, **SAFE}))

    def test_without_a_fault_the_exit_code_is_0(self) -> None:
        code, lines = self.asked()
        self.assertEqual([line for line in lines if line["state"] == "fault"], [])
        self.assertEqual(code, 0)
        parts = {line["part"] for line in lines}
        for part in ("configuration", "clock", "database", "reader_dsn", "rights", "settings"):
            self.assertIn(part, parts)
        self.assertIn("listener https", parts)

    def test_the_table_has_remedies_below_findings(self) -> None:
        ran = posctl("--config", self.path, "doctor")
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertRegex(ran.out, r"(?m)^ warning +admin_dsn +posd may not become posd_owner")
        self.assertRegex(ran.out, r"(?m)^ +→ GRANT posd_owner TO posd")
        self.assertRegex(ran.out, r"(?m)^0 faults, \d+ warnings?$")
        self.assertNotIn("\x1b", ran.out)

    def test_dsn_works_without_a_configuration(self) -> None:
        self.path.unlink()
        code, lines = self.asked("--dsn", as_role(self.dsn, "posd"))
        self.assertEqual(code, os.EX_CONFIG)
        self.assertIn(("database", "ok"), [(line["part"], line["state"]) for line in lines])


class BrokenTests(DoctorCase):
    def test_an_unavailable_database_has_its_own_exit_code(self) -> None:
        self.configure("host=/nowhere-at-all dbname=posd")
        code, lines = self.asked()
        self.assertEqual(code, os.EX_UNAVAILABLE)
        faults = [line for line in lines if line["state"] == "fault"]
        self.assertEqual({line["part"] for line in faults}, {"database", "reader_dsn", "admin_dsn"})
        self.assertIn("systemctl start postgresql", str(faults[0]["remedy"]))

    def test_an_inaccessible_socket_has_a_remedy(self) -> None:
        what = 'connection to server on socket "/srv/pg/.s.PGSQL.5432" failed: Permission denied'
        self.assertIn("folder of the socket", str(doctor._unreachable("admin_dsn", what).remedy))

    def test_without_an_installation_every_part_has_a_result(self) -> None:
        code, lines = self.asked()
        self.assertEqual(code, os.EX_CONFIG)
        self.assertEqual(lines[0]["part"], "configuration")
        self.assertIn(("database", "unknown"), [(line["part"], line["state"]) for line in lines])
        self.assertLessEqual({line["state"] for line in lines}, BROKEN)

    def test_every_problem_of_a_configuration_is_a_line(self) -> None:
        self.path.write_text("[database]\npoolsize = 3\n[limits]\nconnections = -1\n")
        _, lines = self.asked()
        told = [line["what"] for line in lines if line["part"] == "configuration"]
        for key in ("database.poolsize", "database.dsn", "limits.connections"):
            self.assertEqual(sum(f": {key}: " in what for what in told), 1)

    def test_an_unexpected_exception_is_a_line_and_the_other_parts_are_checked(self) -> None:
        self.configure("host=/nowhere-at-all dbname=posd")

        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError("unthinkable")

        self.patch(listeners, "examine", fail)
        code, lines = self.asked()
        self.assertEqual(code, os.EX_CONFIG)
        (line,) = [line for line in lines if "unthinkable" in line["what"]]
        self.assertEqual((line["part"], line["state"]), ("listeners", "fault"))
        self.assertEqual(lines[-1]["part"], "daemon")

    def test_passwords_are_not_printed(self) -> None:
        self.configure("postgresql://posd:hush@127.0.0.1:1/posd")
        ran = posctl("--config", self.path, "doctor")
        self.assertNotIn("hush", ran.out + ran.err)
