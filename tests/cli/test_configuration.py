"""`posctl check-config` and `posctl make-cert`."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from posd.security.private_ca import make
from posd.testing.ports import reserve
from tests.cli_runner import posctl

PLAIN = """
[database]
dsn = "postgresql:///posd"
[[listen]]
name = "https"
endpoint = "tcp:port={{port}}:interface=127.0.0.1"
tls = {tls}
"""


class CheckConfigTests(SynchronousTestCase):
    """An operator has edited the configuration."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder.absolute() / "posd.toml"

    def write(self, text: str) -> None:
        with reserve() as free:
            self.path.write_text(text.replace("{port}", str(free.number)))

    def test_a_valid_configuration_is_reported_as_valid(self) -> None:
        self.write(PLAIN.format(tls="false"))
        ran = posctl("--config", self.path, "check-config")
        self.assertEqual((ran.code, ran.out, ran.err), (0, f"{self.path} is valid.\n", ""))

    def test_json_reports_a_valid_configuration(self) -> None:
        self.write(PLAIN.format(tls="false"))
        ran = posctl("--config", self.path, "check-config", "--json")
        self.assertEqual((ran.code, ran.json), (0, {"ok": True, "problems": [], "warnings": []}))

    def test_every_problem_is_one_line(self) -> None:
        self.write("[database]\npoolsize = 3\n[limits]\nconnections = -1\n")
        ran = posctl("--config", self.path, "check-config")
        self.assertEqual((ran.code, ran.out), (os.EX_CONFIG, ""))
        lines = ran.err.splitlines()
        self.assertTrue(all(line.startswith(f"{self.path}: ") for line in lines), ran.err)
        for key in ("database.poolsize", "database.dsn", "limits.connections"):
            self.assertEqual(sum(key in line for line in lines), 1, ran.err)

    def test_json_has_the_same_lines(self) -> None:
        self.write("[database]\npoolsize = 3\n")
        lines = posctl("--config", self.path, "check-config").err.splitlines()
        ran = posctl("--config", self.path, "check-config", "--json")
        self.assertEqual((ran.code, ran.err), (os.EX_CONFIG, ""))
        self.assertEqual(ran.json, {"ok": False, "problems": lines, "warnings": []})

    def test_a_certificate_that_is_not_there_is_a_problem(self) -> None:
        self.write(PLAIN.format(tls="true") + self.tls())
        ran = posctl("--config", self.path, "check-config")
        self.assertEqual(ran.code, os.EX_CONFIG)
        certificate, key = ran.err.splitlines()
        pattern = r"{}: tls\.{}: .*/{}\.pem cannot be read.*make-cert`"
        self.assertRegex(certificate, pattern.format(self.path, "certificate", "fullchain"))
        self.assertRegex(key, pattern.format(self.path, "private_key", "privkey"))

    def test_certificates_are_checked_despite_other_problems(self) -> None:
        self.write(PLAIN.format(tls="true") + self.tls() + "[limits]\nconnections = -1\n")
        lines = posctl("--config", self.path, "check-config").err.splitlines()
        keys = [line.removeprefix(f"{self.path}: ").partition(":")[0] for line in lines]
        self.assertEqual(keys, ["limits.connections", "tls.certificate", "tls.private_key"])

    def test_a_certificate_problem_names_the_file_of_its_key(self) -> None:
        make(self.path.parent, ["pos.example.com"])
        self.write(PLAIN.format(tls="true") + self.tls())
        addition = self.path.parent / "conf.d" / "50-key.toml"
        addition.parent.mkdir()
        addition.write_text(f'[tls]\nprivate_key = "{self.path.parent}/fullchain.pem"\n')
        lines = posctl("--config", self.path, "check-config").err.splitlines()
        (line,) = (each for each in lines if not each.startswith("warning: "))
        self.assertTrue(line.startswith(f"{addition}: tls.private_key: "), line)

    def test_without_tls_listeners_certificates_may_be_missing(self) -> None:
        self.write(PLAIN.format(tls="false") + self.tls())
        self.assertEqual(posctl("--config", self.path, "check-config").code, 0)

    def test_an_existing_certificate_is_no_problem(self) -> None:
        make(self.path.parent, ["pos.example.com"])
        self.write(PLAIN.format(tls="true") + self.tls())
        self.assertEqual(posctl("--config", self.path, "check-config").code, 0)

    def test_only_check_config_and_the_daemon_read_certificates(self) -> None:
        self.write(
            PLAIN.format(tls="true").replace("postgresql:///posd", "host=/nowhere dbname=posd")
            + self.tls()
        )
        ran = posctl("--config", self.path, "migrate")
        self.assertEqual(ran.code, os.EX_UNAVAILABLE)
        self.assertIn("/nowhere", ran.err)

    def test_schema_commands_use_admin_dsn(self) -> None:
        self.write(
            '[database]\ndsn = "host=/nowhere/daemon"\nadmin_dsn = "host=/nowhere/admin"\n'
            + self.tls()
        )
        self.assertIn("/nowhere/admin", posctl("--config", self.path, "migrate").err)
        self.assertIn("/nowhere/daemon", posctl("--config", self.path, "key", "list").err)
        given = posctl("--config", self.path, "migrate", dsn="host=/nowhere/given")
        self.assertIn("/nowhere/given", given.err)

    def tls(self) -> str:
        folder = self.path.parent
        return (
            f'[tls]\ncertificate = "{folder}/fullchain.pem"\nprivate_key = "{folder}/privkey.pem"\n'
        )


