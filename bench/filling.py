"""Fill databases with many tenants or a long event log, for `bench/growth.py`.

One INSERT for each table writes the rows, so that ten million events take minutes. The rows are consistent:
`posctl audit` finds no fault.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final

from posd.database import migrations
from posd.database import provisioning as provision
from posd.testing.server import PostgresServer

OPEN_ORDERS: Final = 20
"""For each tenant. These orders have the last events and are not printed."""
EVENTS_OF_ORDER: Final = 5
DAYS: Final = 35
"""The age of the oldest event."""

_TENANTS: Final = """
    SELECT dinedesk_main.pos_create_tenant('shop-' || n, 'Shop', 'GBP', 'Europe/London', 'GB')
      FROM generate_series(%s, %s) AS n
"""
_DEVICES: Final = """
    INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id, first_acked_at)
    SELECT t.id, 'TILL_' || n, now()
      FROM dinedesk_main.tenants AS t CROSS JOIN generate_series(1, %s) AS n
    ON CONFLICT DO NOTHING
"""
_CURSORS: Final = """
    INSERT INTO dinedesk_main.pos_cursors (tenant_id, device_id, acked_seq, stream_id)
    SELECT d.tenant_id, d.device_id, h.last_seq, h.stream_id
      FROM dinedesk_main.pos_devices AS d JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
    ON CONFLICT (tenant_id, device_id) DO UPDATE SET acked_seq = excluded.acked_seq
"""
# Five events of about 800 bytes for each order. The events of the tenants alternate.
_CONTENT: Final = """
    concat('{{"orderId":"', {order}, '","orderNumber":"', {order}, '","status":"', {status}, '","version":',
           {version}, ',"paymentStatus":"paid","orderType":"delivery","customerName":"Ann ',
           md5({order}::text),
           '","customerPhone":"+447700', 100000 + {order} %% 900000,
           '","deliveryAddress":"', md5('a' || {order}), ' Street, London","total":23.50,"items":[',
           '{{"name":"Naan with garlic ', md5('b' || {order}), '","quantity":2,"price":3.50,"addons":[]}},',
           '{{"name":"Lamb rogan josh ', md5('c' || {order}), '","quantity":1,"price":11.25,"addons":[]}},',
           '{{"name":"Mango lassi ', md5('d' || {order}), '","quantity":3,"price":1.75,"addons":[]}}],',
           '"specialInstructions":"', repeat(md5('e' || {order}) || ' ', 6), '"}}')
"""
_STATUS: Final = "(ARRAY['new','accepted','preparing','ready',{last}])[{version}]"
_EVENTS: Final = """
    INSERT INTO dinedesk_main.pos_events (tenant_id, seq, event_type, event_data, created_at)
    SELECT g.tenant_id, g.seq, CASE g.version WHEN 1 THEN 'new_order' ELSE 'order_updated' END,
           {content}::json, now() - (%(events)s - g.n) * (interval '{days} days' / %(events)s)
      FROM (SELECT n, 1 + n %% %(tenants)s AS tenant_id, 1 + n / %(tenants)s AS seq,
                   1 + n / %(tenants)s / {per_order} AS number,
                   (1 + n / %(tenants)s %% {per_order})::integer AS version
              FROM generate_series(0, %(events)s - 1) AS n) AS g
"""
_ORDERS: Final = """
    INSERT INTO dinedesk_main.pos_orders
        (tenant_id, order_id, snapshot, status, version, payment_status, print_status, first_seq, last_seq,
         pushed_at, received_at, printed_at, created_at, updated_at)
    SELECT g.tenant_id, g.number, {content}::json, {status}, {per_order}, 'paid',
           CASE WHEN g.open THEN 'sent_to_pos' ELSE 'printed' END,
           {per_order} * (g.number - 1) + 1, {per_order} * g.number, g.at, g.at,
           CASE WHEN NOT g.open THEN g.at END, g.at, g.at
      FROM (SELECT 1 + n %% %(tenants)s AS tenant_id, 1 + n / %(tenants)s AS number,
                   n >= %(orders)s - {open} * %(tenants)s AS open,
                   now() - (%(orders)s - n) * (interval '{days} days' / %(orders)s) AS at
              FROM generate_series(0, %(orders)s - 1) AS n) AS g
"""
_HEADS: Final = """
    UPDATE dinedesk_main.pos_heads SET last_seq = %(each)s, sent_seq = %(each)s, received_seq = %(each)s,
           acknowledged = %(each)s
"""


def add_tenants(dsn: str, tenants: int, devices: int) -> None:
    """Create the missing ones of the tenants 1 to `tenants`, with devices."""
    with closing(migrations.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM dinedesk_main.tenants")
        ((there,),) = cursor.fetchall()
        for first in range(there + 1, tenants + 1, 50):
            cursor.execute(_TENANTS, (first, min(first + 49, tenants)))
        cursor.execute(_DEVICES, (devices,))
        cursor.execute(_CURSORS)


def add_events(dsn: str, tenants: int, events: int) -> None:
    """Insert `events` events in all for the tenants 1 to `tenants`, and their orders."""
    each = max(EVENTS_OF_ORDER, events // tenants // EVENTS_OF_ORDER * EVENTS_OF_ORDER)
    events, orders = each * tenants, each * tenants // EVENTS_OF_ORDER
    first_open = max(0, each // EVENTS_OF_ORDER - OPEN_ORDERS)
    ready = f"CASE WHEN g.number > {first_open} THEN 'ready' ELSE 'completed' END"
    values = {"tenants": tenants, "events": events, "orders": orders, "each": each}
    fixed = {"per_order": EVENTS_OF_ORDER, "open": OPEN_ORDERS, "days": DAYS}
    with closing(migrations.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0; SET synchronous_commit = off")
        status = _STATUS.format(last=ready, version="g.version")
        content = _CONTENT.format(order="g.number", status=status, version="g.version")
        cursor.execute(_EVENTS.format(content=content, **fixed), values)
        content = _CONTENT.format(order="g.number", status=ready, version=EVENTS_OF_ORDER)
        cursor.execute(_ORDERS.format(content=content, status=ready, **fixed), values)
        cursor.execute(_HEADS, values)
        cursor.execute(_CURSORS)
        cursor.execute("VACUUM (ANALYZE)")


def create(server: PostgresServer, name: str, template: str | None = None) -> str:
    """Create a database with posd's schemas, or a copy of `template`. Return its connection string."""
    dsn = server.dsn(name)
    if template is None:
        migrations.bootstrap(dsn)
        with closing(migrations.connect(dsn)) as connection:
            provision.migrate(connection)
        return dsn
    copy(server, name, template)
    # CREATE DATABASE does not copy the rights on the database itself.
    migrations.bootstrap(dsn)
    with closing(migrations.connect(dsn)) as connection, connection.cursor() as cursor:
        # Give the streams of the copy new ids, because it is another database.
        cursor.execute("SELECT dinedesk_main.pos_recognise()")
    return dsn


def copy(server: PostgresServer, name: str, template: str) -> None:
    with closing(migrations.connect(server.dsn())) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")


def sizes(dsn: str) -> dict[str, Any]:
    """Return the numbers of events and tenants, and the size of a database in bytes."""
    with closing(migrations.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT sum(last_seq)::bigint FROM dinedesk_main.pos_heads),"
            " (SELECT count(*) FROM dinedesk_main.tenants), pg_database_size(current_database())"
        )
        ((events, tenants, size),) = cursor.fetchall()
    return {"events": events, "tenants": tenants, "bytes": size}
