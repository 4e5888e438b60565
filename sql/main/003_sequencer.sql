-- The three statements of the sequencer's transaction: take, look, record. They run with the
-- caller's rights; one call serves any number of tenants, so a batch costs three round trips
-- however many shops are in it.
--
-- Each function is VOLATILE plpgsql, whose every statement has a snapshot of its own in READ COMMITTED
-- (https://www.postgresql.org/docs/current/xfunc-volatility.html): what is read after the lock was taken
-- is read as of then.

-- Become the one sequencer, and then take up to `at_most` rows of the outbox without those of the tenants
-- in `aside`; fewer mean that there are no more, or that they have 8 MiB already. Tenants share a batch evenly,
-- so that one which touches all of its orders at once holds nobody up; each one's rows come oldest first.
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
                ) AS f WHERE f.before < 8388608))
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
-- goes wrong in there concerns that tenant alone and comes back as `failure`. A NULL for the order asks
-- only whether the tenant's tables can be written.
--
-- What an order has is read by posd whole, so it has an end. A row of more than 4 MiB comes back empty, and after
-- 16 MiB of one tenant's rows the others are put into the outbox again, for another batch.
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
               snapshot text, status text, version integer, failure text, seconds double precision)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
    few CONSTANT integer := 10;
    most CONSTANT integer := 16777216;
    tenant record;
    started timestamptz;
    read_for double precision;
    keys text[];
    part record;
    bytes bigint;
    found_ids text[];
    found_rows text[];
    postponed text[];
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, array_agg(DISTINCT w.order_id) FILTER (WHERE w.order_id IS NOT NULL) AS wanted,
               coalesce(array_agg(DISTINCT w.order_id) FILTER (WHERE w.touched), '{}') AS touched
          FROM unnest(tenant_ids, order_ids, touched) AS w(tenant_id, order_id, touched)
          JOIN dinedesk_main.tenants AS t ON t.id = w.tenant_id
         GROUP BY t.id ORDER BY t.id
    LOOP
        started := clock_timestamp();
        read_for := 0;
        found_ids := '{}';
        found_rows := '{}';
        postponed := NULL;
        BEGIN
            -- What pos_record() is going to write. There, waiting for it would hold up all tenants.
            EXECUTE format(
                'LOCK TABLE %1$I.pos_events, %1$I.pos_orders IN ROW EXCLUSIVE MODE', tenant.schema_name);
            IF tenant.touched <> '{}' THEN
                keys := tenant.touched;
                bytes := 0;
                BEGIN
                    WHILE keys <> '{}' AND bytes < most
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
                                    coalesce(sum(octet_length(c.content)), 0) AS bytes
                               FROM counted AS c', tenant.schema_name)
                           INTO part USING keys[:few], most - bytes;
                        found_ids := found_ids || part.ids;
                        found_rows := found_rows || part.rows;
                        bytes := bytes + part.bytes;
                        keys := part.others || keys[few + 1:];
                    END LOOP;
                    postponed := keys;
                    RAISE SQLSTATE 'PD001';
                EXCEPTION WHEN SQLSTATE 'PD001' THEN
                    -- Variables keep their values.
                    IF postponed IS NULL THEN
                        RAISE EXCEPTION 'the orders could not be read' USING ERRCODE = 'PD002';
                    END IF;
                END;
                read_for := extract(epoch FROM clock_timestamp() - started);
            END IF;
            INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, key)
            SELECT tenant.id, 'order', k FROM unnest(postponed) AS k;
            RETURN QUERY EXECUTE format(
                'SELECT $1, k.order_id, r.content, o.snapshot::text, o.status, o.version, NULL::text, $5
                   FROM unnest($2) AS k(order_id)
                   LEFT JOIN %I.pos_orders AS o USING (order_id)
                   LEFT JOIN unnest($3, $4) AS r(order_id, content) USING (order_id)', tenant.schema_name)
                USING tenant.id, tenant.wanted, found_ids, found_rows, read_for;
        EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
            RETURN QUERY SELECT tenant.id, NULL::text, NULL::text, NULL::text, NULL::text, NULL::integer,
                                SQLSTATE || ' ' || SQLERRM, read_for;
        END;
    END LOOP;
END
$$;

-- Number and store. The arrays run parallel, one element an event, in the order of publishing; an
-- event with a `failure` gets no position; an `order_id` has its snapshot replaced, and the positions of its
-- first and last event noted. Returns the position of each event and its tenant's connections on other nodes
-- than `node`. Events of a tenant that has just been deleted go nowhere.
--
-- All that can be done for all tenants at once is: what is said to one schema has to be parsed and planned
-- for each tenant anew, and costs more than the rows. The one statement for all is planned once (plan_cache_mode).
CREATE FUNCTION dinedesk_main.pos_record(
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

REVOKE ALL ON FUNCTION dinedesk_main.pos_take(integer, integer[], boolean),
    dinedesk_main.pos_order_states(integer[], text[], boolean[]),
    dinedesk_main.pos_record(uuid, integer[], text[], text[], text[], text[], text[], text[], text[], integer[])
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_take(integer, integer[], boolean),
    dinedesk_main.pos_order_states(integer[], text[], boolean[]),
    dinedesk_main.pos_record(uuid, integer[], text[], text[], text[], text[], text[], text[], text[], integer[])
    TO posd;
