-- Pruning: deletes events older than their retention, and other rows of that age. posd has no privilege to delete
-- these rows; it calls the functions below, batch by batch.

-- The lease of the node that prunes. Unlogged: after a crash of PostgreSQL no node has it.
CREATE UNLOGGED TABLE dinedesk_main.pos_pruning (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    node_id uuid NOT NULL,
    lease_until timestamptz NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON dinedesk_main.pos_pruning TO posd;

-- Delete up to `at_most` events of a tenant that are older than `before`, acknowledged or not, and move
-- `pruned_seq`. If no such events are left, delete old messages of tills, failed events, nacks of pruned events,
-- and orders; if nothing is left, store in `pruned_before` that everything is pruned up to then. A call is one
-- short transaction and returns its counts; `done` is true in the last call. No row is returned for an unknown
-- tenant.
--
-- The stream stays complete above the floor: events are deleted in the order of their positions, up to the first
-- event that is not old enough, whatever the times of later events are.
--
-- An order is deleted after its last event if its status is final (`final`). Another order may still be prepared,
-- so it is kept for thirty days after its last change, and until the time it is scheduled for is older than
-- `before`.
--
-- No session waits long for this function. It deletes the events before it locks the head, which is then locked for
-- a moment only. It deletes nothing after that, because the sequencer locks the head and then orders. A crash may
-- undo the last transactions, but rows and floor together, so the commit does not wait for the disk.
--
-- enable_seqscan: statistics may show an empty log although it is not empty.
CREATE FUNCTION dinedesk_main.pos_prune(tenant integer, before timestamptz, final text[], at_most integer)
RETURNS TABLE (events bigint, expired bigint, messages bigint, nacks bigint, orders bigint, done boolean)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    floor bigint;
    upto bigint;
    deleted bigint[];
    received bigint;
BEGIN
    -- A compromised daemon must not be able to empty the logs with this function.
    IF before IS NULL OR before > statement_timestamp() - interval '1 hour' THEN
        RAISE EXCEPTION 'rows younger than an hour cannot be pruned' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT h.pruned_seq INTO floor FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = tenant;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    events := 0;
    expired := 0;
    messages := 0;
    nacks := 0;
    orders := 0;
    done := false;

    SELECT max(w.seq) INTO upto FROM (
        SELECT e.seq, bool_and(e.created_at < before) OVER (ORDER BY e.seq) AS old
          FROM dinedesk_main.pos_events AS e WHERE e.tenant_id = tenant AND e.seq > floor
         ORDER BY e.seq LIMIT at_most
    ) AS w WHERE w.old;
    IF upto IS NOT NULL THEN
        WITH gone AS (
            DELETE FROM dinedesk_main.pos_events AS e
             WHERE e.tenant_id = tenant AND e.seq > floor AND e.seq <= upto RETURNING e.seq
        )
        SELECT coalesce(array_agg(g.seq), '{}') INTO deleted FROM gone AS g;
        SELECT h.received_seq INTO received FROM dinedesk_main.pos_heads AS h
         WHERE h.tenant_id = tenant FOR NO KEY UPDATE;
        events := cardinality(deleted);
        expired := (SELECT count(*) FROM unnest(deleted) AS g(seq) WHERE g.seq > received);
        UPDATE dinedesk_main.pos_heads AS h
           SET pruned_seq = greatest(h.pruned_seq, upto), expired = h.expired + pos_prune.expired
         WHERE h.tenant_id = tenant;
        RETURN NEXT;
        RETURN;
    END IF;

    WITH gone AS (
        DELETE FROM dinedesk_main.pos_unsequenced AS u
         WHERE u.tenant_id = tenant AND u.id = ANY (ARRAY(
            SELECT m.id FROM dinedesk_main.pos_unsequenced AS m
             WHERE m.tenant_id = tenant AND m.created_at < before ORDER BY m.created_at LIMIT at_most))
        RETURNING u.id
    )
    SELECT count(*) INTO messages FROM gone;
    WITH gone AS (
        DELETE FROM dinedesk_main.pos_nacks AS n
         WHERE n.tenant_id = tenant
           AND (n.seq, n.device_id) IN (SELECT o.seq, o.device_id FROM dinedesk_main.pos_nacks AS o
                                         WHERE o.tenant_id = tenant AND o.seq <= floor AND o.created_at < before
                                         ORDER BY o.seq, o.device_id LIMIT at_most)
        RETURNING n.seq
    )
    SELECT count(*) INTO nacks FROM gone;
    WITH gone AS (
        DELETE FROM dinedesk_main.pos_orders AS o
         WHERE o.tenant_id = tenant AND o.order_id = ANY (ARRAY(
            SELECT k.order_id FROM dinedesk_main.pos_orders AS k
             WHERE k.tenant_id = tenant AND k.created_at < before AND k.updated_at < before
               AND coalesce(k.last_seq, 0) <= floor
               AND CASE WHEN k.status = ANY (final) THEN k.updated_at < now() - interval '1 day'
                        ELSE k.updated_at < now() - interval '30 days'
                         AND coalesce((k.snapshot ->> 'scheduledFor')::timestamptz < before, true) END
             ORDER BY k.created_at LIMIT at_most FOR UPDATE SKIP LOCKED))
        RETURNING o.order_id
    )
    SELECT count(*) INTO orders FROM gone;
    IF messages + nacks + orders = 0 THEN
        UPDATE dinedesk_main.pos_heads AS h SET pruned_before = before
         WHERE h.tenant_id = tenant AND h.pruned_before < before;
        done := true;
    END IF;
    RETURN NEXT;
END
$$;

-- The same for stored answers, of all tenants. Return the number of deleted rows. Answers are kept for at least a
-- day, so that calls can be repeated.
CREATE FUNCTION dinedesk_main.pos_prune_answers(before timestamptz, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' SET enable_seqscan = off AS $$
    WITH gone AS (
        DELETE FROM dinedesk_main.idempotency_keys AS i
         WHERE i.ctid = ANY (ARRAY(
            SELECT o.ctid FROM dinedesk_main.idempotency_keys AS o
             WHERE o.created_at < least(before, now() - interval '1 day') ORDER BY o.created_at LIMIT at_most))
        RETURNING i.status
    )
    SELECT count(*) FROM gone
$$;

-- Delete up to `at_most` rows of deleted tenants, from each table whose tenant_id has no foreign key, and return
-- the number of rows. So a DELETE of a tenant is short, however many rows it had. Tenant ids are never reused.
CREATE FUNCTION dinedesk_main.pos_prune_deleted(at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' SET enable_seqscan = off AS $$
DECLARE
    log text;
    rows bigint;
    total bigint := 0;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    FOREACH log IN ARRAY ARRAY[
        'pos_events', 'pos_unsequenced', 'pos_nacks', 'pos_orders', 'pos_stream_epochs'
    ] LOOP
        -- Go from one tenant_id to the next by the index, so the cost is one look-up per tenant.
        EXECUTE format(
            'WITH RECURSIVE held AS (
                (SELECT l.tenant_id FROM dinedesk_main.%1$I AS l ORDER BY l.tenant_id LIMIT 1)
                UNION ALL
                SELECT (SELECT l.tenant_id FROM dinedesk_main.%1$I AS l
                         WHERE l.tenant_id > h.tenant_id ORDER BY l.tenant_id LIMIT 1)
                  FROM held AS h WHERE h.tenant_id IS NOT NULL
             )
             DELETE FROM dinedesk_main.%1$I AS g
              WHERE g.ctid = ANY (ARRAY(
                SELECT l.ctid FROM held AS h CROSS JOIN LATERAL (
                    SELECT i.ctid FROM dinedesk_main.%1$I AS i WHERE i.tenant_id = h.tenant_id LIMIT $1) AS l
                 WHERE h.tenant_id IS NOT NULL
                   AND NOT EXISTS (SELECT FROM dinedesk_main.tenants AS t WHERE t.id = h.tenant_id)
                 LIMIT $1))', log)
            USING at_most - total;
        GET DIAGNOSTICS rows = ROW_COUNT;
        total := total + rows;
    END LOOP;
    RETURN total;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_prune(integer, timestamptz, text[], integer),
    dinedesk_main.pos_prune_answers(timestamptz, integer), dinedesk_main.pos_prune_deleted(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_prune(integer, timestamptz, text[], integer),
    dinedesk_main.pos_prune_answers(timestamptz, integer), dinedesk_main.pos_prune_deleted(integer) TO posd;
