-- The three statements of the sequencer's transaction: take, look, record. They run with the
-- caller's rights; one call serves any number of tenants, so a batch costs three round trips
-- however many shops are in it.
--
-- Each function is VOLATILE plpgsql, whose every statement has a snapshot of its own in READ COMMITTED
-- (https://www.postgresql.org/docs/current/xfunc-volatility.html): what is read after the lock was taken
-- is read as of then.

-- Become the one sequencer, and then take up to `at_most` rows of the outbox without those of the tenants
-- in `aside`; fewer mean that there are no more, or that they have 1 MiB already, so that no batch holds the lock
-- for long. Tenants share a batch evenly, so that one which touches all of its orders at once holds nobody up; each
-- one's rows come oldest first.
-- `patient` callers wait for the lock (up to lock_timeout) since somebody waits for their answer; the others
-- leave the rows to the sequencer that has it. `locked` is in every row; a single row without an id says that
-- there was nothing to take. A row with neither key nor data had more than 2 MiB, which no event can have.
--
-- enable_seqscan: the statistics know the outbox empty. After an outage, or behind a long transaction that
-- keeps what is deleted from being removed, a plan for an empty table would read all of it each time.
CREATE FUNCTION dinedesk_main.pos_take(at_most integer, aside integer[], patient boolean)
RETURNS TABLE (locked boolean, id bigint, tenant_id integer, type text, key text, data text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    IF patient THEN
        LOCK TABLE dinedesk_main.pos_sequencing IN SHARE UPDATE EXCLUSIVE MODE;
    ELSE
        BEGIN
            LOCK TABLE dinedesk_main.pos_sequencing IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
        EXCEPTION WHEN lock_not_available THEN
            RETURN QUERY SELECT false, NULL::bigint, NULL::integer, NULL::text, NULL::text, NULL::text;
            RETURN;
        END;
    END IF;
    RETURN QUERY
        WITH RECURSIVE waiting AS (
            SELECT (SELECT o.tenant_id FROM dinedesk_main.pos_outbox AS o ORDER BY o.tenant_id LIMIT 1)
            UNION ALL
            SELECT (SELECT o.tenant_id FROM dinedesk_main.pos_outbox AS o
                     WHERE o.tenant_id > w.tenant_id ORDER BY o.tenant_id LIMIT 1)
              FROM waiting AS w WHERE w.tenant_id IS NOT NULL
        ), served AS (
            -- With as many tenants as rows are wanted, the first row of each will do.
            SELECT w.tenant_id, CASE WHEN count(*) OVER () < at_most THEN at_most ELSE 1 END AS most
              FROM waiting AS w WHERE w.tenant_id IS NOT NULL AND w.tenant_id <> ALL (aside)
        ), taken AS (
            DELETE FROM dinedesk_main.pos_outbox AS o
             WHERE o.ctid = ANY (ARRAY(
                SELECT f.ctid FROM (
                    SELECT r.ctid, sum(r.bytes) OVER (ORDER BY r.rank, r.id) - r.bytes AS before
                      FROM served AS s CROSS JOIN LATERAL (
                        SELECT p.ctid, p.id, row_number() OVER (ORDER BY p.id) AS rank,
                               CASE WHEN octet_length(p.data) <= 2097152 THEN octet_length(p.data) ELSE 0
                               END AS bytes
                          FROM dinedesk_main.pos_outbox AS p
                         WHERE p.tenant_id = s.tenant_id ORDER BY p.id LIMIT s.most
                    ) AS r ORDER BY r.rank, r.id LIMIT at_most
                ) AS f WHERE f.before < 1048576))
            RETURNING o.id, o.tenant_id, o.type, o.key,
                      CASE WHEN octet_length(o.data) <= 2097152 THEN o.data END AS data
        )
        SELECT true, t.id, t.tenant_id, t.type, t.key, t.data FROM taken AS t ORDER BY t.id;
    IF NOT FOUND THEN
        RETURN QUERY SELECT true, NULL::bigint, NULL::integer, NULL::text, NULL::text, NULL::text;
    END IF;
END
$$;

-- For each named order: what posd last published of it and, where a hook touched it, the shop's row
-- as it is now. The row is read by the tenant's own function with that tenant's rights only; what
-- goes wrong in there concerns that tenant alone and comes back as `failure`.
--
-- What an order has is read by posd whole, and numbering holds everybody up, so it has an end. A row of more than
-- 4 MiB comes back empty. The tenants of a batch share 1 MiB evenly, each has one row at least, and the others are
-- put into the outbox again, for the next batch: they come back as `postponed`.
--
-- The shop may have put a view in the place of a table, and so its own code runs here, in posd's session, while
-- every other shop waits. Orders are read a few at a time, and a tenant that has used up a tenth of a second has
-- the rest put into the outbox again. `seconds` tells how long its reading took, so that it can be left out for a
-- while in proportion. After half a second nobody's are read any more: statement_timeout, which ends one reading
-- that takes too long, acts only once in a statement.
--
-- Once they have been read, everything that the shop's code did is undone: a setting that it left behind
-- (search_path!) would turn the rights of posd against the other shops.
CREATE FUNCTION dinedesk_main.pos_order_states(tenant_ids integer[], order_ids text[], touched boolean[])
RETURNS TABLE (tenant_id integer, order_id text, row_now text,
               snapshot text, status text, version integer, failure text, seconds double precision,
               postponed boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
    few CONSTANT integer := 10;
    most CONSTANT integer := 1048576;
    share integer;
    tenant record;
    started timestamptz;
    read_for double precision;
    keys text[];
    part record;
    bytes bigint;
    found_ids text[];
    found_rows text[];
    later text[];
BEGIN
    RETURN QUERY
        SELECT w.tenant_id, w.order_id, NULL::text, o.snapshot::text, o.status, o.version, NULL::text, 0::float8, false
          FROM unnest(tenant_ids, order_ids, touched) AS w(tenant_id, order_id, touched)
          LEFT JOIN dinedesk_main.pos_orders AS o ON o.tenant_id = w.tenant_id AND o.order_id = w.order_id
         WHERE NOT w.touched;
    share := most / greatest(1, (SELECT count(DISTINCT w.tenant_id) FROM unnest(tenant_ids, touched)
                                        AS w(tenant_id, touched) WHERE w.touched));
    FOR tenant IN
        SELECT t.id, t.schema_name, array_agg(DISTINCT w.order_id) AS touched
          FROM unnest(tenant_ids, order_ids, touched) AS w(tenant_id, order_id, touched)
          JOIN dinedesk_main.tenants AS t ON t.id = w.tenant_id
         WHERE w.touched GROUP BY t.id ORDER BY t.id
    LOOP
        started := clock_timestamp();
        read_for := 0;
        found_ids := '{}';
        found_rows := '{}';
        later := NULL;
        BEGIN
            keys := tenant.touched;
            bytes := 0;
            BEGIN
                WHILE keys <> '{}' AND bytes < share
                      AND clock_timestamp() < started + interval '100 ms'
                      AND clock_timestamp() < statement_timestamp() + interval '500 ms'
                LOOP
                    EXECUTE format(
                        'WITH found AS MATERIALIZED (
                            SELECT r.order_id, CASE WHEN octet_length(r.content::text) <= 4194304
                                                    THEN r.content::text ELSE '''' END AS content
                              FROM %I.pos_read_orders($1) AS r
                         ), counted AS (
                            SELECT f.*, sum(octet_length(f.content)) OVER (ORDER BY f.order_id)
                                        - octet_length(f.content) < $2 AS fits
                              FROM found AS f
                         )
                         SELECT coalesce(array_agg(c.order_id) FILTER (WHERE c.fits), ''{}'') AS ids,
                                coalesce(array_agg(c.content) FILTER (WHERE c.fits), ''{}'') AS rows,
                                array_agg(c.order_id) FILTER (WHERE NOT c.fits) AS others,
                                coalesce(sum(octet_length(c.content)) FILTER (WHERE c.fits), 0) AS bytes,
                                bool_or(NOT c.fits) AS full
                           FROM counted AS c', tenant.schema_name)
                       INTO part USING keys[:few], share - bytes;
                    found_ids := found_ids || part.ids;
                    found_rows := found_rows || part.rows;
                    bytes := CASE WHEN part.full THEN share ELSE bytes + part.bytes END;
                    keys := part.others || keys[few + 1:];
                END LOOP;
                later := keys;
                RAISE SQLSTATE 'PD001';
            EXCEPTION WHEN SQLSTATE 'PD001' THEN
                -- Variables keep their values.
                IF later IS NULL THEN
                    RAISE EXCEPTION 'the orders could not be read' USING ERRCODE = 'PD002';
                END IF;
            END;
            read_for := extract(epoch FROM clock_timestamp() - started);
            INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, key)
            SELECT tenant.id, 'order', k FROM unnest(later) AS k;
            RETURN QUERY
                SELECT tenant.id, k.order_id, r.content, o.snapshot::text, o.status, o.version, NULL::text, read_for,
                       k.order_id = ANY (later)
                  FROM unnest(tenant.touched) AS k(order_id)
                  LEFT JOIN dinedesk_main.pos_orders AS o ON o.tenant_id = tenant.id AND o.order_id = k.order_id
                  LEFT JOIN unnest(found_ids, found_rows) AS r(order_id, content) ON r.order_id = k.order_id;
        EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
            RETURN QUERY SELECT tenant.id, NULL::text, NULL::text, NULL::text, NULL::text, NULL::integer,
                                SQLSTATE || ' ' || SQLERRM, read_for, false;
        END;
    END LOOP;
END
$$;

-- Number and store. The arrays run parallel, one element an event, in the order of publishing. An event with a
-- `failure` gets no position. An event with an `order_id` replaces that order's snapshot; a NULL snapshot means
-- that the event's data is the snapshot. Of several events about an order the last one's snapshot stays.
-- Returns for each event its position, the name of the stream, the time that it is stored with, and how many
-- connections its tenant has on other nodes than `node`. Events of a tenant that has just been deleted are not
-- stored and have no stream.
--
-- One INSERT for the events and one for the orders of all tenants: the number of tenants costs nothing. Positions
-- are computed from arrays without the texts, since a window function copies its whole input, to disk where it
-- is large. The statements are planned once (plan_cache_mode).
CREATE FUNCTION dinedesk_main.pos_record(
    node uuid, tenant_ids integer[], types text[], datas text[], besides text[], failures text[],
    order_ids text[], snapshots text[], statuses text[], versions integer[], payments text[],
    created text[])
RETURNS TABLE (ordinal bigint, seq bigint, stream_id uuid, created_at timestamptz, elsewhere bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    recorded_at CONSTANT timestamptz := clock_timestamp();
    -- In the order of publishing, whichever table a row goes to.
    ids CONSTANT bigint[] := ARRAY(
        SELECT nextval('dinedesk_main.pos_log_id') FROM generate_series(1, cardinality(tenant_ids)));
    seqs bigint[];
    streams uuid[];
BEGIN
    -- In the order in which everybody locks several heads.
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

    -- PostgreSQL holds a lock over the whole server while a transaction that has notified commits. So there is one
    -- notification a batch, and none where no other node is there to hear it. It has no payload: anybody who can
    -- connect hears it. Who hears it reads the heads. A node whose lease is not known yet sees them at its poll.
    IF array_remove(seqs, NULL) <> '{}' AND EXISTS (
        SELECT FROM dinedesk_main.pos_nodes AS n WHERE n.node_id <> node AND n.lease_until > now()
    ) THEN
        PERFORM pg_notify('posd_events', '');
    END IF;
    RETURN QUERY
        SELECT e.ordinal, e.seq, e.stream_id, recorded_at, coalesce(c.count, 0)
          FROM unnest(tenant_ids, seqs, streams) WITH ORDINALITY AS e(tenant_id, seq, stream_id, ordinal)
          LEFT JOIN (SELECT n.tenant_id, count(*) FROM dinedesk_main.pos_connected AS n
                      WHERE n.tenant_id = ANY (tenant_ids) AND n.node_id <> node GROUP BY n.tenant_id) AS c
            ON c.tenant_id = e.tenant_id;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_take(integer, integer[], boolean),
    dinedesk_main.pos_order_states(integer[], text[], boolean[]),
    dinedesk_main.pos_record(uuid, integer[], text[], text[], text[], text[], text[], text[], text[], integer[],
                             text[], text[])
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_take(integer, integer[], boolean),
    dinedesk_main.pos_order_states(integer[], text[], boolean[]),
    dinedesk_main.pos_record(uuid, integer[], text[], text[], text[], text[], text[], text[], text[], integer[],
                             text[], text[])
    TO posd;
