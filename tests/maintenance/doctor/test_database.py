"""What the doctor says of the database, on a real PostgreSQL."""

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
    """Two shops. What is done to them is done in a transaction that is never committed."""

    def setUp(self) -> None:
        self.dsn = test_server().fresh_database(test_server().template(two_shops))
        self.addCleanup(test_server().drop_database, self.dsn)

    def found(self, *changes: str, config: Config | None = CONFIG) -> list[CheckResult]:
        """What is not as it should be after these statements, but for what tests do to be quick."""
        with closing(psycopg2.connect(self.dsn)) as connection:
            with connection.cursor() as cursor:
                for change in changes:
                    cursor.execute(change)
                # Become the daemon, as the login is seen.
                cursor.execute("SET LOCAL SESSION AUTHORIZATION posd")
            lines = run_to_completion(database.examine(SnapshotQuerier(connection), config))
        return [line for line in wrong(lines) if line.part != "settings"]

    def test_shops_tables_are_read_by_nobody_but_posd_reader(self) -> None:
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
    def test_a_database_as_posctl_makes_it_is_good_for_the_daemon(self) -> None:
        self.assertEqual(self.found(), [])

    def test_tenants_are_counted_and_none_at_all_is_worth_a_warning(self) -> None:
        with closing(psycopg2.connect(self.dsn)) as connection:
            lines = run_to_completion(database.examine(SnapshotQuerier(connection), CONFIG))
        self.assertIn("2 of 2 are in order", [line.what for line in lines])
        self.only("tenants", CheckState.WARNING, "DELETE FROM dinedesk_main.tenants")


class RightsTests(DatabaseCase):
    def test_what_the_daemon_may_and_should_not_is_named(self) -> None:
        line = self.only(
            "rights", CheckState.FAULT, "GRANT DELETE ON dinedesk_kitchen.pos_events TO posd"
        )
        self.assertRegex(line.what, "dinedesk_kitchen: rights pos_events is: posd DELETE")

    def test_so_is_what_it_should_and_may_not(self) -> None:
        line = self.only(
            "rights",
            CheckState.FAULT,
            "REVOKE EXECUTE ON FUNCTION dinedesk_main.pos_take FROM posd",
        )
        self.assertIn("function pos_take", line.what)

    def test_rights_to_make_tables_and_functions(self) -> None:
        line = self.only("rights", CheckState.FAULT, "GRANT CREATE ON SCHEMA dinedesk_main TO posd")
        self.assertIn("posd CREATE", line.what)

    def test_rights_over_the_cluster(self) -> None:
        line = self.only("rights", CheckState.FAULT, "ALTER ROLE posd CREATEROLE")
        self.assertEqual(line.what, "role posd may make roles")

    def test_a_login_that_may_not_become_posd_or_is_a_superuser(self) -> None:
        for server, state in (
            (SERVER, CheckState.OK),
            (evolve(SERVER, may_be_posd=False), CheckState.FAULT),
            (evolve(SERVER, is_superuser=True), CheckState.WARNING),
        ):
            line = [*database._server(server)][-1]
            self.assertEqual((line.part, line.state), ("rights", state))


class SchemaTests(DatabaseCase):
    def test_a_schema_that_is_too_old_is_migrated(self) -> None:
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

    def test_a_schema_that_is_too_new_wants_the_posd_that_made_it(self) -> None:
        line = self.only(
            "schema",
            CheckState.FAULT,
            "INSERT INTO dinedesk_main.schema_versions VALUES ('dinedesk_main', 'main/999_x.sql', '')",
        )
        self.assertIn("main/999_x.sql", line.what)
        self.assertIn("newer", str(line.remedy))

    def test_things_that_are_gone_are_counted_and_left_to_the_audit(self) -> None:
        line = self.only(
            "schema",
            CheckState.FAULT,
            "ALTER TABLE dinedesk_main.pos_heads DROP CONSTRAINT pos_heads_check",
        )
        self.assertIn("1 things", line.what)
        self.assertIn("posctl audit", str(line.remedy))

    def test_a_schema_that_is_not_there_is_no_reason_to_stop(self) -> None:
        lines = self.found("DROP SCHEMA dinedesk_grill CASCADE")
        self.assertIn("schema", [line.part for line in lines])

    def test_hooks_that_are_gone_or_disabled_are_put_on_again(self) -> None:
        orders = "dinedesk_kitchen.orders"
        for change in (
            f"ALTER TABLE {orders} DISABLE TRIGGER pos_orders_updated",
            f"DROP TRIGGER pos_orders_updated ON {orders}",
        ):
            with self.subTest(change=change):
                line = self.only("hooks", CheckState.FAULT, change)
                self.assertIn("trigger orders.pos_orders_updated", line.what)
                self.assertIn("posctl adopt kitchen", str(line.remedy))

    def test_a_time_zone_that_is_none_is_named_with_its_shop(self) -> None:
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

    def test_what_waits_without_a_daemon_waits_for_one(self) -> None:
        line = self.only("outbox", CheckState.WARNING, self.OLD)
        self.assertEqual(line.remedy, "systemctl start posd")

    def test_what_waits_though_one_runs_is_told_so(self) -> None:
        node = (
            "INSERT INTO dinedesk_main.pos_nodes VALUES (gen_random_uuid(), now() + interval '9 s')"
        )
        self.assertIn("a daemon runs", self.only("outbox", CheckState.WARNING, self.OLD, node).what)


