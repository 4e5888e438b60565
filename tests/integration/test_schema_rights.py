"""The rights on posd's tables and functions, tried as the roles themselves."""

from __future__ import annotations

import psycopg2

from tests.schema_case import CASHIER, GRILL_SHOP, KITCHEN_SHOP, Client, Entry, SchemaCase

READ, WRITE, ALL = "SELECT", "INSERT, SELECT, UPDATE", "DELETE, INSERT, SELECT, UPDATE"

ON_MAIN = {
    "idempotency_keys": {"posd": "INSERT, SELECT"},
    "pos_adoptions": {"posd": READ},
    "pos_api_keys": {"posd": "INSERT, SELECT, UPDATE (last_used_at), UPDATE (revoked_at)"},
    "pos_connected": {"posd": READ},
    "pos_connections": {"posd": ALL},
    "pos_cursors": {"posd": WRITE},
    "pos_devices": {"posd": WRITE},
    "pos_erasures": {"posd": "INSERT, SELECT"},
    "pos_heads": {
        "posd": "SELECT, UPDATE (acknowledged), UPDATE (last_seq), UPDATE (received_seq),"
        " UPDATE (sent_seq)"
    },
    "pos_control": {"posd": "DELETE, SELECT"},
    "pos_doorman": {"posd": "SELECT, UPDATE"},
    "pos_incarnation": {"posd": READ},
    "pos_nodes": {"posd": ALL},
    "pos_outbox": {"posd": "DELETE, SELECT", "posd_hook": "INSERT, SELECT (id)"},
    "pos_outbox_transactions": {
        "posd": "DELETE, SELECT, UPDATE (first_id)",
        "posd_hook": "INSERT",
    },
    "pos_events": {"posd": "INSERT, SELECT"},
    "pos_log_id": {"posd": "USAGE"},
    "pos_nacks": {"posd": "INSERT, SELECT"},
    "pos_order_terminals": {"posd": "DELETE, INSERT, SELECT, UPDATE"},
    "pos_orders": {"posd": WRITE},
    "pos_unsequenced": {"posd": "INSERT, SELECT"},
    "pos_pruning": {"posd": WRITE},
    "pos_sequencing": {"posd": "UPDATE"},
    "pos_stream_epochs": {"posd": READ},
    "pos_tenant_changes": {"posd": READ},
    "schema_versions": {"posd": READ},
    "tenants": {"posd": READ},
}
ON_KITCHEN = {
    "gift_cards": {
        "posd": "INSERT, SELECT, UPDATE (expiry_date), UPDATE (initial_balance), UPDATE (is_blocked),"
        " UPDATE (order_id), UPDATE (purchased_by), UPDATE (recipient_email), UPDATE (recipient_name)"
    },
    "loyalty_accounts": {
        "posd": "INSERT, SELECT, UPDATE (customer_name), UPDATE (email), UPDATE (member_since)"
    },
    "order_items": {"posd_hook_kitchen": READ},
    "orders": {"posd_hook_kitchen": READ},
    "pos_adoption": {"posd_hook_kitchen": READ},
    "pos_daily_report_amendments": {"posd": READ},
    "pos_daily_reports": {"posd": WRITE},
    "pos_events": {"posd": READ},
    "pos_gift_card_transactions": {"posd": "INSERT, SELECT"},
    "pos_loyalty_transactions": {"posd": "INSERT, SELECT"},
    "pos_nacks": {"posd": READ},
    "pos_order_terminals": {"posd": READ},
    "pos_orders": {"posd": READ},
    "pos_points_given": {"posd": WRITE},
    "pos_sync_logs": {"posd": READ},
    "pos_unsequenced": {"posd": READ},
}
"""The grants of each role, except those of owners and of the login roles of the tests."""

