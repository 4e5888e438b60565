"""`posctl bootstrap`, `migrate` and `adopt`, on a real PostgreSQL."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any, cast

from psycopg2.extensions import make_dsn, parse_dsn
from twisted.trial.unittest import SynchronousTestCase

from posd.database import migrations
from posd.testing.postgres import test_server
from tests.cli_runner import as_role, execute, migrated_database, posctl

BREAK_KITCHEN = """
    UPDATE dinedesk_main.schema_versions SET checksum = 'another'
     WHERE schema_name = 'dinedesk_kitchen' AND file = 'tenant/001_stream.sql'
"""


class BootstrapTests(SynchronousTestCase):
    """A PostgreSQL cluster without posd."""

    def setUp(self) -> None:
        self.server = test_server()
        self.dsn = self.server.fresh_database()

    def test_a_database_that_is_missing_is_made(self) -> None:
        self.server.drop_database(self.dsn)
        self.addCleanup(self.server.drop_database, self.dsn)
        name = parse_dsn(self.dsn)["dbname"]
        ran = posctl("bootstrap", "--json", dsn=self.dsn)
        self.assertEqual(ran.json, {"database": name, "created": True})
        self.assertEqual(posctl("migrate", dsn=self.dsn).code, 0)

    def test_it_may_be_repeated(self) -> None:
        self.assertEqual(posctl("bootstrap", dsn=self.dsn).code, 0)
        ran = posctl("bootstrap", dsn=self.dsn)
        self.assertEqual(ran.code, 0)
        self.assertIn("already exists", ran.out)
        self.assertIn("Next: posctl migrate", ran.out)

    def test_a_database_that_is_not_utf8_is_refused_before_anything_is_made(self) -> None:
        for encoding in ("LATIN1", "SQL_ASCII"):
            name = f"posd_{encoding.lower()}"
            execute(
                self.dsn,
                f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0",
            )
            dsn = str(make_dsn(self.dsn, dbname=name))
            self.addCleanup(self.server.drop_database, dsn)
            for command in ("bootstrap", "migrate"):
                ran = posctl(command, dsn=dsn)
                self.assertEqual(ran.code, os.EX_CONFIG, ran.err)
            ran = posctl("bootstrap", dsn=dsn)
            self.assertRegex(
                ran.err, rf"\Aposctl: .*{name} is {encoding}.*encoding UTF8.*bootstrap.*\n\Z"
            )
            self.assertEqual(
                execute(dsn, "SELECT FROM pg_namespace WHERE nspname = 'dinedesk_main'"), []
            )

    def test_a_server_that_is_too_old_is_named_and_nothing_is_made_in_it(self) -> None:
        self.patch(migrations, "OLDEST", 990000)
        missing = str(make_dsn(self.dsn, dbname="posd_never_made"))
        for dsn, commands in ((self.dsn, ("bootstrap", "migrate")), (missing, ("bootstrap",))):
            for command in commands:
                ran = posctl(command, dsn=dsn)
                self.assertEqual(ran.code, os.EX_CONFIG, ran.err)
                if command == "bootstrap":
                    self.assertRegex(ran.err, r"PostgreSQL \d.* is too old: posd needs 99 or newer")
        rows = execute(self.dsn, "SELECT FROM pg_database WHERE datname = 'posd_never_made'")
        self.assertEqual(rows, [])

    def test_without_a_superuser_it_is_refused(self) -> None:
        posctl("bootstrap", dsn=self.dsn)
        ran = posctl("bootstrap", dsn=as_role(self.dsn, "posd"))
        self.assertEqual(ran.code, os.EX_NOPERM)
        self.assertRegex(ran.err, r"\Aposctl: bootstrap needs a superuser.*\n\Z")


class MigrateTests(SynchronousTestCase):
    """A new version of posd is installed, and the schemas are older."""

    def setUp(self) -> None:
        self.dsn = migrated_database()

    def test_a_new_database_gets_its_main_schema(self) -> None:
        dsn = test_server().fresh_database()
        posctl("bootstrap", dsn=dsn)
        ran = posctl("migrate", dsn=dsn)
        self.assertEqual((ran.code, ran.out), (0, "1 schema updated, 0 failed\n"))

    def test_current_schemas_are_not_changed(self) -> None:
        ran = posctl("migrate", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (0, "0 schemas updated, 0 failed\n"))

    def test_programs_read_which_schemas(self) -> None:
        self.assertEqual(
            posctl("migrate", "--json", dsn=self.dsn).json,
            {"updated": [], "current": ["dinedesk_main", "dinedesk_kitchen"], "failed": {}},
        )

    def test_a_tenant_that_fails_is_named_and_leaves_the_others_updated(self) -> None:
        execute(self.dsn, BREAK_KITCHEN)
        execute(
            self.dsn,
            "INSERT INTO dinedesk_main.tenants (slug, name, schema_name)"
            " VALUES ('bistro', 'The Bistro', 'dinedesk_bistro')",
        )
        ran = posctl("migrate", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, "1 schema updated, 1 failed\n"))
        self.assertRegex(ran.err, r"\Adinedesk_kitchen: tenant/001_stream\.sql was changed.*\n\Z")

    def test_programs_read_the_reason_of_a_failure(self) -> None:
        execute(self.dsn, BREAK_KITCHEN)
        ran = posctl("migrate", "--json", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        reason = "tenant/001_stream.sql was changed after it was applied to dinedesk_kitchen"
        self.assertEqual(
            ran.json,
            {"updated": [], "current": ["dinedesk_main"], "failed": {"dinedesk_kitchen": reason}},
        )

    def test_before_bootstrap_the_way_is_shown(self) -> None:
        ran = posctl("migrate", dsn=test_server().fresh_database())
        self.assertEqual(ran.code, os.EX_CONFIG)
        self.assertRegex(ran.err, r"\Aposctl: .*posctl bootstrap.*\n\Z")

    def test_the_daemons_own_role_may_not(self) -> None:
        ran = posctl("migrate", dsn=as_role(self.dsn, "posd"))
        self.assertEqual(ran.code, os.EX_NOPERM)
        self.assertRegex(ran.err, r"\Aposctl: this needs a superuser or .* posd_owner.*\n\Z")

    def test_a_database_of_a_newer_posd_is_refused(self) -> None:
        execute(
            self.dsn,
            "INSERT INTO dinedesk_main.schema_versions (schema_name, file, checksum)"
            " VALUES ('dinedesk_main', 'main/999_later.sql', '')",
        )
        ran = posctl("migrate", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_CONFIG)
        self.assertIn("main/999_later.sql", ran.err)

    def test_the_daemons_own_role_can_check_that_it_would_start(self) -> None:
        ran = posctl("migrate", "--check", dsn=as_role(self.dsn, "posd"))
        self.assertEqual(
            (ran.code, ran.out), (0, "The main schema is that of this version of posd.\n"), ran.err
        )
        self.assertEqual(
            posctl("migrate", "--check", "--json", dsn=self.dsn).json,
            {"fits": True, "reason": None},
        )

    def test_a_check_reports_missing_migrations_and_changes_nothing(self) -> None:
        last = migrations.expected_files()["main"][-1]
        execute(self.dsn, f"DELETE FROM dinedesk_main.schema_versions WHERE file = '{last}'")
        for _ in range(2):
            ran = posctl("migrate", "--check", dsn=as_role(self.dsn, "posd"))
            self.assertEqual(ran.code, os.EX_CONFIG)
            self.assertRegex(ran.err, rf"\Aposctl: .*lacks {last}; run `posctl migrate`\n\Z")
        ran = posctl("migrate", "--check", "--json", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_CONFIG)
        self.assertIn('"fits":false', ran.out.replace(" ", ""))
        self.assertIn(last, ran.out)

    def test_a_concurrent_migration_is_refused(self) -> None:
        with (
            closing(migrations.connect(self.dsn)) as other,
            migrations.administer(other),
        ):
            for command in (("migrate",), ("adopt", "kitchen"), ("tenant", "disable", "kitchen")):
                ran = posctl(*command, dsn=self.dsn)
                self.assertEqual(ran.code, os.EX_TEMPFAIL)
                self.assertRegex(ran.err, r"\Aposctl: another posctl .*\n\Z")


class AdoptTests(SynchronousTestCase):
    """A shop with tables that are older than posd."""

    def setUp(self) -> None:
        self.dsn = migrated_database()

    def test_the_orders_of_a_tenant_are_hooked(self) -> None:
        execute(self.dsn, "DROP TRIGGER pos_orders_inserted ON dinedesk_kitchen.orders")
        ran = posctl("adopt", "kitchen", "--json", dsn=self.dsn)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(
            {**cast("dict[str, object]", ran.json), "found": None},
            {"tenant": "kitchen", "hooked": True, "found": None},
        )
        triggers = execute(
            self.dsn, "SELECT tgname FROM pg_trigger WHERE tgname = 'pos_orders_inserted'"
        )
        self.assertEqual(len(triggers), 1)

    def test_the_findings_are_printed_first(self) -> None:
        execute(
            self.dsn,
            "INSERT INTO dinedesk_kitchen.orders (status, total_amount) VALUES ('cart', 5)",
        )
        ran = posctl("adopt", "kitchen", "--where", "status <> 'cart'", dsn=self.dsn)
        self.assertEqual(ran.code, 0, ran.err)
        lines = [line.split(maxsplit=1) for line in ran.out.splitlines()]
        shown = dict(lines[:-1])
        self.assertEqual(shown["orders"], "owner posd_owner, id bigint, primary key id")
        self.assertEqual(shown["statuses"], "cart 1 (of the newest 1 order)")
        self.assertEqual(shown["published"], "orders where status <> 'cart' (0 of the newest 1)")
        self.assertRegex(shown["newest"], r"^order +20\d\d-.* in Europe/London, \d\d:\d\d in UTC$")
        self.assertEqual(
            ran.out.splitlines()[-1], "The hooks are installed on the orders of kitchen."
        )

    def test_a_dry_run_changes_nothing(self) -> None:
        execute(self.dsn, "DROP TRIGGER pos_orders_inserted ON dinedesk_kitchen.orders")
        ran = posctl("adopt", "kitchen", "--dry-run", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out.splitlines()[-1]), (0, "Nothing was changed."))
        left = "SELECT FROM pg_trigger WHERE tgname = 'pos_orders_inserted'"
        self.assertEqual(execute(self.dsn, left), [])
        self.assertEqual(execute(self.dsn, "SELECT FROM dinedesk_main.pos_adoptions"), [])

    def test_json_has_the_findings_and_the_options(self) -> None:
        execute(self.dsn, "ALTER TABLE dinedesk_kitchen.orders ALTER created_at TYPE timestamp")
        ran = posctl("adopt", "kitchen", "--json", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, ""))
        self.assertIn("posctl adopt kitchen --timestamps utc", ran.err)
        ran = posctl("adopt", "kitchen", "--json", "--timestamps", "utc", dsn=self.dsn)
        found = cast("dict[str, Any]", ran.json)["found"]
        self.assertEqual((found["timestamps"], found["where"]), ("utc", None))
        self.assertEqual(found["tables"]["orders"]["primaryKey"], ["id"])

    def test_an_unknown_tenant_is_named(self) -> None:
        ran = posctl("adopt", "kitchn", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertEqual(ran.err, "posctl: there is no tenant 'kitchn'\n")

    def test_columns_that_are_missing_are_listed(self) -> None:
        execute(self.dsn, "ALTER TABLE dinedesk_kitchen.orders DROP COLUMN status")
        ran = posctl("adopt", "kitchen", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertIn("orders.status", ran.err)

    def test_columns_that_cannot_be_compared_are_refused(self) -> None:
        execute(
            self.dsn,
            "ALTER TABLE dinedesk_kitchen.order_items DROP CONSTRAINT order_items_order_id_fkey,"
            " ALTER order_id TYPE text",
        )
        ran = posctl("adopt", "kitchen", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertIn("PostgreSQL cannot compare them", ran.err)
        self.assertIn("ALTER COLUMN order_id TYPE bigint", ran.err)

    def test_missing_rights_are_printed_as_grants(self) -> None:
        execute(self.dsn, "ALTER TABLE dinedesk_kitchen.orders OWNER TO postgres")
        ran = posctl("adopt", "kitchen", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_NOPERM)
        self.assertIn('GRANT TRIGGER ON "dinedesk_kitchen".orders TO posd_owner;\n', ran.err)

    def test_before_the_first_migration_the_way_is_shown(self) -> None:
        dsn = test_server().fresh_database()
        posctl("bootstrap", dsn=dsn)
        ran = posctl("adopt", "kitchen", dsn=dsn)
        self.assertEqual(ran.code, os.EX_CONFIG)
        self.assertIn("run `posctl migrate`", ran.err)