class ServerTests(SynchronousTestCase):
    def check(self, state: CheckState, what: str, **changes: object) -> None:
        lines = wrong([*database._server(evolve(SERVER, **changes))])  # type: ignore[arg-type]
        self.assertEqual([line.state for line in lines], [state])
        self.assertIn(what, lines[0].what)

    def test_one_that_is_too_old(self) -> None:
        self.check(CheckState.FAULT, "13.9 is too old", version=130009, version_text="13.9")

    def test_one_that_is_a_standby(self) -> None:
        self.check(CheckState.FAULT, "standby", is_standby=True)

    def test_one_of_another_encoding(self) -> None:
        self.check(CheckState.FAULT, "LATIN1", encoding="LATIN1")

    def test_one_without_the_role(self) -> None:
        self.check(CheckState.FAULT, "no role posd", may_be_posd=None)


class SettingTests(DatabaseCase):
    def test_each_setting_that_does_harm_is_told_with_what_it_does(self) -> None:
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

    def test_what_lets_customers_into_the_log_of_postgresql_is_named(self) -> None:
        for name, value in (
            ("log_min_messages", "warning"),
            ("log_min_error_statement", "error"),
            ("log_statement", "mod"),
            ("log_min_duration_statement", "0"),
        ):
            with self.subTest(name=name):
                (line,) = database._settings({**SAFE, name: value})
                self.assertEqual(line.state, CheckState.WARNING)
                self.assertIn(f"by {name} ", line.what)

    def test_a_login_as_posd_is_one_of_whose_rows_nothing_is_logged(self) -> None:
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

    def test_there_have_to_be_connections_enough(self) -> None:
        for room, state in (
            (ConnectionCapacity(97, 10, None, None), CheckState.OK),
            (ConnectionCapacity(97, 90, None, None), CheckState.FAULT),
            (ConnectionCapacity(97, 0, 13, None), CheckState.FAULT),
            (ConnectionCapacity(97, 0, None, 13), CheckState.FAULT),
            (ConnectionCapacity(97, 0, 14, 14), CheckState.OK),
        ):
            with self.subTest(room=room):
                self.assertEqual(database._room(room, CONFIG).state, state)

    def test_a_pool_that_is_larger_than_the_server(self) -> None:
        many = Config(DatabaseSettings("postgresql:///posd", pool_size=100_000))
        self.only("connections", CheckState.FAULT, config=many)


class AdministrationTests(DatabaseCase):
    def asked(self, dsn: str) -> list[CheckResult]:
        with closing(psycopg2.connect(dsn)) as connection:
            return run_to_completion(database.examine_administrator(SnapshotQuerier(connection)))

    def test_who_may_change_schemas_may_also_see_where_the_database_is(self) -> None:
        disk, rights = self.asked(self.dsn)
        self.assertEqual(disk.part, "disk")
        self.assertIn("GiB", disk.what)
        self.assertEqual(rights.state, CheckState.OK)

    def test_who_may_not_is_told(self) -> None:
        disk, rights = self.asked(as_role(self.dsn, "posd"))
        self.assertEqual(disk.state, CheckState.UNKNOWN)
        self.assertEqual(rights.state, CheckState.WARNING)
        self.assertIn("GRANT posd_owner TO posd", str(rights.remedy))

    def test_a_database_on_another_machine_is_looked_at_there(self) -> None:
        line = database.examine_disk(evolve(SERVER, is_local=False), {})
        self.assertEqual(line.state, CheckState.UNKNOWN)
