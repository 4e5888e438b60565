"""Tests of the checks of the database, with a real PostgreSQL."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Final

import psycopg2
from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from posd.cli.database import SnapshotQuerier, run_to_completion
from posd.config.model import Config
from posd.config.model import DatabaseConfig as DatabaseSettings
from posd.database import migrations
from posd.maintenance.doctor import CheckResult, CheckState, database
from posd.store import server_facts as fitness
from posd.store.server_facts import ConnectionCapacity, DatabaseServer
from posd.testing.postgres import test_server
from tests.cli_runner import as_role
from tests.schema_case import two_shops

CONFIG: Final = Config(DatabaseSettings("postgresql:///posd"))
SERVER: Final = DatabaseServer(
    150018,
    "15.18",
    "UTF8",
    False,
    "posd",
    False,
    True,
    False,
    datetime(2026, 11, 22, tzinfo=UTC),
    True,
)
SAFE: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
}


def wrong(lines: list[CheckResult]) -> list[CheckResult]:
    return [line for line in lines if line.state is not CheckState.OK]


class DatabaseCase(SynchronousTestCase):
    """A database with two shops. Statements run in a transaction that is never committed."""

    def setUp(self) -> None:
        self.dsn = test_server().fresh_database(test_server().template(two_shops))
        self.addCleanup(test_server().drop_database, self.dsn)

    def found(self, *changes: str, config: Config | None = CONFIG) -> list[CheckResult]:
        """Return the problems after these statements, without those of the tests' fast settings."""
        with closing(psycopg2.connect(self.dsn)) as connection:
            with connection.cursor() as cursor:
                for change in changes:
                    cursor.execute(change)
                # The checks see the login of the daemon.
                cursor.execute("SET LOCAL SESSION AUTHORIZATION posd")
            lines = run_to_completion(database.examine(SnapshotQuerier(connection), config))
        return [line for line in wrong(lines) if line.part != "settings"]

    def test_only_posd_reader_reads_shops_tables(self) -> None:
        for role, state in (
            ("posd_reader", CheckState.OK),
            ("posd", CheckState.FAULT),
            (None, CheckState.FAULT),
        ):
            options = {} if role is None else {"user": role}
            with (
                self.subTest(role=role),
                closing(psycopg2.connect(self.dsn, **options)) as connection,
            ):
                connection.cursor().execute("BEGIN READ ONLY")
                (line,) = run_to_completion(database.examine_reader(SnapshotQuerier(connection)))
                self.assertEqual((line.part, line.state), ("reader_dsn", state))

    def only(
        self, part: str, state: CheckState, *changes: str, config: Config | None = CONFIG
    ) -> CheckResult:
        lines = self.found(*changes, config=config)
        self.assertEqual([(line.part, line.state) for line in lines], [(part, state)], lines)
        return lines[0]


class WholeTests(DatabaseCase):
    def test_a_database_created_by_posctl_has_no_problems(self) -> None:
        self.assertEqual(self.found(), [])

    def test_tenants_are_counted_and_an_installation_without_tenants_is_a_warning(self) -> None:
        with closing(psycopg2.connect(self.dsn)) as connection:
            lines = run_to_completion(database.examine(SnapshotQuerier(connection), CONFIG))
        self.assertIn("2 of 2 are correct", [line.what for line in lines])
        self.only("tenants", CheckState.WARNING, "DELETE FROM dinedesk_main.tenants")


class RightsTests(DatabaseCase):
    def test_a_right_too_many_is_a_fault(self) -> None:
        line = self.only(
            "rights", CheckState.FAULT, "GRANT DELETE ON dinedesk_kitchen.pos_events TO posd"
        )
        self.assertRegex(line.what, "dinedesk_kitchen: rights pos_events is: posd DELETE")

    def test_a_missing_right_is_a_fault(self) -> None:
        line = self.only(
            "rights",
            CheckState.FAULT,
            "REVOKE EXECUTE ON FUNCTION dinedesk_main.pos_take FROM posd",
        )
        self.assertIn("function pos_take", line.what)

    def test_a_right_to_create_objects_is_a_fault(self) -> None:
        line = self.only("rights", CheckState.FAULT, "GRANT CREATE ON SCHEMA dinedesk_main TO posd")
        self.assertIn("posd CREATE", line.what)

    def test_a_right_over_the_cluster_is_a_fault(self) -> None:
        line = self.only("rights", CheckState.FAULT, "ALTER ROLE posd CREATEROLE")
        self.assertEqual(line.what, "role posd may make roles")

    def test_the_login_must_be_able_to_become_posd_and_not_be_a_superuser(self) -> None:
        for server, state in (
            (SERVER, CheckState.OK),
            (evolve(SERVER, may_be_posd=False), CheckState.FAULT),
            (evolve(SERVER, is_superuser=True), CheckState.WARNING),
        ):
            line = [*database._server(server)][-1]
            self.assertEqual((line.part, line.state), ("rights", state))


