"""A shop creates objects with all names that posd uses in its schema, and then posd does all its work.

The shop has USAGE and CREATE on its schema, as docs/platform.md grants. Its objects call a function that
reports the role that runs it. This may be the shop, and the two roles of the shop: the reader of its
tables, and the role that enqueues for it.
"""

from __future__ import annotations

import re
import urllib.parse
from contextlib import closing
from typing import Any, Final

import psycopg2
from psycopg2.extensions import make_dsn
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_runner import posctl
from tests.integration.harness import Daemon, Shop
from tests.schema_case import eventually
from tests.structure import FILE

ROOT: Final = FILE.parent.parent
SHOP: Final = "shop_of_the_bistro"
KEY: Final = "+447700900123"
VALUES: Final = {
    "{tenant}": "bistro",
    "{slug}": "bistro",
    "{cardNumber}": "CARD-1",
    "{phone}": urllib.parse.quote(KEY),
    "{orderId}": "1",
    "{deviceId}": "front",
}
LEDGERS: Final = (
    *("gift_cards", "pos_gift_card_transactions"),
    *("loyalty_accounts", "pos_loyalty_transactions"),
)
SIGNATURES: Final = (
    *("text", "text, text", "text[]", "text, text[]", "text, jsonb", "anyelement", "integer, text"),
    "text, text, numeric, text, text, text, text, text",
)
TRAP: Final = f"""
    CREATE SCHEMA trap;
    GRANT USAGE ON SCHEMA trap TO PUBLIC;
    CREATE SEQUENCE trap.captured;
    GRANT USAGE ON SEQUENCE trap.captured TO PUBLIC;
    CREATE FUNCTION trap.spring() RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF current_user IN ('{SHOP}', 'posd_hook_bistro', 'posd_note_bistro') THEN
            RETURN true;
        END IF;
        BEGIN
            -- It is counted whatever becomes of the transaction.
            PERFORM nextval('trap.captured');
        EXCEPTION WHEN read_only_sql_transaction THEN
            NULL;
        END;
        RAISE 'captured %', current_user;
    END $$;
    CREATE FUNCTION trap.trigger() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM trap.spring(); RETURN NULL; END $$;
"""
OWN: Final = """
    CREATE TABLE dinedesk_bistro.orders (
        id bigint PRIMARY KEY, status text, total_amount numeric, created_at timestamptz DEFAULT now());
    CREATE TABLE dinedesk_bistro.order_items (
        id bigint, order_id bigint, name text, price numeric, quantity int);
    GRANT SELECT, TRIGGER ON dinedesk_bistro.orders, dinedesk_bistro.order_items TO posd_owner;
    CREATE TABLE dinedesk_bistro.gift_cards (card_number text);
    CREATE TABLE dinedesk_bistro.loyalty_accounts (phone text);
"""


def names_of_posd() -> set[str]:
    """Return the names that posd's SQL uses in a tenant's schema, and its functions for tenants."""
    found: set[str] = set()
    for path in [*ROOT.glob("sql/**/*.sql"), *ROOT.glob("posd/**/*.py")]:
        text = path.read_text("utf-8")
        for each in re.findall(r':"schema"\.(\w+)|%(?:1\$)?I\.(\w+)|\{schema\}\.(\w+)', text):
            found |= {name for name in each if name}
        for name in re.findall(r"posd_hooks\.\"?(\w+)\$", text):
            found |= {name, f"{name}$bistro"}
    return found


class PlantingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.scene = Shop.open(["grill"])
        self.addCleanup(self.scene.close)
        self.said: list[str] = []
        self.admin(
            f"DO $$ BEGIN IF to_regrole('{SHOP}') IS NULL THEN CREATE ROLE {SHOP} LOGIN; END IF; END $$"
        )
        self.admin("CREATE SCHEMA dinedesk_bistro AUTHORIZATION posd_owner")
        self.admin(f"GRANT USAGE, CREATE ON SCHEMA dinedesk_bistro TO {SHOP}")
        database = self.admin("SELECT current_database()")[0][0]
        self.admin(f'GRANT CREATE ON DATABASE "{database}" TO {SHOP}')
        self.shop(TRAP)
        self.shop(OWN)
        self.posctl("tenant", "add", "bistro", "--name", "The Bistro")
        self.shop(
            "GRANT SELECT ON dinedesk_bistro.orders, dinedesk_bistro.order_items TO posd_hook_bistro"
        )

    def admin(self, sql: str) -> list[Any]:
        return self.scene.query(sql)

    def shop(self, sql: str) -> None:
        with closing(psycopg2.connect(make_dsn(self.scene.dsn, user=SHOP))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)

    def posctl(self, *arguments: str, stdin: str | None = None) -> None:
        ran = posctl(*arguments, dsn=self.scene.dsn, stdin=stdin)
        self.said += [ran.out, ran.err]
        self.assertNotIn("Usage:", ran.err)

    def captured(self) -> bool:
        (hit,) = self.admin("SELECT is_called FROM trap.captured")
        return bool(hit[0]) or any("captured" in each for each in self.said)

    def plant(self) -> None:
        planted = 0
        for name in sorted(names_of_posd()):
            for signature in SIGNATURES:
                self.shop(
                    f'CREATE FUNCTION dinedesk_bistro."{name}"({signature}) RETURNS boolean'
                    " LANGUAGE sql AS 'SELECT trap.spring()'"
                )
                planted += 1
        self.assertGreater(planted, 200)
        for name in LEDGERS:
            self.shop(f"DROP TABLE IF EXISTS dinedesk_bistro.{name}")
            self.shop(
                f"CREATE VIEW dinedesk_bistro.{name} AS SELECT {self.columns(name)} WHERE trap.spring();"
                f"GRANT ALL ON dinedesk_bistro.{name} TO PUBLIC;"
                f"CREATE TRIGGER t INSTEAD OF INSERT OR UPDATE ON dinedesk_bistro.{name}"
                " FOR EACH ROW EXECUTE FUNCTION trap.trigger()"
            )
        # Names of the constraints that distinguished posd's own ledgers from a shop's.
        self.shop(
            "CREATE TABLE dinedesk_bistro.own (n int, CONSTRAINT gift_cards_number_form CHECK (n > 0),"
            " CONSTRAINT loyalty_phone_form CHECK (n > 0), CONSTRAINT loyalty_chain CHECK (n > 0))"
        )
        for operator, left in (("=", "text"), ("=", "bigint"), ("<>", "text"), ("||", "text")):
            kind = "boolean" if operator != "||" else "text"
            function = f"dinedesk_bistro.o_{left}_{len(operator)}_{ord(operator[0])}"
            self.shop(
                f"CREATE FUNCTION {function}({left}, {left}) RETURNS {kind} LANGUAGE sql"
                f" AS 'SELECT trap.spring()::{kind}';"
                f"CREATE OPERATOR dinedesk_bistro.{operator}"
                f" (LEFTARG = {left}, RIGHTARG = {left}, FUNCTION = {function})"
            )
        # Row security whose function writes into a table with a deferred trigger.
        self.shop(
            "CREATE TABLE dinedesk_bistro.later (n int);"
            "GRANT ALL ON dinedesk_bistro.later TO PUBLIC;"
            "CREATE CONSTRAINT TRIGGER later AFTER INSERT ON dinedesk_bistro.later"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION trap.trigger();"
            "CREATE FUNCTION dinedesk_bistro.seen() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
            "  BEGIN INSERT INTO dinedesk_bistro.later VALUES (1);"
            "  EXCEPTION WHEN read_only_sql_transaction THEN NULL; END;"
            "  RETURN trap.spring(); END $$"
        )
        for name in ("orders", "order_items"):
            self.shop(
                f"ALTER TABLE dinedesk_bistro.{name} ENABLE ROW LEVEL SECURITY;"
                f"CREATE POLICY p ON dinedesk_bistro.{name} USING (dinedesk_bistro.seen());"
                f"CREATE TRIGGER mine AFTER INSERT OR UPDATE ON dinedesk_bistro.{name}"
                " FOR EACH ROW EXECUTE FUNCTION trap.trigger()"
            )

    def columns(self, name: str) -> str:
        """Return the columns of posd's own table of this name, with a value where posd searches for one."""
        known = {"card_number": "'CARD-1'", "phone": f"'{KEY}'", "initial_balance": "5", "id": "1"}
        columns = self.admin(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            f" WHERE attrelid = 'dinedesk_grill.{name}'::regclass AND attnum > 0 ORDER BY attnum"
        )
        return ", ".join(f"{known.get(each, 'NULL')}::{kind} AS {each}" for each, kind in columns)

    def change_types(self) -> None:
        """The ids become values of a type whose casts are functions of the shop."""
        self.shop(
            "CREATE TYPE dinedesk_bistro.key AS (v bigint);"
            "CREATE FUNCTION dinedesk_bistro.as_text(dinedesk_bistro.key) RETURNS text LANGUAGE sql"
            " AS 'SELECT trap.spring()::text';"
            "CREATE CAST (dinedesk_bistro.key AS text)"
            " WITH FUNCTION dinedesk_bistro.as_text(dinedesk_bistro.key) AS IMPLICIT;"
            "CREATE FUNCTION dinedesk_bistro.as_json(dinedesk_bistro.key) RETURNS json LANGUAGE sql"
            " AS 'SELECT to_json(trap.spring())';"
            "CREATE CAST (dinedesk_bistro.key AS json)"
            " WITH FUNCTION dinedesk_bistro.as_json(dinedesk_bistro.key);"
        )
        for name, column in (("orders", "id"), ("order_items", "order_id")):
            self.shop(
                f"ALTER TABLE dinedesk_bistro.{name} ALTER {column} TYPE dinedesk_bistro.key"
                f" USING row({column})::dinedesk_bistro.key"
            )
        # The hooks run in this transaction.
        self.shop(
            "INSERT INTO dinedesk_bistro.orders VALUES (row(7)::dinedesk_bistro.key, 'new', 5)"
        )
        self.shop("UPDATE dinedesk_bistro.orders SET status = 'cooking'")

    def drive_posctl(self) -> None:
        self.posctl("migrate")
        self.posctl("adopt", "bistro")
        self.posctl("audit")
        self.posctl("doctor")
        self.posctl("forget", "--tenant", "bistro", "--phone", KEY, "--yes")
        self.posctl("prune", "--dry-run")
        self.posctl("status")
        self.posctl("tenant", "list")
        self.posctl("tenant", "export", "bistro")
        self.posctl("key", "list")
        self.posctl("bootstrap")

    def drive_endpoints(self, posd: Daemon, keys: list[str]) -> int:
        asked = 0
        described = posd.request("GET", "/openapi.json").json
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                if path.endswith("/stream") or method == "delete" or path == "/api/admin/tenants":
                    continue
                address = path
                for name, value in VALUES.items():
                    address = address.replace(name, value)
                content = operation.get("requestBody", {}).get("content", {})
                body = content.get("application/json", {}).get("example", {})
                for key in keys:
                    reply = posd.request(
                        method.upper(), address, None if method == "get" else body, key=key
                    )
                    self.said.append(reply.content.decode(errors="replace"))
                    asked += 1
        return asked

    def test_nothing_of_it_runs_with_more_than_the_shops_rights(self) -> None:
        self.posctl("adopt", "bistro")
        self.shop("INSERT INTO dinedesk_bistro.orders VALUES (1, 'new', 5)")
        self.plant()
        with self.assertRaisesRegex(psycopg2.Error, "captured", msg="the trap works"):
            self.admin("SELECT * FROM dinedesk_bistro.gift_cards")
        self.admin("SELECT setval('trap.captured', 1, false)")

        self.drive_posctl()
        posd = self.scene.start()
        keys = [
            self.scene.key("platform", "bistro"),
            self.scene.key("device", "bistro", device="front"),
            self.scene.key("admin", None),
        ]
        self.assertGreater(self.drive_endpoints(posd, keys), 90)
        self.shop("INSERT INTO dinedesk_bistro.orders VALUES (2, 'new', 5)")
        self.scene.order("grill")
        grill = "SELECT count(*) FROM dinedesk_grill.pos_events WHERE seq IS NOT NULL"
        eventually(lambda: self.admin(grill)[0][0] == 1, "the other shop is served")
        self.change_types()
        self.drive_posctl()
        self.drive_endpoints(posd, keys)
        self.admin("SELECT dinedesk_main.pos_publish('bistro', 'notice', '{}')")
        # A daemon that starts also reads them.
        posd.stop()
        self.said.append(posd.log())
        again = self.scene.start()
        again.stop()
        self.said.append(again.log())
        self.assertFalse(self.captured(), [each for each in self.said if "captured" in each][:3])

    def test_a_type_whose_name_is_sql_is_refused(self) -> None:
        evil = "e$$; SELECT trap.spring(); --"
        self.shop(
            f'CREATE DOMAIN dinedesk_bistro."{evil}" AS bigint;'
            f"CREATE TYPE dinedesk_bistro.\"{evil}2\" AS ENUM ('a');"
            "ALTER TABLE dinedesk_bistro.orders DROP CONSTRAINT orders_pkey,"
            f' ALTER id TYPE dinedesk_bistro."{evil}2"'
            f" USING 'a'::dinedesk_bistro.\"{evil}2\""
        )
        self.posctl("adopt", "bistro")
        self.assertIn("ALTER COLUMN id TYPE text", self.said[-1])
        self.assertFalse(self.captured())
        # A domain counts as its base type.
        self.shop(
            f'ALTER TABLE dinedesk_bistro.orders ALTER id TYPE dinedesk_bistro."{evil}" USING 1,'
            " ADD PRIMARY KEY (id)"
        )
        # Its name is shown in the operator's terminal.
        self.shop(
            "CREATE TYPE dinedesk_bistro.\"\x1b[2J\" AS ENUM ('5');"
            'ALTER TABLE dinedesk_bistro.orders ALTER total_amount TYPE dinedesk_bistro."\x1b[2J" USING NULL'
        )
        self.posctl("adopt", "bistro")
        self.assertIn("The hooks are installed on the orders of bistro.", self.said[-2])
        self.assertIn("[2J", self.said[-1])
        self.assertNotIn("\x1b", "".join(self.said))
        self.assertFalse(self.captured())

    def test_the_names_are_those_of_the_sql(self) -> None:
        found = names_of_posd()
        for name in ("gift_cards", "pos_events", "orders", "card_move", "read_orders$bistro"):
            self.assertIn(name, found)