FUNCTIONS_OF_MAIN = {
    "pos_ring()": ("posd_owner", False, {"posd_hook"}),
    "pos_claim_lease(uuid, text)": ("posd_owner", False, {"posd"}),
    "pos_begin_device()": ("posd_owner", True, set()),
    "pos_begin_epochs(integer[], uuid[], bigint[], bigint[])": ("posd_owner", True, {"posd"}),
    "pos_begin_stream()": ("posd_owner", True, set()),
    "pos_create_tenant(text, text, text, text, text)": ("posd_owner", True, {"posd"}),
    "pos_confirmed(integer[], text[])": ("posd_owner", False, {"posd"}),
    "pos_erase(integer, text, text[], text[])": ("posd_owner", True, {"posd"}),
    "pos_erase_people(integer, text[], bigint[])": ("posd_owner", True, {"posd"}),
    "pos_check_keeps(text, text)": ("posd_owner", False, {"posd"}),
    "pos_keeps(text, text)": ("posd_owner", False, {"posd"}),
    "pos_look(integer, integer[], integer[], integer[], integer[], integer)": (
        "posd_owner",
        False,
        {"posd"},
    ),
    "pos_look_again(integer[], text[], integer[], text[])": ("posd_owner", False, {"posd"}),
    "pos_outbox_waiting(integer)": ("posd_owner", False, {"posd"}),
    "pos_make_roles(text)": ("a superuser", True, {"posd_owner"}),
    "pos_only_erased(json, json, text)": ("posd_owner", False, set()),
    "pos_fingerprint()": ("posd_owner", False, {"posd"}),
    "pos_insert_only()": ("posd_owner", False, set()),
    "pos_value_points()": ("posd_owner", True, set()),
    "pos_key_ok(text, text)": ("posd_owner", True, {"posd", "posd_publisher"}),
    "pos_movement_states(integer[], text[], text[])": ("posd_owner", False, {"posd"}),
    "pos_mark_orders(integer[])": ("posd_owner", False, {"posd"}),
    f"pos_note_report(integer, text, text, timestamp with time zone{', boolean' * 4}, text, text, text[])": (
        "posd_owner",
        False,
        {"posd"},
    ),
    "pos_open_orders(integer, timestamp with time zone, timestamp with time zone, text, integer, bigint)": (
        "posd_owner",
        False,
        {"posd"},
    ),
    "pos_survey(integer, integer, text[])": ("posd_owner", False, {"posd"}),
    # They have only the rights of their caller. Triggers that any role may fire call the former, the
    # readers of tenants the latter.
    "pos_notify(text, text)": ("posd_owner", False, {"-"}),
    "pos_read_shop(text, text[], text, text, text[])": ("posd_owner", False, {"-"}),
    "pos_credentials(text[], bytea[], text[])": ("posd_owner", False, {"posd"}),
    "pos_places(integer[], text[])": ("posd_owner", False, {"posd"}),
    "pos_order_states(integer[], text[])": ("posd_owner", False, {"posd"}),
    "pos_prune(integer, timestamp with time zone, text[], integer)": ("posd_owner", True, {"posd"}),
    "pos_prune_answers(timestamp with time zone, integer)": ("posd_owner", True, {"posd"}),
    "pos_prune_deleted(integer)": ("posd_owner", True, {"posd"}),
    "pos_publish(text, text, jsonb)": ("posd_hook", True, {"posd", "posd_publisher"}),
    "pos_recognise()": ("posd_owner", True, {"posd"}),
    f"pos_record(uuid, integer[]{', text[]' * 7}, integer[], text[], text[])": (
        "posd_owner",
        False,
        {"posd"},
    ),
    "pos_record_at_once(integer[], bigint[], uuid, integer[], text[], text[], text[])": (
        "posd_owner",
        False,
        {"posd"},
    ),
    "pos_take(integer[], bigint[], integer[], bigint[], integer[], text[], uuid, bigint)": (
        "posd_owner",
        False,
        {"posd"},
    ),
    "pos_tell(text)": ("posd_owner", True, {"posd"}),
    "pos_tell_nodes()": ("posd_owner", True, set()),
    "pos_note_tenant_change()": ("posd_owner", True, set()),
    "pos_tell_of_device()": ("posd_owner", True, set()),
    "pos_tell_of_keys()": ("posd_owner", True, set()),
    "pos_note_change()": ("posd_owner", False, set()),
    "pos_tenant_key()": ("posd_owner", True, set()),
    "pos_keep_revoked()": ("posd_owner", False, set()),
    "pos_tenant_zone()": ("posd_owner", False, set()),
}
FUNCTIONS_OF_KITCHEN = {
    "enqueue(text, text[])": ("posd_hook", True, {"posd_note_kitchen"}),
    "enqueue_event(text, jsonb)": ("posd_hook", False, set()),
    **{
        name: ("posd_owner", False, {"posd"})
        for name in (
            f"card_append(text[], text[], numeric[]{', text[]' * 5}, bigint[])",
            f"card_issue(text, boolean, text, numeric{', text' * 8}, timestamp with time zone)",
            f"card_move(text[], text[], numeric[]{', text[]' * 5}, boolean)",
            "card_read(text[])",
            "card_replay(text[], text[], numeric[], text[], text[])",
            "card_reverse(text, text, text, bigint, text, text)",
            "card_states(text, text[])",
            "points_append(bigint, text, bigint, text, text, text, text, text, bigint)",
            "points_move(text, text, bigint, text, text, text, text, text, boolean)",
            "points_read(text[], integer)",
            "points_replay(bigint, text, bigint, text, text)",
            "points_reverse(text, text, text, bigint, text, text)",
            "points_states(text, text[])",
        )
    },
    "keep_report()": ("posd_owner", True, set()),
    "note_cards()": ("posd_hook", True, set()),
    "note_items()": ("posd_note_kitchen", True, {"-"}),
    "note_movements()": ("posd_hook", True, set()),
    "note_orders()": ("posd_note_kitchen", True, {"-"}),
    "read_orders(text[])": ("posd_hook_kitchen", True, {"posd_reader"}),
    "look_at_orders(integer, text)": ("posd_hook_kitchen", True, {"posd_owner"}),
}
"""Owner, whether it runs with the owner's rights, and who else may call it."""

