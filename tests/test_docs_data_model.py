"""docs/data-model.md, compared with a database that the migrations have made."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any

import psycopg2
from twisted.trial.unittest import SynchronousTestCase

from posd.database import migrations, session_settings
from posd.database import provisioning as provision
from posd.database.session_settings import RELIED_ON
from posd.store import audit_ledgers, audit_main, audit_orders, audit_stream
from posd.testing.postgres import test_server
from tests import documents
from tests.documents import words_in_code

PAGE = "docs/data-model.md"
_RELATIONS = """
    SELECT c.relname::text,
           ARRAY(SELECT attname::text FROM pg_attribute
                  WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
           ARRAY(SELECT privilege_type FROM aclexplode(c.relacl) WHERE grantee = 'posd'::regrole),
           ARRAY(SELECT attname::text FROM pg_attribute, aclexplode(attacl)
                  WHERE attrelid = c.oid AND grantee = 'posd'::regrole ORDER BY attnum)
      FROM pg_class AS c WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'v')
"""
_FUNCTIONS = """
    SELECT split_part(proname, '$', 1),
           CASE WHEN (SELECT rolsuper FROM pg_roles AS r WHERE r.oid = proowner) THEN 'a superuser'
                ELSE proowner::regrole::text END, prosecdef,
           ARRAY(SELECT grantee::regrole::text FROM aclexplode(proacl) WHERE grantee <> proowner),
           proconfig::text
      FROM pg_proc
     WHERE pronamespace::regnamespace::text IN ('dinedesk_main', 'posd_hooks', 'dinedesk_kitchen')
"""
_ROLES = "SELECT rolname::text, rolcanlogin FROM pg_roles WHERE rolname ~ '^posd'"


def with_a_kitchen(dsn: str) -> None:
    migrations.bootstrap(dsn)
    with closing(migrations.connect(dsn)) as connection:
        provision.migrate(connection)
        provision.add_tenant(
            connection, "kitchen", "The Kitchen", currency="GBP", timezone="Europe/London"
        )


class DatabaseTests(SynchronousTestCase):
    """A database with one tenant, `kitchen`."""

    def setUp(self) -> None:
        self.dsn = test_server().fresh_database(test_server().template(with_a_kitchen))
        self.addCleanup(test_server().drop_database, self.dsn)

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall())

    def check_relations(self, section: str, schema: str) -> None:
        shown = {row[0].strip("`"): row for row in documents.table(PAGE, section).rows}
        found = {name: rest for name, *rest in self.rows(_RELATIONS, schema)}
        self.assertEqual(shown.keys(), found.keys())
        for name, (columns, rights, of_columns) in found.items():
            with self.subTest(table=name):
                self.assertEqual(re.findall(r"`(\w+)`", shown[name][1]), columns)
                wanted = {*rights} | ({"UPDATE"} if of_columns else set())
                self.assertEqual({*re.findall(r"[A-Z]{2,}", shown[name][2])}, wanted)
                self.assertEqual(re.findall(r"`(\w+)`", shown[name][2]), of_columns)

    def test_the_tables_of_the_main_schema_are_those_of_the_page(self) -> None:
        self.check_relations("dinedesk_main", "dinedesk_main")

    def test_the_tables_of_a_tenant_are_those_of_the_page(self) -> None:
        self.check_relations("A tenant's schema", "dinedesk_kitchen")

    def test_the_functions_are_those_of_the_page_with_their_rights(self) -> None:
        shown = [
            (
                row[0].strip("`"),
                row[1].strip("`"),
                row[2] == "its owner",
                words_in_code(row[3]),
            )
            for row in documents.tables(PAGE)[3].rows
        ]
        found = self.rows(_FUNCTIONS)
        self.assertCountEqual(shown, [(*row[:3], {*row[3]}) for row in found])
        for row in found:
            self.assertIn("search_path=pg_catalog", row[4], row[0])

    def test_the_roles_are_those_of_the_page(self) -> None:
        shown = {row[0].strip("`"): row[1] == "yes" for row in documents.tables(PAGE)[2].rows}
        found = dict(self.rows(_ROLES))
        self.assertLessEqual(shown.items(), found.items())
        others = {name for name in found.keys() - shown.keys() if not name.startswith("posd_test")}
        self.assertEqual(
            {name for name in others if not name.startswith(("posd_hook_", "posd_note_"))}, set()
        )


class AuditTests(SynchronousTestCase):
    def test_the_checks_of_the_page_are_those_of_the_audit(self) -> None:
        rows = documents.table(PAGE, "Audit checks").rows
        shown = set().union(*(words_in_code(row[0]) for row in rows))
        modules = (audit_main, audit_stream, audit_orders)
        checks = [each for module in modules for each in module.CHECKS]
        checks += (*audit_ledgers.GIFT_CARDS, *audit_ledgers.LOYALTY)
        self.assertEqual(
            shown, {"schema", "shop tables", "account numbers", *(each.name for each in checks)}
        )


class SettingTests(SynchronousTestCase):
    """Settings that are not in a table of the database."""

    def test_the_channels_are_those_that_are_notified_or_listened_to(self) -> None:
        shown = documents.table(PAGE, "Notifications").column()
        used: set[str] = set()
        for path in [*documents.ROOT.glob("sql/**/*.sql"), *documents.ROOT.glob("posd/**/*.py")]:
            used.update(
                re.findall(r"[\"'](posd_(?:outbox|events|control|canary_))", path.read_text())
            )
        self.assertEqual({name.rstrip("…") for name in shown}, used)

    def test_every_setting_of_a_session_is_named(self) -> None:
        statements = session_settings.startup_statements(
            application_name="", statement_timeout=5, lock_timeout=2, idle_in_transaction=5
        )
        section = documents.text(PAGE).partition("## Settings of posd's sessions")[2]
        named = words_in_code(section.partition("\n## ")[0])
        used = re.findall(r"SET ([\w.]+) =|set_config\('(\w+)'", statements)
        self.assertEqual({*map("".join, used)} - {"application_name"} - named, set())

    def test_every_value_that_is_relied_on_is_the_one_of_the_page(self) -> None:
        (table,) = (
            t
            for t in documents.tables(PAGE)
            if t.section == "Settings of posd's sessions" and len(t.rows) > 10
        )
        told = {row[0].strip("`"): row[1].strip("`") for row in table.rows}
        self.assertEqual({name: told[name] for name in RELIED_ON}, RELIED_ON)
