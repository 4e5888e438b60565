-- Orders: the positions of their events, their print state, and how it follows from sent and acknowledged events.

-- The last published snapshot of each order, and its print state. The primary key begins with tenant_id, and there
-- is no foreign key to tenants, as for the log (003_stream.sql).
CREATE TABLE dinedesk_main.pos_orders (
    tenant_id integer NOT NULL,
    order_id text NOT NULL CHECK (order_id <> ''),
    snapshot json NOT NULL,
    status text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    print_status text NOT NULL DEFAULT 'pending'
        CHECK (print_status IN ('pending', 'sent_to_pos', 'printed', 'failed')),
    print_reason text,
    payment_status text,
    device_id text,
    -- The positions of the first and of the last event about the order. NULL if no event has a position, because
    -- all of them were too large for tills.
    first_seq bigint,
    last_seq bigint,
    -- The time at which its first event was written to a till's socket.
    pushed_at timestamptz,
    -- The times at which a till first reported that it has received, accepted, printed, and been paid for the
    -- order.
    received_at timestamptz,
    accepted_at timestamptz,
    printed_at timestamptz,
    paid_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, order_id)
-- An order is updated about five times within an hour, and not after that.
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
DO $$
BEGIN
    ALTER TABLE dinedesk_main.pos_orders ALTER snapshot SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;
CREATE INDEX pos_orders_by_age ON dinedesk_main.pos_orders (tenant_id, created_at);

-- Orders that are still to be prepared, for tills that ask for them because they may have missed events. The
-- condition on the status keeps the index small for shops whose tills never report printed orders. The statuses are
-- those of posd.events.orders.FINAL_STATUSES; a test compares them.
CREATE INDEX pos_orders_open ON dinedesk_main.pos_orders (tenant_id, created_at)
 WHERE print_status <> 'printed' AND status <> ALL ('{abandoned,canceled,cancelled,closed,collected,complete,completed,declined,delivered,expired,failed,fulfilled,picked_up,refunded,rejected,served,void,voided}'::text[]);

-- Every order is in exactly one of these two indexes. posd looks there for orders that were sent or acknowledged
-- since its last look, and for the last order that a till has confirmed.
CREATE INDEX pos_orders_unreceived ON dinedesk_main.pos_orders (tenant_id, print_status, first_seq)
 WHERE received_at IS NULL;
CREATE INDEX pos_orders_received ON dinedesk_main.pos_orders (tenant_id, first_seq) WHERE received_at IS NOT NULL;

-- The times of the first reports of each terminal about an order.
CREATE TABLE dinedesk_main.pos_order_terminals (
    tenant_id integer NOT NULL,
    order_id text NOT NULL,
    device_id text NOT NULL CHECK (device_id <> '' AND char_length(device_id) <= 128),
    received_at timestamptz NOT NULL,
    accepted_at timestamptz,
    printed_at timestamptz,
    failed_at timestamptz,
    PRIMARY KEY (tenant_id, order_id, device_id),
    FOREIGN KEY (tenant_id, order_id) REFERENCES dinedesk_main.pos_orders ON DELETE CASCADE
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);

GRANT SELECT, INSERT, UPDATE ON dinedesk_main.pos_orders TO posd;
-- DELETE: when an order id is used again, reports about the earlier order are deleted.
GRANT SELECT, INSERT, UPDATE, DELETE ON dinedesk_main.pos_order_terminals TO posd;

