-- The outbox is read in two steps. The sequencer looks at it without deleting, has the shops' orders read on the
-- connections of posd_reader, and then, in the numbering transaction, takes exactly the rows that it had seen before
-- the reading began. A row that a shop has committed meanwhile stays, so that the order is read again.

-- Rows about one order, or about one row of a ledger, are seen together, the oldest 20 of them. A shop can write any
-- number of rows about one order in a transaction, and the sequencer looks for all shops. The rows that it has not seen
-- have the order read again. Only the doorman takes rows (006_doorman.sql), so no other node has read the order before.
CREATE INDEX pos_outbox_keys ON dinedesk_main.pos_outbox (tenant_id, key, id) WHERE key IS NOT NULL;

-- The rows that need no reading of a shop's tables. The others of a tenant whose tables cannot be read may be many.
CREATE INDEX pos_outbox_read ON dinedesk_main.pos_outbox (tenant_id, id)
    WHERE key IS NULL OR type NOT IN ('order', 'placed');
-- The orders that were inserted.
CREATE INDEX pos_outbox_placed ON dinedesk_main.pos_outbox (tenant_id, id) WHERE key IS NOT NULL AND type = 'placed';

-- Up to `at_most` rows of the outbox, without those of the tenants in `aside`, and the oldest 20 rows with each of
-- their keys; with `one`, those of that tenant. Fewer mean that there are no more, or that they have 1 MiB
-- already. Tenants share a batch evenly, so that one which touches all of its orders at once holds no other up;
-- the rows of a tenant come oldest first. Of the tenants in `unreadable`, only the rows that need no reading are
-- seen. `tenant_ids` and `limits` say of which tenants fewer rows are seen.
--
-- PL/pgSQL plans it once for a session; that took five times as long as to execute it for a few rows.
--
-- If the oldest 200 rows of a tenant are changes of orders, it changes many at once, and up to 50 of its new orders are
-- seen too, which are `ahead`. They do not wait for all of the changes.
--
-- If there are 20 rows or fewer, as is usual, all of them are seen without further ado. The doorman asks up to a
-- thousand times a second while it is awake.
--
-- enable_seqscan: the statistics know the outbox empty. After an outage, or behind a long transaction that
-- keeps what is deleted from being removed, a plan for an empty table would read all of it each time.
CREATE FUNCTION dinedesk_main.pos_look(
    at_most integer, aside integer[], unreadable integer[], tenant_ids integer[], limits integer[], one integer)