GRANTS = """
    SELECT relname::text, grantee::regrole::text, string_agg(privilege, ', ' ORDER BY privilege)
      FROM (
        SELECT c.relname, c.relowner, a.grantee, a.privilege_type AS privilege
          FROM pg_class AS c, aclexplode(c.relacl) AS a
         WHERE c.relnamespace = %(schema)s::regnamespace
        UNION ALL
        SELECT c.relname, c.relowner, a.grantee, format('%%s (%%s)', a.privilege_type, t.attname)
          FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid, aclexplode(t.attacl) AS a
         WHERE c.relnamespace = %(schema)s::regnamespace
      ) AS granted
     WHERE grantee <> relowner AND grantee::regrole::text !~ '^posd_test_'
     GROUP BY relname, grantee
"""
# Without a grant, a function has the default: everybody (shown as -) may call it.
FUNCTIONS = """
    SELECT format('%%s(%%s)', split_part(proname, '$', 1), oidvectortypes(proargtypes)),
           CASE WHEN (SELECT rolsuper FROM pg_roles AS r WHERE r.oid = proowner) THEN 'a superuser'
                ELSE proowner::regrole::text END, prosecdef,
           ARRAY(SELECT grantee::regrole::text
                   FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee <> proowner)
      FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace AND split_part(proname, '$', 2) = %(shop)s
"""


