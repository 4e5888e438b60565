"""Tests of the whole configuration: values, merging, problems."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.config.model import (
    Config,
    DatabaseConfig,
    DeliveryConfig,
    LimitsConfig,
    ListenerConfig,
    LoggingConfig,
    TLSConfig,
    load,
)
from posd.config.units import format_duration, format_size
from posd.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "etc" / "posd" / "posd.toml"

DATABASE = '[database]\ndsn = "dbname=posd"\n'
PEM = '[tls]\ncertificate = "/c.pem"\nprivate_key = "/k.pem"\n'
SOUND = DATABASE + PEM


class LoadCase(SynchronousTestCase):
    """A folder with a configuration."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.main = folder / "posd.toml"
        self.additions = folder / "conf.d"
        self.credentials = folder / "credentials"

    def write(self, main: str, **additions: str) -> None:
        self.main.write_text(main, encoding="utf-8")
        self.additions.mkdir(exist_ok=True)
        for name, text in additions.items():
            (self.additions / f"{name}.toml").write_text(text, encoding="utf-8")

    def load(self, main: str, **additions: str) -> Config:
        self.write(main, **additions)
        return load(self.main, {"CREDENTIALS_DIRECTORY": str(self.credentials)})

    def problems(self, main: str, **additions: str) -> list[str]:
        """Return the problem lines without the name of the main file."""
        self.write(main, **additions)
        return self.lines({"CREDENTIALS_DIRECTORY": str(self.credentials)})

    def lines(self, environ: Mapping[str, str]) -> list[str]:
        error = self.assertRaises(ConfigError, load, self.main, environ)
        self.assertEqual(str(error), "\n".join(error.problems))
        return [
            line.removeprefix(f"{self.main}: ").removeprefix(f"{self.additions}/")
            for line in error.problems
        ]


class DefaultsTests(LoadCase):
    def test_pins_all_default_options(self) -> None:
        self.assertEqual(
            attrs.asdict(self.load(SOUND)),
            {
                "database": {
                    "dsn": "dbname=posd",
                    "pool_size": 8,
                    "statement_timeout": 5.0,
                    "reader_dsn": None,
                    "admin_dsn": None,
                },
                "listen": (
                    {
                        "name": "https",
                        "endpoint": r"tcp:port=9010:interface=\:\:",
                        "tls": True,
                        "trusted": False,
                        "proxies": (),
                    },
                ),
                "tls": {
                    "certificate": "/c.pem",
                    "private_key": "/k.pem",
                    "minimum_version": "1.2",
                    "legacy_ciphers": False,
                    "client_ca": None,
                },
                "delivery": {
                    "heartbeat": 30.0,
                    "send_queue_bytes": 262_144,
                    "retention": 2_592_000.0,
                },
                "limits": {
                    "event_bytes": 131_072,
                    "send_queue_total": 268_435_456,
                    "connections": 20_000,
                    "connections_per_tenant": 200,
                    "failed_auth_per_minute": 20,
                    "publish_per_second_per_tenant": 200,
                    "requests_per_second_per_credential": 50,
                    "bytes_per_second_per_credential": 1024 * 1024,
                    "requests_per_second_per_address": 200,
                    "points_per_day_per_till": 100_000,
                },
                "logging": {"level": "info", "format": "journal"},
            },
        )

    def test_the_values_have_the_same_defaults_without_files(self) -> None:
        self.assertEqual(
            Config(DatabaseConfig("dbname=posd"), tls=TLSConfig("/c.pem", "/k.pem")),
            self.load(SOUND),
        )

    def test_connection_strings_are_not_in_a_representation(self) -> None:
        displayed = repr(Config(DatabaseConfig("password=hunter2", admin_dsn="password=hunter2")))
        self.assertNotIn("hunter2", displayed)


