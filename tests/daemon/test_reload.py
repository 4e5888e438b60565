"""Tests of reloads: changed keys, keys that need a restart, and bad files, which change nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from attrs import evolve
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from posd.config import model as config
from posd.config.model import Config, ListenerConfig
from posd.daemon.reload import RESTART_KEYS, Reload, keys_needing_restart
from posd.database import resources
from posd.security import server_tls as tls
from posd.security.private_ca import make
from posd.security.server_tls import ServerTLS

PLAIN: Final = Config(
    database=config.DatabaseConfig(dsn="dbname=posd"),
    listen=(
        ListenerConfig("https", "tcp:9010", tls=True),
        ListenerConfig("local", "unix:/run/posd/l.sock"),
    ),
)


class ReloadCase(SynchronousTestCase):
    """Configuration files, a ServerTLS, and the applied configurations."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        made = make(self.folder, ["localhost"])
        # A certificate of another authority, with another key.
        self.other = make(self.folder / "other", ["localhost"])
        self.files = {
            "fullchain.pem": made.certificate_path.read_bytes(),
            "privkey.pem": made.key_path.read_bytes(),
            "clients.pem": made.ca_path.read_bytes(),
            "posd.toml": self.toml(),
        }
        self.begin()

    def begin(self) -> None:
        self.write(self.files)
        self.applied: list[Config] = []
        path = self.folder / "posd.toml"
        loaded = config.load(path, {}, tls.problems)
        self.tls = ServerTLS(loaded.tls, seconds=Clock().seconds)
        self.reload = Reload(path, {}, loaded, self.tls, self.applied.append)

    def write(self, files: Mapping[str, bytes | None]) -> None:
        for name, content in files.items():
            if content is None:
                (self.folder / name).unlink()
            else:
                (self.folder / name).write_bytes(content)

    def toml(self, more: str = "", dsn: str = "dbname=posd") -> bytes:
        return (
            f'[database]\ndsn = "{dsn}"\n'
            '[[listen]]\nname = "https"\nendpoint = "tcp:9010"\ntls = true\n'
            f'[tls]\ncertificate = "{self.folder}/fullchain.pem"\n'
            f'private_key = "{self.folder}/privkey.pem"\nclient_ca = "{self.folder}/clients.pem"\n'
            f"{more}\n"
        ).encode()

    def reload_files(self) -> list[str]:
        with capturedLogs() as logs:
            self.reload.reload_files()
        return [told(event) for event in logs]


def told(event: LogEvent) -> str:
    return f"{event['log_level'].name} {formatEvent(event)}"


class GoodTests(ReloadCase):
    def test_new_values_are_applied_at_once(self) -> None:
        self.write({"posd.toml": self.toml("[limits]\nconnections = 7\n[logging]\nlevel='debug'")})
        self.assertEqual(self.reload_files(), [f"info reloaded {self.folder}/posd.toml"])
        (applied,) = self.applied
        self.assertEqual((applied.limits.connections, applied.logging.level), (7, "debug"))
        self.assertEqual(self.reload.current, applied)

    def test_certificate_key_and_authority_are_taken_together(self) -> None:
        before = self.tls.serial_number
        self.write(
            {
                "fullchain.pem": self.other.certificate_path.read_bytes(),
                "privkey.pem": self.other.key_path.read_bytes(),
                "clients.pem": self.other.ca_path.read_bytes(),
            }
        )
        self.reload_files()
        self.assertNotEqual(self.tls.serial_number, before)
        self.assertEqual(len(self.applied), 1)

    def test_keys_that_need_a_restart_are_named_and_keep_their_values(self) -> None:
        self.write({"posd.toml": self.toml("[limits]\nconnections = 7", dsn="dbname=elsewhere")})
        _, line = self.reload_files()
        self.assertEqual(line, "warn new values of database.dsn need a restart of posd")
        self.assertEqual(self.reload.current.database.dsn, "dbname=posd")
        self.assertEqual(self.reload.current.limits.connections, 7)
        self.assertEqual(self.reload_files()[-1], line)

    def test_a_successful_reload_clears_the_trouble(self) -> None:
        self.write({"posd.toml": b"half a fi"})
        self.reload_files()
        self.assertNotEqual(self.reload.trouble, "")
        self.write({"posd.toml": self.files["posd.toml"]})
        self.reload_files()
        self.assertEqual(self.reload.trouble, "")

    def test_a_posd_without_tls_is_reloaded_too(self) -> None:
        path = self.folder / "posd.toml"
        plain = b'[database]\ndsn = "dbname=posd"\n[[listen]]\nname = "p"\nendpoint = "tcp:1"\n'
        path.write_bytes(plain)
        self.reload = Reload(path, {}, config.load(path, {}), None, self.applied.append)
        path.write_bytes(plain + b"[limits]\nconnections = 7\n")
        self.reload_files()
        self.assertEqual(self.reload.current.limits.connections, 7)