class GrantsTests(SchemaCase):
    """The catalogs have exactly these rights of the roles."""

    def grants(self, schema: str) -> dict[str, dict[str, str]]:
        granted: dict[str, dict[str, str]] = {}
        with self.admin.connection.cursor() as cursor:
            cursor.execute(GRANTS, {"schema": schema})
            for relation, role, privileges in cursor:
                granted.setdefault(relation, {})[role] = privileges
        return granted

    def functions(self, schema: str, shop: str = "") -> dict[str, tuple[str, bool, set[str]]]:
        with self.admin.connection.cursor() as cursor:
            cursor.execute(FUNCTIONS, {"schema": schema, "shop": shop})
            return {
                name: (owner, definer, set(callers)) for name, owner, definer, callers in cursor
            }

    def test_on_tables_and_views(self) -> None:
        self.assertEqual(self.grants("dinedesk_main"), ON_MAIN)
        self.assertEqual(self.grants("dinedesk_kitchen"), ON_KITCHEN)

    def test_on_functions(self) -> None:
        self.assertEqual(self.functions("dinedesk_main"), FUNCTIONS_OF_MAIN)
        self.assertEqual(self.functions("posd_hooks", "kitchen"), FUNCTIONS_OF_KITCHEN)
        self.assertEqual(self.functions("dinedesk_kitchen"), {})

    def test_on_schemas(self) -> None:
        self.assertEqual(
            self.admin.rows(
                "SELECT nspname::text, grantee::regrole::text, privilege_type"
                "  FROM pg_namespace, aclexplode(nspacl) AS a"
                " WHERE nspname IN ('dinedesk_main', 'dinedesk_kitchen', 'posd_hooks')"
                "   AND grantee <> nspowner"
                "   AND grantee::regrole::text !~ '^posd_test_' ORDER BY 1, 2, 3"
            ),
            [
                ("dinedesk_kitchen", "posd", "USAGE"),
                ("dinedesk_kitchen", "posd_hook_kitchen", "USAGE"),
                ("dinedesk_main", "posd", "USAGE"),
                ("dinedesk_main", "posd_hook", "USAGE"),
                ("dinedesk_main", "posd_hook_grill", "USAGE"),
                ("dinedesk_main", "posd_hook_kitchen", "USAGE"),
                ("dinedesk_main", "posd_publisher", "USAGE"),
                ("posd_hooks", "posd", "USAGE"),
                ("posd_hooks", "posd_hook", "USAGE"),
                ("posd_hooks", "posd_hook_grill", "USAGE"),
                ("posd_hooks", "posd_hook_kitchen", "USAGE"),
                ("posd_hooks", "posd_note", "USAGE"),
                ("posd_hooks", "posd_reader", "USAGE"),
            ],
        )

    def test_everything_belongs_to_posds_own_roles(self) -> None:
        owners = self.admin.rows(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class JOIN pg_namespace AS n"
            " ON n.oid = relnamespace WHERE nspname LIKE 'dinedesk%'"
            " UNION SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname LIKE 'dinedesk%'"
        )
        self.assertEqual(owners, [("posd_owner",)])

    def test_every_function_has_a_search_path_of_its_own(self) -> None:
        lax = self.admin.rows(
            "SELECT oid::regprocedure::text FROM pg_proc"
            " WHERE (pronamespace::regnamespace::text LIKE 'dinedesk%'"
            "    OR pronamespace::regnamespace::text = 'posd_hooks')"
            "   AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(proconfig, '{}'))"
        )
        self.assertEqual(lax, [])

    def test_no_role_is_a_member_of_another_but_those_that_hand_over_functions(self) -> None:
        members = self.admin.rows(
            "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members"
            " WHERE roleid::regrole::text IN"
            " ('posd', 'posd_reader', 'posd_hook', 'posd_hook_kitchen', 'posd_note', 'posd_note_kitchen',"
            " 'posd_owner') AND member::regrole::text !~ '^posd_note_(?!kitchen)' ORDER BY 1, 2"
        )
        self.assertEqual(
            sorted(set(members)),
            [
                ("posd_hook", "posd_owner"),
                ("posd_hook_kitchen", "posd_owner"),
                ("posd_note", "posd_note_kitchen"),
                ("posd_note_kitchen", "posd_owner"),
            ],
        )


