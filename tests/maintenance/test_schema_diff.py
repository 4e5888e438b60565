"""Tests of the comparison of schemas with the migrations: missing, changed and foreign objects are found."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from posd.database import migrations
from posd.testing.postgres import test_server
from tests import structure
from tests.audit_case import AuditCase
from tests.cli_runner import execute, migrated_database, posctl

CARDS = "pos_gift_card_transactions"


class ListTests(SynchronousTestCase):
    def test_structure_json_lists_what_the_migrations_create(self) -> None:
        dsn = migrated_database()
        self.addCleanup(test_server().drop_database, dsn)
        written = structure.FILE.read_text("utf-8")
        self.assertEqual(
            structure.structure_text(structure.describe_database(dsn)),
            written,
            "run python -m tests.structure",
        )


class SchemaCase(AuditCase):
    def lacks(self, *damages: str, warns: bool = False) -> dict[str, str]:
        """Return the findings of an audit about the schemas, by object."""
        return {
            wrong.row: wrong.what
            for each in self.audited(*damages)
            if each.check == "schema" and each.warns is warns
            for wrong in each.found.rows
        }

    def check(self, row: str, what: str, *damages: str) -> None:
        with self.subTest(row=row):
            found = self.lacks(*damages)
            self.assertEqual([*found], [row], found)
            self.assertRegex(found[row], what)


class DamageTests(SchemaCase):
    def test_a_constraint_that_was_dropped(self) -> None:
        self.check(
            f"constraint {CARDS}.gift_card_not_overdrawn",
            r"is missing; expected: CHECK \(\(balance_after >= \(0\)::numeric\)\)",
            f"ALTER TABLE {CARDS} DROP CONSTRAINT gift_card_not_overdrawn",
        )
        self.check(
            "constraint pos_heads.pos_heads_check",
            "is missing",
            "ALTER TABLE pos_heads DROP CONSTRAINT pos_heads_check",
        )

    def test_a_constraint_that_was_replaced_by_true(self) -> None:
        again = f"ALTER TABLE {CARDS} ADD CONSTRAINT gift_card_sum CHECK"
        drop = f"ALTER TABLE {CARDS} DROP CONSTRAINT gift_card_sum"
        row = f"constraint {CARDS}.gift_card_sum"
        self.check(row, r"is: CHECK \(true\); expected", drop, f"{again} (true)")
        same = "(balance_after = balance_before + amount) NOT VALID"
        self.check(row, "NOT VALID never validated;", drop, f"{again} {same}")

    def test_a_column_that_may_be_null(self) -> None:
        self.check(
            f"column {CARDS}.balance_before",
            r"is: numeric\(14,3\); expected: numeric\(14,3\) not null",
            f"ALTER TABLE {CARDS} ALTER balance_before DROP NOT NULL",
        )

    def test_an_index_that_was_dropped(self) -> None:
        self.check(
            "index pos_loyalty_transactions.loyalty_earned_once",
            "is missing; expected: CREATE UNIQUE INDEX",
            "DROP INDEX loyalty_earned_once",
        )

    def test_a_trigger_that_is_disabled_or_gone(self) -> None:
        row = f"trigger {CARDS}.pos_insert_only"
        disable = f"ALTER TABLE {CARDS} DISABLE TRIGGER pos_insert_only"
        self.check(row, r"pos_insert_only\(\) disabled;", disable)
        self.check(row, "is missing", f"DROP TRIGGER pos_insert_only ON {CARDS}")
        self.check(
            "trigger orders.pos_orders_updated",
            r"is: posd_hooks.note_orders\(\) disabled;",
            "ALTER TABLE orders DISABLE TRIGGER pos_orders_updated",
        )

    def test_foreign_keys_that_are_not_enforced(self) -> None:
        found = self.lacks("ALTER TABLE dinedesk_main.pos_order_terminals DISABLE TRIGGER ALL")
        self.assertEqual(
            [*found], ["constraint pos_order_terminals.pos_order_terminals_tenant_id_order_id_fkey"]
        )

    def test_row_security_that_hides_rows(self) -> None:
        self.check(
            "table pos_events",
            "is: table, owner posd_owner, row security;",
            "ALTER TABLE dinedesk_main.pos_events ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY all_rows ON dinedesk_main.pos_events USING (true)",
        )

    def test_objects_with_another_owner(self) -> None:
        self.check(
            "table pos_order_terminals",
            "is: table, owner pg_monitor;",
            "ALTER TABLE dinedesk_main.pos_order_terminals OWNER TO pg_monitor",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON dinedesk_main.pos_order_terminals TO posd",
        )
        self.check(
            "function pos_insert_only()",
            "is: owner pg_monitor,",
            "ALTER FUNCTION pos_insert_only() OWNER TO pg_monitor",
        )

    def test_rights_that_were_granted_or_revoked(self) -> None:
        row = "rights pos_events"
        self.check(
            row, "is: posd DELETE, posd INSERT", "GRANT DELETE ON dinedesk_main.pos_events TO posd"
        )
        self.check(row, "is: PUBLIC SELECT,", "GRANT SELECT ON dinedesk_main.pos_events TO PUBLIC")
        self.check(row, "is: posd SELECT;", "REVOKE INSERT ON dinedesk_main.pos_events FROM posd")
        self.check(
            "rights pos_tenant_files",
            "were not granted by a migration: posd INSERT",
            "GRANT INSERT ON pos_tenant_files TO posd",
        )
        self.check("schema", "posd CREATE,", "GRANT CREATE ON SCHEMA dinedesk_kitchen TO posd")

    def test_rights_of_other_roles_than_posds_are_not_reported(self) -> None:
        self.assertEqual(self.lacks("GRANT SELECT ON dinedesk_main.pos_events TO pg_monitor"), {})

    def test_a_function_that_every_role_may_call(self) -> None:
        self.check(
            "function pos_publish(slug text, type text, data jsonb)",
            "for PUBLIC, for posd, for posd_publisher;",
            "GRANT EXECUTE ON FUNCTION pos_publish TO PUBLIC",
        )

    def test_a_function_whose_search_path_others_can_write_to(self) -> None:
        self.check(
            "function pos_insert_only()",
            r"is: owner posd_owner, set search_path=public; expected: .*pg_catalog, pg_temp",
            "ALTER FUNCTION pos_insert_only() SET search_path = public",
        )

    def test_a_function_with_another_body(self) -> None:
        self.check(
            "function pos_insert_only()",
            "has another body than in the migrations",
            "CREATE OR REPLACE FUNCTION dinedesk_main.pos_insert_only() RETURNS trigger"
            " LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NULL; END'",
        )
        # The function of another tenant is not a function of the kitchen.
        self.check(
            "function posd_hooks.enqueue(kind text, keys text[])",
            "has another body than in the migrations",
            "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('posd_hooks.enqueue$kitchen'::regproc),"
            " 'SELECT 1, kind', 'SELECT 2, kind'); END $$",
        )

    def test_a_function_that_has_other_rights(self) -> None:
        name = "posd_hooks.read_orders$kitchen(text[])"
        row = "function posd_hooks.read_orders(keys text[])"
        self.check(row, "is: owner :hook_role, set", f"ALTER FUNCTION {name} SECURITY INVOKER")
        self.check(row, "is: owner :note_role", f"ALTER FUNCTION {name} OWNER TO posd_note_kitchen")

    def test_a_file_that_was_changed_after_it_was_applied(self) -> None:
        self.check(
            "tenant/003_ledgers.sql",
            "was changed after it was applied",
            "UPDATE schema_versions SET checksum = '0' WHERE file = 'tenant/003_ledgers.sql'"
            " AND schema_name = 'dinedesk_kitchen'",
        )

    def test_an_old_schema_is_the_only_finding_of_a_tenant(self) -> None:
        newest = migrations.expected_files()["tenant"][-1]
        (found,) = self.audited(
            f"DELETE FROM schema_versions WHERE file = '{newest}' AND schema_name = 'dinedesk_kitchen'",
            "DELETE FROM pos_events",
        )
        self.assertIn(newest, found.found.rows[0].what)


class StrangerTests(SchemaCase):
    """Objects that no migration creates."""

    def test_a_foreign_trigger_on_a_table_of_posd_is_a_warning(self) -> None:
        found = self.lacks(
            "CREATE TRIGGER mine BEFORE INSERT ON dinedesk_main.pos_events"
            " FOR EACH ROW EXECUTE FUNCTION pos_insert_only()",
            warns=True,
        )
        self.assertEqual([*found], ["trigger pos_events.mine"])

    def test_a_foreign_function_with_rights_of_posd_is_a_warning(self) -> None:
        make = "CREATE FUNCTION door() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"
        own = "ALTER FUNCTION door() OWNER TO posd_owner"
        self.assertEqual([*self.lacks(make, own, warns=True)], ["function door()"])

    def test_tables_and_functions_of_the_shop_are_not_reported(self) -> None:
        self.assertEqual(
            self.audited(
                "CREATE TABLE menu (id int PRIMARY KEY)",
                "CREATE FUNCTION total() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                "CREATE TRIGGER mine AFTER INSERT ON orders"
                " FOR EACH ROW EXECUTE FUNCTION posd_hooks.note_orders$kitchen()",
            ),
            [],
        )


class ShopTests(SynchronousTestCase):
    """Shops with tables from before the installation of posd."""

    def audited(self, *tables: str, adopted: bool = False) -> object:
        dsn = migrated_database()
        self.addCleanup(test_server().drop_database, dsn)
        execute(dsn, "CREATE SCHEMA dinedesk_bistro AUTHORIZATION posd_owner")
        for table in tables:
            execute(dsn, f"CREATE TABLE dinedesk_bistro.{table}")
        posctl("tenant", "add", "bistro", "--name", "The Bistro", dsn=dsn)
        if adopted:
            for name in ("orders", "order_items"):
                table = f"dinedesk_bistro.{name}"
                execute(dsn, f"GRANT SELECT ON {table} TO posd_hook_bistro")
                execute(dsn, f"GRANT TRIGGER ON {table} TO posd_owner")
            self.assertEqual(posctl("adopt", "bistro", dsn=dsn).code, 0)
        ran = posctl("audit", "--tenant", "bistro", "--json", dsn=dsn)
        assert isinstance(ran.json, dict)
        return ran.json["faults"]

    def test_the_shops_own_orders_are_not_compared_with_the_migrations(self) -> None:
        orders = ("orders (number text)", "order_items (number text)")
        self.assertEqual(self.audited(*orders), [])

    def test_adopted_tables_are_not_compared_but_their_hooks_are(self) -> None:
        own = (
            "orders (id int PRIMARY KEY, status text, total_amount numeric, created_at timestamptz)",
            "order_items (id int, order_id int, name text, price numeric, quantity int)",
        )
        self.assertEqual(self.audited(*own, adopted=True), [])

    def test_the_shops_own_ledger_is_not_compared(self) -> None:
        own = ("gift_cards (number text)", "loyalty_accounts (number text)")
        self.assertEqual(self.audited(*own), [])