def encrypted(case: ReloadCase) -> bytes:
    key = load_pem_private_key(case.files["privkey.pem"], password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw"))


def misplaced(case: ReloadCase) -> bytes:
    """Return a chain with the authority before the certificate of the server."""
    return case.files["clients.pem"] + case.files["fullchain.pem"]


BAD: Final[Mapping[str, tuple[str, Callable[[ReloadCase], bytes | None], str]]] = {
    "a connection string that libpq refuses": (
        "posd.toml",
        lambda case: case.toml(dsn="dbname=posd hots=foo"),
        "hots",
    ),
    "no configuration": ("posd.toml", lambda case: None, "cannot be read"),
    "half a configuration": ("posd.toml", lambda case: b"[databa", "is not TOML"),
    "an unknown key": ("posd.toml", lambda case: case.toml("[limits]\nconections = 1"), "unknown"),
    "a wrong value": (
        "posd.toml",
        lambda case: case.toml("[delivery]\nretention = 5"),
        "retention",
    ),
    "a contradiction": (
        "posd.toml",
        lambda case: case.toml('[delivery]\nsend_queue_bytes = "2KiB"'),
        "less than twice limits.event_bytes",
    ),
    "no certificate any more": (
        "posd.toml",
        lambda case: b'[database]\ndsn = "dbname=posd"\n[[listen]]\nname="p"\nendpoint="tcp:1"\n',
        "must be set",
    ),
    "no certificate": ("fullchain.pem", lambda case: None, "cannot be read"),
    "an empty certificate": ("fullchain.pem", lambda case: b"", "no readable certificate"),
    "half a certificate": (
        "fullchain.pem",
        lambda case: case.files["fullchain.pem"][:400],
        "no readable certificate",
    ),
    "a chain in the wrong order": ("fullchain.pem", misplaced, "its issuers after it"),
    "another's certificate": (
        "fullchain.pem",
        lambda case: case.other.certificate_path.read_bytes(),
        "does not belong to",
    ),
    "no key": ("privkey.pem", lambda case: None, "cannot be read"),
    "half a key": ("privkey.pem", lambda case: case.files["privkey.pem"][:90], "no readable"),
    "another's key": (
        "privkey.pem",
        lambda case: case.other.key_path.read_bytes(),
        "does not belong to",
    ),
    "a key with a password": ("privkey.pem", encrypted, "is encrypted"),
    "no authority": ("clients.pem", lambda case: None, "cannot be read"),
    "half an authority": (
        "clients.pem",
        lambda case: case.files["clients.pem"][:300],
        "no readable certificate",
    ),
}
"""A file, what is in it when it is bad, and what is said of it."""

GOOD: Final = (
    "[limits]\nconnections = 7\nfailed_auth_per_minute = 3",
    '[limits]\nevent_bytes = "2KiB"\nsend_queue_total = "2MiB"',
    '[delivery]\nheartbeat = "9s"',
    '[logging]\nlevel = "debug"\nformat = "json"',
)


class BadTests(ReloadCase):
    def state(self) -> tuple[object, ...]:
        """Return all that a reload can change."""
        return (
            self.reload.current,
            list(self.applied),
            self.tls.serial_number,
            self.tls.settings,
            self.tls.validities,
            self.tls._context,
        )

    def test_each_kind_of_bad_file_is_named_in_one_line_and_changes_nothing(self) -> None:
        for name, (file, content, words) in BAD.items():
            with self.subTest(name):
                self.begin()
                before = self.state()
                self.write({file: content(self)})
                (line,) = self.reload_files()
                self.assertEqual(self.state(), before)
                self.assertTrue(line.startswith("error not reloaded, posd keeps"), line)
                self.assertIn(words, line)
                self.assertIn(words, self.reload.trouble)
                self.assertNotIn("\n", line)

    @settings(max_examples=40, deadline=None)
    @given(
        bad=some.sampled_from(sorted(BAD)),
        good=some.sets(some.sampled_from(GOOD)),
        renewed=some.booleans(),
    )
    def test_with_one_bad_file_no_good_value_is_applied(
        self, bad: str, good: set[str], renewed: bool
    ) -> None:
        self.begin()
        before = self.state()
        # The keys of a table are in a file of their own.
        folder = self.folder / "conf.d"
        folder.mkdir(exist_ok=True)
        for number, text in enumerate(GOOD):
            (folder / f"{number}.toml").write_text(text if text in good else "")
        if renewed:
            make(self.folder, ["localhost"], replace=True)
        try:
            file, content, _ = BAD[bad]
            self.write({file: content(self)})
            lines = self.reload_files()
            self.assertEqual(self.state(), before)
            self.assertEqual(len(lines), 1)
            self.assertNotEqual(self.reload.trouble, "")
        finally:
            for each in folder.iterdir():
                each.unlink()


class WaitingTests(SynchronousTestCase):
    def test_nothing_waits_where_nothing_differs(self) -> None:
        self.assertEqual(list(keys_needing_restart(PLAIN, PLAIN)), [])

    def test_limits_logging_delivery_and_certificates_do_not_wait(self) -> None:
        loaded = evolve(
            PLAIN,
            tls=config.TLSConfig(certificate="/b", private_key="/c"),
            delivery=config.DeliveryConfig(heartbeat=5),
            limits=config.LimitsConfig(connections=1),
            logging=config.LoggingConfig(level="debug"),
        )
        self.assertEqual(list(keys_needing_restart(PLAIN, loaded)), [])

    def test_keys_of_the_database_need_a_restart_unless_only_posctl_reads_them(self) -> None:
        loaded = config.DatabaseConfig("dbname=b", pool_size=3, statement_timeout=1, admin_dsn="x")
        self.assertEqual(
            list(keys_needing_restart(PLAIN, evolve(PLAIN, database=loaded))), [*RESTART_KEYS[:3]]
        )

    def test_listeners_wait_by_their_names(self) -> None:
        https, local = PLAIN.listen
        other = evolve(https, endpoint="tcp:9011", tls=False)
        more = evolve(local, name="more")
        self.assertEqual(
            list(keys_needing_restart(PLAIN, evolve(PLAIN, listen=(more, other)))),
            ["listen[https].endpoint", "listen[https].tls", "listen[local]", "listen[more]"],
        )
        self.assertEqual(
            list(keys_needing_restart(PLAIN, evolve(PLAIN, listen=(local, https)))), []
        )

    def test_the_installed_file_names_the_keys_that_need_a_restart(self) -> None:
        text = resources.example_config().read_text("utf-8")
        marked = set()
        table = "none"
        for paragraph in text.split("\n\n"):
            if found := re.search(r"^\[+(\w+)\]+$", paragraph, re.M):
                table = found[1]
            if "after a restart" in paragraph:
                keys = re.findall(r"^#?(\w+) = ", paragraph, re.M)
                marked |= {f"{table}.{key}" for key in keys} or {table}
        self.assertEqual(marked, set(RESTART_KEYS))
