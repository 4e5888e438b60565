-- The outbox is read in two steps. The sequencer looks at it without deleting, has the shops' orders read on the
-- connections of posd_reader, and then, in the numbering transaction, takes exactly the rows that it had seen before
-- the reading began. A row that a shop has committed meanwhile stays, so that the order is read again.

-- The rows of a transaction by what they are about.
CREATE INDEX pos_outbox_keys ON dinedesk_main.pos_outbox (tenant_id, xact, key, id) WHERE key IS NOT NULL;
-- A row by its id. For a condition on the column itself PostgreSQL might go through all of the primary key, and an
-- index that has an order might be gone through in that order: see enable_seqscan below.
CREATE INDEX pos_outbox_id ON dinedesk_main.pos_outbox USING hash ((-id));
-- The transactions of a tenant in the order of their rows.
CREATE INDEX pos_outbox_transactions_first ON dinedesk_main.pos_outbox_transactions (tenant_id, kind, first_id);

-- How many rows of a tenant are committed and not numbered, and since when the first of them waits. With NULL: whether
-- there is any row of any tenant (1 or 0), and since when it waits.
--
-- enable_seqscan, enable_bitmapscan and enable_sort, here and below: the statistics know the outbox empty, and a plan
-- for an empty table would read all of it each time, or sort all rows of a transaction. These settings leave the index
-- that has the order in which the rows are wanted. With `jit`, PostgreSQL would compile a plan that has to sort all
-- the same, because of the cost that it then has.
CREATE FUNCTION dinedesk_main.pos_outbox_waiting(tenant integer)
RETURNS TABLE (rows bigint, since timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET enable_bitmapscan = off SET enable_sort = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF tenant IS NULL THEN
        RETURN QUERY
            SELECT count(*), min(w.created_at)
              FROM (SELECT f.created_at
                      FROM (SELECT * FROM dinedesk_main.pos_outbox_transactions ORDER BY tenant_id) AS t
                     CROSS JOIN LATERAL (
                        SELECT o.created_at FROM dinedesk_main.pos_outbox AS o
                         WHERE o.tenant_id = t.tenant_id AND o.xact = t.xact AND o.kind = t.kind
                           AND o.id >= t.first_id LIMIT 1) AS f
                     LIMIT 1) AS w;
    ELSE
        RETURN QUERY
            SELECT coalesce(sum(w.rows), 0)::bigint, min(w.since)
              FROM dinedesk_main.pos_outbox_transactions AS t CROSS JOIN LATERAL (
                    SELECT count(*) AS rows, min(o.created_at) AS since FROM dinedesk_main.pos_outbox AS o
                     WHERE o.tenant_id = t.tenant_id AND o.xact = t.xact AND o.kind = t.kind
                       AND o.id >= t.first_id) AS w
             WHERE t.tenant_id = tenant;
    END IF;
END
$$;

-- Up to `at_most` rows of the outbox, without those of the tenants in `aside`; with `one`, those of that tenant. Fewer
-- mean that there are no more, or that they have 1 MiB already. Tenants share a batch evenly, so that one which touches
-- all of its orders at once holds no other up; the rows of a tenant come oldest first. Of the tenants in `unreadable`,
-- only the rows that need no reading are seen. `tenant_ids` and `limits` say of which tenants fewer rows are seen.
--
-- With a row about an order, or about one row of a ledger, come the others about it, the oldest 20 of those that its
-- transaction has and of the oldest 200 of the tenant, so that an order which is changed several times is read once. A
-- shop can write any number of rows about one order in a transaction, and the sequencer looks for all shops. The rows
-- that are not seen have the order read again. Only the doorman takes rows (006_doorman.sql), so no other node has read
-- the order before.
--
-- If the oldest 200 rows of a tenant are changes of orders, it changes many at once, and up to 50 of its new orders are
-- seen too, which are `ahead`. They do not wait for all of the changes.
--
-- If there are 20 rows or fewer, as is usual, all of them are seen by a short statement. The doorman asks up to a
-- thousand times a second while it is awake. PL/pgSQL plans the statements once for a session; that took five times as
-- long as to execute them for a few rows.
CREATE FUNCTION dinedesk_main.pos_look(
    at_most integer, aside integer[], unreadable integer[], tenant_ids integer[], limits integer[], one integer)
RETURNS TABLE (id bigint, tenant_id integer, type text, key text, ahead boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET enable_bitmapscan = off SET enable_sort = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF NOT EXISTS (SELECT FROM dinedesk_main.pos_outbox_transactions) THEN
        RETURN;
    END IF;
    IF one IS NULL AND unreadable = '{}' AND tenant_ids = '{}' AND at_most >= 20 THEN
        RETURN QUERY
            WITH few AS MATERIALIZED (
                SELECT f.*
                  FROM (SELECT * FROM dinedesk_main.pos_outbox_transactions ORDER BY tenant_id) AS t
                 CROSS JOIN LATERAL (
                    SELECT o.id, o.tenant_id, o.type, o.key, octet_length(o.data) AS bytes
                      FROM dinedesk_main.pos_outbox AS o
                     WHERE o.tenant_id = t.tenant_id AND o.xact = t.xact AND o.kind = t.kind
                       AND o.id >= t.first_id LIMIT 21) AS f
                 LIMIT 21
            )
            SELECT f.id, f.tenant_id, f.type, f.key, false FROM few AS f
             WHERE f.tenant_id <> ALL (aside)
               AND (SELECT count(*) <= 20 AND coalesce(sum(w.bytes), 0) <= 1048576 FROM few AS w)
             ORDER BY f.id;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    RETURN QUERY WITH RECURSIVE waiting AS (
        SELECT CASE WHEN one IS NULL THEN (
            SELECT t.tenant_id FROM dinedesk_main.pos_outbox_transactions AS t ORDER BY t.tenant_id LIMIT 1)
               ELSE one END AS tenant_id
        UNION ALL
        SELECT (SELECT t.tenant_id FROM dinedesk_main.pos_outbox_transactions AS t
                 WHERE t.tenant_id > w.tenant_id ORDER BY t.tenant_id LIMIT 1)
          FROM waiting AS w WHERE w.tenant_id IS NOT NULL AND one IS NULL
    ), served AS (
        -- With as many tenants as rows are wanted, the first row of each will do.
        SELECT s.tenant_id, least(s.share, s.most) AS most,
               CASE s.share WHEN 1 THEN 1 ELSE greatest(s.share, 200) END AS read,
               CASE WHEN s.tenant_id = ANY (unreadable) THEN '{plain}'::text[] ELSE '{plain,order,placed}' END AS kinds
          FROM (SELECT w.tenant_id, l.most, CASE WHEN count(*) OVER () < at_most THEN at_most ELSE 1 END AS share
                  FROM waiting AS w LEFT JOIN unnest(tenant_ids, limits) AS l (tenant_id, most) USING (tenant_id)
                 WHERE w.tenant_id IS NOT NULL AND w.tenant_id <> ALL (aside)) AS s
    ), found AS (
        -- Each transaction has a row that is not older than its `first_id`, so the oldest `read` rows of a kind are in
        -- the first `read` transactions.
        SELECT f.*, s.most, row_number() OVER (PARTITION BY f.tenant_id ORDER BY f.id) AS place,
               row_number() OVER (PARTITION BY f.tenant_id, f.kind ORDER BY f.id) AS place_of_kind
          FROM served AS s CROSS JOIN LATERAL unnest(s.kinds) AS k (kind) CROSS JOIN LATERAL (
                SELECT r.* FROM (
                    SELECT t.xact, t.first_id FROM dinedesk_main.pos_outbox_transactions AS t
                     WHERE t.tenant_id = s.tenant_id AND t.kind = k.kind
                       -- Somebody may have deleted rows of the outbox by hand. OFFSET: so that it is not made a join.
                       AND EXISTS (SELECT FROM dinedesk_main.pos_outbox AS o
                                    WHERE o.tenant_id = t.tenant_id AND o.xact = t.xact AND o.kind = t.kind
                                      AND o.id >= t.first_id OFFSET 0)
                     ORDER BY t.first_id LIMIT s.read) AS t
                 CROSS JOIN LATERAL (
                    SELECT o.id, o.tenant_id, o.xact, o.kind, o.type, o.key,
                           CASE o.type WHEN 'placed' THEN 'order' ELSE o.type END AS about,
                           CASE WHEN octet_length(o.data) <= 2097152 THEN octet_length(o.data) ELSE 0 END AS bytes
                      FROM dinedesk_main.pos_outbox AS o
                     WHERE o.tenant_id = s.tenant_id AND o.xact = t.xact AND o.kind = k.kind AND o.id >= t.first_id
                     ORDER BY o.id LIMIT s.read) AS r
                 ORDER BY r.id LIMIT s.read) AS f
    ), bulk AS (
        SELECT f.tenant_id FROM found AS f WHERE f.place <= 200
         GROUP BY f.tenant_id HAVING count(*) = 200 AND bool_and(f.kind = 'order')
    ), seen AS (
        SELECT f.* FROM (
            SELECT r.*, sum(r.bytes) OVER (ORDER BY r.rank, r.id) - r.bytes AS before
              FROM (SELECT w.*, false AS ahead, w.place AS rank FROM found AS w WHERE w.place <= w.most
                    UNION ALL
                    SELECT w.*, true, w.place_of_kind FROM found AS w JOIN bulk AS b USING (tenant_id)
                     WHERE w.place > w.most AND w.kind = 'placed'
                       AND w.place_of_kind <= least(w.most / 2, 50)) AS r
             ORDER BY r.rank, r.id LIMIT at_most
        ) AS f WHERE f.before < 1048576
    ), together AS (
        SELECT p.*, row_number() OVER (PARTITION BY p.tenant_id, p.about, p.key ORDER BY p.id) AS place FROM (
            SELECT f.id, f.tenant_id, f.type, f.key, f.about, k.ahead
              FROM (SELECT s.tenant_id, s.about, s.key, bool_or(s.ahead) AS ahead
                      FROM seen AS s WHERE s.key IS NOT NULL GROUP BY 1, 2, 3) AS k
              JOIN found AS f USING (tenant_id, about, key)
            UNION
            SELECT r.id, k.tenant_id, r.type, k.key, k.about, k.ahead
              FROM (SELECT s.tenant_id, s.xact, s.about, s.key, bool_or(s.ahead) AS ahead
                      FROM seen AS s WHERE s.key IS NOT NULL GROUP BY 1, 2, 3, 4) AS k
             CROSS JOIN LATERAL (
                SELECT o.id, o.type FROM dinedesk_main.pos_outbox AS o
                 WHERE o.tenant_id = k.tenant_id AND o.xact = k.xact AND o.key = k.key
                   AND o.type IN (k.about, CASE k.about WHEN 'order' THEN 'placed' ELSE k.about END)
                 ORDER BY o.id LIMIT 20) AS r) AS p
    )
    SELECT a.id, a.tenant_id, a.type, a.key, bool_or(a.ahead) FROM (
        SELECT s.id, s.tenant_id, s.type, s.key, s.ahead FROM seen AS s
        UNION ALL
        SELECT t.id, t.tenant_id, t.type, t.key, t.ahead FROM together AS t WHERE t.place <= 20) AS a
     GROUP BY 1, 2, 3, 4
     ORDER BY 1;
END
$$;

-- One order of each of these tenants, which could not be read before: the next one after `keys` in the order of the
-- ids, without those in `odd_keys` of `odd_tenants`. The oldest 20 rows that a transaction has about it. The oldest
-- 1,000 transactions of a tenant are searched; what can be read of them is taken, and then others are the oldest.
CREATE FUNCTION dinedesk_main.pos_look_again(
    tenant_ids integer[], keys text[], odd_tenants integer[], odd_keys text[])
RETURNS TABLE (id bigint, tenant_id integer, type text, key text)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
    -- From key to key, however many rows each has.
    WITH RECURSIVE tried AS (
        SELECT w.tenant_id, w.key, true AS is_passed,
               ARRAY(SELECT DISTINCT x.xact FROM unnest('{order,placed}'::text[]) AS k (kind) CROSS JOIN LATERAL (
                        SELECT t.xact FROM dinedesk_main.pos_outbox_transactions AS t
                         WHERE t.tenant_id = w.tenant_id AND t.kind = k.kind
                         ORDER BY t.first_id LIMIT 1000) AS x) AS xacts
          FROM unnest(tenant_ids, keys) AS w (tenant_id, key)
        UNION ALL
        SELECT t.tenant_id, n.key,
               EXISTS (SELECT FROM unnest(odd_tenants, odd_keys) AS d (tenant_id, key)
                        WHERE d.tenant_id = t.tenant_id AND d.key = n.key),
               t.xacts
          FROM tried AS t CROSS JOIN LATERAL (
            SELECT f.key FROM unnest(t.xacts) AS x (xact) CROSS JOIN LATERAL (
                SELECT o.key FROM dinedesk_main.pos_outbox AS o
                 WHERE o.tenant_id = t.tenant_id AND o.xact = x.xact AND o.key > t.key AND o.kind <> 'plain'
                 ORDER BY o.key LIMIT 1) AS f
             ORDER BY f.key LIMIT 1) AS n
         WHERE t.is_passed
    )
    SELECT o.id, o.tenant_id, o.type, o.key
      FROM tried AS t CROSS JOIN LATERAL unnest(t.xacts) AS x (xact) CROSS JOIN LATERAL (
        SELECT r.* FROM dinedesk_main.pos_outbox AS r
         WHERE r.tenant_id = t.tenant_id AND r.xact = x.xact AND r.key = t.key AND r.kind <> 'plain'
         ORDER BY r.id LIMIT 20) AS o
     WHERE NOT t.is_passed
     ORDER BY o.id LIMIT 200
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
SET enable_bitmapscan = off SET enable_sort = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
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
                 WHERE -o.id = -s.id
                RETURNING o.tenant_id, o.id, o.type, o.key,
                          CASE WHEN octet_length(o.data) <= 2097152 THEN o.data END AS data
            )
            SELECT t.tenant_id, t.id, t.type, t.key, t.data, NULL::bigint, NULL::bigint, NULL::text, NULL::integer
              FROM taken AS t ORDER BY t.id;
        -- The transactions whose first row was taken have another one now, or no rows. In a database that was restored
        -- from a dump, a row here may have the number of a transaction that is still to come. It stays, since that
        -- transaction will find it there.
        WITH passed AS MATERIALIZED (
            SELECT f.place, (
                    SELECT o.id FROM dinedesk_main.pos_outbox AS o
                     WHERE o.tenant_id = f.tenant_id AND o.xact = f.xact AND o.kind = f.kind AND o.id > f.first_id
                     ORDER BY o.id LIMIT 1) AS next_id
              FROM unnest(tenant_ids, ids) AS s (tenant_id, id)
             CROSS JOIN unnest('{plain,order,placed}'::text[]) AS k (kind)
             CROSS JOIN LATERAL (
                -- In an order, for the sake of the index that has it.
                SELECT w.*, w.ctid AS place FROM dinedesk_main.pos_outbox_transactions AS w
                 WHERE w.tenant_id = s.tenant_id AND w.kind = k.kind AND w.first_id BETWEEN s.id AND s.id
                 ORDER BY w.first_id LIMIT 1) AS f
        ), moved AS (
            UPDATE dinedesk_main.pos_outbox_transactions AS t SET first_id = p.next_id
              FROM passed AS p WHERE t.ctid = p.place AND p.next_id IS NOT NULL
        )
        DELETE FROM dinedesk_main.pos_outbox_transactions AS t
         USING passed AS p
         WHERE t.ctid = p.place AND p.next_id IS NULL AND pg_visible_in_snapshot(t.xact, pg_current_snapshot());
    END IF;
    IF asking <> '{}' THEN
        RETURN QUERY
            SELECT a.tenant_id, NULL::bigint, NULL::text, NULL::text, NULL::text, a.follows, b.last, NULL::text,
                   NULL::integer
              FROM unnest(asking, follow) AS a (tenant_id, follows)
             CROSS JOIN LATERAL (
                SELECT max(f.id) AS last FROM (
                    SELECT r.id FROM unnest('{plain,order,placed}'::text[]) AS k (kind) CROSS JOIN LATERAL (
                        SELECT t.xact, t.first_id FROM dinedesk_main.pos_outbox_transactions AS t
                         WHERE t.tenant_id = a.tenant_id AND t.kind = k.kind
                           AND t.first_id <= coalesce(a.follows, 9223372036854775807)
                         ORDER BY t.first_id LIMIT 200) AS t
                     CROSS JOIN LATERAL (
                        SELECT o.id FROM dinedesk_main.pos_outbox AS o
                         WHERE o.tenant_id = a.tenant_id AND o.xact = t.xact AND o.kind = k.kind
                           AND o.id BETWEEN t.first_id AND coalesce(a.follows, 9223372036854775807)
                         ORDER BY o.id LIMIT 200) AS r
                     ORDER BY r.id LIMIT 200) AS f) AS b
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

REVOKE ALL ON FUNCTION dinedesk_main.pos_outbox_waiting(integer),
    dinedesk_main.pos_look(integer, integer[], integer[], integer[], integer[], integer),
    dinedesk_main.pos_look_again(integer[], text[], integer[], text[]),
    dinedesk_main.pos_take(integer[], bigint[], integer[], bigint[], integer[], text[], uuid, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_outbox_waiting(integer),
    dinedesk_main.pos_look(integer, integer[], integer[], integer[], integer[], integer),
    dinedesk_main.pos_look_again(integer[], text[], integer[], text[]),
    dinedesk_main.pos_take(integer[], bigint[], integer[], bigint[], integer[], text[], uuid, bigint) TO posd;
