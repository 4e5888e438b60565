"""A hostile shop with CREATE on its own schema, which docs/platform.md grants.

The actions of its code are random. Its code first writes to PostgreSQL's log if it has more rights than
the shop.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, Final

import psycopg2
from attrs import define, field
from psycopg2.extensions import make_dsn, parse_dsn

from posd.database import adopting, migrations
from posd.database.adoption_rules import AdoptionOptions
from posd.errors import SchemaError
from tests.integration.harness import Shop

ORDERS: Final = 1000
ENDLESS: Final = """
    LOOP BEGIN PERFORM pg_sleep(9); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP
"""
BODIES: Final = (
    ENDLESS,
    "PERFORM pg_sleep(30)",
    "PERFORM pg_sleep(0.2)",
    "RAISE 'no'",
    "PERFORM 1 / 0",
    "PERFORM pg_advisory_lock(7097, n) FROM generate_series(0, 9) AS n",
    "PERFORM set_config('search_path', '{schema}', false), set_config('statement_timeout', '0', false)",
    # From PostgreSQL 17 on, this setting ends the session.
    "PERFORM set_config('transaction_timeout', '1', false), pg_sleep(0.1)",
    "PERFORM set_config('idle_in_transaction_session_timeout', '1', false)",
    "LOOP RAISE WARNING 'well'; END LOOP",
    "PERFORM repeat('x', 200000000)",
    "PERFORM pg_terminate_backend(pg_backend_pid())",
    "PERFORM {schema}.deeper()",
)
THEFTS: Final = (
    "PERFORM FROM dinedesk_good.orders",
    "PERFORM FROM dinedesk_main.pos_events",
    "PERFORM FROM dinedesk_main.pos_api_keys",
    "PERFORM FROM dinedesk_main.pos_outbox",
    "PERFORM FROM posd_hooks.read_orders$good('{{1}}')",
    "PERFORM dinedesk_main.pos_publish('good', 'stolen', '{{}}')",
    "INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, data) VALUES (1, 'stolen', '{{}}')",
    "ALTER FUNCTION posd_hooks.read_orders${slug}(text[]) SECURITY INVOKER",
    "PERFORM set_config('role', 'posd', false)",
    "PERFORM set_config('role', 'posd_reader', false)",
    "PERFORM set_config('session_authorization', 'default', false)",
    "PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    "CREATE ROLE thief SUPERUSER",
)
"""Actions that must be refused wherever the shop's code runs."""
TABLES: Final = """
    CREATE TABLE IF NOT EXISTS {schema}.orders (
        id bigint PRIMARY KEY, status text, total_amount numeric, created_at timestamptz DEFAULT now(),
        customer_name text);
    CREATE TABLE IF NOT EXISTS {schema}.order_items (
        id bigint, order_id bigint, name text, price numeric, quantity int);
    GRANT SELECT, TRIGGER ON {schema}.orders, {schema}.order_items TO posd_owner
"""