-- Update the print status of these tenants' orders: 'sent_to_pos' if the first event was sent, and `received_at` if
-- it was acknowledged. The function compares positions with the head, not with the last call, so the next call
-- repairs what one call misses. It skips locked rows: the session that has locked an order is storing a report or
-- publishing the order, and this function is called again after that.
CREATE FUNCTION dinedesk_main.pos_mark_orders(tenant_ids integer[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' SET enable_seqscan = off AS $$
BEGIN
    WITH head AS (
        SELECT h.tenant_id, h.received_seq, greatest(h.sent_seq, h.received_seq) AS sent_seq
          FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = ANY (tenant_ids)
    ), due AS (
        SELECT h.tenant_id, h.received_seq, f.order_id
          FROM head AS h CROSS JOIN LATERAL (
            SELECT s.order_id FROM dinedesk_main.pos_orders AS s
             WHERE s.tenant_id = h.tenant_id AND s.received_at IS NULL AND s.print_status = 'pending'
               AND s.first_seq <= h.sent_seq FOR UPDATE SKIP LOCKED) AS f
        UNION ALL
        SELECT h.tenant_id, h.received_seq, f.order_id
          FROM head AS h CROSS JOIN LATERAL (
            SELECT r.order_id FROM dinedesk_main.pos_orders AS r
             WHERE r.tenant_id = h.tenant_id AND r.received_at IS NULL
               AND r.print_status IN ('sent_to_pos', 'failed')
               AND r.first_seq <= h.received_seq FOR UPDATE SKIP LOCKED) AS f
    )
    UPDATE dinedesk_main.pos_orders AS o
       SET print_status = CASE o.print_status WHEN 'pending' THEN 'sent_to_pos' ELSE o.print_status END,
           pushed_at = coalesce(o.pushed_at, now()),
           received_at = CASE WHEN o.first_seq <= d.received_seq THEN coalesce(o.received_at, now()) END
      FROM due AS d WHERE o.tenant_id = d.tenant_id AND o.order_id = d.order_id;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_mark_orders(integer[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_mark_orders(integer[]) TO posd;

-- Return, for each of these tenants, the position up to which reports about orders confirm all events, if it is
-- above the acknowledged position. Tills that never acknowledge positions report each order that they have
-- received. A report also confirms earlier events on the same connection, but not another order, because some tills
-- lose an order without noticing. So the position is before the first order that is still to be prepared and that
-- no till has received. An order whose event was pruned does not count.
CREATE FUNCTION dinedesk_main.pos_confirmed(tenant_ids integer[], final text[])
RETURNS TABLE (tenant_id integer, seq bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT t.tenant_id, c.seq
          FROM (SELECT h.tenant_id, greatest(h.received_seq, h.pruned_seq) AS floor
                  FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = ANY (tenant_ids)) AS t
         CROSS JOIN LATERAL (
            SELECT max(o.first_seq) AS seq FROM dinedesk_main.pos_orders AS o
             WHERE o.tenant_id = t.tenant_id AND o.received_at IS NOT NULL AND o.first_seq > t.floor
               AND o.first_seq < coalesce((SELECT min(u.first_seq) FROM dinedesk_main.pos_orders AS u
                                            WHERE u.tenant_id = t.tenant_id AND u.received_at IS NULL
                                              AND u.first_seq > t.floor AND u.status <> ALL (final)),
                                          9223372036854775807)) AS c
         WHERE c.seq IS NOT NULL;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]) TO posd;

-- Store a till's report about an order. Return the new print status of the order, or NULL for an unknown order. The
-- times are those of the first report, and never in the future. A report without news writes nothing. `said_before`
-- lists the states from which the order changes to `new_status`.
CREATE FUNCTION dinedesk_main.pos_note_report(
    tenant integer, about text, device text, at timestamptz, accepted boolean, printed boolean, failed boolean,
    paid boolean, new_status text, reason text, said_before text[]) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz := least(coalesce(at, now()), now());
    known text;
BEGIN
    WITH said AS (
        INSERT INTO dinedesk_main.pos_order_terminals AS t
            (tenant_id, order_id, device_id, received_at, accepted_at, printed_at, failed_at)
        SELECT o.tenant_id, o.order_id, device, moment, CASE WHEN accepted THEN moment END,
               CASE WHEN printed THEN moment END, CASE WHEN failed THEN moment END
          FROM dinedesk_main.pos_orders AS o
         WHERE o.tenant_id = tenant AND o.order_id = about AND device IS NOT NULL
        ON CONFLICT (tenant_id, order_id, device_id) DO UPDATE
           SET accepted_at = coalesce(t.accepted_at, excluded.accepted_at),
               printed_at = coalesce(t.printed_at, excluded.printed_at),
               failed_at = coalesce(t.failed_at, excluded.failed_at)
         WHERE (t.accepted_at IS NULL AND excluded.accepted_at IS NOT NULL)
            OR (t.printed_at IS NULL AND excluded.printed_at IS NOT NULL)
            OR (t.failed_at IS NULL AND excluded.failed_at IS NOT NULL)
    )
    UPDATE dinedesk_main.pos_orders AS o
       SET received_at = coalesce(o.received_at, moment),
           accepted_at = CASE WHEN accepted THEN coalesce(o.accepted_at, moment) ELSE o.accepted_at END,
           printed_at = CASE WHEN printed THEN coalesce(o.printed_at, moment) ELSE o.printed_at END,
           paid_at = CASE WHEN paid THEN coalesce(o.paid_at, moment) ELSE o.paid_at END,
           print_status = CASE WHEN o.print_status = ANY (said_before) THEN new_status ELSE o.print_status END,
           print_reason = CASE WHEN o.print_status = ANY (said_before) THEN reason ELSE o.print_reason END,
           device_id = CASE WHEN o.print_status = ANY (said_before) THEN coalesce(device, o.device_id)
                            ELSE coalesce(o.device_id, device) END
     WHERE o.tenant_id = tenant AND o.order_id = about
       AND (o.print_status = ANY (said_before) OR o.received_at IS NULL
            OR (accepted AND o.accepted_at IS NULL) OR (paid AND o.paid_at IS NULL))
    RETURNING o.print_status INTO known;
    IF NOT FOUND THEN
        SELECT o.print_status INTO known FROM dinedesk_main.pos_orders AS o
         WHERE o.tenant_id = tenant AND o.order_id = about;
    END IF;
    RETURN known;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_note_report(
    integer, text, text, timestamptz, boolean, boolean, boolean, boolean, text, text, text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_note_report(
    integer, text, text, timestamptz, boolean, boolean, boolean, boolean, text, text, text[]) TO posd;

-- Return a page of a tenant's orders that are still to be prepared, oldest first: up to `at_most` orders and
-- `most_bytes` bytes, but at least one order. The first row has the head of the stream only. There is no row if the
-- tenant was deleted. If there are more orders, the last row is the next order without its snapshot, and its
-- `place` is the time of the order before it. The next page begins there: after (`after_time`, `after_order`).
--
-- The function is STABLE, so the head and the orders have the same snapshot. The statuses are literals, so that
-- PostgreSQL can use the partial index pos_orders_open; the separate bound on created_at is the index condition.
-- PL/pgSQL plans the statement once per session; planning took longer than execution.
CREATE FUNCTION dinedesk_main.pos_open_orders(
    tenant integer, since timestamptz, after_time timestamptz, after_order text, at_most integer, most_bytes bigint)
RETURNS TABLE (last_seq bigint, stream_id uuid, order_id text, snapshot text, print_status text, place text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT h.last_seq, h.stream_id, NULL::text, NULL::text, NULL::text, NULL::text
          FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = tenant;
    RETURN QUERY
        SELECT NULL::bigint, NULL::uuid, s.order_id, CASE WHEN s.is_sent THEN s.snapshot END, s.print_status,
               CASE WHEN NOT s.is_sent THEN
                   to_char(s.time_before AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') END
          FROM (SELECT w.*, w.number = 1 OR (w.number <= at_most AND w.bytes <= most_bytes) AS is_sent
                  FROM (SELECT p.*, row_number() OVER placed AS number, sum(p.size) OVER placed AS bytes,
                               lag(p.created_at) OVER placed AS time_before
                          FROM (SELECT o.created_at, o.order_id, o.snapshot::text AS snapshot, o.print_status,
                                       octet_length(o.snapshot::text) + 2 * octet_length(o.order_id) + 100 AS size
                                  FROM dinedesk_main.pos_orders AS o
                                 WHERE o.tenant_id = tenant AND o.print_status <> 'printed'
                                   AND o.status <> ALL ('{abandoned,canceled,cancelled,closed,collected,complete,completed,declined,delivered,expired,failed,fulfilled,picked_up,refunded,rejected,served,void,voided}'::text[])
                                   AND (since IS NULL OR o.updated_at >= since OR o.created_at >= since)
                                   AND o.created_at >= after_time
                                   AND (o.created_at, o.order_id) > (after_time, after_order)
                                 ORDER BY o.created_at, o.order_id LIMIT at_most + 1) AS p
                        WINDOW placed AS (ORDER BY p.created_at, p.order_id ROWS UNBOUNDED PRECEDING)) AS w
                 WHERE w.number <= 2 OR w.bytes - w.size <= most_bytes) AS s
         ORDER BY s.number;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_open_orders(integer, timestamptz, timestamptz, text, integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_open_orders(integer, timestamptz, timestamptz, text, integer, bigint) TO posd;