class MakeCertTests(SynchronousTestCase):
    """A shop's network without a certificate authority."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())

    def test_json_has_the_paths_and_the_expiry(self) -> None:
        ran = posctl("make-cert", "--dir", self.folder, "--name", "pos.lan", "--json")
        self.assertEqual(ran.code, 0)
        assert isinstance(ran.json, dict)
        self.assertEqual(list(ran.json), ["ca", "certificate", "privateKey", "expiresAt"])
        for member in ("ca", "certificate", "privateKey"):
            self.assertTrue(Path(str(ran.json[member])).exists())

    def test_the_output_says_what_each_file_is_for(self) -> None:
        ran = posctl("make-cert", "--dir", self.folder, "--name", "pos.lan", "--name", "10.0.0.7")
        self.assertRegex(ran.out, r"(?m)^For the tills: +.*/ca\.pem$")
        self.assertRegex(ran.out, r"(?m)^tls\.certificate: +.*/fullchain\.pem$")

    def test_an_existing_certificate_is_not_replaced_without_replace(self) -> None:
        command = ("make-cert", "--dir", self.folder, "--name", "pos.lan")
        posctl(*command)
        ran = posctl(*command)
        self.assertEqual((ran.code, ran.out), (os.EX_CANTCREAT, ""))
        self.assertRegex(
            ran.err, r"\Aposctl: .*fullchain\.pem exists already; `--replace` replaces it\.\n\Z"
        )
        self.assertEqual(posctl(*command, "--replace").code, 0)

    def test_a_valid_name_is_required(self) -> None:
        self.assertEqual(posctl("make-cert", "--dir", self.folder).code, os.EX_USAGE)
        ran = posctl("make-cert", "--dir", self.folder, "--name", "not a name")
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertRegex(ran.err, r"\Aposctl: 'not a name' is neither.*\n\Z")

    def test_a_client_certificate_is_named_after_the_till(self) -> None:
        command = ("make-cert", "--dir", self.folder, "--client", "POS_1")
        ran = posctl(*command)
        self.assertRegex(ran.out, r"(?m)^tls\.client_ca: +.*/ca\.pem$")
        self.assertRegex(ran.out, r"(?m)^For the till: +.*/client-POS_1\.pem$")
        self.assertFalse((self.folder / "fullchain.pem").exists())
        ran = posctl(*command, "--replace", "--json")
        assert isinstance(ran.json, dict)
        self.assertEqual(ran.json["privateKey"], str(self.folder / "client-POS_1-key.pem"))

    def test_a_certificate_is_for_posd_or_for_a_till(self) -> None:
        both = ("--name", "pos.lan", "--client", "POS_1")
        ran = posctl("make-cert", "--dir", self.folder, *both)
        self.assertEqual(ran.code, os.EX_USAGE)
        ran = posctl("make-cert", "--dir", self.folder, "--client", "../POS_1")
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn("is not a valid client name", ran.err)

    def test_a_folder_that_cannot_be_created_is_named(self) -> None:
        blocked = self.folder
        blocked.write_text("in the way")
        ran = posctl("make-cert", "--dir", blocked / "tls", "--name", "pos.lan")
        self.assertEqual(ran.code, os.EX_CANTCREAT)
        self.assertIn(str(blocked), ran.err)