class ShippedFileTests(LoadCase):
    """The installed file, which is also the reference of all keys."""

    EXAMPLES = {"admin_dsn", "reader_dsn", "proxies", "client_ca"}

    def setUp(self) -> None:
        super().setUp()
        self.text = SHIPPED.read_text(encoding="utf-8")
        self.uncommented = re.sub(r"(?m)^#(?=[a-z\[])", "", self.text)

    def test_the_installed_file_can_be_loaded(self) -> None:
        certificate = TLSConfig("/etc/posd/tls/fullchain.pem", "/etc/posd/tls/privkey.pem")
        expected = Config(DatabaseConfig("postgresql:///posd"), tls=certificate)
        self.assertEqual(self.load(self.text), expected)

    def test_every_default_and_example_in_it_can_be_used(self) -> None:
        config = self.load(self.uncommented)
        self.assertEqual([listener.name for listener in config.listen], ["https", "local"])

    def test_the_defaults_in_the_file_are_the_defaults(self) -> None:
        mine, full = self.load(self.text), self.load(self.uncommented)
        https = attrs.evolve(full.listen[0], proxies=())
        without_examples = attrs.evolve(
            full,
            database=attrs.evolve(full.database, admin_dsn=None, reader_dsn=None),
            listen=(https,),
            tls=attrs.evolve(full.tls, client_ca=None),
        )
        self.assertEqual(without_examples, mine)

    def test_the_file_has_all_keys(self) -> None:
        document = tomllib.loads(self.uncommented)
        [https, _] = document.pop("listen")
        keys = {name: set(table) for name, table in (document | {"listen": https}).items()}
        shapes = {"database": DatabaseConfig, "listen": ListenerConfig, "tls": TLSConfig, "delivery":
        DeliveryConfig, "limits": LimitsConfig, "logging": LoggingConfig}  # fmt: skip
        self.assertEqual(
            keys, {name: set(attrs.fields_dict(shape)) for name, shape in shapes.items()}
        )


class ValuesTests(LoadCase):
    def test_every_key_of_every_table_is_read(self) -> None:
        config = self.load(
            """
            [database]
            dsn = "postgresql://posd@/shops"
            pool_size = 2
            statement_timeout = "250ms"
            reader_dsn = "user=posd_reader"
            admin_dsn = "user=postgres"
            [[listen]]
            name = "inside"
            endpoint = "tcp6:9443"
            tls = true
            proxies = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]
            [[listen]]
            name = "local"
            endpoint = "tcp:9011:interface=127.0.0.1"
            trusted = true
            [tls]
            certificate = "/c.pem"
            private_key = "/k.pem"
            minimum_version = "1.3"
            legacy_ciphers = true
            client_ca = "/a.pem"
            [delivery]
            heartbeat = "1s"
            send_queue_bytes = "512 KiB"
            retention = "12h"
            [limits]
            event_bytes = "256KiB"
            send_queue_total = 1048576
            connections = 1
            connections_per_tenant = 2
            failed_auth_per_minute = 3
            publish_per_second_per_tenant = 4
            requests_per_second_per_credential = 5
            bytes_per_second_per_credential = "16KiB"
            requests_per_second_per_address = 7
            [logging]
            level = "debug"
            format = "json"
            """
        )
        proxies = tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32")))
        self.assertEqual(
            config,
            Config(
                DatabaseConfig(
                    "postgresql://posd@/shops", 2, 0.25, "user=posd_reader", "user=postgres"
                ),
                (
                    ListenerConfig("inside", "tcp6:9443", tls=True, proxies=proxies),
                    ListenerConfig("local", "tcp:9011:interface=127.0.0.1", trusted=True),
                ),
                TLSConfig("/c.pem", "/k.pem", "1.3", True, "/a.pem"),
                DeliveryConfig(1.0, 524_288, 43_200.0),
                LimitsConfig(262_144, 1_048_576, 1, 2, 3, 4, 5, 16_384, 7),
                LoggingConfig("debug", "json"),
            ),
        )

    def test_without_tls_no_certificate_is_needed(self) -> None:
        config = self.load(DATABASE + '[[listen]]\nname = "plain"\nendpoint = "tcp:9010"\n')
        self.assertEqual(config.listen, (ListenerConfig("plain", "tcp:9010"),))

    def test_trust_is_given_to_private_unix_sockets_and_to_loopback(self) -> None:
        for endpoint in (
            "unix:/run/posd/local.sock:mode=660",
            "unix:/run/posd/local.sock:mode=600",
            "tcp:9011:interface=127.0.0.1",
            r"tcp6:9011:interface=\\:\\:1",
            "systemd:UNIX:name=local",
        ):
            with self.subTest(endpoint=endpoint):
                entry = f'[[listen]]\nname = "local"\nendpoint = "{endpoint}"\ntrusted = true\n'
                self.assertTrue(self.load(DATABASE + entry).listen[0].trusted)

    def test_a_byte_order_mark_does_no_harm(self) -> None:
        self.assertEqual(self.load("\ufeff" + SOUND), self.load(SOUND))

    def test_configuration_is_read_without_a_reactor_or_a_database_driver(self) -> None:
        code = "import sys, posd.config; print(*sys.modules)"
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        modules = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, check=True, text=True
        ).stdout.split()
        self.assertIn("posd.config", modules)
        self.assertEqual({"twisted", "psycopg2"} & set(modules), set())