class SchemaTests(DatabaseCase):
    def test_the_remedy_for_an_old_schema_is_posctl_migrate(self) -> None:
        for schema, kind in (("dinedesk_main", "main"), ("dinedesk_grill", "tenant")):
            with self.subTest(schema=schema):
                newest = migrations.expected_files()[kind][-1]  # type: ignore[index]
                line = self.only(
                    "schema",
                    CheckState.FAULT,
                    f"DELETE FROM dinedesk_main.schema_versions WHERE file = '{newest}'"
                    f" AND schema_name = '{schema}'",
                )
                self.assertIn(f"{schema}: the schema is older", line.what)
                self.assertEqual(line.remedy, "posctl migrate")

    def test_the_remedy_for_a_new_schema_is_the_newer_posd(self) -> None:
        line = self.only(
            "schema",
            CheckState.FAULT,
            "INSERT INTO dinedesk_main.schema_versions VALUES ('dinedesk_main', 'main/999_x.sql', '')",
        )
        self.assertIn("main/999_x.sql", line.what)
        self.assertIn("newer", str(line.remedy))

    def test_differences_are_counted_and_left_to_the_audit(self) -> None:
        line = self.only(
            "schema",
            CheckState.FAULT,
            "ALTER TABLE dinedesk_main.pos_heads DROP CONSTRAINT pos_heads_check",
        )
        self.assertIn("number of differences: 1", line.what)
        self.assertIn("posctl audit", str(line.remedy))

    def test_a_missing_schema_does_not_end_the_checks(self) -> None:
        lines = self.found("DROP SCHEMA dinedesk_grill CASCADE")
        self.assertIn("schema", [line.part for line in lines])

    def test_the_remedy_for_missing_or_disabled_hooks_is_posctl_adopt(self) -> None:
        orders = "dinedesk_kitchen.orders"
        for change in (
            f"ALTER TABLE {orders} DISABLE TRIGGER pos_orders_updated",
            f"DROP TRIGGER pos_orders_updated ON {orders}",
        ):
            with self.subTest(change=change):
                line = self.only("hooks", CheckState.FAULT, change)
                self.assertIn("trigger orders.pos_orders_updated", line.what)
                self.assertIn("posctl adopt kitchen", str(line.remedy))

    def test_an_unknown_time_zone_is_reported_with_its_tenant(self) -> None:
        line = self.only(
            "time zone",
            CheckState.WARNING,
            "ALTER TABLE dinedesk_main.tenants DISABLE TRIGGER pos_tenant_zone_update;"
            " UPDATE dinedesk_main.tenants SET timezone = 'MST7MDT8' WHERE slug = 'kitchen';"
            " ALTER TABLE dinedesk_main.tenants ENABLE TRIGGER pos_tenant_zone_update",
        )
        self.assertIn("kitchen has the unknown time zone MST7MDT8", line.what)
        self.assertIn("WHERE slug = 'kitchen'", str(line.remedy))

    def test_a_database_that_was_never_bootstrapped(self) -> None:
        dsn = test_server().fresh_database()
        self.addCleanup(test_server().drop_database, dsn)
        with closing(psycopg2.connect(dsn)) as connection:
            lines = wrong(run_to_completion(database.examine(SnapshotQuerier(connection), CONFIG)))
        self.assertIn("posctl bootstrap", " ".join(str(line.remedy) for line in lines))


class OutboxTests(DatabaseCase):
    OLD = (
        "INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, key, created_at)"
        " VALUES (1, 'order', '1', now() - interval '2 minutes')"
    )

    def test_the_remedy_for_waiting_rows_without_a_daemon_is_to_start_posd(self) -> None:
        line = self.only("outbox", CheckState.WARNING, self.OLD)
        self.assertEqual(line.remedy, "systemctl start posd")

    def test_rows_that_wait_while_a_daemon_runs_are_a_warning(self) -> None:
        node = (
            "INSERT INTO dinedesk_main.pos_nodes VALUES (gen_random_uuid(), now() + interval '9 s')"
        )
        self.assertIn("a daemon runs", self.only("outbox", CheckState.WARNING, self.OLD, node).what)


