-- Orders on their way to paper: where their events stand in the stream, and what follows for an order when
-- its event was sent, or confirmed.

-- What terminals tell of themselves from time to time, beside `app_version`.
ALTER TABLE dinedesk_main.pos_devices
    ADD COLUMN status text,
    ADD COLUMN pending_acks integer,
    ADD COLUMN pending_orders integer,
    ADD COLUMN last_print_at timestamptz;

-- Number and store. The arrays run parallel, one element an event, in the order of publishing; an
-- event with a `failure` gets no position; an `order_id` has its snapshot replaced, and the positions of its
-- first and last event noted. Returns the position of each event and its tenant's connections on other nodes
-- than `node`. Events of a tenant that has just been deleted go nowhere.
--
-- All that can be done for all tenants at once is: what is said to one schema has to be parsed and planned
-- for each tenant anew, and costs more than the rows. The one statement for all is planned once (plan_cache_mode).
CREATE OR REPLACE FUNCTION dinedesk_main.pos_record(
    node uuid, tenant_ids integer[], types text[], datas text[], besides text[], failures text[],
    order_ids text[], snapshots text[], statuses text[], versions integer[])
RETURNS TABLE (ordinal bigint, seq bigint, elsewhere bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    tenant record;
BEGIN
    -- In the order in which everybody locks several heads.
    PERFORM FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = ANY (tenant_ids)
      ORDER BY h.tenant_id FOR NO KEY UPDATE;
    FOR tenant IN
        WITH counted AS (
            SELECT e.*, count(*) FILTER (WHERE e.failure IS NULL)
                            OVER (PARTITION BY e.tenant_id ORDER BY e.ordinal) AS nth
              FROM unnest(tenant_ids, types, datas, besides, failures, order_ids, snapshots, statuses, versions)
                   WITH ORDINALITY
                   AS e(tenant_id, type, data, beside, failure, order_id, snapshot, status, version, ordinal)
        ), event AS (
            SELECT e.*,
                   -- Of several changes of an order in one batch the last one stays.
                   e.order_id IS NOT NULL AND row_number() OVER of_order = 1 AS stays,
                   min(e.nth) FILTER (WHERE e.failure IS NULL) OVER of_order AS first_nth,
                   max(e.nth) FILTER (WHERE e.failure IS NULL) OVER of_order AS last_nth
              FROM counted AS e
            WINDOW of_order AS (PARTITION BY e.tenant_id, e.order_id ORDER BY e.ordinal DESC
                                ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
        ), head AS (
            UPDATE dinedesk_main.pos_heads AS h SET last_seq = h.last_seq + n.numbered
              FROM (SELECT e.tenant_id, max(e.nth) AS numbered FROM event AS e GROUP BY e.tenant_id) AS n
             WHERE h.tenant_id = n.tenant_id
            RETURNING h.tenant_id, h.last_seq, n.numbered
        )
        SELECT h.tenant_id, h.last_seq, h.numbered,
               (SELECT t.schema_name FROM dinedesk_main.tenants AS t WHERE t.id = h.tenant_id) AS schema_name,
               (SELECT count(*) FROM dinedesk_main.pos_connected AS c
                 WHERE c.tenant_id = h.tenant_id AND c.node_id <> node) AS elsewhere,
               array_agg(e.ordinal ORDER BY e.ordinal) AS ordinals,
               array_agg(CASE WHEN e.failure IS NULL THEN h.last_seq - h.numbered + e.nth END
                         ORDER BY e.ordinal) AS seqs,
               array_agg(e.type ORDER BY e.ordinal) AS types,
               array_agg(e.data ORDER BY e.ordinal) AS datas,
               array_agg(nullif(e.beside, '{}') ORDER BY e.ordinal) AS besides,
               array_agg(e.failure ORDER BY e.ordinal) AS failures,
               array_agg(e.order_id ORDER BY e.order_id) FILTER (WHERE e.stays) AS order_ids,
               array_agg(e.snapshot ORDER BY e.order_id) FILTER (WHERE e.stays) AS snapshots,
               array_agg(e.status ORDER BY e.order_id) FILTER (WHERE e.stays) AS statuses,
               array_agg(e.version ORDER BY e.order_id) FILTER (WHERE e.stays) AS versions,
               array_agg(h.last_seq - h.numbered + e.first_nth ORDER BY e.order_id)
                   FILTER (WHERE e.stays) AS first_seqs,
               array_agg(h.last_seq - h.numbered + e.last_nth ORDER BY e.order_id)
                   FILTER (WHERE e.stays) AS last_seqs
          FROM head AS h JOIN event AS e ON e.tenant_id = h.tenant_id
         GROUP BY h.tenant_id, h.last_seq, h.numbered
    LOOP
        EXECUTE format(
            'INSERT INTO %I.pos_events (seq, event_type, event_data, beside, failure)
             SELECT * FROM unnest($1, $2, $3::json[], $4::json[], $5)', tenant.schema_name)
            USING tenant.seqs, tenant.types, tenant.datas, tenant.besides, tenant.failures;
        IF tenant.order_ids IS NOT NULL THEN
            EXECUTE format(
                'INSERT INTO %I.pos_orders AS o
                    (order_id, snapshot, status, version, payment_status, created_at, first_seq, last_seq)
                 SELECT e.order_id, e.snapshot, e.status, e.version, e.snapshot ->> ''paymentStatus'',
                        coalesce((e.snapshot ->> ''createdAt'')::timestamptz, now()), e.first_seq, e.last_seq
                   FROM unnest($1, $2::json[], $3, $4, $5, $6)
                        AS e(order_id, snapshot, status, version, first_seq, last_seq)
                 ON CONFLICT (order_id) DO UPDATE SET
                    snapshot = excluded.snapshot, status = excluded.status, version = excluded.version,
                    payment_status = excluded.payment_status, updated_at = clock_timestamp(),
                    first_seq = coalesce(o.first_seq, excluded.first_seq),
                    last_seq = coalesce(excluded.last_seq, o.last_seq)', tenant.schema_name)
                USING tenant.order_ids, tenant.snapshots, tenant.statuses, tenant.versions,
                      tenant.first_seqs, tenant.last_seqs;
        END IF;
        IF tenant.numbered > 0 THEN
            PERFORM pg_notify('posd_events', tenant.tenant_id || ' ' || tenant.last_seq);
        END IF;
        RETURN QUERY
            SELECT e.ordinal, e.seq, tenant.elsewhere FROM unnest(tenant.ordinals, tenant.seqs) AS e(ordinal, seq);
    END LOOP;
    RETURN QUERY
        SELECT e.ordinal, NULL::bigint, 0::bigint FROM unnest(tenant_ids) WITH ORDINALITY AS e(tenant_id, ordinal)
         WHERE NOT EXISTS (SELECT FROM dinedesk_main.tenants AS t WHERE t.id = e.tenant_id);
END
$$;

-- Up to where everything is confirmed by what tills said about orders, for each of these tenants where that is
-- further than what was acknowledged. Tills that never acknowledge a position say of each order that they have
-- it. That vouches for what came before on the same connection too, but not for another order: some lose one
-- without noticing. So it ends before the first order that is still to be made and that nobody has.
CREATE FUNCTION dinedesk_main.pos_confirmed(tenant_ids integer[], final text[])
RETURNS TABLE (tenant_id integer, seq bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    tenant record;
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, h.received_seq
          FROM dinedesk_main.tenants AS t JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = t.id
         WHERE t.id = ANY (tenant_ids)
    LOOP
        RETURN QUERY EXECUTE format(
            'SELECT $1, max(o.first_seq) FROM %1$I.pos_orders AS o
              WHERE o.received_at IS NOT NULL AND o.first_seq > $2
                AND o.first_seq < coalesce((SELECT min(u.first_seq) FROM %1$I.pos_orders AS u
                                             WHERE u.received_at IS NULL AND u.first_seq > $2
                                               AND u.status <> ALL ($3)), 9223372036854775807)
             HAVING max(o.first_seq) IS NOT NULL', tenant.schema_name)
            USING tenant.id, tenant.received_seq, final;
    END LOOP;
END
$$;

-- Note of the orders of these tenants whose first event was sent meanwhile that they are with the tills, and of
-- those whose first event was acknowledged that they were received. It looks at where the head stands and not at
-- what has changed, so what one call has missed the next one does. It never waits for a row: whoever has it
-- locked is about to print the order, or to publish it once more, and comes here again after that.
--
-- Returns the tenants whose orders could not be written, and why.
CREATE FUNCTION dinedesk_main.pos_mark_orders(tenant_ids integer[])
RETURNS TABLE (tenant_id integer, failure text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
    tenant record;
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, h.sent_seq, h.received_seq
          FROM dinedesk_main.tenants AS t JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = t.id
         WHERE t.id = ANY (tenant_ids) ORDER BY t.id
    LOOP
        BEGIN
            EXECUTE format(
                'UPDATE %1$I.pos_orders AS o
                    SET print_status = CASE o.print_status WHEN ''pending'' THEN ''sent_to_pos''
                                                           ELSE o.print_status END,
                        pushed_at = coalesce(o.pushed_at, now()),
                        received_at = CASE WHEN o.first_seq <= $2 THEN coalesce(o.received_at, now()) END
                  WHERE o.order_id = ANY (
                        ARRAY(SELECT s.order_id FROM %1$I.pos_orders AS s
                               WHERE s.received_at IS NULL AND s.print_status = ''pending''
                                 AND s.first_seq <= greatest($1, $2) FOR UPDATE SKIP LOCKED)
                     || ARRAY(SELECT r.order_id FROM %1$I.pos_orders AS r
                               WHERE r.received_at IS NULL AND r.print_status IN (''sent_to_pos'', ''failed'')
                                 AND r.first_seq <= $2 FOR UPDATE SKIP LOCKED))', tenant.schema_name)
                USING tenant.sent_seq, tenant.received_seq;
        EXCEPTION WHEN OTHERS THEN
            RETURN QUERY SELECT tenant.id, SQLSTATE || ' ' || SQLERRM;
        END;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]), dinedesk_main.pos_mark_orders(integer[])
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]), dinedesk_main.pos_mark_orders(integer[])
    TO posd;
