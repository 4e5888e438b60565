-- The three statements of the sequencer's transaction: take, look, record. They run with the
-- caller's rights; one call serves any number of tenants, so a batch costs three round trips
-- however many shops are in it.
--
-- Each function is VOLATILE plpgsql, whose every statement has a snapshot of its own in READ COMMITTED
-- (https://www.postgresql.org/docs/current/xfunc-volatility.html): what is read after the lock was taken
-- is read as of then.

-- Take the lock and then up to `at_most` rows of the outbox, oldest first, without those of the
-- tenants in `aside`. `patient` callers wait for the lock (up to lock_timeout) since somebody waits for
-- their answer; the others leave the rows to the sequencer that has it. `locked` is in every row; a
-- single row without an id says that there was nothing to take.
CREATE FUNCTION dinedesk_main.pos_take(at_most integer, aside integer[], patient boolean)
RETURNS TABLE (locked boolean, id bigint, tenant_id integer, type text, key text, data text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF patient THEN
        PERFORM pg_advisory_xact_lock(7097, 2);
    ELSIF NOT pg_try_advisory_xact_lock(7097, 2) THEN
        RETURN QUERY SELECT false, NULL::bigint, NULL::integer, NULL::text, NULL::text, NULL::text;
        RETURN;
    END IF;
    RETURN QUERY
        WITH taken AS (
            DELETE FROM dinedesk_main.pos_outbox AS o
             WHERE o.id = ANY (ARRAY(
                SELECT w.id FROM dinedesk_main.pos_outbox AS w
                 WHERE NOT w.tenant_id = ANY (aside) ORDER BY w.id LIMIT at_most))
            RETURNING o.id, o.tenant_id, o.type, o.key, o.data
        )
        SELECT true, t.id, t.tenant_id, t.type, t.key, t.data::text FROM taken AS t ORDER BY t.id;
    IF NOT FOUND THEN
        RETURN QUERY SELECT true, NULL::bigint, NULL::integer, NULL::text, NULL::text, NULL::text;
    END IF;
END
$$;

-- For each named order: what posd last published of it and, where a hook touched it, the shop's row
-- as it is now. The row is read by the tenant's own function with that tenant's rights only; what
-- goes wrong in there concerns that tenant alone and comes back as `failure`.
CREATE FUNCTION dinedesk_main.pos_order_states(tenant_ids integer[], order_ids text[], touched boolean[])
RETURNS TABLE (tenant_id integer, order_id text, row_now text, snapshot text, status text, version integer, failure text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    tenant record;
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, array_agg(w.order_id) AS wanted,
               coalesce(array_agg(w.order_id) FILTER (WHERE w.touched), '{}') AS touched
          FROM unnest(tenant_ids, order_ids, touched) AS w(tenant_id, order_id, touched)
          JOIN dinedesk_main.tenants AS t ON t.id = w.tenant_id
         GROUP BY t.id ORDER BY t.id
    LOOP
        BEGIN
            RETURN QUERY EXECUTE format(
                'SELECT $1, k.order_id, r.content::text, o.snapshot::text, o.status, o.version, NULL::text
                   FROM (SELECT DISTINCT unnest($2)) AS k(order_id)
                   LEFT JOIN %1$I.pos_orders AS o USING (order_id)
                   LEFT JOIN %1$I.pos_read_orders($3) AS r USING (order_id)', tenant.schema_name)
                USING tenant.id, tenant.wanted, tenant.touched;
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            RETURN QUERY SELECT tenant.id, NULL::text, NULL::text, NULL::text, NULL::text, NULL::integer,
                                SQLSTATE || ' ' || SQLERRM;
        END;
    END LOOP;
END
$$;

-- Number and store. The arrays run parallel, one element an event, in the order of publishing; an
-- event with a `failure` gets no position; an `order_id` has its snapshot replaced. Returns the
-- position of each event and its tenant's connections on other nodes than `node`.
CREATE FUNCTION dinedesk_main.pos_record(
    node uuid, tenant_ids integer[], types text[], datas text[], besides text[], failures text[],
    order_ids text[], snapshots text[], statuses text[], versions integer[])
RETURNS TABLE (ordinal bigint, seq bigint, elsewhere bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    tenant record;
    base bigint;
    others bigint;
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, count(*) FILTER (WHERE e.failure IS NULL) AS numbered,
               array_agg(e.ordinal ORDER BY e.ordinal) AS ordinals,
               array_agg(e.type ORDER BY e.ordinal) AS types,
               array_agg(e.data ORDER BY e.ordinal) AS datas,
               array_agg(e.beside ORDER BY e.ordinal) AS besides,
               array_agg(e.failure ORDER BY e.ordinal) AS failures,
               array_agg(e.order_id ORDER BY e.ordinal) AS order_ids,
               array_agg(e.snapshot ORDER BY e.ordinal) AS snapshots,
               array_agg(e.status ORDER BY e.ordinal) AS statuses,
               array_agg(e.version ORDER BY e.ordinal) AS versions
          FROM unnest(tenant_ids, types, datas, besides, failures, order_ids, snapshots, statuses, versions)
               WITH ORDINALITY
               AS e(tenant_id, type, data, beside, failure, order_id, snapshot, status, version, ordinal)
          JOIN dinedesk_main.tenants AS t ON t.id = e.tenant_id
         GROUP BY t.id ORDER BY t.id
    LOOP
        UPDATE dinedesk_main.pos_heads AS h SET last_seq = h.last_seq + tenant.numbered
         WHERE h.tenant_id = tenant.id RETURNING h.last_seq - tenant.numbered INTO STRICT base;
        SELECT count(*) INTO others FROM dinedesk_main.pos_connected AS c
         WHERE c.tenant_id = tenant.id AND c.node_id <> node;
        RETURN QUERY EXECUTE format(
            'WITH mine AS (
                SELECT e.*, CASE WHEN e.failure IS NULL THEN
                                $1 + count(*) FILTER (WHERE e.failure IS NULL) OVER (ORDER BY e.ordinal)
                            END AS seq
                  FROM unnest($2, $3, $4, $5, $6) AS e(ordinal, type, data, beside, failure)
             ), stored AS (
                INSERT INTO %1$I.pos_events (seq, event_type, event_data, beside, failure)
                SELECT m.seq, m.type, m.data::json, nullif(m.beside, ''{}'')::json, m.failure
                  FROM mine AS m ORDER BY m.ordinal
             )
             SELECT m.ordinal, m.seq, $7 FROM mine AS m', tenant.schema_name)
            USING base, tenant.ordinals, tenant.types, tenant.datas, tenant.besides, tenant.failures, others;
        EXECUTE format(
            'INSERT INTO %1$I.pos_orders AS o (order_id, snapshot, status, version, payment_status, created_at)
             SELECT DISTINCT ON (e.order_id) e.order_id, e.snapshot::json, e.status, e.version,
                    e.snapshot::json ->> ''paymentStatus'',
                    coalesce((e.snapshot::json ->> ''createdAt'')::timestamptz, now())
               FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS e(order_id, snapshot, status, version, ordinal)
              WHERE e.order_id IS NOT NULL
              ORDER BY e.order_id, e.ordinal DESC
             ON CONFLICT (order_id) DO UPDATE SET
                snapshot = excluded.snapshot, status = excluded.status, version = excluded.version,
                payment_status = excluded.payment_status, updated_at = clock_timestamp()', tenant.schema_name)
            USING tenant.order_ids, tenant.snapshots, tenant.statuses, tenant.versions;
        IF tenant.numbered > 0 THEN
            PERFORM pg_notify('posd_events', tenant.id || ' ' || base + tenant.numbered);
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_take(integer, integer[], boolean),
    dinedesk_main.pos_order_states(integer[], text[], boolean[]),
    dinedesk_main.pos_record(uuid, integer[], text[], text[], text[], text[], text[], text[], text[], integer[])
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_take(integer, integer[], boolean),
    dinedesk_main.pos_order_states(integer[], text[], boolean[]),
    dinedesk_main.pos_record(uuid, integer[], text[], text[], text[], text[], text[], text[], text[], integer[])
    TO posd;