class QuantityRangesTests(LoadCase):
    """Formatted sizes and durations can be read, up to the ends of their ranges."""

    def read(self, table: str, key: str, value: object) -> object:
        # A new folder for each example would be slow. Each example replaces all files.
        config = self.load(f"{SOUND}[{table}]\n{key} = {json.dumps(value)}\n")
        return getattr(getattr(config, table), key)

    @given(st.integers(1_000, 600_000))
    def test_durations(self, milliseconds: int) -> None:
        seconds = milliseconds / 1000
        self.assertEqual(self.read("delivery", "heartbeat", format_duration(seconds)), seconds)

    @given(st.integers(262_144, 268_435_456))
    def test_sizes_with_a_unit_and_without(self, size: int) -> None:
        read = [
            self.read("delivery", "send_queue_bytes", written)
            for written in (size, format_size(size))
        ]
        self.assertEqual(read, [size, size])


class LayersTests(LoadCase):
    def test_later_files_have_the_last_word_about_each_key(self) -> None:
        config = self.load(
            SOUND + "[limits]\nconnections = 1\nfailed_auth_per_minute = 1\n",
            b="[limits]\nconnections = 3\n",
            a="[limits]\nconnections = 2\nconnections_per_tenant = 2\n",
        )
        self.assertEqual(
            config.limits,
            LimitsConfig(connections=3, connections_per_tenant=2, failed_auth_per_minute=1),
        )

    def test_a_listener_of_a_known_name_is_changed_and_any_other_is_added(self) -> None:
        config = self.load(
            SOUND + '[[listen]]\nname = "https"\nendpoint = "tcp:9010"\ntls = true\n',
            a="""
            [[listen]]
            name = "local"
            endpoint = "unix:/run/posd/local.sock:mode=660"
            trusted = true
            [[listen]]
            name = "https"
            endpoint = "tcp:443"
            """,
            b='[[listen]]\nname = "https"\nproxies = ["192.0.2.1"]\n',
        )
        self.assertEqual(
            config.listen,
            (
                ListenerConfig("https", "tcp:443", tls=True, proxies=(ip_network("192.0.2.1"),)),
                ListenerConfig("local", "unix:/run/posd/local.sock:mode=660", trusted=True),
            ),
        )

    def test_an_overridden_wrong_value_is_no_problem(self) -> None:
        config = self.load(SOUND + "[limits]\nconnections = 0\n", a="[limits]\nconnections = 9\n")
        self.assertEqual(config.limits.connections, 9)

    def test_an_unreadable_file_hides_only_problems_of_missing_keys(self) -> None:
        lines = self.problems("[delivery]\nheartbeat = 5\n", secret="[database\n")
        self.assertEqual(
            [line.partition(":")[0] for line in lines], ["delivery.heartbeat", "secret.toml"]
        )

    def test_a_missing_file_is_the_only_problem(self) -> None:
        [line] = self.lines({})
        self.assertTrue(line.startswith("cannot be read: No such file"), line)

    def test_each_file_tells_its_own_problems_in_the_order_of_reading(self) -> None:
        lines = self.problems(
            SOUND + "[limits]\nevent_bytes = 1\n[listen]\n",
            b="[limits]\nconnections = 0\n",
            a='[limits]\nsend_queue_total = "1B"\n',
        )
        self.assertEqual(
            [line.partition(": ")[0] for line in lines],
            ["listen", "limits.event_bytes", "a.toml", "b.toml"],
        )


