"""All possible damages of rows, for the tenant of `tests.audit_case`.

For each fault that a check finds, this module has the statements that cause it, after the constraints are
removed that would prevent it, and the rows that an audit reports. `tests.ledger_damages` has those of
ledgers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen


@frozen
class Damage:
    """After these statements, `check` finds the rows that match the patterns, and the checks of `also` find
    faults too.
    """

    check: str
    rows: Mapping[str, str]
    statements: tuple[str, ...]
    also: frozenset[str] = frozenset()


def damage(check: str, rows: Mapping[str, str], *statements: str, also: str = "") -> Damage:
    return Damage(check, rows, statements, frozenset(filter(None, also.split(", "))))


def without(table: str, *constraints: str) -> str:
    """Drop constraints of a table, with dependent objects."""
    drops = ", ".join(f"DROP CONSTRAINT {each} CASCADE" for each in constraints)
    return f"ALTER TABLE {table} {drops}"


NAME: Final = "ffffffff-0000-4000-8000-000000000001"
HEADS: Final = without("pos_heads", "pos_heads_check")
STREAM: Final = (
    damage(
        "head",
        {"pos_heads": "the tenant has no head"},
        "DELETE FROM pos_heads WHERE tenant_id = 1",
        also="cursors",
    ),
    damage(
        "head",
        {"pos_heads": "a position is negative"},
        "UPDATE pos_heads SET sent_seq = -1 WHERE tenant_id = 1",
    ),
    damage(
        "head",
        {"pos_heads": "sent_seq 17 is after last_seq 16"},
        HEADS,
        "UPDATE pos_heads SET sent_seq = 17 WHERE tenant_id = 1",
    ),
    damage(
        "head",
        {"pos_heads": "received_seq 17 is after last_seq 16"},
        HEADS,
        "UPDATE pos_heads SET received_seq = 17, acknowledged = 16 WHERE tenant_id = 1",
    ),
    damage(
        "head",
        {"pos_heads": "pruned_seq 17 is after last_seq 16"},
        HEADS,
        "UPDATE pos_heads SET pruned_seq = 17 WHERE tenant_id = 1",
        also="events",
    ),
    damage(
        "head",
        {"pos_heads": "another tenant's stream has the same name"},
        "UPDATE pos_heads SET stream_id = (SELECT stream_id FROM pos_heads WHERE tenant_id = 2)"
        " WHERE tenant_id = 1",
        also="names",
    ),
    damage(
        "names",
        {"pos_heads": "the present name is not in pos_stream_epochs"},
        "DELETE FROM pos_stream_epochs WHERE tenant_id = 1",
    ),
    damage(
        "names",
        {f"pos_stream_epochs {NAME}": "has ended, and is the present name"},
        f"UPDATE pos_heads SET stream_id = '{NAME}' WHERE tenant_id = 1",
        f"UPDATE pos_stream_epochs SET stream_id = '{NAME}', ended_seq = 0 WHERE tenant_id = 1",
    ),
    damage(
        "names",
        {f"pos_stream_epochs {NAME}": "has not ended, and is not the present name"},
        "DROP INDEX pos_stream_epochs_present",
        f"INSERT INTO pos_stream_epochs (tenant_id, stream_id) VALUES (1, '{NAME}')",
    ),
    damage(
        "names",
        {f"pos_stream_epochs {NAME}": "a position is negative"},
        without("pos_stream_epochs", "pos_stream_epochs_ended_seq_check"),
        f"INSERT INTO pos_stream_epochs (tenant_id, stream_id, ended_seq) VALUES (1, '{NAME}', -1)",
    ),
    damage(
        "names",
        {
            f"pos_stream_epochs {NAME}": "has the position 17, which is after the head, which is at 16"
        },
        f"INSERT INTO pos_stream_epochs (tenant_id, stream_id, ended_seq) VALUES (1, '{NAME}', 17)",
    ),
    damage(
        "gaps",
        {"seq 6": "is not in the log"},
        "DELETE FROM pos_events WHERE seq = 6",
        also="balance",
    ),
    damage(
        "gaps",
        {"seq 1 to 2": "is not in the log", "seq 15 to 16": "is not in the log"},
        "DELETE FROM pos_events WHERE seq IN (1, 2, 15, 16)",
        also="balance, order positions",
    ),
    damage(
        "gaps",
        {"seq 17": "is not in the log"},
        "UPDATE pos_heads SET last_seq = 17 WHERE tenant_id = 1",
        also="balance",
    ),
    damage(
        "balance",
        {"pos_heads": "16 were published, and 3 acknowledged, 0 expired and 12 waiting are 15"},
        "UPDATE pos_heads SET acknowledged = 3 WHERE tenant_id = 1",
    ),
    damage(
        "balance",
        {"pos_heads": "4 acknowledged, 1 expired and 12 waiting are 17"},
        "UPDATE pos_heads SET expired = 1 WHERE tenant_id = 1",
    ),
    damage(
        "events",
        {"pos_events id 21, seq 16": "is after the head, which is at 15"},
        "UPDATE pos_heads SET last_seq = 15 WHERE tenant_id = 1",
        also="balance",
    ),
    damage(
        "events",
        {"pos_events id 99, seq 0": "is no position"},
        without("dinedesk_main.pos_events", "pos_events_seq_check"),
        "INSERT INTO dinedesk_main.pos_events (tenant_id, seq, id, event_type, event_data, created_at)"
        " VALUES (1, 0, 99, 'notice', '{}', now())",
    ),
    damage(
        "events",
        {"pos_events id 1, seq 1": "is pruned, up to 1, and still there"},
        "UPDATE pos_heads SET pruned_seq = 1 WHERE tenant_id = 1",
    ),
    damage(
        "events",
        {f"pos_events id {n}, seq 6": "another event has this position too" for n in (9, 12)},
        without("dinedesk_main.pos_events", "pos_events_pkey"),
        "UPDATE pos_events SET seq = 6 WHERE seq = 7",
        also="gaps",
    ),
    damage(
        "statuses",
        {"pos_sync_logs id 7": "says sent, and it is success"},
        "CREATE OR REPLACE VIEW pos_sync_logs AS SELECT e.id, e.seq, e.event_type, e.event_data,"
        " CASE WHEN e.seq = 4 THEN 'sent' WHEN e.seq = 3 THEN 'failed' WHEN e.seq <= 4 THEN 'success'"
        " WHEN e.seq <= 15 THEN 'broadcast' ELSE 'pending' END AS status, NULL::text AS device_id,"
        " NULL::text AS failure, e.created_at FROM pos_events AS e"
        " UNION ALL SELECT u.id, NULL, u.event_type,"
        " u.event_data, CASE WHEN u.failure IS NULL THEN 'received' ELSE 'failed' END, u.device_id,"
        " u.failure, u.created_at FROM dinedesk_main.pos_unsequenced AS u WHERE u.tenant_id = 1",
    ),
    damage(
        "statuses",
        {
            "pos_sync_logs id 9": "is not there, and the event is",
            "pos_sync_logs id 99": "is of no event",
        },
        "CREATE TABLE shown AS SELECT * FROM pos_sync_logs WHERE id <> 9",
        "ALTER TABLE shown OWNER TO posd_owner",
        "UPDATE shown SET id = 99 WHERE id = 10",
        "INSERT INTO shown SELECT * FROM pos_sync_logs WHERE id = 10",
        "CREATE OR REPLACE VIEW pos_sync_logs AS SELECT * FROM shown",
    ),
    damage(
        "cursors",
        {"pos_cursors of FRONT": "position 17 is after the head, which is at 16"},
        "UPDATE pos_cursors SET acked_seq = 17 WHERE device_id = 'FRONT'",
    ),
    damage(
        "cursors",
        {"pos_cursors of FRONT": "position -1 is negative"},
        without("pos_cursors", "pos_cursors_acked_seq_check"),
        "UPDATE pos_cursors SET acked_seq = -1 WHERE device_id = 'FRONT'",
    ),
    damage(
        "cursors",
        {"pos_cursors of BAR": "there is no such terminal"},
        "DELETE FROM pos_devices WHERE device_id = 'BAR'",
        also="keys",
    ),
    damage(
        "cursors",
        {"pos_cursors of FRONT": "is to go back to 17, which is no position"},
        "UPDATE pos_cursors SET replay_after = 17 WHERE device_id = 'FRONT'",
    ),
    damage(
        "cursors",
        {"pos_cursors of BAR": "the terminal has another cursor too"},
        without("pos_cursors", "pos_cursors_pkey"),
        "INSERT INTO pos_cursors SELECT * FROM pos_cursors WHERE device_id = 'BAR'",
    ),
    damage(
        "nacks",
        {"pos_nacks of FRONT, seq 17": "there is no event of this position"},
        "INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id) VALUES (1, 17, 'FRONT')",
    ),
)

ORDERS: Final = (
    damage(
        "orders",
        {"pos_orders 1": "its snapshot is of another order"},
        "UPDATE pos_orders SET snapshot = (SELECT snapshot FROM pos_orders WHERE order_id = '2')"
        " WHERE order_id = '1'",
        also="snapshots",
    ),
    damage(
        "orders",
        {"pos_orders 1": "is ready, and preparing in its snapshot"},
        "UPDATE pos_orders SET status = 'ready' WHERE order_id = '1'",
    ),
    damage(
        "orders",
        {"pos_orders 1": "has version 3, and 2 in its snapshot"},
        "UPDATE pos_orders SET version = 3 WHERE order_id = '1'",
    ),
    damage(
        "orders",
        {"pos_orders 1": "has payment status paid, and pending in its snapshot"},
        "UPDATE pos_orders SET payment_status = 'paid' WHERE order_id = '1'",
    ),
    damage(
        "orders",
        {"pos_orders 1": "is there twice"},
        without("dinedesk_main.pos_orders", "pos_orders_pkey"),
        "INSERT INTO dinedesk_main.pos_orders"
        " SELECT * FROM dinedesk_main.pos_orders WHERE tenant_id = 1 AND order_id = '1'",
        also="order terminals",
    ),
    damage(
        "order positions",
        {"pos_orders 2": "is not there, and the event of seq 5 is about it"},
        "DELETE FROM pos_orders WHERE order_id = '2'",
        also="order terminals",
    ),
    damage(
        "order positions",
        {"pos_orders 2": "has one of first_seq and last_seq without the other"},
        "UPDATE pos_orders SET last_seq = NULL WHERE order_id = '2'",
    ),
    damage(
        "order positions",
        {"pos_orders 2": "first_seq 6 is after last_seq 5"},
        "UPDATE pos_orders SET first_seq = 6 WHERE order_id = '2'",
    ),
    damage(
        "order positions",
        {"pos_orders 2": "last_seq 17 is after the head, which is at 16"},
        "UPDATE pos_orders SET last_seq = 17 WHERE order_id = '2'",
    ),
    damage(
        "order positions",
        {"pos_orders 2": "last_seq is 2, and its last event has seq 5"},
        "UPDATE pos_orders SET last_seq = 2 WHERE order_id = '2'",
    ),
    damage(
        "order positions",
        {"pos_orders 9": "the event of last_seq 6 is not about it"},
        "INSERT INTO dinedesk_main.pos_orders"
        " (tenant_id, order_id, snapshot, status, version, first_seq, last_seq)"
        ' VALUES (1, \'9\', \'{"orderId":"9","status":"x","version":1}\', \'x\', 1, 6, 6)',
    ),
    damage(
        "order positions",
        {"pos_orders 2": "first_seq is 3, and its first event has seq 2"},
        "UPDATE pos_orders SET first_seq = 3 WHERE order_id = '2'",
    ),
    damage(
        "order positions",
        {"pos_orders 2": "first_seq is 1, and its first event has seq 2"},
        "UPDATE pos_orders SET first_seq = 1 WHERE order_id = '2'",
    ),
    damage(
        "order positions",
        {"pos_orders 2": "first_seq is 6, and its first event has seq 5"},
        "DELETE FROM pos_events WHERE seq <= 2",
        "UPDATE pos_heads SET pruned_seq = 4 WHERE tenant_id = 1",
        "UPDATE pos_orders SET first_seq = 6, last_seq = 6 WHERE order_id = '2'",
        "UPDATE pos_events SET event_type = 'order_updated',"
        " event_data = (SELECT event_data FROM pos_events WHERE seq = 5) WHERE seq = 6",
        also="events",
    ),
    damage(
        "snapshots",
        {"pos_orders 2": "its snapshot is not what its last event, of seq 5, has told"},
        "UPDATE pos_orders SET snapshot = replace(snapshot::text, 'Bob', 'Eve')::json WHERE order_id = '2'",
    ),
    damage(
        "snapshots",
        {"pos_orders 3": "has version 2, and its last event, of seq 3, has 1"},
        "DELETE FROM pos_unsequenced WHERE failure IS NOT NULL",
    ),
    damage(
        "printing",
        {"pos_orders 1": "has print status done"},
        without("dinedesk_main.pos_orders", "pos_orders_print_status_check"),
        "UPDATE pos_orders SET print_status = 'done' WHERE order_id = '1'",
    ),
    damage(
        "printing",
        {"pos_orders 1": "is printed, and has no time at which it was printed"},
        "UPDATE pos_orders SET printed_at = NULL WHERE order_id = '1'",
        also="order terminals",
    ),
    damage(
        "printing",
        {"pos_orders 3": "is sent_to_pos, and has a time at which it was printed"},
        "UPDATE pos_orders SET printed_at = now() WHERE order_id = '3'",
    ),
    damage(
        "printing",
        {"pos_orders 2": "a till has reported about it, and received_at is missing"},
        "UPDATE pos_orders SET received_at = NULL WHERE order_id = '2'",
        also="order terminals",
    ),
    damage(
        "printing",
        {"pos_orders 3": "is pending, and was sent to a till"},
        "UPDATE pos_orders SET print_status = 'pending' WHERE order_id = '3'",
    ),
    damage(
        "printing",
        {"pos_orders 3": "is sent_to_pos, and was never sent"},
        "UPDATE pos_orders SET pushed_at = NULL, received_at = NULL WHERE order_id = '3'",
    ),
    damage(
        "order terminals",
        {"pos_order_terminals 9 of FRONT": "there is no such order"},
        "INSERT INTO dinedesk_main.pos_order_terminals (tenant_id, order_id, device_id, received_at)"
        " VALUES (1, '9', 'FRONT', now())",
    ),
    damage(
        "order terminals",
        {"pos_order_terminals 3 of BAR": "has the order, whose received_at is missing"},
        "INSERT INTO dinedesk_main.pos_order_terminals (tenant_id, order_id, device_id, received_at)"
        " VALUES (1, '3', 'BAR', now())",
        "UPDATE pos_orders SET received_at = NULL WHERE order_id = '3'",
    ),
    damage(
        "order terminals",
        {"pos_order_terminals 2 of FRONT": "has printed the order, which is not printed"},
        "UPDATE pos_order_terminals SET printed_at = now() WHERE order_id = '2'",
    ),
    damage(
        "order terminals",
        {"pos_order_terminals 2 of FRONT": "has accepted the order, which is not accepted"},
        "UPDATE pos_order_terminals SET accepted_at = now() WHERE order_id = '2'",
    ),
    damage(
        "order terminals",
        {"pos_order_terminals 2 of FRONT": "is there twice"},
        without("dinedesk_main.pos_order_terminals", "pos_order_terminals_pkey"),
        "INSERT INTO dinedesk_main.pos_order_terminals"
        " SELECT * FROM dinedesk_main.pos_order_terminals WHERE tenant_id = 1 AND order_id = '2'",
    ),
    damage(
        "reports",
        {"pos_daily_reports of 2026-11-22": "is revision 3, and 1 before it are kept"},
        "DELETE FROM pos_daily_report_amendments WHERE revision = 1",
    ),
    damage(
        "reports",
        {"pos_daily_reports of 2026-11-22": "is there twice"},
        without("pos_daily_reports", "pos_daily_reports_pkey"),
        "INSERT INTO pos_daily_reports SELECT * FROM pos_daily_reports",
        also="amendments",
    ),
    damage(
        "amendments",
        {
            f"pos_daily_report_amendments of 2026-11-22, revision {n}": "there is no report of that day"
            for n in (1, 2)
        },
        "DELETE FROM pos_daily_reports",
    ),
    damage(
        "amendments",
        {
            "pos_daily_report_amendments of 2026-11-22, revision 3": "the report of that day is revision 3"
        },
        "UPDATE pos_daily_report_amendments SET revision = 3 WHERE revision = 2",
    ),
    damage(
        "amendments",
        {"pos_daily_report_amendments of 2026-11-22, revision 1": "is there twice"},
        without("pos_daily_report_amendments", "pos_daily_report_amendments_pkey"),
        "UPDATE pos_daily_report_amendments SET revision = 1",
    ),
)

MAIN: Final = (
    damage(
        "tenants",
        {"tenants id 1": "its schema is not the one of its slug"},
        without("tenants", "tenants_schema_of_slug"),
        "UPDATE tenants SET schema_name = 'public' WHERE id = 1",
    ),
    damage(
        "tenants",
        {"tenants id 2": "its schema is not there"},
        "ALTER SCHEMA dinedesk_grill RENAME TO gone",
    ),
    damage(
        "tenants",
        {
            "tenants id 1": "another tenant has its slug",
            "tenants id 2": "another tenant has its slug",
        },
        without("tenants", "tenants_slug_unique", "tenants_schema_unique"),
        "UPDATE tenants SET slug = 'kitchen', schema_name = 'dinedesk_kitchen' WHERE id = 2",
    ),
    damage(
        "tenants",
        {"tenants id 1": "pos_api_key has a whole key in it, and not a preview"},
        "UPDATE tenants SET pos_api_key = 'a-secret-of-the-kitchen' WHERE id = 1",
    ),
    damage(
        "keys",
        {"pos_api_keys id 1": "there is no such tenant"},
        "UPDATE pos_api_keys SET tenant_id = 9 WHERE id = 1",
    ),
    damage(
        "keys",
        {"pos_api_keys id 1": "is of no known kind"},
        without("pos_api_keys", "pos_api_keys_kind_check", "pos_api_keys_check1"),
        "UPDATE pos_api_keys SET kind = 'root' WHERE id = 1",
    ),
    damage(
        "keys",
        {"pos_api_keys id 1": "is of no tenant"},
        without("pos_api_keys", "pos_api_keys_check1"),
        "UPDATE pos_api_keys SET tenant_id = NULL WHERE id = 1",
    ),
    damage(
        "keys",
        {"pos_api_keys id 2": "is a device's key, and names no terminal"},
        without("pos_api_keys", "pos_api_keys_check"),
        "UPDATE pos_api_keys SET device_id = NULL WHERE id = 2",
    ),
    damage(
        "keys",
        {"pos_api_keys id 1": "is a tenant's key, and names a terminal"},
        without("pos_api_keys", "pos_api_keys_check"),
        "UPDATE pos_api_keys SET device_id = 'BAR' WHERE id = 1",
    ),
    damage(
        "keys",
        {"pos_api_keys id 1": "its hash is none"},
        without("pos_api_keys", "pos_api_keys_key_sha256_check"),
        "UPDATE pos_api_keys SET key_sha256 = 'short' WHERE id = 1",
    ),
    damage(
        "keys",
        {"pos_api_keys id 3": "there is no such terminal"},
        "UPDATE pos_api_keys SET device_id = 'BACK' WHERE id = 3",
    ),
    damage(
        "keys",
        {"pos_api_keys id 3": "terminal BAR is said to have no key"},
        "UPDATE pos_devices SET has_key = false WHERE device_id = 'BAR'",
    ),
    damage(
        "keys",
        {"pos_api_keys id 2": "is there twice", "pos_api_keys id 3": "is there twice"},
        "DROP INDEX pos_api_keys_one_per_tenant",
        "UPDATE pos_api_keys SET key_sha256 = sha256('x') WHERE id > 1",
    ),
    damage(
        "keys",
        {
            f"pos_api_keys id {n}": "another key from tenants.pos_api_key is in force too"
            for n in (1, 9)
        },
        "INSERT INTO pos_api_keys (id, tenant_id, kind, key_sha256, preview, from_column)"
        " OVERRIDING SYSTEM VALUE VALUES (9, 1, 'tenant', sha256('y'), 'y', true)",
    ),
    damage(
        "answers",
        {"idempotency_keys ctid …": "there is no such tenant"},
        "UPDATE idempotency_keys SET tenant_id = 9",
    ),
    damage(
        "answers",
        {"idempotency_keys ctid …": "its fingerprint is none"},
        without("idempotency_keys", "idempotency_keys_fingerprint_check"),
        "UPDATE idempotency_keys SET fingerprint = ''",
    ),
    damage(
        "answers",
        {"idempotency_keys ctid …": "status 99 answers nothing"},
        "UPDATE idempotency_keys SET status = 99",
    ),
    damage(
        "answers",
        {"idempotency_keys ctid …": "its answer is no object"},
        "UPDATE idempotency_keys SET answer = '[]'",
    ),
    damage(
        "answers",
        {"idempotency_keys ctid …": "the same call has another answer too"},
        "DROP INDEX idempotency_keys_unique",
        "INSERT INTO idempotency_keys SELECT * FROM idempotency_keys",
    ),
    damage(
        "outbox",
        {"pos_outbox id 999": "is neither an event nor a touched row"},
        without("pos_outbox", "pos_outbox_check"),
        "INSERT INTO pos_outbox (id, tenant_id, type) OVERRIDING SYSTEM VALUE VALUES (999, 1, 'x')",
    ),
    damage(
        "outbox",
        {"pos_outbox id 999": "is of a transaction that pos_outbox_transactions does not have"},
        "INSERT INTO pos_outbox (id, tenant_id, type, data) OVERRIDING SYSTEM VALUE"
        " VALUES (999, 1, 'x', '1')",
    ),
    damage(
        "waiting",
        {"pos_outbox id 999 of tenant 1": "waits since 2026-11-22 10:00:00.*, and a daemon runs"},
        "INSERT INTO pos_outbox (id, tenant_id, type, key, created_at) OVERRIDING SYSTEM VALUE"
        " VALUES (999, 1, 'order', '1', '2026-11-22 10:00')",
        "INSERT INTO pos_outbox_transactions (tenant_id, kind, first_id) VALUES (1, 'order', 999)",
        "INSERT INTO pos_nodes VALUES (gen_random_uuid(), now() + interval '10 s')",
    ),
    *(
        damage("roles", {f"role {role}": what}, f"ALTER ROLE {role} {attribute}")
        for role, attribute, what in (
            ("posd", "SUPERUSER", "is a superuser"),
            ("posd", "CREATEROLE", "may make roles"),
            ("posd", "CREATEDB", "may make databases"),
            ("posd_publisher", "REPLICATION", "may copy the whole cluster"),
            ("posd_hook_kitchen", "BYPASSRLS", "bypasses row security"),
            ("posd_note_kitchen", "LOGIN", "may log in"),
            ("posd_reader", "CREATEROLE", "may make roles"),
            ("posd_owner", "CREATEROLE", "may make roles"),
        )
    ),
    damage(
        "roles",
        {"role posd": "is a member of pg_write_all_data, posd_hook_kitchen"},
        "GRANT pg_write_all_data, posd_hook_kitchen TO posd",
    ),
)
