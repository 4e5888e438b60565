"""Check that the configuration files of docs/high-availability.md fit together. `make failover` runs them."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import yaml
from psycopg2.extensions import parse_dsn
from twisted.trial.unittest import SynchronousTestCase

from posd.database import dsn as libpq
from tests.failover.configuration import MACHINES, Place, own, shown, superuser

PLACE = Place("127.1.2.", Path("/programs"))
FOLDER = Path("/folder")
ADDRESSES = [PLACE.address(number) for number in MACHINES]


class FilesTests(SynchronousTestCase):
    """Tests for names, addresses, ports and passwords in the files."""

    def test_the_dsn_names_all_machines_and_requires_write_access(self) -> None:
        dsn = PLACE.dsn("direct", FOLDER)
        options = parse_dsn(dsn)
        self.assertIsNone(libpq.find_problem(dsn))
        self.assertEqual(options["host"].split(","), ADDRESSES)
        self.assertEqual(options["target_session_attrs"], "read-write")
        self.assertEqual(options["passfile"], "/folder/pgpass")

    def test_the_password_files_have_the_passwords_of_the_roles(self) -> None:
        for line in shown("text", "pgpass").splitlines():
            *_, user, password = line.split(":")
            with self.subTest(user=user):
                self.assertIn(f"ALTER ROLE {user} PASSWORD '{password}'", shown("sql", "posd"))
                self.assertIn(f'"{user}" "{password}"', shown("text", "userlist"))

    def test_the_files_of_a_machine_have_its_name_and_address(self) -> None:
        for number in MACHINES:
            with self.subTest(number):
                settings: Any = yaml.safe_load(PLACE.patroni(number, FOLDER))
                environ = PLACE.etcd(number, FOLDER)
                mine = PLACE.address(number)
                self.assertEqual((settings["name"], environ["ETCD_NAME"]), (f"db{number}",) * 2)
                self.assertEqual(settings["postgresql"]["listen"], f"{mine}:5432")
                self.assertEqual(settings["restapi"]["connect_address"], f"{mine}:8008")
                self.assertEqual(environ["ETCD_LISTEN_CLIENT_URLS"], f"http://{mine}:2379")
                hosts = [f"{address}:2379" for address in ADDRESSES]
                self.assertEqual(settings["etcd3"]["hosts"].split(","), hosts)
                members = environ["ETCD_INITIAL_CLUSTER"].split(",")
                self.assertEqual(
                    members, [f"db{n}=http://{PLACE.address(n)}:2380" for n in MACHINES]
                )
                self.assertIn(f"db{number}={environ['ETCD_LISTEN_PEER_URLS']}", members)

    def test_the_failover_test_replaces_all_addresses_and_paths_of_the_page(self) -> None:
        for text in (
            *(PLACE.patroni(number, FOLDER) for number in MACHINES),
            *(f"{PLACE.etcd(number, FOLDER)}" for number in MACHINES),
            PLACE.haproxy(FOLDER),
            PLACE.pgbouncer(FOLDER),
            *(PLACE.dsn(way, FOLDER) for way in ("direct", "haproxy", "pgbouncer")),
        ):
            self.assertNotRegex(text, r"10\.0\.0|/var/|/usr/|/etc/")

    def test_a_leader_demotes_itself_before_it_is_replaced(self) -> None:
        """Patroni requires that a leader without etcd demotes itself within `ttl`."""
        timing = yaml.safe_load(own(shown("yaml", "patroni"), 1))["bootstrap"]["dcs"]
        self.assertGreaterEqual(timing["ttl"], timing["loop_wait"] + 2 * timing["retry_timeout"])

    def test_haproxy_has_every_machine_and_its_health_check(self) -> None:
        servers = re.findall(r"server (db\d) ([\d.]+):5432 check port 8008", PLACE.haproxy(FOLDER))
        self.assertEqual(servers, [(f"db{n}", PLACE.address(n)) for n in MACHINES])

    def test_the_ports_of_the_proxies_agree(self) -> None:
        haproxy, pgbouncer = (parse_dsn(PLACE.dsn(way, FOLDER)) for way in ("haproxy", "pgbouncer"))
        bound = f"bind {haproxy['host']}:{haproxy['port']}\n"
        self.assertIn(bound, PLACE.haproxy(FOLDER))
        settings = ConfigParser()
        settings.read_string(PLACE.pgbouncer(FOLDER))
        listens = settings["pgbouncer"]
        self.assertEqual(
            (pgbouncer["host"], pgbouncer["port"]), (listens["listen_addr"], listens["listen_port"])
        )
        behind = settings["databases"]["posd"]
        self.assertEqual(behind, f"host={haproxy['host']} port={haproxy['port']}")
        self.assertEqual(listens["pool_mode"], "session")

    def test_the_superuser_is_that_of_patroni(self) -> None:
        self.assertEqual(superuser(), {"user": "postgres", "password": "postgres-secret"})
