"""pos_create_tenant(): what it creates, what it refuses, and what it cannot be made to do."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2

from posd.database import migrations
from posd.database import provisioning as provision
from posd.events.timezones import is_zone
from tests.schema_case import KITCHEN_SHOP, SchemaCase, add

CREATE = "SELECT dinedesk_main.pos_create_tenant(%s, %s, 'EUR', 'Europe/Paris', 'FR')"
# All objects of a schema as text, with the shop's names replaced.
DESCRIBED = r"""
    WITH shop AS (SELECT %(schema)s::regnamespace AS id), marked AS (
        SELECT '"?(dinedesk_|posd_hook_|posd_note_|[a-z_]+[$])' || %(slug)s || '"?' AS pattern)
    SELECT kind, regexp_replace(what, pattern, '\1', 'g')
      FROM (
        SELECT 'relation', format('%%s %%s %%s %%s', relkind, relname, relowner::regrole, relacl)
          FROM pg_class, shop WHERE relnamespace = shop.id
        UNION ALL
        SELECT 'column', format('%%s %%s %%s %%s %%s %%s', attrelid::regclass, attname,
                                format_type(atttypid, atttypmod), attnotnull, attidentity, attacl)
          FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid, shop
         WHERE relnamespace = shop.id AND attnum > 0 AND relkind IN ('r', 'v')
        UNION ALL
        SELECT 'constraint', format('%%s %%s', conrelid::regclass, pg_get_constraintdef(oid))
          FROM pg_constraint, shop WHERE connamespace = shop.id
        UNION ALL
        SELECT 'index', pg_get_indexdef(indexrelid)
          FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid, shop WHERE relnamespace = shop.id
        UNION ALL
        SELECT 'trigger', pg_get_triggerdef(t.oid)
          FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid, shop
         WHERE relnamespace = shop.id AND NOT tgisinternal
        UNION ALL
        SELECT 'function', format('%%s %%s %%s', proowner::regrole, proacl, pg_get_functiondef(oid))
          FROM pg_proc WHERE pronamespace = 'posd_hooks'::regnamespace AND proname LIKE '%%$' || %(slug)s
        UNION ALL
        SELECT 'schema', format('%%s %%s', nspowner::regrole, nspacl)
          FROM pg_namespace, shop WHERE oid = shop.id
        UNION ALL
        SELECT 'migration', format('%%s %%s', file, checksum)
          FROM dinedesk_main.schema_versions WHERE schema_name = %(schema)s
      ) AS described(kind, what), marked
     ORDER BY 1, 2
