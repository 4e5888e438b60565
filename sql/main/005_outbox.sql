-- The sequencer reads the outbox in two steps. It looks at rows without deleting them, and has the shops' orders
-- read on connections of posd_reader. Then, in the numbering transaction, it takes exactly the rows that it saw
-- before it read the orders. A row that a shop commits in between stays in the outbox, so the order is read again.

-- Finds the rows of a transaction by kind.
CREATE INDEX pos_outbox_keys ON dinedesk_main.pos_outbox (tenant_id, xact, key, id) WHERE key IS NOT NULL;
-- Finds a row by id. For a condition on the column itself PostgreSQL might scan the whole primary key, or scan an
-- ordered index in order: see enable_seqscan below.
CREATE INDEX pos_outbox_id ON dinedesk_main.pos_outbox USING hash ((-id));
-- Finds the transactions of a tenant in the order of their rows.
CREATE INDEX pos_outbox_transactions_first ON dinedesk_main.pos_outbox_transactions (tenant_id, kind, first_id);

-- Return the number of committed outbox rows of a tenant, and the time of the oldest one. With NULL: return 1 if
-- any tenant has a row, else 0, and the time of the oldest one.
--
-- enable_seqscan, enable_bitmapscan and enable_sort, here and below: statistics may show an empty outbox, and a
-- plan for an empty table would read the whole table each time, or sort all rows of a transaction. These settings
-- leave only the index that has the required order. With `jit`, PostgreSQL would compile plans that must sort
-- nevertheless, because their cost is high under these settings.
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

-- Return up to `at_most` rows of the outbox, without rows of the tenants in `aside`; with `one`, rows of that
-- tenant only. Fewer rows mean that there are no more, or that the rows have reached 1 MiB. Tenants share a batch
-- evenly, so a tenant that changes all its orders at once does not delay other tenants; the rows of a tenant come
-- oldest first. For tenants in `unreadable`, only rows that need no reading are returned. `tenant_ids` and `limits`
-- bound the rows of single tenants.
--
-- A row about an order, or about a row of a ledger, is returned with the other rows about it: the oldest 20 of
-- those in its transaction and among the tenant's oldest 200 rows. So an order that is changed several times is
-- read once. The number is bounded because a shop can write any number of rows about one order in a transaction,
-- and the sequencer works for all shops. The remaining rows cause the order to be read again. Only the doorman
-- takes rows (006_doorman.sql), so no other node has read the order before.
--
-- If the oldest 200 rows of a tenant are changes of orders, the tenant is changing many orders at once. Then up to
-- 50 of its new orders are returned too, marked `ahead`, so that they do not wait for all the changes.
--
-- The usual 20 rows or fewer are returned by a short statement. The doorman calls this function up to a thousand
-- times a second while it is awake. PL/pgSQL plans the statements once per session; for a few rows, planning took
-- five times as long as execution.
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
        -- If there are as many tenants as requested rows, the first row of each tenant is enough.
        SELECT s.tenant_id, least(s.share, s.most) AS most,
               CASE s.share WHEN 1 THEN 1 ELSE greatest(s.share, 200) END AS read,
               CASE WHEN s.tenant_id = ANY (unreadable) THEN '{plain}'::text[] ELSE '{plain,order,placed}' END AS kinds
          FROM (SELECT w.tenant_id, l.most, CASE WHEN count(*) OVER () < at_most THEN at_most ELSE 1 END AS share
                  FROM waiting AS w LEFT JOIN unnest(tenant_ids, limits) AS l (tenant_id, most) USING (tenant_id)
                 WHERE w.tenant_id IS NOT NULL AND w.tenant_id <> ALL (aside)) AS s
    ), found AS (
        -- Each transaction has at least one row, with the id `first_id`. So the oldest `read` rows of a kind belong
        -- to the first `read` transactions.
        SELECT f.*, s.most, row_number() OVER (PARTITION BY f.tenant_id ORDER BY f.id) AS place,
               row_number() OVER (PARTITION BY f.tenant_id, f.kind ORDER BY f.id) AS place_of_kind
          FROM served AS s CROSS JOIN LATERAL unnest(s.kinds) AS k (kind) CROSS JOIN LATERAL (
                SELECT r.* FROM (
                    SELECT t.xact, t.first_id FROM dinedesk_main.pos_outbox_transactions AS t
                     WHERE t.tenant_id = s.tenant_id AND t.kind = k.kind
                       -- Outbox rows may have been deleted by hand. OFFSET keeps the planner from converting this
                       -- to a join.
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

-- Return rows about one order per tenant, after an attempt to read the orders has failed: the order with the next
-- id after `keys`, without the orders in `odd_keys` of `odd_tenants`. Returns the oldest 20 rows per transaction
-- about the order. The function searches the oldest 1,000 transactions of a tenant; when the readable orders of
-- these have been taken, other transactions are the oldest.
CREATE FUNCTION dinedesk_main.pos_look_again(
    tenant_ids integer[], keys text[], odd_tenants integer[], odd_keys text[])
RETURNS TABLE (id bigint, tenant_id integer, type text, key text)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
    -- Go from key to key, so the cost does not depend on the number of rows per key.
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

-- Become the only sequencer, waiting up to lock_timeout for the lock, and then take the given rows that still exist
-- out of the outbox. A returned row with neither key nor data had more than 2 MiB, more than an event may have.
--
-- Only the doorman may take rows: `node` with the `fence` that it had when it looked (006_doorman.sql). The fence
-- is compared after the lock is taken. So the next doorman numbers events only after this transaction, and it looks
-- at the outbox after it has got the lease.
--
-- A request of a publisher for a tenant in `asking` must come after the rows that the tenant committed before.
-- `behind` is returned for tenants with further rows: the last row that must be numbered first. `follow` is that
-- row, if it is known from an earlier call. NULL means at most as many rows as a batch has, so that a shop that
-- changes thousands of orders at once does not make its publishers wait for all of them.
--
-- The last published states of the orders `order_keys` of `order_tenants` are returned by the same call, which
-- saves a round trip: in these rows `key` is the order id and `data` its snapshot, with `status` and `version`. The
-- last row has the tenant 0 and no other value.
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
        -- Uses the index: with enable_seqscan off, reading a table without an index has a cost at which PostgreSQL
        -- compiles (JIT) the statement, which takes 60 ms.
        SELECT FROM dinedesk_main.pos_doorman AS d WHERE d.singleton AND d.node_id = node AND d.fence = pos_take.fence
    ) THEN
        RAISE EXCEPTION 'node % no longer has the lease of the doorman', node USING ERRCODE = 'PD001';
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
        -- Transactions whose first row was taken now have another first row, or no rows. In a database restored
        -- from a dump, a row here may have the id of a transaction in the future. It stays, because that
        -- transaction will find it here.
        WITH passed AS MATERIALIZED (
            SELECT f.place, (
                    SELECT o.id FROM dinedesk_main.pos_outbox AS o
                     WHERE o.tenant_id = f.tenant_id AND o.xact = f.xact AND o.kind = f.kind AND o.id > f.first_id
                     ORDER BY o.id LIMIT 1) AS next_id
              FROM unnest(tenant_ids, ids) AS s (tenant_id, id)
             CROSS JOIN unnest('{plain,order,placed}'::text[]) AS k (kind)
             CROSS JOIN LATERAL (
                -- Ordered, so that the plan uses the index with this order.
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