@define(eq=False)
class Mischief:
    """A tenant `slug`. Its shop does one action after the other until it is `over`."""

    scene: Shop
    slug: str
    dice: random.Random
    acts: list[str] = field(init=False, factory=list)
    """The actions, to explain a failure."""
    _over: threading.Event = field(init=False, factory=threading.Event)
    _thread: threading.Thread | None = field(init=False, default=None)
    _connection: Any = field(init=False, default=None)

    @property
    def schema(self) -> str:
        return f"dinedesk_{self.slug}"

    @property
    def role(self) -> str:
        return f"shop_of_{self.slug}"

    @property
    def mark(self) -> str:
        """The text in PostgreSQL's log if code of this shop had more rights than the shop."""
        return f"captured by {self.slug} in {parse_dsn(self.scene.dsn)['dbname']}"

    def open(self) -> None:
        """Create the tenant and its own order tables with hooks."""
        self.scene.query(
            f"DO $$ BEGIN IF to_regrole('{self.role}') IS NULL THEN CREATE ROLE {self.role} LOGIN; END IF;"
            f" END $$; CREATE SCHEMA {self.schema} AUTHORIZATION posd_owner;"
            f"GRANT USAGE, CREATE ON SCHEMA {self.schema} TO {self.role}"
        )
        self.run(TABLES)
        self.scene.add_tenant(self.slug)
        self.run("GRANT SELECT ON {schema}.orders, {schema}.order_items TO posd_hook_{slug}")
        self.adopt()
        self.run(
            "INSERT INTO {schema}.orders SELECT n, 'new', 5, now(), 'x' FROM generate_series(1, {n}) AS n",
            n=str(ORDERS),
        )

    def adopt(self) -> None:
        with closing(migrations.connect(self.scene.dsn)) as connection, suppress(SchemaError):
            adopting.adopt(connection, self.slug, AdoptionOptions(unique_ids=True))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self.scene.query(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{self.role}'"
        )
        if self._thread is not None:
            self._thread.join(30)

    def run(self, sql: str, **values: str) -> None:
        """Run a statement as the shop, and ignore errors of PostgreSQL."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg2.connect(make_dsn(self.scene.dsn, user=self.role))
            self._connection.autocommit = True
        for name, value in {"schema": self.schema, "slug": self.slug, **values}.items():
            sql = sql.replace("{" + name + "}", value)
        with self._connection.cursor() as cursor:
            cursor.execute(sql)

    def _work(self) -> None:
        self.run("SET statement_timeout = '2s'; SET lock_timeout = '300ms'")
        # Begin with all of them.
        self.code_in_items(ENDLESS)
        self.flood()
        while not self._over.is_set():
            act: Callable[[], None] = self.dice.choice(
                (
                    *(self.code_in_items, self.code_in_items, self.code_in_a_policy, self.flood),
                    *(
                        self.code_in_a_cast,
                        self.plant,
                        self.drop,
                        self.lock,
                        self.notify,
                        self.odd_values,
                    ),
                    *(self.make_anew, self.adopt, self.code_in_an_operator, self.deferred),
                )
            )
            self.acts.append(act.__name__)
            with suppress(psycopg2.Error):
                act()
            with suppress(psycopg2.Error):
                self.run("UPDATE {schema}.orders SET total_amount = total_amount + 1 WHERE id < 5")
            self._over.wait(self.dice.random() * 0.1)
        if self._connection is not None:
            self._connection.close()

    # -- actions -----------------------------------------------------------------------------

    def code(self, body: str | None = None) -> None:
        """Create {schema}.evil(), which reports its role and then does something."""
        body, theft = body or self.dice.choice(BODIES), self.dice.choice(THEFTS).replace("{{", "{")
        theft = theft.replace("}}", "}")
        self.acts.append(f"  {body.strip()[:60]} / {theft[:60]}")
        own = f"'{self.role}', 'posd_hook_{self.slug}', 'posd_note_{self.slug}'"
        self.run(
            "CREATE OR REPLACE FUNCTION {schema}.deeper() RETURNS bigint LANGUAGE plpgsql"
            " AS $f$ BEGIN RETURN {schema}.deeper(); END $f$;"
            "CREATE OR REPLACE FUNCTION {schema}.evil() RETURNS bigint LANGUAGE plpgsql AS $f$ BEGIN "
            f" IF current_user NOT IN ({own}) THEN RAISE LOG '{self.mark}: runs as %', current_user; END IF;"
            f" IF session_user NOT IN ({own}, 'posd_reader') THEN"
            f"  RAISE LOG '{self.mark}: runs in a session of %', session_user; END IF;"
            f" BEGIN {theft}; RAISE LOG '{self.mark}: %', $t${theft}$t$;"
            "  EXCEPTION WHEN query_canceled THEN NULL; WHEN OTHERS THEN NULL; END;"
            # The shop's own session must continue.
            f" IF session_user <> '{self.role}' THEN {body}; END IF; RETURN 1; END $f$"
        )

    def code_in_items(self, body: str | None = None) -> None:
        self.code(body)
        self.run(
            "DROP TABLE IF EXISTS {schema}.order_items CASCADE;"
            "CREATE VIEW {schema}.order_items AS SELECT 1::bigint AS id, {schema}.evil() AS order_id,"
            " 'Soup' AS name, 1 AS price, 1 AS quantity;"
            "GRANT SELECT ON {schema}.order_items TO posd_hook_{slug}"
        )

    def code_in_a_policy(self) -> None:
        self.code()
        self.run(
            "DROP POLICY IF EXISTS p ON {schema}.orders;"
            "CREATE POLICY p ON {schema}.orders USING ({schema}.evil() > 0);"
            "ALTER TABLE {schema}.orders ENABLE ROW LEVEL SECURITY"
        )
        if self.dice.random() < 0.5:
            self.run("ALTER TABLE {schema}.orders DISABLE ROW LEVEL SECURITY")

    def code_in_a_cast(self) -> None:
        self.code()
        self.run(
            "DROP TYPE IF EXISTS {schema}.key CASCADE; CREATE TYPE {schema}.key AS (v bigint);"
            "CREATE FUNCTION {schema}.as_text({schema}.key) RETURNS text LANGUAGE sql"
            " AS 'SELECT {schema}.evil()::text';"
            "CREATE CAST ({schema}.key AS text) WITH FUNCTION {schema}.as_text({schema}.key) AS IMPLICIT;"
            "ALTER TABLE {schema}.orders ALTER id TYPE {schema}.key USING row(id)::{schema}.key;"
            "INSERT INTO {schema}.orders VALUES (row(7)::{schema}.key, 'new', 5)"
        )

    def code_in_an_operator(self) -> None:
        self.code()
        self.run(
            "CREATE OR REPLACE FUNCTION {schema}.same(bigint, bigint) RETURNS boolean LANGUAGE sql"
            " AS 'SELECT {schema}.evil() = 1';"
            "CREATE OPERATOR {schema}.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = {schema}.same)"
        )

    def deferred(self) -> None:
        self.code()
        self.run(
            "CREATE OR REPLACE FUNCTION {schema}.later() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN PERFORM {schema}.evil(); RETURN NULL; END';"
            "CREATE CONSTRAINT TRIGGER later AFTER INSERT OR UPDATE ON {schema}.orders"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.later()"
        )

    def plant(self) -> None:
        """Create functions and views with names that posd uses."""
        self.code()
        name = self.dice.choice(
            ("gift_cards", "pos_events", "pos_orders", "pos_adoption", "read_orders")
        )
        self.run(
            f"CREATE OR REPLACE FUNCTION {{schema}}.{name}(text[]) RETURNS bigint LANGUAGE sql"
            " AS 'SELECT {schema}.evil()';"
            f"DROP TABLE IF EXISTS {{schema}}.{name} CASCADE;"
            f"CREATE VIEW {{schema}}.{name} AS SELECT {{schema}}.evil() AS id;"
            f"GRANT ALL ON {{schema}}.{name} TO PUBLIC"
        )

    def flood(self) -> None:
        self.run("UPDATE {schema}.orders SET total_amount = total_amount + 1")

    def drop(self) -> None:
        self.run("DROP TABLE IF EXISTS {schema}.order_items CASCADE")
        if self.dice.random() < 0.3:
            self.run("DROP TABLE IF EXISTS {schema}.orders CASCADE")

    def make_anew(self) -> None:
        self.run("DROP VIEW IF EXISTS {schema}.order_items")
        self.run(TABLES)
        self.run(
            "GRANT SELECT ON {schema}.orders, {schema}.order_items TO posd_hook_{slug};"
            "INSERT INTO {schema}.orders SELECT n, 'new', 5, now(), 'x' FROM generate_series(1, 100) AS n"
            " ON CONFLICT DO NOTHING"
        )

    def lock(self) -> None:
        self.run("SELECT pg_advisory_lock(7097, n) FROM generate_series(0, 9) AS n")
        self.run("BEGIN; LOCK TABLE {schema}.orders; SELECT pg_sleep(0.6); COMMIT")

    def notify(self) -> None:
        self.run(
            "SELECT pg_notify(c, repeat('x', 7000)) FROM generate_series(1, 300),"
            " unnest('{posd_outbox,posd_events,posd_control}'::text[]) AS c"
        )

    def odd_values(self) -> None:
        text = self.dice.choice(
            (r"chr(1) || E'\u202e'", "repeat('x', 5000000)", "repeat('[', 9000)")
        )
        order_id = self.dice.randrange(10**6, 10**7)
        self.run(
            f"INSERT INTO {{schema}}.orders VALUES ({order_id}, {text}, 1e300::numeric, 'infinity', {text})"
        )
