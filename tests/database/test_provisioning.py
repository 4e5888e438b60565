"""Tests of tenants: creation, migration one by one, and completion after a crash."""

from __future__ import annotations

import secrets
import shutil
from contextlib import closing
from pathlib import Path

import psycopg2

from posd.database import migrations, resources
from posd.database import provisioning as provision
from posd.errors import SchemaError
from posd.testing.postgres import test_server
from posd.values import Tenant
from tests.schema_case import SchemaCase, add, at_once

OBJECTS = """
    SELECT c.relname || ' ' || c.relkind::text FROM pg_class AS c
     WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'v') ORDER BY 1
"""
TRIGGERS = """
    SELECT tgname::text FROM pg_trigger
     WHERE tgrelid::regclass::text LIKE %s AND NOT tgisinternal ORDER BY 1
"""


class ProvisionCase(SchemaCase):
    """An operator's connection, and a copy of `sql/` that a test may change."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        shutil.copytree(str(resources.sql()), self.folder)
        self.patch(resources, "sql", lambda: self.folder)
        self.connection = migrations.connect(self.dsn)
        self.addCleanup(self.connection.close)

    def refusal(self, slug: str, name: str = "N", **more: str) -> str:
        """Try to add a tenant, and return the error message."""
        options = {"currency": "GBP", "timezone": "Europe/London"} | more
        with self.assertRaises(SchemaError) as raised:
            provision.add_tenant(self.connection, slug, name, **options)
        return str(raised.exception)


class AddTenantTests(ProvisionCase):
    """A new shop."""

    def test_a_new_tenant_is_complete(self) -> None:
        made = provision.add_tenant(
            self.connection, "bistro", "Le Bistro", currency="EUR", timezone="Europe/Paris"
        )
        self.assertEqual(
            made, Tenant(3, "bistro", "Le Bistro", "dinedesk_bistro", "EUR", "Europe/Paris", "FR")
        )
        self.assertEqual(
            [name for (name,) in self.admin.rows(OBJECTS, "dinedesk_bistro")],
            [
                *("gift_cards r", "loyalty_accounts r", "order_items r", "orders r"),
                "pos_adoption v",
                *("pos_daily_report_amendments r", "pos_daily_reports r", "pos_events v"),
                *("pos_gift_card_transactions r", "pos_loyalty_transactions r", "pos_nacks v"),
                *("pos_order_terminals v", "pos_orders v", "pos_points_given r", "pos_sync_logs v"),
                "pos_unsequenced v",
            ],
        )
        self.assertEqual(provision.migrate(self.connection).updated, ())
        self.admin.run("INSERT INTO dinedesk_bistro.orders (total_amount) VALUES (1)")
        self.assertEqual([(row.tenant_id, row.key) for row in self.admin.take() or ()], [(3, "1")])

    def test_a_new_stream_is_empty(self) -> None:
        add(self.connection, "bistro")
        self.assertEqual(
            self.admin.rows(
                "SELECT last_seq, pruned_seq FROM dinedesk_main.pos_heads WHERE tenant_id = 3"
            ),
            [(0, 0)],
        )

    def test_hyphens_are_underscores_in_the_names_of_schema_and_role(self) -> None:
        made = provision.add_tenant(
            self.connection, "le-petit-four", "N", currency="EUR", timezone="UTC"
        )
        self.assertEqual(made.schema, "dinedesk_le_petit_four")
        self.assertTrue(
            self.admin.value("SELECT to_regrole('posd_hook_le_petit_four') IS NOT NULL")
        )

    def test_a_slug_of_48_characters_is_the_longest(self) -> None:
        longest = "a" + "-b" * 23 + "c"
        add(self.connection, longest)
        self.assertEqual(provision.migrate(self.connection).failed, {})
        self.assertIn("1 to 48", self.refusal(longest + "d"))

    def test_the_error_for_a_malformed_slug_gives_the_rule(self) -> None:
        for slug in ("Kitchen", "my_shop", "-shop", "shop-", "", "shop\n", "küche", 'a"b', "a b"):
            with self.subTest(slug=slug):
                self.assertEqual(
                    self.refusal(slug),
                    "a slug is 1 to 48 small letters, digits and hyphens, without a hyphen at"
                    " either end",
                )

    def test_the_error_for_a_reserved_slug_gives_the_reason(self) -> None:
        for slug in ("main", "pos", "admin", "tenant", "super-admin", "customer", "auth", "health"):
            with self.subTest(slug=slug):
                self.assertIn("reserved", self.refusal(slug))

    def test_other_errors_have_a_message_too(self) -> None:
        self.assertEqual(self.refusal("kitchen"), "the tenant 'kitchen' exists already")
        self.assertEqual(self.refusal("bistro", name=""), "a tenant needs a name")
        for wrong in ("euro", "XXQ", "eur"):
            self.assertIn("three capital letters", self.refusal("bistro", currency=wrong))
        self.assertEqual(
            self.refusal("bistro", timezone="Mars/Base"), "there is no time zone 'Mars/Base'"
        )
        self.assertEqual(self.admin.value("SELECT count(*) FROM dinedesk_main.tenants"), 2)

    def test_a_database_that_was_not_migrated_is_refused(self) -> None:
        server = test_server()
        dsn = server.fresh_database()
        self.addCleanup(server.drop_database, dsn)
        migrations.bootstrap(dsn)
        with (
            closing(migrations.connect(dsn)) as connection,
            self.assertRaisesRegex(SchemaError, "it lacks main/001_tenants.sql"),
        ):
            add(connection, "bistro")

    def test_tenants_in_two_databases_of_a_cluster_share_a_role(self) -> None:
        server = test_server()
        # A name that no other test uses: the role must not be there yet.
        slug = f"chain-{secrets.token_hex(4)}"
        name = slug.replace("-", "_")
        self.addCleanup(self.admin.run, f"DROP ROLE posd_hook_{name}")
        prepared = server.template(main_schema_only)
        dsns = [server.fresh_database(prepared) for _ in range(3)]

        def make(dsn: str) -> None:
            self.addCleanup(server.drop_database, dsn)
            migrations.bootstrap(dsn)
            with closing(migrations.connect(dsn)) as connection:
                add(connection, slug)

        at_once(*[lambda dsn=dsn: make(dsn) for dsn in dsns])
        for dsn in dsns:
            client = self.connect(dsn=dsn)
            client.run(f"INSERT INTO dinedesk_{name}.orders (total_amount) VALUES (1)")
            keys = client.rows("SELECT key FROM dinedesk_main.pos_outbox")
            self.assertEqual(keys, [("1",)])

    def test_a_schema_of_another_owner_is_not_changed(self) -> None:
        self.admin.run("CREATE SCHEMA dinedesk_bistro AUTHORIZATION posd_test_kitchen")
        self.assertEqual(
            self.refusal("bistro"),
            "the schema dinedesk_bistro belongs to posd_test_kitchen and not to posd_owner."
            " As a superuser:\n"
            'ALTER SCHEMA "dinedesk_bistro" OWNER TO posd_owner;\n'
            'GRANT USAGE, CREATE ON SCHEMA "dinedesk_bistro" TO "posd_test_kitchen";',
        )
        self.assertEqual(self.admin.value("SELECT count(*) FROM dinedesk_main.tenants"), 2)

    def test_migrate_completes_an_interrupted_creation(self) -> None:
        (self.folder / "tenant/003_odd.sql").write_text("SELECT 1 / 0;")
        self.assertEqual(
            self.refusal("bistro"),
            "the tenant 'bistro' was created, but its schema is not ready (division by zero);"
            " `posctl migrate` tries again",
        )
        (self.folder / "tenant/003_odd.sql").unlink()
        self.assertEqual(provision.migrate(self.connection).updated, ("dinedesk_bistro",))
        self.admin.run("INSERT INTO dinedesk_bistro.orders (total_amount) VALUES (1)")
        self.assertEqual(self.admin.touched(), ["1"])

    def test_a_row_that_an_operator_inserted_becomes_a_tenant_with_migrate(self) -> None:
        self.admin.run(
            "INSERT INTO dinedesk_main.tenants (slug, name, schema_name)"
            " VALUES ('le-bistro', 'Le Bistro', 'dinedesk_le_bistro')"
        )
        self.assertEqual(provision.migrate(self.connection).updated, ("dinedesk_le_bistro",))

    def test_a_schema_name_that_does_not_follow_from_the_slug_is_refused(self) -> None:
        for schema in ("dinedesk_main", "public", "dinedesk_kitchen", "dinedesk_le-bistro"):
            with self.subTest(schema=schema), self.assertRaises(psycopg2.errors.CheckViolation):
                self.admin.run(
                    "INSERT INTO dinedesk_main.tenants (slug, name, schema_name)"
                    " VALUES ('le-bistro', 'Le Bistro', %s)",
                    schema,
                )

    def test_running_nodes_are_notified_of_a_new_tenant(self) -> None:
        self.admin.told()
        add(self.connection, "bistro")
        self.assertEqual({*self.admin.told()}, {"tenant 3"})


class MigrateTenantsTests(ProvisionCase):
    """A new version of posd has another file for each tenant."""

    def setUp(self) -> None:
        super().setUp()
        self.write("SELECT 1;")

    def write(self, text: str) -> None:
        (self.folder / "tenant/003_news.sql").write_text(text)

    def test_each_tenant_is_migrated_once_with_progress(self) -> None:
        shown: list[tuple[str, int, int]] = []
        report = provision.migrate(self.connection, lambda *progress: shown.append(progress))
        self.assertEqual(shown, [("dinedesk_kitchen", 1, 2), ("dinedesk_grill", 2, 2)])
        self.assertEqual(
            report,
            provision.MigrationReport(
                ("dinedesk_kitchen", "dinedesk_grill"), ("dinedesk_main",), {}
            ),
        )
        self.assertEqual(provision.migrate(self.connection).updated, ())

    def test_a_failed_tenant_is_reported_and_other_tenants_are_migrated(self) -> None:
        self.write('CREATE TABLE :"schema".news (tenant_id integer DEFAULT :tenant_id);')
        self.admin.run("CREATE TABLE dinedesk_kitchen.news ()")
        report = provision.migrate(self.connection)
        self.assertEqual(report.updated, ("dinedesk_grill",))
        self.assertEqual(report.failed, {"dinedesk_kitchen": 'relation "news" already exists'})

        self.admin.run("DROP TABLE dinedesk_kitchen.news")
        self.assertEqual(provision.migrate(self.connection).updated, ("dinedesk_kitchen",))

    def test_a_tenant_whose_applied_file_was_changed_is_reported_by_its_name(self) -> None:
        self.admin.run(
            "UPDATE dinedesk_main.schema_versions SET checksum = 'another'"
            " WHERE schema_name = 'dinedesk_kitchen' AND file = 'tenant/002_shop.sql'"
        )
        report = provision.migrate(self.connection)
        self.assertEqual(report.updated, ("dinedesk_grill",))
        self.assertEqual(
            report.failed,
            {
                "dinedesk_kitchen": "tenant/002_shop.sql was changed after it was applied"
                " to dinedesk_kitchen"
            },
        )

    def test_a_tenant_newer_than_posd_is_reported_by_its_file(self) -> None:
        provision.migrate(self.connection)
        (self.folder / "tenant/003_news.sql").unlink()
        failed = provision.migrate(self.connection).failed
        self.assertEqual(failed.keys(), {"dinedesk_kitchen", "dinedesk_grill"})
        self.assertIn("it has tenant/003_news.sql", failed["dinedesk_grill"])

    def test_a_tenant_whose_schema_was_given_away_is_reported_with_the_statements(self) -> None:
        self.admin.run("ALTER SCHEMA dinedesk_kitchen OWNER TO posd_test_kitchen")
        failed = provision.migrate(self.connection).failed
        self.assertIn('ALTER SCHEMA "dinedesk_kitchen" OWNER TO', failed["dinedesk_kitchen"])

    def test_a_locked_table_fails_only_that_tenant(self) -> None:
        self.patch(migrations, "_LOCK_SECONDS", 0.05)
        self.write('ALTER TABLE :"schema".orders ADD news text;')
        with closing(migrations.connect(self.dsn)) as connection, self.admin.transaction():
            self.admin.run("LOCK TABLE dinedesk_kitchen.orders IN SHARE MODE")
            report = provision.migrate(connection)
        self.assertEqual(report.updated, ("dinedesk_grill",))
        self.assertIn("lock timeout", report.failed["dinedesk_kitchen"])

    def test_an_interrupted_migration_continues_where_it_stopped(self) -> None:
        def stop(schema: str, number: int, total: int) -> None:
            if number == 2:
                raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            provision.migrate(self.connection, stop)
        with closing(migrations.connect(self.dsn)) as other:
            report = provision.migrate(other)
        self.assertEqual(report.updated, ("dinedesk_grill",))
        self.assertEqual(report.current, ("dinedesk_main", "dinedesk_kitchen"))

    def test_a_lost_connection_is_not_reported_as_a_failed_tenant(self) -> None:
        def cut(schema: str, number: int, total: int) -> None:
            self.admin.run("SELECT pg_terminate_backend(%s)", self.connection.info.backend_pid)

        with self.assertRaises(psycopg2.OperationalError):
            provision.migrate(self.connection, cut)

    def test_nodes_are_notified_of_migrated_tenants(self) -> None:
        self.admin.told()
        provision.migrate(self.connection)
        self.assertEqual({*self.admin.told()}, {"tenant 1", "tenant 2"})
        provision.migrate(self.connection)
        self.assertEqual(self.admin.told(), [])


class RenewalTests(ProvisionCase):
    """The effect of `migrate` on installed hooks."""

    def migrated(self) -> tuple[str, ...]:
        return provision.migrate(self.connection).updated

    def triggers(self) -> list[str]:
        return [name for (name,) in self.admin.rows(TRIGGERS, "dinedesk_kitchen.order%")]

    def test_outdated_hooks_are_replaced(self) -> None:
        self.assertEqual(self.migrated(), ())
        hooks = self.folder / "hooks.sql"
        hooks.write_text(hooks.read_text().replace("'placed'::text", "'ordre'::text"))
        self.assertEqual(self.migrated(), ("dinedesk_kitchen", "dinedesk_grill"))
        self.admin.run("INSERT INTO dinedesk_kitchen.orders (total_amount) VALUES (1)")
        self.assertEqual([row.type for row in self.admin.take() or ()], ["ordre"])

    def test_a_table_that_was_created_again_is_hooked_again(self) -> None:
        before = self.triggers()
        self.admin.run("DROP TABLE dinedesk_kitchen.orders CASCADE")
        self.admin.run(
            "CREATE TABLE dinedesk_kitchen.orders (id uuid PRIMARY KEY, status text,"
            " total_amount numeric, created_at timestamptz)"
        )
        self.admin.run(
            "ALTER TABLE dinedesk_kitchen.order_items ALTER order_id TYPE uuid USING NULL"
        )
        self.admin.run("ALTER TABLE dinedesk_kitchen.orders OWNER TO posd_owner")
        self.admin.run("GRANT SELECT ON dinedesk_kitchen.orders TO posd_hook_kitchen")
        self.assertEqual(self.migrated(), ("dinedesk_kitchen",))
        self.assertEqual(self.triggers(), before)

    def test_a_shop_without_tables_is_not_hooked(self) -> None:
        self.admin.run("DROP TABLE dinedesk_kitchen.orders, dinedesk_kitchen.order_items")
        report = provision.migrate(self.connection)
        self.assertEqual((report.updated, report.failed), ((), {}))

    def test_the_shops_own_tables_are_not_hooked_by_migrate(self) -> None:
        self.admin.run("CREATE SCHEMA dinedesk_bistro AUTHORIZATION posd_owner")
        self.admin.run("CREATE TABLE dinedesk_bistro.orders (id bigint)")
        add(self.connection, "bistro")
        self.assertEqual(self.admin.rows(TRIGGERS, "dinedesk_bistro.order%"), [])
        made = [name for (name,) in self.admin.rows(OBJECTS, "dinedesk_bistro")]
        self.assertIn("orders r", made)
        self.assertNotIn("order_items r", made)


def main_schema_only(dsn: str) -> None:
    """A database without tenants, for `TestServer.template`."""
    migrations.bootstrap(dsn)
    with closing(migrations.connect(dsn)) as connection:
        provision.migrate(connection)