RETURNS TABLE (id bigint, tenant_id integer, type text, key text, ahead boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    few bigint;
    size bigint;
BEGIN
    IF one IS NULL AND unreadable = '{}' AND tenant_ids = '{}' AND at_most >= 20 THEN
        SELECT count(*), coalesce(sum(octet_length(f.data)), 0) INTO few, size
          FROM (SELECT o.data FROM dinedesk_main.pos_outbox AS o ORDER BY o.tenant_id, o.id LIMIT 21) AS f;
        IF few <= 20 AND size <= 1048576 THEN
            -- Rows may have come between the two statements: those of each tenant that are seen are its oldest.
            RETURN QUERY
                SELECT f.id, f.tenant_id, f.type, f.key, false
                  FROM (SELECT o.* FROM dinedesk_main.pos_outbox AS o ORDER BY o.tenant_id, o.id LIMIT 20) AS f
                 WHERE f.tenant_id <> ALL (aside) ORDER BY f.id;
            RETURN;
        END IF;
    END IF;
    RETURN QUERY WITH RECURSIVE waiting AS (
        SELECT CASE WHEN one IS NULL THEN (
            SELECT o.tenant_id FROM dinedesk_main.pos_outbox AS o ORDER BY o.tenant_id LIMIT 1)
               ELSE one END AS tenant_id
        UNION ALL
        SELECT (SELECT o.tenant_id FROM dinedesk_main.pos_outbox AS o
                 WHERE o.tenant_id > w.tenant_id ORDER BY o.tenant_id LIMIT 1)
          FROM waiting AS w WHERE w.tenant_id IS NOT NULL AND one IS NULL
    ), served AS (
        -- With as many tenants as rows are wanted, the first row of each will do.
        SELECT w.tenant_id, least(CASE WHEN count(*) OVER () < at_most THEN at_most ELSE 1 END, l.most) AS most,
               w.tenant_id = ANY (unreadable) AS is_unreadable,
               CASE WHEN EXISTS (
                   SELECT FROM dinedesk_main.pos_outbox AS o
                    WHERE o.tenant_id = w.tenant_id AND o.key IS NOT NULL AND o.type = 'placed')
               THEN (
                   SELECT count(*) = 200 AND bool_and(f.key IS NOT NULL AND f.type = 'order')
                     FROM (SELECT o.key, o.type FROM dinedesk_main.pos_outbox AS o
                            WHERE o.tenant_id = w.tenant_id ORDER BY o.id LIMIT 200) AS f)
               ELSE false END AS is_bulk
          FROM waiting AS w LEFT JOIN unnest(tenant_ids, limits) AS l (tenant_id, most) USING (tenant_id)
         WHERE w.tenant_id IS NOT NULL AND w.tenant_id <> ALL (aside)
    ), seen AS (
        SELECT f.id, f.tenant_id, f.type, f.key, f.ahead FROM (
            SELECT r.*, sum(r.bytes) OVER (ORDER BY r.rank, r.id) - r.bytes AS before
              FROM served AS s CROSS JOIN LATERAL (
                SELECT p.id, p.tenant_id, p.type, p.key, p.ahead,
                       row_number() OVER (PARTITION BY p.ahead ORDER BY p.id) AS rank,
                       CASE WHEN octet_length(p.data) <= 2097152 THEN octet_length(p.data) ELSE 0 END AS bytes
                  FROM (
                    (SELECT o.*, false AS ahead FROM dinedesk_main.pos_outbox AS o
                      WHERE o.tenant_id = s.tenant_id AND NOT s.is_unreadable ORDER BY o.id LIMIT s.most)
                    UNION ALL
                    (SELECT o.*, false FROM dinedesk_main.pos_outbox AS o
                      WHERE o.tenant_id = s.tenant_id AND s.is_unreadable
                        AND (o.key IS NULL OR o.type NOT IN ('order', 'placed'))
                      ORDER BY o.id LIMIT s.most)
                    UNION ALL
                    (SELECT o.*, true FROM dinedesk_main.pos_outbox AS o
                      WHERE o.tenant_id = s.tenant_id AND s.is_bulk AND NOT s.is_unreadable
                        AND o.key IS NOT NULL AND o.type = 'placed'
                      ORDER BY o.id LIMIT least(s.most / 2, 50))) AS p
            ) AS r ORDER BY r.rank, r.id LIMIT at_most
        ) AS f WHERE f.before < 1048576
    )
    SELECT a.id, a.tenant_id, a.type, a.key, bool_or(a.ahead) FROM (
        SELECT * FROM seen AS s
        UNION ALL
        SELECT p.id, p.tenant_id, p.type, p.key, k.ahead
          FROM (SELECT s.tenant_id, CASE s.type WHEN 'placed' THEN 'order' ELSE s.type END AS type, s.key,
                       bool_or(s.ahead) AS ahead
                  FROM seen AS s WHERE s.key IS NOT NULL GROUP BY 1, 2, 3) AS k
         CROSS JOIN LATERAL (
            SELECT o.* FROM dinedesk_main.pos_outbox AS o
             WHERE o.tenant_id = k.tenant_id AND o.key = k.key
               AND o.type IN (k.type, CASE k.type WHEN 'order' THEN 'placed' ELSE k.type END)
             ORDER BY o.id LIMIT 20) AS p) AS a
     GROUP BY 1, 2, 3, 4
     ORDER BY 1;
END
$$;

-- One order of each of these tenants, which could not be read before: the next one after `keys` in the order of the
-- ids, without those in `odd_keys` of `odd_tenants`. The oldest 20 rows that are about it.
CREATE FUNCTION dinedesk_main.pos_look_again(
    tenant_ids integer[], keys text[], odd_tenants integer[], odd_keys text[])
RETURNS TABLE (id bigint, tenant_id integer, type text, key text)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    -- From key to key, however many rows each has.
    WITH RECURSIVE tried AS (
        SELECT w.tenant_id, w.key, true AS is_passed FROM unnest(tenant_ids, keys) AS w (tenant_id, key)
        UNION ALL
        SELECT t.tenant_id, n.key,
               EXISTS (SELECT FROM unnest(odd_tenants, odd_keys) AS d (tenant_id, key)
                        WHERE d.tenant_id = t.tenant_id AND d.key = n.key)
          FROM tried AS t CROSS JOIN LATERAL (
            SELECT o.key FROM dinedesk_main.pos_outbox AS o
             WHERE o.tenant_id = t.tenant_id AND o.key > t.key AND o.type IN ('order', 'placed') ORDER BY o.key LIMIT 1) AS n
         WHERE t.is_passed
    )
    SELECT o.id, o.tenant_id, o.type, o.key
      FROM tried AS t CROSS JOIN LATERAL (
        SELECT r.* FROM dinedesk_main.pos_outbox AS r
         WHERE r.tenant_id = t.tenant_id AND r.key = t.key AND r.type IN ('order', 'placed')
         ORDER BY r.id LIMIT 20) AS o
     WHERE NOT t.is_passed
     ORDER BY o.id
$$;

-- Become the one sequencer, waiting for the lock up to lock_timeout, and then take these rows out of the outbox, those
-- of them that are still there. A row with neither key nor data had more than 2 MiB, which no event can have.
--
-- Rows are taken only for the doorman: `node` with the `fence` that it had when it looked (006_doorman.sql). The fence
-- is compared after the lock is taken. Whatever the next doorman numbers comes after this transaction then, and it
-- looks and reads after it has got the lease.
--
-- What publishers ask of the tenants in `asking` comes after what those tenants have committed before. `behind` is
-- there for those of them that have further rows: the last one that has to be numbered first. `follow` is that
-- row, where it is known from an earlier call. NULL: as many rows as a batch has, so that a shop that changes
-- thousands of orders at once does not make its publishers wait for all of them.
--
-- What posd last published of the orders `order_keys` of `order_tenants` comes in the same answer, which saves a round
-- trip: `key` is the order and `data` its snapshot then, with the `status` and the `version`. The last row of the answer
-- has the tenant 0 and nothing else.
CREATE FUNCTION dinedesk_main.pos_take(
    tenant_ids integer[], ids bigint[], asking integer[], follow bigint[], order_tenants integer[],
    order_keys text[], node uuid, fence bigint)
RETURNS TABLE (tenant_id integer, id bigint, type text, key text, data text, follows bigint, behind bigint,
               status text, version integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    LOCK TABLE dinedesk_main.pos_sequencing IN SHARE UPDATE EXCLUSIVE MODE;
    IF ids <> '{}' AND NOT EXISTS (
        -- By the index: with enable_seqscan off the cost of reading a table without one makes PostgreSQL compile (JIT)
        -- the statement, which takes 60 ms.
        SELECT FROM dinedesk_main.pos_doorman AS d WHERE d.singleton AND d.node_id = node AND d.fence = pos_take.fence
    ) THEN
        RAISE EXCEPTION 'node % does not have the lease of the doorman any more', node USING ERRCODE = 'PD001';
    END IF;
    IF ids <> '{}' THEN
        RETURN QUERY
            WITH taken AS (
                DELETE FROM dinedesk_main.pos_outbox AS o
                 USING unnest(tenant_ids, ids) AS s (tenant_id, id)
                 WHERE o.tenant_id = s.tenant_id AND o.id = s.id
                RETURNING o.tenant_id, o.id, o.type, o.key,
                          CASE WHEN octet_length(o.data) <= 2097152 THEN o.data END AS data
            )
            SELECT t.tenant_id, t.id, t.type, t.key, t.data, NULL::bigint, NULL::bigint, NULL::text, NULL::integer
              FROM taken AS t ORDER BY t.id;
    END IF;
    IF asking <> '{}' THEN
        RETURN QUERY
            SELECT a.tenant_id, NULL::bigint, NULL::text, NULL::text, NULL::text, a.follows, b.last, NULL::text,
                   NULL::integer
              FROM unnest(asking, follow) AS a (tenant_id, follows)
             CROSS JOIN LATERAL (
                SELECT max(f.id) AS last FROM (
                    SELECT o.id FROM dinedesk_main.pos_outbox AS o
                     WHERE o.tenant_id = a.tenant_id AND o.id <= coalesce(a.follows, 9223372036854775807)
                     ORDER BY o.id LIMIT 200) AS f) AS b
             WHERE b.last IS NOT NULL;
    END IF;
    IF order_keys <> '{}' THEN
        RETURN QUERY
            SELECT o.tenant_id, NULL::bigint, NULL::text, o.order_id, o.snapshot::text, NULL::bigint, NULL::bigint,
                   o.status, o.version
              FROM unnest(order_tenants, order_keys) AS w (tenant_id, order_id)
              JOIN dinedesk_main.pos_orders AS o ON o.tenant_id = w.tenant_id AND o.order_id = w.order_id;
    END IF;
    RETURN QUERY SELECT 0, NULL::bigint, NULL::text, NULL::text, NULL::text, NULL::bigint, NULL::bigint, NULL::text,
                        NULL::integer;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_look(integer, integer[], integer[], integer[], integer[], integer),
    dinedesk_main.pos_look_again(integer[], text[], integer[], text[]),
    dinedesk_main.pos_take(integer[], bigint[], integer[], bigint[], integer[], text[], uuid, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_look(integer, integer[], integer[], integer[], integer[], integer),
    dinedesk_main.pos_look_again(integer[], text[], integer[], text[]),
    dinedesk_main.pos_take(integer[], bigint[], integer[], bigint[], integer[], text[], uuid, bigint) TO posd;