class ServerTests(SynchronousTestCase):
    def check(self, state: CheckState, what: str, **changes: object) -> None:
        lines = wrong([*database._server(evolve(SERVER, **changes))])  # type: ignore[arg-type]
        self.assertEqual([line.state for line in lines], [state])
        self.assertIn(what, lines[0].what)

    def test_a_server_that_is_too_old_is_a_fault(self) -> None:
        self.check(CheckState.FAULT, "13.9 is too old", version=130009, version_text="13.9")

    def test_a_standby_is_a_fault(self) -> None:
        self.check(CheckState.FAULT, "standby", is_standby=True)

    def test_another_encoding_is_a_fault(self) -> None:
        self.check(CheckState.FAULT, "LATIN1", encoding="LATIN1")

    def test_a_missing_role_posd_is_a_fault(self) -> None:
        self.check(CheckState.FAULT, "no role posd", may_be_posd=None)


class SettingTests(DatabaseCase):
    def test_each_harmful_setting_is_reported_with_its_effect(self) -> None:
        self.assertEqual(wrong(database._settings(SAFE)), [])
        for name, value, state in (
            ("fsync", "off", CheckState.FAULT),
            ("full_page_writes", "off", CheckState.FAULT),
            ("default_transaction_read_only", "on", CheckState.FAULT),
            ("default_transaction_isolation", "serializable", CheckState.FAULT),
            ("synchronous_commit", "off", CheckState.WARNING),
            ("autovacuum", "off", CheckState.WARNING),
            ("idle_session_timeout", "60000", CheckState.WARNING),
        ):
            with self.subTest(name=name):
                (line,) = database._settings({**SAFE, name: value})
                self.assertEqual(line.state, state)
                self.assertIn(f"{name} is {value}", line.what)

    def test_settings_that_log_customers_are_reported(self) -> None:
        for name, value in (
            ("log_min_messages", "warning"),
            ("log_min_error_statement", "error"),
            ("log_statement", "mod"),
            ("log_min_duration_statement", "0"),
        ):
            with self.subTest(name=name):
                (line,) = database._settings({**SAFE, name: value})
                self.assertEqual(line.state, CheckState.WARNING)
                self.assertIn(f"{name}: ", line.what)

    def test_a_login_as_posd_logs_no_customers(self) -> None:
        for user, logged in (("posd", False), ("postgres", True)):
            with closing(psycopg2.connect(self.dsn, user=user)) as connection:
                lines = database._settings(
                    run_to_completion(fitness.session_settings(SnapshotQuerier(connection)))
                )
            self.assertEqual(any("customers" in line.what for line in lines), logged, user)

    def test_settings_are_those_of_the_login_and_of_the_database(self) -> None:
        with closing(psycopg2.connect(self.dsn)) as connection:
            executor = SnapshotQuerier(connection)
            self.assertEqual(
                run_to_completion(fitness.session_settings(executor)).keys(), {*fitness.SETTINGS}
            )

    def test_too_few_connections_are_a_fault(self) -> None:
        for room, state in (
            (ConnectionCapacity(97, 10, None, None), CheckState.OK),
            (ConnectionCapacity(97, 90, None, None), CheckState.FAULT),
            (ConnectionCapacity(97, 0, 13, None), CheckState.FAULT),
            (ConnectionCapacity(97, 0, None, 13), CheckState.FAULT),
            (ConnectionCapacity(97, 0, 14, 14), CheckState.OK),
        ):
            with self.subTest(room=room):
                self.assertEqual(database._room(room, CONFIG).state, state)

    def test_a_pool_larger_than_max_connections_is_a_fault(self) -> None:
        many = Config(DatabaseSettings("postgresql:///posd", pool_size=100_000))
        self.only("connections", CheckState.FAULT, config=many)


class AdministrationTests(DatabaseCase):
    def asked(self, dsn: str) -> list[CheckResult]:
        with closing(psycopg2.connect(dsn)) as connection:
            return run_to_completion(database.examine_administrator(SnapshotQuerier(connection)))

    def test_an_administrator_can_change_schemas_and_see_the_disk(self) -> None:
        disk, rights = self.asked(self.dsn)
        self.assertEqual(disk.part, "disk")
        self.assertIn("GiB", disk.what)
        self.assertEqual(rights.state, CheckState.OK)

    def test_an_administrator_without_rights_is_a_warning(self) -> None:
        disk, rights = self.asked(as_role(self.dsn, "posd"))
        self.assertEqual(disk.state, CheckState.UNKNOWN)
        self.assertEqual(rights.state, CheckState.WARNING)
        self.assertIn("GRANT posd_owner TO posd", str(rights.remedy))

    def test_the_disk_of_another_machine_is_unknown(self) -> None:
        line = database.examine_disk(evolve(SERVER, is_local=False), {})
        self.assertEqual(line.state, CheckState.UNKNOWN)