class CredentialsTests(LoadCase):
    def test_secrets_come_from_the_directory_that_the_environment_names(self) -> None:
        self.credentials.mkdir()
        (self.credentials / "dsn").write_text("dbname=posd password=hunter2\n")
        config = self.load(PEM + '[database]\ndsn = { credential = "dsn" }\n')
        self.assertEqual(config.database.dsn, "dbname=posd password=hunter2")


class ProblemsTests(LoadCase):
    """A test has one problem and its whole line."""

    def expect(self, main: str, *lines: str) -> None:
        with self.subTest(main=main):
            self.assertEqual(self.problems(main), list(lines))

    def test_a_missing_required_key_is_a_problem(self) -> None:
        dsn = (
            "database.dsn: is missing; write a PostgreSQL URI or keywords, "
            'such as "postgresql:///posd" or "dbname=posd"'
        )
        pem = [
            f'tls.{key}: is missing, and the listener "https" has tls = true; '
            "write the absolute path of a file"
            for key in ("certificate", "private_key")
        ]
        self.expect("", dsn, *pem)
        self.expect("[database]\n", dsn, *pem)
        self.expect(DATABASE, *pem)
        self.expect(DATABASE + '[tls]\ncertificate = "/c.pem"\n', pem[1])

    def test_a_listener_needs_a_name_and_an_endpoint(self) -> None:
        name = (
            "listen[1].name: is missing; "
            'write letters, digits, ".", "_" and "-", up to 64 and beginning with a letter'
        )
        endpoint = (
            'is missing; write an endpoint such as "tcp:port=9010" '
            'or "unix:/run/posd/local.sock:mode=660"'
        )
        self.expect(SOUND + "[[listen]]\n", name, f"listen[1].endpoint: {endpoint}")
        self.expect(SOUND + '[[listen]]\nname = "a"\n', f"listen[a].endpoint: {endpoint}")

    def test_a_listener_without_a_name_is_compared_all_the_same(self) -> None:
        lines = self.problems(SOUND + '[[listen]]\nendpoint = "tcp:1"\ntrusted = true\n')
        self.assertEqual(
            [line.partition(":")[0] for line in lines], ["listen[1].name", "listen[1].endpoint"]
        )

    def test_sizes_must_fit_each_other(self) -> None:
        self.expect(
            SOUND + '[limits]\nevent_bytes = "256KiB"\n',
            'delivery.send_queue_bytes: "256KiB" is less than twice limits.event_bytes; '
            'write at least "512KiB"',
        )
        self.expect(
            SOUND + '[delivery]\nsend_queue_bytes = "2MiB"\n[limits]\nsend_queue_total = "1MiB"\n',
            'limits.send_queue_total: "1MiB" is less than one delivery.send_queue_bytes; '
            'write at least "2MiB"',
        )

    def test_a_key_that_was_renamed_is_refused_with_its_new_name(self) -> None:
        self.expect(
            SOUND + '[delivery]\noutbox_bytes = "1MiB"\n[limits]\noutbox_total = "8MiB"\n',
            "delivery.outbox_bytes: is unknown; its name is now send_queue_bytes",
            "limits.outbox_total: is unknown; its name is now send_queue_total",
        )

    def test_a_contradiction_names_the_file_that_causes_it(self) -> None:
        lines = self.problems(SOUND, a='[limits]\nevent_bytes = "256KiB"\n')
        self.assertEqual(
            lines[0].partition(" is less")[0], 'a.toml: delivery.send_queue_bytes: "256KiB"'
        )

    def test_unusable_values_are_not_compared(self) -> None:
        lines = self.problems(
            SOUND + '[delivery]\nsend_queue_bytes = "200KiB"\n[limits]\nevent_bytes = "many"\n'
        )
        self.assertEqual([line.partition(":")[0] for line in lines], ["limits.event_bytes"])

    def test_trust_goes_with_nothing_that_lets_strangers_in(self) -> None:
        others = "does not go with trusted = true; other machines can reach it; "
        remote = others + "write a unix socket or a loopback interface"
        everybody = (
            'with trusted = true is open to every user of this machine; write "mode=660" or less'
        )
        needless = (
            "true does not go with trusted = true; local programs need no TLS, so leave it out"
        )
        loopback = 'endpoint = "tcp:9011:interface=127.0.0.1"\n'
        for keys, *texts in (
            ('endpoint = "tcp:9011"\n', f'endpoint: "tcp:9011" {remote}'),
            ('endpoint = "tcp6:9011"\n', f'endpoint: "tcp6:9011" {remote}'),
            ('endpoint = "haproxy:unix:/a"\n', f'endpoint: "haproxy:unix:/a" {remote}'),
            ('endpoint = "unix:/a"\n', f'endpoint: "unix:/a" {everybody}'),
            ('endpoint = "unix:/a:mode=662"\n', f'endpoint: "unix:/a:mode=662" {everybody}'),
            (loopback + "tls = true\n", f"tls: {needless}"),
            (
                loopback + 'proxies = ["127.0.0.1"]\n',
                "proxies: proxies do not go with trusted = true; their requests are not local",
            ),
        ):
            entry = f'[[listen]]\nname = "a"\ntrusted = true\n{keys}'
            self.expect(SOUND + entry, *(f"listen[a].{text}" for text in texts))

    def test_all_problems_are_reported_at_once(self) -> None:
        lines = self.problems(
            """
            colour = "red"
            [database]
            pool_size = "many"
            pool = 5
            [[listen]]
            name = "a"
            endpoint = "tpc:9010"
            tls = true
            [[listen]]
            endpoint = "tcp:9011"
            trusted = true
            [tls]
            certificate = "c.pem"
            [delivery]
            heartbeat = 5
            send_queue_bytes = "8KiB"
            [logging]
            level = "loud"
            """,
            extra='[limits]\nconnections = 0\n[[listen]]\nname = "a"\ntrusted = true\n',
        )
        self.assertEqual(
            [re.sub(": .*", "", line.removeprefix("extra.toml: ")) for line in lines],
            [
                "colour",
                "database.pool",
                "database.pool_size",
                "tls.certificate",
                "delivery.heartbeat",
                "logging.level",
                "listen[a].endpoint",
                "database.dsn",
                "listen[2].name",
                "delivery.send_queue_bytes",
                "tls.private_key",
                "listen[a].tls",
                "listen[2].endpoint",
                "limits.connections",
            ],
        )


_words = st.sampled_from(
    ["database", "listen", "tls", "delivery", "limits", "dsn", "name", "endpoint", "credential",
     "trusted", "proxies", "heartbeat", "event_bytes", "https", "tcp:9010", "30s", "1KiB", "/a"]
) | st.text(st.characters(codec="utf-8"), max_size=5)  # fmt: skip
_values = st.recursive(
    st.booleans() | st.integers() | st.floats() | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
)


def _toml(value: object) -> str:
    """Return a value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    return str(value).lower()


class StrangeDocumentsTests(LoadCase):
    @given(st.dictionaries(_words, _values, max_size=6))
    def test_any_file_gives_problem_lines_and_no_other_error(
        self, document: dict[str, object]
    ) -> None:
        text = "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in document.items())
        lines = self.problems(text)  # Never valid: dsn and the certificate cannot both exist.
        self.assertNotEqual(lines, [])
        for line in lines:
            self.assertTrue(line.isprintable(), line)
            self.assertRegex(line, "^.+: .+; .+$")
