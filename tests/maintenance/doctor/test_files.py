"""Tests of the checks of the configuration and of file permissions."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import Config, DatabaseConfig, ListenerConfig, TLSConfig
from posd.maintenance.doctor import CheckResult, CheckState, files
from posd.maintenance.doctor.files import FileReader

PLAIN = (
    '[database]\ndsn = "postgresql:///posd"\n[[listen]]\nname = "web"\nendpoint = "tcp:port=9010"\n'
)
SOMEBODY = FileReader("posd", 54321, frozenset({54321}))
CONFIG = Config(DatabaseConfig("postgresql:///posd"), (ListenerConfig("web", "tcp:port=9010"),))


class FilesCase(SynchronousTestCase):
    def setUp(self) -> None:
        # Outside trial's folder, which other users may not be allowed to search.
        self.folder = Path(tempfile.mkdtemp(prefix="posd-doctor-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        self.path = self.folder / "posd.toml"
        self.path.write_text(PLAIN)
        self.path.chmod(0o644)


class ConfigurationTests(FilesCase):
    def test_a_usable_configuration_has_one_result_that_is_ok(self) -> None:
        found, lines = files.load_configuration(self.path, {})
        self.assertEqual(found, CONFIG)
        self.assertEqual([line.state for line in lines], [CheckState.OK])

    def test_each_problem_is_a_fault(self) -> None:
        self.path.write_text("[database]\npoolsize = 3\n[limits]\nconnections = -1\n")
        found, lines = files.load_configuration(self.path, {})
        self.assertIsNone(found)
        self.assertEqual({line.state for line in lines}, {CheckState.FAULT})
        for key in ("database.poolsize", "database.dsn", "limits.connections"):
            self.assertEqual(sum(f": {key}: " in line.what for line in lines), 1)

    def test_an_unreadable_configuration_names_the_user_to_run_as(self) -> None:
        (line,) = [files._problem(f"{self.path}: cannot be read: Permission denied; …", {})]
        self.assertEqual(line.remedy, "run this as root or as the user posd")

    def test_an_unusable_certificate_does_not_end_the_checks(self) -> None:
        self.path.write_text(
            f'{PLAIN}tls = true\n[tls]\ncertificate = "/nowhere/c.pem"\nprivate_key = "/nowhere/k.pem"\n'
        )
        found, lines = files.load_configuration(self.path, {})
        self.assertIsNotNone(found)
        self.assertEqual(
            [(line.state, line.stops) for line in lines], [(CheckState.FAULT, True)] * 2
        )
        self.assertIn("tls.certificate: /nowhere/c.pem cannot be read", lines[0].what)

    def test_a_key_that_only_this_user_cannot_read_is_not_a_fault(self) -> None:
        problem = "posd.toml: tls.private_key: /k.pem cannot be read (Permission denied); …"
        for asks_as_posd, state in ((False, CheckState.UNKNOWN), (True, CheckState.FAULT)):
            self.patch(files, "runs_as_posd", lambda answer=asks_as_posd: answer)
            self.assertEqual(files._problem(problem, {}).state, state)

    def test_credentials_of_the_running_unit_are_used(self) -> None:
        self.path.write_text(PLAIN.replace('"postgresql:///posd"', '{ credential = "dsn" }'))
        (line,) = files.load_configuration(self.path, {})[1]
        self.assertEqual(line.state, CheckState.WARNING)
        self.assertIn("as root", str(line.remedy))
        (self.folder / "dsn").write_text("postgresql:///posd\n")
        environ = files.daemon_environment({}, self.folder)
        self.assertEqual(files.load_configuration(self.path, environ)[0], CONFIG)

    def test_credentials_of_the_caller_are_not_overridden_and_missing_ones_not_invented(
        self,
    ) -> None:
        given = {"CREDENTIALS_DIRECTORY": "/given"}
        self.assertEqual(files.daemon_environment(given, self.folder), given)
        self.assertEqual(files.daemon_environment({}, self.folder / "none"), {})


class PermissionTests(FilesCase):
    def setUp(self) -> None:
        super().setUp()
        self.key = self.folder / "privkey.pem"
        self.key.write_text("key")
        self.key.chmod(0o640)
        os.chown(self.key, -1, os.getgid())
        self.reader = evolve(SOMEBODY, gids=frozenset({os.getgid()}))
        self.config = evolve(
            CONFIG,
            listen=(ListenerConfig("https", "tcp:port=9010", tls=True),),
            tls=TLSConfig(private_key=str(self.key)),
        )

    def lines(
        self, config: Config | None = None, who: FileReader | None = None
    ) -> list[CheckResult]:
        found = files.examine_permissions(self.path, config or self.config, who or self.reader)
        # If the tests do not run as root, root does not own the files, which causes a warning.
        good = (CheckState.OK,) if os.geteuid() == 0 else (CheckState.OK, CheckState.WARNING)
        return [line for line in found if line.state not in good]

    def wrong(self, what: str, remedy: str, config: Config | None = None) -> None:
        (line,) = self.lines(config)
        self.assertEqual(line.state, CheckState.FAULT)
        self.assertRegex(line.what, what)
        self.assertRegex(str(line.remedy), remedy)

    def test_correct_permissions_are_ok(self) -> None:
        told = [line for line in self.lines() if line.state is CheckState.FAULT]
        self.assertEqual(told, [])

    def test_a_key_that_every_user_can_read_is_a_fault(self) -> None:
        self.key.chmod(0o644)
        self.wrong(r"privkey\.pem contains a secret", "chown root:posd .* && chmod 0640")

    def test_a_configuration_that_every_user_can_write_is_a_fault(self) -> None:
        self.path.chmod(0o666)
        self.wrong(r"every user can write .*posd\.toml", "chmod o-w")

    def test_a_password_that_every_user_can_read_is_a_fault(self) -> None:
        database = DatabaseConfig("postgresql://posd:secret@db/posd")
        self.wrong(
            r"posd\.toml contains a secret", "0640", config=evolve(self.config, database=database)
        )
        self.assertNotIn("secret@", str(self.lines(evolve(self.config, database=database))))

    def test_a_key_that_the_daemon_cannot_read_is_a_fault(self) -> None:
        self.key.chmod(0o600)
        self.wrong(r"posd cannot read .*privkey\.pem$", "chown root:posd")

    def test_a_folder_that_the_daemon_cannot_search_is_a_fault(self) -> None:
        self.folder.chmod(0o700)
        lines = self.lines()
        self.assertEqual({line.remedy for line in lines}, {f"chmod o+x {self.folder}"})

    def test_a_missing_file_is_unknown_here(self) -> None:
        self.key.unlink()
        (line,) = self.lines()
        self.assertEqual(
            (line.state, line.what), (CheckState.UNKNOWN, f"{self.key}: No such file or directory")
        )

    def test_without_a_user_posd_only_the_rights_of_other_users_are_checked(self) -> None:
        self.assertIsNone(files.file_reader("nobody-of-this-name"))
        lines = [*files.examine_permissions(self.path, self.config, None)]
        self.assertEqual(lines[0].state, CheckState.UNKNOWN)
        self.key.chmod(0o604)
        lines = [*files.examine_permissions(self.path, self.config, None)]
        self.assertIn(CheckState.FAULT, [line.state for line in lines])

    def test_root_can_read_everything(self) -> None:
        self.key.chmod(0o000)
        self.assertIsNone(FileReader("root", 0, frozenset()).can_read(self.key))


class AskingTests(SynchronousTestCase):
    """The effective user of the checks."""

    def seen(self, asker: int, name: str | None) -> list[int]:
        became: list[int] = []
        self.patch(files, "file_reader", lambda name: SOMEBODY if name == "posd" else None)
        self.patch(os, "geteuid", lambda: asker)
        self.patch(os, "seteuid", became.append)
        with files.as_user(name):
            became.append(-1)
        return became

    def test_root_becomes_the_daemons_user_and_root_again(self) -> None:
        self.assertEqual(self.seen(0, "posd"), [SOMEBODY.uid, -1, 0])

    def test_root_stays_root_without_such_a_user(self) -> None:
        self.assertEqual(self.seen(0, "postgres"), [-1])
        self.assertEqual(self.seen(0, None), [-1])

    def test_another_user_stays_the_same(self) -> None:
        self.assertEqual(self.seen(1000, "posd"), [-1])
