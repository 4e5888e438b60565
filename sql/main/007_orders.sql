-- Orders on their way to paper: where their events stand in the stream, and what follows for an order when
-- its event was sent, or confirmed.

-- Each order as it was last published, and how far it has come towards its tills. Keys, and the absence of a
-- foreign key to tenants, as for the log (003_stream.sql).
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
    -- The positions of the first and of the last event about the order; NULL while none has a position,
    -- since all of them were too large for tills.
    first_seq bigint,
    last_seq bigint,
    -- When its first event was written to a till's socket.
    pushed_at timestamptz,
    -- When a till first said that it has the order, accepts it, has printed it, and that it was paid.
    received_at timestamptz,
    accepted_at timestamptz,
    printed_at timestamptz,
    paid_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, order_id)
-- An order is updated some five times within an hour, and then no more.
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
DO $$
BEGIN
    ALTER TABLE dinedesk_main.pos_orders ALTER snapshot SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;
CREATE INDEX pos_orders_by_age ON dinedesk_main.pos_orders (tenant_id, created_at);

-- Orders that are still to be made: what a till asks for that may have missed some. In a shop whose tills never
-- say that they have printed, the orders of all times would be in here, were it not for their status. The
-- words are those of posd.events.orders.FINAL_STATUSES; a test compares them.
CREATE INDEX pos_orders_open ON dinedesk_main.pos_orders (tenant_id, created_at)
 WHERE print_status <> 'printed' AND status <> ALL ('{abandoned,canceled,cancelled,closed,collected,complete,completed,declined,delivered,expired,failed,fulfilled,picked_up,refunded,rejected,served,void,voided}'::text[]);

-- An order is in one of these two: where posd looks for those that were sent meanwhile, or acknowledged, and
-- for the last one that a till has confirmed.
CREATE INDEX pos_orders_unreceived ON dinedesk_main.pos_orders (tenant_id, print_status, first_seq)
 WHERE received_at IS NULL;
CREATE INDEX pos_orders_received ON dinedesk_main.pos_orders (tenant_id, first_seq) WHERE received_at IS NOT NULL;

-- What each terminal has said about an order, when it did so for the first time.
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
-- DELETE: an order of an earlier one's id begins anew, and what terminals said of the earlier one goes.
GRANT SELECT, INSERT, UPDATE, DELETE ON dinedesk_main.pos_order_terminals TO posd;

-- Note of the orders of these tenants whose first event was sent meanwhile that they are with the tills, and of
-- those whose first event was acknowledged that they were received. It looks at where the head stands and not at
-- what has changed, so what one call has missed the next one does. It never waits for a row: whoever has it
-- locked is about to print the order, or to publish it once more, and comes here again after that.
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

-- Up to where everything is confirmed by what tills said about orders, for each of these tenants where that is
-- further than what was acknowledged. Tills that never acknowledge a position say of each order that they have
-- it. That vouches for what came before on the same connection too, but not for another order: some lose one
-- without noticing. So it ends before the first order that is still to be made and that nobody has; one whose
-- event was pruned holds up nothing any more.
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

-- Note what a till says of an order; the order's print status now, NULL if there is no such order. Each time is that of
-- the first report, and none is in the future. What tells nothing new writes nothing. `said_before`: from which states
-- the order comes to `new_status`.
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

-- A page of the orders of a tenant that are still to be made, the oldest first: up to `at_most` orders and `most_bytes`
-- bytes, and one order at least. The first row has only the head of the stream. There is none if the tenant was deleted. The
-- last row has no snapshot if there are more orders: it is the next one, and `place` is when the order before it was
-- made. That is where the next page begins: after (`after_time`, `after_order`).
--
-- It is STABLE, so that the head and the orders are of one moment. The statuses are written out, so that PostgreSQL sees
-- that pos_orders_open has these orders, and the bound on created_at alone is what the index is used for. PL/pgSQL plans
-- the statement once for a session; that took longer than to execute it.
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
