"""What the doctor says of the configuration, and of who can read and write the files."""

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
        # Not where trial works, whose folder others may not be let into.
        self.folder = Path(tempfile.mkdtemp(prefix="posd-doctor-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        self.path = self.folder / "posd.toml"
        self.path.write_text(PLAIN)
        self.path.chmod(0o644)


class ConfigurationTests(FilesCase):
    def test_one_that_can_be_used_is_given_with_one_good_line(self) -> None:
        found, lines = files.load_configuration(self.path, {})
        self.assertEqual(found, CONFIG)
        self.assertEqual([line.state for line in lines], [CheckState.OK])

    def test_every_problem_is_a_fault_of_its_own(self) -> None:
        self.path.write_text("[database]\npoolsize = 3\n[limits]\nconnections = -1\n")
        found, lines = files.load_configuration(self.path, {})
        self.assertIsNone(found)
        self.assertEqual({line.state for line in lines}, {CheckState.FAULT})
        for key in ("database.poolsize", "database.dsn", "limits.connections"):
            self.assertEqual(sum(f": {key}: " in line.what for line in lines), 1)

    def test_who_may_not_read_it_is_told_as_whom_to_ask(self) -> None:
        (line,) = [files._problem(f"{self.path}: cannot be read: Permission denied; …", {})]
        self.assertEqual(line.remedy, "run this as root or as the user posd")

    def test_a_certificate_that_cannot_be_used_leaves_the_rest_to_be_examined(self) -> None:
        self.path.write_text(
            f'{PLAIN}tls = true\n[tls]\ncertificate = "/nowhere/c.pem"\nprivate_key = "/nowhere/k.pem"\n'
        )
        found, lines = files.load_configuration(self.path, {})
        self.assertIsNotNone(found)
        self.assertEqual(
            [(line.state, line.stops) for line in lines], [(CheckState.FAULT, True)] * 2
        )
        self.assertIn("tls.certificate: /nowhere/c.pem cannot be read", lines[0].what)

    def test_a_key_that_only_the_asker_may_not_read_is_no_fault(self) -> None:
        problem = "posd.toml: tls.private_key: /k.pem cannot be read (Permission denied); …"
        for asks_as_posd, state in ((False, CheckState.UNKNOWN), (True, CheckState.FAULT)):
            self.patch(files, "runs_as_posd", lambda answer=asks_as_posd: answer)
            self.assertEqual(files._problem(problem, {}).state, state)

    def test_a_credential_is_found_where_systemd_keeps_it_for_the_unit(self) -> None:
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
        # Where the tests do not run as root, the files are not root's, of which there is a warning.
        good = (CheckState.OK,) if os.geteuid() == 0 else (CheckState.OK, CheckState.WARNING)
        return [line for line in found if line.state not in good]

    def wrong(self, what: str, remedy: str, config: Config | None = None) -> None:
        (line,) = self.lines(config)
        self.assertEqual(line.state, CheckState.FAULT)
        self.assertRegex(line.what, what)
        self.assertRegex(str(line.remedy), remedy)

    def test_files_with_the_rights_that_they_should_have_are_good(self) -> None:
        told = [line for line in self.lines() if line.state is CheckState.FAULT]
        self.assertEqual(told, [])

    def test_a_key_that_everybody_can_read(self) -> None:
        self.key.chmod(0o644)
        self.wrong(r"privkey\.pem has a secret in it", "chown root:posd .* && chmod 0640")

    def test_a_configuration_that_everybody_can_write(self) -> None:
        self.path.chmod(0o666)
        self.wrong(r"posd\.toml can be written by everybody", "chmod o-w")

    def test_a_password_in_a_configuration_that_everybody_can_read(self) -> None:
        database = DatabaseConfig("postgresql://posd:secret@db/posd")
        self.wrong(
            r"posd\.toml has a secret", "0640", config=evolve(self.config, database=database)
        )
        self.assertNotIn("secret@", str(self.lines(evolve(self.config, database=database))))

    def test_a_key_that_the_daemon_cannot_read(self) -> None:
        self.key.chmod(0o600)
        self.wrong(r"privkey\.pem cannot be read by posd$", "chown root:posd")

    def test_a_folder_that_is_in_the_way(self) -> None:
        self.folder.chmod(0o700)
        lines = self.lines()
        self.assertEqual({line.remedy for line in lines}, {f"chmod o+x {self.folder}"})

    def test_a_file_that_is_not_there_is_told_elsewhere(self) -> None:
        self.key.unlink()
        (line,) = self.lines()
        self.assertEqual(
            (line.state, line.what), (CheckState.UNKNOWN, f"{self.key}: No such file or directory")
        )

    def test_where_there_is_no_such_user_only_rights_of_others_are_looked_at(self) -> None:
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
    """As whom others see the one who asks."""

    def seen(self, asker: int, name: str | None) -> list[int]:
        became: list[int] = []
        self.patch(files, "file_reader", lambda name: SOMEBODY if name == "posd" else None)
        self.patch(os, "geteuid", lambda: asker)
        self.patch(os, "seteuid", became.append)
        with files.as_user(name):
            became.append(-1)
        return became

    def test_root_is_the_daemon_to_the_database_and_root_again(self) -> None:
        self.assertEqual(self.seen(0, "posd"), [SOMEBODY.uid, -1, 0])

    def test_root_stays_root_where_there_is_no_such_user(self) -> None:
        self.assertEqual(self.seen(0, "postgres"), [-1])
        self.assertEqual(self.seen(0, None), [-1])

    def test_anybody_else_stays_who_they_are(self) -> None:
        self.assertEqual(self.seen(1000, "posd"), [-1])
