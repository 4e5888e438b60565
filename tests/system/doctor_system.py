"""`posctl doctor` on a machine with systemd, a PostgreSQL with peer authentication, and posd as a unit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.binaries import NoServer, find_binaries
from tests.documents import ROOT
from tests.system import machine
from tests.system.machine import CommandFailed

BIN = Path(sys.executable).parent
CONFIGURATION = """
[database]
dsn = "postgresql:///posd"
admin_dsn = "postgresql:///posd?user=postgres"
[[listen]]
name = "https"
endpoint = "tcp:port=9010:interface=127.0.0.1"
tls = true
[tls]
certificate = "/etc/posd/tls/fullchain.pem"
private_key = "/etc/posd/tls/privkey.pem"
"""
UNIT = f"""
[Service]
ExecStart=
ExecStart={BIN}/twistd --nodaemon --pidfile= posd --config /etc/posd/posd.toml
# This checkout and its interpreter may be in folders that the unit hides.
ProtectHome=no
PrivateTmp=no
"""


class Installations(SynchronousTestCase):
    """A shop's server with a correct installation."""

    def setUp(self) -> None:
        self.machine = machine.boot(self, bound=[ROOT])
        if not Path("/etc/passwd").read_text("utf-8").count("\npostgres:"):
            raise SkipTest("not run: there is no user postgres")
        # Other accounts must be able to enter the folders of this checkout and its interpreter.
        for folder in {*ROOT.parents, *Path(sys.executable).resolve().parents}:
            self.machine.run("chmod", "o+x", str(folder))
        self.start_postgres()
        for step in (
            ("bootstrap",),
            ("migrate",),
            ("tenant", "add", "kitchen", "--name", "Kitchen"),
        ):
            self.posctl("--dsn", "postgresql:///posd", *step, user="postgres")
        for kind in ("sysusers", "tmpfiles"):
            self.machine.run(f"systemd-{kind}", *(["--create"] if kind == "tmpfiles" else []),
                             f"{ROOT}/systemd/{kind}.d/posd.conf")  # fmt: skip
        self.write("/etc/posd/posd.toml", CONFIGURATION)
        self.posctl("make-cert", "--dir", "/etc/posd/tls", "--name", "localhost")
        self.machine.run("chown", "root:posd", "/etc/posd/tls/privkey.pem")
        self.machine.run("chmod", "0640", "/etc/posd/tls/privkey.pem")
        self.write("/etc/systemd/system/posd.service", (ROOT / "systemd/posd.service").read_text())
        self.write("/etc/systemd/system/posd.service.d/here.conf", UNIT)
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "enable", "--now", "posd.service")

    def start_postgres(self) -> None:
        """Start a PostgreSQL with peer authentication, as on Debian."""
        try:
            self.programs = find_binaries(os.environ)[0].path
        except NoServer as error:
            raise SkipTest(f"not run: {error}") from error
        self.machine.run("install", "-d", "-o", "postgres", "/run/postgresql", "/run/pg")
        self.postgres("initdb", "--auth=peer", "--no-sync", "--encoding=UTF8", "--locale=C")
        self.machine.run(*machine.let_readers_in("/run/pg/data"), user="postgres")
        self.postgres("pg_ctl", "-w", "-l", "/run/pg/log", "-o",
                      "-k /run/postgresql -c listen_addresses=", "start")  # fmt: skip

    def postgres(self, program: str, *arguments: str) -> None:
        command = (f"{self.programs}/{program}", "-D", "/run/pg/data", *arguments)
        self.machine.run(*command, user="postgres")

    def posctl(self, *arguments: str, user: str | None = None) -> str:
        return self.machine.run(f"{BIN}/posctl", *arguments, user=user)

    def write(self, path: str, text: str) -> None:
        self.machine.run("install", "-D", "-m", "0644", "/dev/stdin", path, stdin=text)

    def doctor(self) -> tuple[int, list[dict[str, Any]]]:
        """Return the exit code and the lines of the doctor, run as root."""
        try:
            code, told = 0, self.posctl("doctor", "--json")
        except CommandFailed as error:
            code, told = error.status, error.output
        return code, json.loads(told)["lines"]

    def faults(self) -> tuple[int, list[str]]:
        code, lines = self.doctor()
        return code, [line["part"] for line in lines if line["state"] == "fault"]

    def test_what_is_in_order_and_what_is_not_is_seen_by_root(self) -> None:
        code, lines = self.doctor()
        self.assertEqual([line for line in lines if line["state"] == "fault"], [])
        self.assertEqual(code, 0)
        told = {line["part"]: line["what"] for line in lines if line["state"] == "ok"}
        # The doctor checks the logins of the daemon and of the administrator, although root has neither.
        self.assertIn("posd may become posd", told["rights"])
        self.assertIn("posd reads shops' tables as posd_reader", told["reader_dsn"])
        self.assertIn("postgres may change schemas", told["admin_dsn"])
        self.assertIn("GiB are free", told["disk"])
        self.assertIn("answers that it is ready", told["listener https"])
        self.assertIn("it runs", told["daemon"])
        self.assertIn("65536", told["open files"])

        self.machine.run("chmod", "0600", "/etc/posd/tls/privkey.pem")
        self.assertEqual(self.faults(), (78, ["files"]))
        self.machine.run("chmod", "0644", "/etc/posd/tls/privkey.pem")
        self.assertEqual(self.faults(), (78, ["files"]))
        self.machine.run("chmod", "0640", "/etc/posd/tls/privkey.pem")

        self.machine.run("systemctl", "stop", "posd.service")
        code, lines = self.doctor()
        self.assertEqual(code, 0)
        (daemon,) = [line for line in lines if line["part"] == "daemon"]
        self.assertEqual((daemon["state"], daemon["what"]), ("warning", "it does not run"))
        self.assertEqual(daemon["remedy"], "systemctl start posd")

        self.postgres("pg_ctl", "-w", "-m", "fast", "stop")
        self.assertEqual(self.faults(), (69, ["database", "reader_dsn", "admin_dsn"]))

    def test_an_audit_is_the_daemons_to_ask(self) -> None:
        self.assertIn("0 faulty rows", self.posctl("audit", user="posd"))