"""


class CreateCase(SchemaCase):
    def setUp(self) -> None:
        super().setUp()
        self.daemon = self.connect()
        self.daemon.run("SET ROLE posd")

    def described(self, slug: str, tenant_id: int) -> list[tuple[str, str]]:
        values = {"schema": f"dinedesk_{slug}", "slug": slug}
        with self.admin.connection.cursor() as cursor:
            cursor.execute(DESCRIBED, values)
            number = str(tenant_id)
            return [(kind, what.replace(number, "N")) for kind, what in cursor.fetchall()]

    def refused(self, slug: str, *, name: str = "A shop") -> Any:
        with self.assertRaises(psycopg2.Error) as caught:
            self.daemon.run(CREATE, slug, name)
        self.assertEqual(
            self.admin.value("SELECT count(*) FROM dinedesk_main.tenants"), 2, "nothing is made"
        )
        return caught.exception


class SuccessTests(CreateCase):
    def test_what_it_makes_is_what_posctl_makes(self) -> None:
        self.admin.run("ALTER TABLE dinedesk_main.tenants ALTER COLUMN id RESTART WITH 70707")
        made = self.daemon.value(CREATE, "bistro", "The bistro")
        add(self.admin.connection, "tavern")
        self.assertEqual(made, 70707)
        mine, posctls = self.described("bistro", 70707), self.described("tavern", 70708)
        self.assertGreater(len(mine), 100)
        self.assertEqual(mine, posctls)

    def test_a_hyphen_of_the_slug_is_an_underscore_in_the_schema(self) -> None:
        tenant_id = self.daemon.value(CREATE, "le-bistro", "Le bistro")
        self.assertEqual(
            self.admin.rows(
                "SELECT slug, name, schema_name, currency, timezone, default_region, is_active"
                "  FROM dinedesk_main.tenants WHERE id = %s",
                tenant_id,
            ),
            [("le-bistro", "Le bistro", "dinedesk_le_bistro", "EUR", "Europe/Paris", "FR", True)],
        )

    def test_a_time_zone_is_a_name_of_the_iana_database_or_is_refused(self) -> None:
        change = "UPDATE dinedesk_main.tenants SET timezone = %s WHERE slug = 'kitchen'"
        for wrong in (
            *("Mars/Olympus", "BST", "MST7MDT8", "UTC+3", "<x>-3", "", "+01:00", "localtime"),
            *("posix/Europe/London", "Europe/London ", "../Europe/London"),
        ):
            with self.subTest(zone=wrong), self.assertRaises(psycopg2.Error) as caught:
                self.admin.run(change, wrong)
            self.assertEqual(caught.exception.diag.constraint_name, "tenants_timezone_known")
        for written, kept in (
            ("Europe/London", "Europe/London"),
            ("europe/PARIS", "Europe/Paris"),
            ("utc", "UTC"),
            ("Asia/Calcutta", "Asia/Calcutta"),
        ):
            self.admin.run(change, written)
            found = self.admin.value(
                "SELECT timezone FROM dinedesk_main.tenants WHERE slug = 'kitchen'"
            )
            self.assertEqual(found, kept)
            self.assertTrue(is_zone(found))

    def test_orders_of_the_new_shop_are_hooked(self) -> None:
        tenant_id = self.daemon.value(CREATE, "bistro", "The bistro")
        self.admin.run("INSERT INTO dinedesk_bistro.orders (id, total_amount) VALUES (7, 1)")
        taken = self.daemon.take() or []
        self.assertEqual(
            [(row.tenant_id, row.type, row.key) for row in taken], [(tenant_id, "placed", "7")]
        )

    def test_posctl_has_nothing_left_to_do(self) -> None:
        self.daemon.run(CREATE, "bistro", "The bistro")
        with closing(migrations.connect(self.dsn)) as connection:
            report = provision.migrate(connection)
        self.assertEqual((report.updated, dict(report.failed)), ((), {}))

    def test_a_role_that_another_database_has_made_is_used(self) -> None:
        self.admin.run(
            "DO $$ BEGIN IF to_regrole('posd_hook_inn') IS NULL THEN"
            " CREATE ROLE posd_hook_inn NOLOGIN ROLE posd_owner; END IF; END $$"
        )
        self.assertIsNotNone(self.daemon.value(CREATE, "inn", "The inn"))

    def test_a_setting_of_the_caller_does_not_change_what_is_made(self) -> None:
        self.daemon.run("SET standard_conforming_strings = off")
        self.daemon.run("SET search_path = dinedesk_grill, public")
        self.daemon.run(CREATE, "bistro", "The bistro")
        self.assertEqual(
            self.admin.rows(
                "SELECT count(*) FROM pg_constraint WHERE connamespace = 'dinedesk_bistro'::regnamespace"
            ),
            self.admin.rows(
                "SELECT count(*) FROM pg_constraint WHERE connamespace = 'dinedesk_grill'::regnamespace"
            ),
        )


class RefusalTests(CreateCase):
    def test_a_slug_that_is_taken(self) -> None:
        self.assertEqual(self.refused("kitchen").diag.constraint_name, "tenants_slug_unique")

    def test_a_slug_that_is_reserved_or_is_none(self) -> None:
        self.assertEqual(self.refused("admin").diag.constraint_name, "tenants_slug_reserved")
        for slug in (
            "",
            "-",
            "Kitchen",
            "a b",
            'a"; DROP SCHEMA dinedesk_grill',
            "a\n",
            "a_b",
            "x" * 49,
        ):
            with self.subTest(slug=slug):
                self.assertEqual(self.refused(slug).diag.constraint_name, "tenants_slug_form")

    def test_a_schema_that_is_there_is_not_taken_over(self) -> None:
        self.admin.run("CREATE SCHEMA dinedesk_bistro AUTHORIZATION posd_owner")
        self.assertIsInstance(self.refused("bistro"), psycopg2.errors.DuplicateSchema)

    def test_while_posctl_changes_schemas_nothing_is_made(self) -> None:
        with (
            closing(migrations.connect(self.dsn)) as connection,
            migrations.administer(connection),
        ):
            self.assertIsInstance(self.refused("bistro"), psycopg2.errors.LockNotAvailable)

    def test_before_posctl_migrate_it_is_not_known_what_to_make(self) -> None:
        self.admin.run("DELETE FROM dinedesk_main.pos_tenant_files")
        self.assertEqual(self.refused("bistro").pgcode, "55000")
        with closing(migrations.connect(self.dsn)) as connection:
            provision.migrate(connection)
        self.assertIsNotNone(self.daemon.value(CREATE, "bistro", "The bistro"))

    def test_what_fails_in_the_middle_leaves_nothing(self) -> None:
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_tenant_files VALUES (99, 'broken.sql', '', 'SELECT 1/0')"
        )
        self.assertIsInstance(self.refused("tearoom"), psycopg2.errors.DivisionByZero)
        self.assertIsNone(self.admin.value("SELECT to_regnamespace('dinedesk_tearoom')"))
        self.assertIsNone(self.admin.value("SELECT to_regrole('posd_hook_tearoom')"))


class RightsTests(CreateCase):
    def test_the_daemon_cannot_say_what_is_executed(self) -> None:
        for statement in (
            "SELECT FROM dinedesk_main.pos_tenant_files",
            "UPDATE dinedesk_main.pos_tenant_files SET content = ''",
            "INSERT INTO dinedesk_main.pos_tenant_files VALUES (99, 'x', '', 'SELECT 1')",
            "DELETE FROM dinedesk_main.pos_tenant_files",
            "INSERT INTO dinedesk_main.schema_versions VALUES ('dinedesk_kitchen', 'x', '')",
            "CREATE SCHEMA dinedesk_bistro",
            "CREATE TABLE dinedesk_kitchen.mine ()",
            "CREATE ROLE posd_hook_bistro",
        ):
            with (
                self.subTest(statement=statement),
                self.assertRaises(psycopg2.errors.InsufficientPrivilege),
            ):
                self.daemon.run(statement)

    def test_nobody_else_makes_tenants(self) -> None:
        shop = self.connect(KITCHEN_SHOP)
        with self.assertRaises(psycopg2.errors.InsufficientPrivilege):
            shop.run(CREATE, "bistro", "The bistro")