class RoleTests(SchemaCase):
    """What a role is refused when it tries."""

    def refused(self, client: Client, *statements: str) -> None:
        for statement in statements:
            with (
                self.subTest(statement=statement),
                self.assertRaises(psycopg2.errors.InsufficientPrivilege),
            ):
                client.run(statement)

    def test_the_daemon_changes_no_schema(self) -> None:
        self.refused(
            self.connect("posd"),
            "CREATE TABLE dinedesk_main.t ()",
            "CREATE TABLE dinedesk_kitchen.t ()",
            "CREATE SCHEMA dinedesk_new",
            "CREATE ROLE another",
            "ALTER TABLE dinedesk_main.pos_events ADD note text",
            "CREATE OR REPLACE VIEW dinedesk_kitchen.pos_events AS SELECT 1",
            "DROP TABLE dinedesk_main.pos_outbox",
            "TRUNCATE dinedesk_main.pos_events",
            "CREATE TRIGGER t AFTER INSERT ON dinedesk_main.pos_events"
            " EXECUTE FUNCTION dinedesk_main.pos_tell_nodes('x')",
            "SET ROLE posd_owner",
        )

    def test_the_daemon_changes_no_history(self) -> None:
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, key_sha256, preview, revoked_at)"
            " VALUES (1, 'tenant', sha256('x'), 'x…', now())"
        )
        self.refused(
            self.connect("posd"),
            *(
                statement.format(schema=schema)
                for schema in ("dinedesk_main", "dinedesk_kitchen")
                for statement in (
                    "UPDATE {schema}.pos_events SET event_data = '{{}}'",
                    "DELETE FROM {schema}.pos_events",
                    "DELETE FROM {schema}.pos_nacks",
                    "DELETE FROM {schema}.pos_orders",
                )
            ),
            "UPDATE dinedesk_main.pos_unsequenced SET event_data = '{}'",
            "DELETE FROM dinedesk_main.pos_unsequenced",
            "UPDATE dinedesk_main.pos_api_keys SET key_sha256 = key_sha256",
            "UPDATE dinedesk_main.pos_api_keys SET revoked_at = NULL",
            "UPDATE dinedesk_main.pos_api_keys SET revoked_at = now() + interval '1 day'",
            "DELETE FROM dinedesk_main.pos_api_keys",
            "UPDATE dinedesk_main.tenants SET is_active = false",
            "DELETE FROM dinedesk_main.idempotency_keys",
        )

    def test_shops_rows_are_read_by_the_readers_through_the_shops_own_function(self) -> None:
        read = "SELECT * FROM posd_hooks.read_orders$kitchen('{1}')"
        self.refused(self.connect("posd"), "SELECT FROM dinedesk_kitchen.orders", read)
        self.assertEqual(self.connect("posd_reader").rows(read), [])

    def test_the_readers_can_do_nothing_else(self) -> None:
        self.refused(
            self.connect("posd_reader"),
            "SELECT FROM dinedesk_kitchen.orders",
            "SELECT FROM dinedesk_kitchen.pos_events",
            "SELECT FROM dinedesk_main.tenants",
            "SELECT FROM dinedesk_main.pos_look(1, '{}', '{}', '{}', '{}', NULL)",
            "SELECT posd_hooks.enqueue$kitchen('order', '{1}')",
            "CREATE TABLE posd_hooks.t ()",
            "CREATE SCHEMA another",
            "SET ROLE posd_hook_kitchen",
            "SET ROLE posd",
        )

    def test_roles_are_made_of_schemas_of_posds_and_of_no_other(self) -> None:
        make = "SELECT dinedesk_main.pos_make_roles(%s)"
        self.refused(self.connect("posd"), "SELECT dinedesk_main.pos_make_roles('kitchen')")
        self.admin.run("CREATE SCHEMA dinedesk_evil")
        self.admin.run("SET ROLE posd_owner")
        self.refused(self.admin, "CREATE ROLE posd_hook_other", "GRANT posd TO posd_hook_kitchen")
        for shop in ("evil", "nowhere", "kitchen; ", 'kitchen" SUPERUSER', ""):
            with self.subTest(shop=shop), self.assertRaises(psycopg2.errors.InvalidParameterValue):
                self.admin.run(make, shop)
        self.admin.run(make, "kitchen")

    def test_a_role_that_somebody_else_could_use_is_not_taken(self) -> None:
        for made in ("CREATE ROLE {} LOGIN", f"CREATE ROLE {{}} ROLE {KITCHEN_SHOP}"):
            slug = f"shop{self.admin.pid}"
            for kind in ("hook", "note"):
                role = f"posd_{kind}_{slug}"
                with self.subTest(made=made, kind=kind), self.admin.rolled_back():
                    self.admin.run(made.format(role))
                    self.admin.run(f"CREATE SCHEMA dinedesk_{slug} AUTHORIZATION posd_owner")
                    with self.assertRaises(psycopg2.errors.DuplicateObject):
                        self.admin.run("SELECT dinedesk_main.pos_make_roles(%s)", slug)

    def test_the_daemon_can_do_its_work(self) -> None:
        self.connect(KITCHEN_SHOP).run(
            "INSERT INTO dinedesk_kitchen.orders (total_amount) VALUES (1)"
        )
        daemon = self.connect("posd")
        self.assertEqual(daemon.sequence(), 1)
        self.assertRegex(daemon.value("SELECT dinedesk_main.pos_fingerprint()"), r"^\d+/\w{8}/\d+$")
        daemon.run(
            "INSERT INTO dinedesk_main.pos_api_keys (tenant_id, kind, device_id, key_sha256, preview)"
            " VALUES (1, 'device', 'POS_1', sha256('x'), 'x…')"
        )
        self.assertEqual(
            daemon.value(
                "SELECT acked_seq FROM dinedesk_main.pos_cursors WHERE device_id = 'POS_1'"
            ),
            1,
        )

    def test_a_publisher_publishes_and_reads_nothing(self) -> None:
        shop = self.connect(KITCHEN_SHOP)
        shop.run("SELECT dinedesk_main.pos_publish('kitchen', 'x', '{}')")
        self.refused(
            shop,
            "SELECT FROM dinedesk_main.tenants",
            "SELECT FROM dinedesk_main.pos_outbox",
            "SELECT FROM dinedesk_main.pos_api_keys",
            "SELECT FROM dinedesk_kitchen.pos_events",
            "SELECT FROM dinedesk_kitchen.pos_orders",
            "SELECT FROM dinedesk_main.pos_events",
            "SELECT FROM dinedesk_main.pos_orders",
            "SELECT FROM dinedesk_main.pos_take('{}', '{}', '{}', '{}', '{}', '{}', NULL, NULL)",
            "SELECT FROM dinedesk_main.pos_claim_lease(gen_random_uuid(), 'mine')",
            "SELECT FROM dinedesk_main.pos_ring()",
            "SELECT FROM dinedesk_main.pos_tell('tenant 1')",
            "SELECT FROM dinedesk_main.pos_control",
            "UPDATE dinedesk_main.pos_doorman SET fence = 9",
        )

    def test_who_may_only_insert_orders_does_only_that(self) -> None:
        cashier = self.connect(CASHIER)
        cashier.run("INSERT INTO dinedesk_kitchen.orders (total_amount) VALUES (1)")
        self.refused(
            cashier,
            "SELECT FROM dinedesk_kitchen.orders",
            "SELECT posd_hooks.read_orders$kitchen('{1}')",
            "SELECT posd_hooks.enqueue$kitchen('order', '{1}')",
            "SELECT dinedesk_main.pos_publish('kitchen', 'x', '{}')",
        )

    def test_nobody_speaks_for_another_shop(self) -> None:
        shop = self.connect(KITCHEN_SHOP)
        self.refused(
            shop,
            "SELECT dinedesk_main.pos_publish('grill', 'x', '{}')",
            "SELECT posd_hooks.enqueue$grill('order', '{1}')",
            "SELECT posd_hooks.enqueue_event$grill('x', '{}')",
            "SELECT posd_hooks.enqueue$kitchen('order', '{1}')",
            "SELECT posd_hooks.enqueue_event$kitchen('x', '{}')",
            "INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, key) VALUES (2, 'order', '1')",
            "INSERT INTO dinedesk_grill.orders (total_amount) VALUES (1)",
            "SET ROLE posd_hook",
            "SET ROLE posd_hook_grill",
        )
        self.assertEqual(self.admin.take(), [])

    def test_the_enqueueing_role_can_only_add_to_the_outbox(self) -> None:
        self.admin.run("SET ROLE posd_hook")
        self.admin.run(
            "INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, key) VALUES (1, 'order', '1')"
        )
        self.refused(
            self.admin,
            "SELECT FROM dinedesk_main.pos_outbox_transactions",
            "DELETE FROM dinedesk_main.pos_outbox_transactions",
            "SELECT data FROM dinedesk_main.pos_outbox",
            "DELETE FROM dinedesk_main.pos_outbox",
            "SELECT FROM dinedesk_main.tenants",
            "SELECT FROM dinedesk_kitchen.orders",
            "SELECT posd_hooks.read_orders$kitchen('{1}')",
        )

    def test_of_a_tenants_roles_one_reads_that_shop_and_one_enqueues_for_it(self) -> None:
        self.connect(GRILL_SHOP).run("INSERT INTO dinedesk_grill.orders (total_amount) VALUES (1)")
        self.admin.run("SET ROLE posd_hook_kitchen")
        self.admin.run("SELECT FROM dinedesk_kitchen.orders")
        self.refused(
            self.admin,
            "SELECT posd_hooks.enqueue$kitchen('order', '{5}')",
            "UPDATE dinedesk_kitchen.orders SET status = 'x'",
            "SELECT FROM dinedesk_kitchen.pos_events",
            "SELECT FROM dinedesk_grill.orders",
            "SELECT dinedesk_main.pos_publish('kitchen', 'x', '{}')",
        )
        self.admin.run("SET ROLE posd_note_kitchen")
        self.admin.run("SELECT posd_hooks.enqueue$kitchen('order', '{5}')")
        self.refused(
            self.admin,
            "SELECT FROM dinedesk_kitchen.orders",
            "SELECT posd_hooks.enqueue$grill('order', '{5}')",
            "SELECT FROM posd_hooks.read_orders$kitchen('{1}')",
            # They run in the daemon's sessions too.
            "ALTER FUNCTION posd_hooks.note_movements$kitchen() SECURITY INVOKER",
            "ALTER FUNCTION posd_hooks.note_cards$kitchen() RESET search_path",
            "INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, key) VALUES (2, 'order', '1')",
        )
        self.admin.run("RESET ROLE")
        taken = [(row.tenant_id, row.key) for row in self.admin.take() or ()]
        self.assertEqual(taken, [(2, "1"), (1, "5")])

    def test_a_shops_platform_can_be_shown_its_own_log(self) -> None:
        self.admin.record(Entry(1, data='{"a":1}'), Entry(2, data='{"b":2}'))
        self.admin.run(f"GRANT SELECT ON dinedesk_kitchen.pos_sync_logs TO {KITCHEN_SHOP}")
        shop = self.connect(KITCHEN_SHOP)
        self.assertEqual(
            shop.rows("SELECT event_data, status FROM dinedesk_kitchen.pos_sync_logs"),
            [({"a": 1}, "pending")],
        )

    def test_a_shops_views_show_its_own_rows_to_whatever_it_calls(self) -> None:
        """A shop's function that PostgreSQL considers cheap is not called with another shop's row."""
        for tenant_id, name in ((1, "mine"), (2, "other")):
            self.admin.record(
                Entry(tenant_id, name, order_id=name, status="new", version=1),
                Entry(tenant_id, name, failure="bad"),
            )
            self.admin.run(
                "INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id) VALUES (%s, 1, %s)",
                *(tenant_id, name),
            )
            self.admin.run(
                "INSERT INTO dinedesk_main.pos_order_terminals (tenant_id, order_id, device_id, received_at)"
                " VALUES (%s, %s, 'POS_1', now())",
                *(tenant_id, name),
            )
        texts = {
            "pos_events": "event_type",
            "pos_sync_logs": "event_type",
            "pos_nacks": "device_id",
            "pos_unsequenced": "event_type",
            "pos_orders": "order_id",
            "pos_order_terminals": "order_id",
        }
        self.admin.run(f"GRANT CREATE ON SCHEMA dinedesk_kitchen TO {KITCHEN_SHOP}")
        shop = self.connect(KITCHEN_SHOP)
        # A shop can choose a plan that scans all rows and calls the cheapest function first.
        for setting in ("enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan"):
            shop.run(f"SET {setting} = off")
        shop.run(
            "CREATE FUNCTION dinedesk_kitchen.leak(seen text) RETURNS boolean LANGUAGE plpgsql COST 0.0001"
            " AS 'BEGIN RAISE NOTICE ''%'', seen; RETURN true; END'"
        )
        for view, column in texts.items():
            with self.subTest(view=view):
                self.admin.run(f"GRANT SELECT ON dinedesk_kitchen.{view} TO {KITCHEN_SHOP}")
                del shop.connection.notices[:]
                rows = shop.rows(
                    f"SELECT {column} FROM dinedesk_kitchen.{view} WHERE dinedesk_kitchen.leak({column})"
                )
                self.assertEqual({text for (text,) in rows}, {"mine"})
                self.assertNotIn("other", "".join(shop.connection.notices))
        self.refused(
            shop,
            *(f"DELETE FROM dinedesk_kitchen.{view}" for view in texts if view != "pos_sync_logs"),
        )

    def test_a_position_is_found_in_a_shops_view_by_the_index(self) -> None:
        self.admin.run("SET enable_seqscan = off")
        (plan,) = self.admin.rows(
            "EXPLAIN (FORMAT JSON) SELECT * FROM dinedesk_kitchen.pos_events"
            " WHERE seq > 5 ORDER BY seq LIMIT 9"
        )
        self.assertIn("pos_events_pkey", str(plan))
        self.assertRegex(str(plan), r"Index Cond.*tenant_id = 1.*seq > 5")
