-- The statements of the sequencer's transaction: take (005_outbox.sql), compare, record. They run with the caller's
-- privileges. One call serves any number of tenants, so the number of round trips does not depend on the number of
-- shops in a batch.
--
-- The functions are VOLATILE PL/pgSQL: in READ COMMITTED, each of their statements has its own snapshot
-- (https://www.postgresql.org/docs/current/xfunc-volatility.html). Statements after the lock see all rows committed
-- before the lock was taken.

-- Return the last published state of the named orders. pos_take() returns it too, but only for orders that are
-- known before the call; orders in events published by SQL are not.
CREATE FUNCTION dinedesk_main.pos_order_states(tenant_ids integer[], order_ids text[])
RETURNS TABLE (tenant_id integer, order_id text, snapshot text, status text, version integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT w.tenant_id, w.order_id, o.snapshot::text, o.status, o.version
          FROM unnest(tenant_ids, order_ids) AS w(tenant_id, order_id)
          LEFT JOIN dinedesk_main.pos_orders AS o ON o.tenant_id = w.tenant_id AND o.order_id = w.order_id;
END
$$;

-- Number and store events. The arrays are parallel, with one element per event, in the order of publishing. Arrays
-- other than `tenant_ids`, `types` and `datas` may be NULL, which stands for NULL elements. An event with a
-- `failure` gets no position. An event with an `order_id` replaces the snapshot of the order; a NULL snapshot means
-- that the data of the event is the snapshot. The last event about an order determines its snapshot. Returns for
-- each event its position, its stream_id, its time, and the number of its tenant's connections on nodes other than
-- `node`. Events of a deleted tenant are not stored, and their stream_id is NULL.
--
-- One INSERT stores the events and one the orders of all tenants, so the cost does not depend on the number of
-- tenants. Positions are computed from arrays without the texts, because a window function copies its whole input,
-- to disk if it is large. The statements are planned once (plan_cache_mode).
CREATE FUNCTION dinedesk_main.pos_record(
    node uuid, tenant_ids integer[], types text[], datas text[], besides text[], failures text[],
    order_ids text[], snapshots text[], statuses text[], versions integer[], payments text[],
    created text[])
RETURNS TABLE (ordinal bigint, seq bigint, stream_id uuid, created_at timestamptz, elsewhere bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    recorded_at CONSTANT timestamptz := clock_timestamp();
    -- In the order of publishing, for both tables.
    ids CONSTANT bigint[] := ARRAY(
        SELECT nextval('dinedesk_main.pos_log_id') FROM generate_series(1, cardinality(tenant_ids)));
    seqs bigint[];
    streams uuid[];
    head record;
BEGIN
    -- A promoted or restored server gives all streams new names before it numbers events (003_stream.sql).
    PERFORM dinedesk_main.pos_recognise();
    IF failures IS NULL AND tenant_ids[1] = ALL (tenant_ids) THEN
        -- Most batches have one tenant. This takes about half as long as the statement for several tenants.
        UPDATE dinedesk_main.pos_heads AS h SET last_seq = h.last_seq + cardinality(tenant_ids)
         WHERE h.tenant_id = tenant_ids[1] RETURNING h.last_seq, h.stream_id INTO head;
        seqs := ARRAY(SELECT generate_series(head.last_seq - cardinality(tenant_ids) + 1, head.last_seq));
        streams := array_fill(head.stream_id, ARRAY[cardinality(tenant_ids)]);
    ELSE
        -- All functions that lock several heads lock them in this order.
        PERFORM FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = ANY (tenant_ids)
          ORDER BY h.tenant_id FOR NO KEY UPDATE;
        WITH entry AS MATERIALIZED (
            SELECT e.ordinal, e.tenant_id, h.stream_id, e.failure IS NULL AS numbered,
                   h.last_seq + count(*) FILTER (WHERE e.failure IS NULL)
                                    OVER (PARTITION BY e.tenant_id ORDER BY e.ordinal) AS seq
              FROM unnest(tenant_ids, failures) WITH ORDINALITY AS e(tenant_id, failure, ordinal)
              LEFT JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = e.tenant_id
        ), moved AS (
            UPDATE dinedesk_main.pos_heads AS h SET last_seq = n.seq
              FROM (SELECT e.tenant_id, max(e.seq) AS seq FROM entry AS e WHERE e.numbered GROUP BY e.tenant_id) AS n
             WHERE h.tenant_id = n.tenant_id
        )
        SELECT array_agg(CASE WHEN e.numbered THEN e.seq END ORDER BY e.ordinal),
               array_agg(e.stream_id ORDER BY e.ordinal)
          INTO seqs, streams FROM entry AS e;
    END IF;

    INSERT INTO dinedesk_main.pos_events (tenant_id, seq, id, event_type, event_data, beside, created_at)
    SELECT e.tenant_id, e.seq, e.id, e.type, e.data::json, nullif(e.beside, '{}')::json, recorded_at
      FROM unnest(tenant_ids, seqs, ids, types, datas, besides) AS e(tenant_id, seq, id, type, data, beside)
     WHERE e.seq IS NOT NULL;
    IF array_remove(failures, NULL) <> '{}' THEN
        INSERT INTO dinedesk_main.pos_unsequenced (tenant_id, id, event_type, event_data, failure, created_at)
        SELECT e.tenant_id, e.id, e.type, e.data::json, e.failure, recorded_at
          FROM unnest(tenant_ids, streams, ids, types, datas, failures)
               AS e(tenant_id, stream_id, id, type, data, failure)
         WHERE e.failure IS NOT NULL AND e.stream_id IS NOT NULL;
    END IF;
    IF array_remove(order_ids, NULL) <> '{}' THEN
        INSERT INTO dinedesk_main.pos_orders AS o
            (tenant_id, order_id, snapshot, status, version, payment_status, created_at, first_seq, last_seq)
        SELECT e.tenant_id, e.order_id, coalesce(snapshots[e.last], datas[e.last])::json, statuses[e.last],
               versions[e.last], payments[e.last], coalesce(created[e.last]::timestamptz, now()),
               e.first_seq, e.last_seq
          FROM (SELECT e.tenant_id, e.order_id, max(e.ordinal)::integer AS last,
                       min(e.seq) AS first_seq, max(e.seq) AS last_seq
                  FROM unnest(tenant_ids, order_ids, seqs, streams) WITH ORDINALITY
                       AS e(tenant_id, order_id, seq, stream_id, ordinal)
                 WHERE e.order_id IS NOT NULL AND e.stream_id IS NOT NULL
                 GROUP BY e.tenant_id, e.order_id ORDER BY e.tenant_id, e.order_id) AS e
        ON CONFLICT (tenant_id, order_id) DO UPDATE SET
            snapshot = excluded.snapshot, status = excluded.status, version = excluded.version,
            payment_status = excluded.payment_status, updated_at = clock_timestamp(),
            first_seq = coalesce(o.first_seq, excluded.first_seq),
            last_seq = coalesce(excluded.last_seq, o.last_seq);
    END IF;

    -- PostgreSQL holds a lock of the whole cluster while a transaction that has notified commits. So there is one
    -- notification per batch, and none if no other node is there to receive it. It has no payload, because any role
    -- that can connect can listen. Nodes that receive it read the heads. A node whose lease is not visible yet
    -- reads them at its poll.
    IF array_remove(seqs, NULL) <> '{}' AND EXISTS (
        SELECT FROM dinedesk_main.pos_nodes AS n WHERE n.node_id <> node AND n.lease_until > now()
    ) THEN
        PERFORM dinedesk_main.pos_notify('posd_events', '');
    END IF;
    RETURN QUERY
        SELECT e.ordinal, e.seq, e.stream_id, recorded_at, coalesce(c.count, 0)
          FROM unnest(tenant_ids, seqs, streams) WITH ORDINALITY AS e(tenant_id, seq, stream_id, ordinal)
          LEFT JOIN (SELECT n.tenant_id, count(*) FROM dinedesk_main.pos_connected AS n
                      WHERE n.tenant_id = ANY (tenant_ids) AND n.node_id <> node GROUP BY n.tenant_id) AS c
            ON c.tenant_id = e.tenant_id;
END
$$;

-- Take and record in one round trip, for events that are not about orders, of publishers in `asking`
-- (005_outbox.sql). The other arrays are those of pos_record(). Returns the result of pos_record() as an array of
-- arrays. The array is empty, and nothing is stored, if outbox rows must be numbered first.
CREATE FUNCTION dinedesk_main.pos_record_at_once(
    asking integer[], follow bigint[], node uuid, tenant_ids integer[], types text[], datas text[], besides text[])
RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM dinedesk_main.pos_take('{}', '{}', asking, follow, '{}', '{}', node, NULL) AS t
         WHERE t.behind IS NOT NULL
    ) THEN
        RETURN '[]';
    END IF;
    RETURN (
        SELECT json_agg(json_build_array(r.seq, r.stream_id, r.created_at, r.elsewhere) ORDER BY r.ordinal)
          FROM dinedesk_main.pos_record(node, tenant_ids, types, datas, besides,
                                        NULL, NULL, NULL, NULL, NULL, NULL, NULL) AS r);
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_order_states(integer[], text[]),
    dinedesk_main.pos_record(uuid, integer[], text[], text[], text[], text[], text[], text[], text[], integer[],
                             text[], text[]),
    dinedesk_main.pos_record_at_once(integer[], bigint[], uuid, integer[], text[], text[], text[])
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_order_states(integer[], text[]),
    dinedesk_main.pos_record(uuid, integer[], text[], text[], text[], text[], text[], text[], text[], integer[],
                             text[], text[]),
    dinedesk_main.pos_record_at_once(integer[], bigint[], uuid, integer[], text[], text[], text[])
    TO posd;
