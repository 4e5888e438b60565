-- The outbox is read in two steps. The sequencer looks at it without deleting, has the shops' orders read on the
-- connections of posd_reader, and then, in the numbering transaction, takes exactly the rows that it had seen before
-- the reading began. A row that a shop has committed meanwhile stays, so that the order is read again.

-- All rows about one order, or about one row of a ledger, are seen together. Without this, a node that saw one of
-- them earlier could publish an older state of the order after a newer one.
CREATE INDEX pos_outbox_keys ON dinedesk_main.pos_outbox (tenant_id, key, type) WHERE key IS NOT NULL;

-- Up to `at_most` rows of the outbox, without those of the tenants in `aside`, and all further rows with the same
-- keys; with `one`, those of that tenant. Fewer mean that there are no more, or that they have 1 MiB already. Tenants
-- share a batch evenly, so that one which touches all of its orders at once holds no other up; the rows of a tenant
-- come oldest first. `tenant_ids` and `limits` say of which tenants fewer rows are seen.
--
-- enable_seqscan: the statistics know the outbox empty. After an outage, or behind a long transaction that
-- keeps what is deleted from being removed, a plan for an empty table would read all of it each time.
CREATE FUNCTION dinedesk_main.pos_look(
    at_most integer, aside integer[], tenant_ids integer[], limits integer[], one integer)
RETURNS TABLE (id bigint, tenant_id integer, type text, key text)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    WITH RECURSIVE waiting AS (
        SELECT CASE WHEN one IS NULL THEN (
            SELECT o.tenant_id FROM dinedesk_main.pos_outbox AS o ORDER BY o.tenant_id LIMIT 1)
               ELSE one END AS tenant_id
        UNION ALL
        SELECT (SELECT o.tenant_id FROM dinedesk_main.pos_outbox AS o
                 WHERE o.tenant_id > w.tenant_id ORDER BY o.tenant_id LIMIT 1)
          FROM waiting AS w WHERE w.tenant_id IS NOT NULL AND one IS NULL
    ), served AS (
        -- With as many tenants as rows are wanted, the first row of each will do.
        SELECT w.tenant_id, least(CASE WHEN count(*) OVER () < at_most THEN at_most ELSE 1 END, l.most) AS most
          FROM waiting AS w LEFT JOIN unnest(tenant_ids, limits) AS l (tenant_id, most) USING (tenant_id)
         WHERE w.tenant_id IS NOT NULL AND w.tenant_id <> ALL (aside)
    ), seen AS (
        SELECT f.id, f.tenant_id, f.type, f.key FROM (
            SELECT r.*, sum(r.bytes) OVER (ORDER BY r.rank, r.id) - r.bytes AS before
              FROM served AS s CROSS JOIN LATERAL (
                SELECT p.id, p.tenant_id, p.type, p.key, row_number() OVER (ORDER BY p.id) AS rank,
                       CASE WHEN octet_length(p.data) <= 2097152 THEN octet_length(p.data) ELSE 0 END AS bytes
                  FROM dinedesk_main.pos_outbox AS p
                 WHERE p.tenant_id = s.tenant_id ORDER BY p.id LIMIT s.most
            ) AS r ORDER BY r.rank, r.id LIMIT at_most
        ) AS f WHERE f.before < 1048576
    )
    SELECT s.id, s.tenant_id, s.type, s.key FROM seen AS s
    UNION
    SELECT p.id, p.tenant_id, p.type, p.key
      FROM (SELECT DISTINCT s.tenant_id, s.type, s.key FROM seen AS s WHERE s.key IS NOT NULL) AS k
     CROSS JOIN LATERAL (
        SELECT o.* FROM dinedesk_main.pos_outbox AS o
         WHERE o.tenant_id = k.tenant_id AND o.type = k.type AND o.key = k.key) AS p
    ORDER BY id
$$;

-- Become the one sequencer, and then take these rows out of the outbox, those of them that are still there.
-- `patient` callers wait for the lock (up to lock_timeout) since somebody waits for their answer; the others leave the
-- rows to the sequencer that has it. Rows are taken only for the doorman: `node` with the `fence` that it had when it
-- looked (018_doorman.sql). `locked` and `admitted` are in every row; a single row without an id says that there was
-- nothing to take. A row with neither key nor data had more than 2 MiB, which no event can have.
--
-- The fence is compared after the lock is taken. Whatever the next doorman numbers comes after this transaction then,
-- and it looks and reads after it has got the lease.
CREATE FUNCTION dinedesk_main.pos_take(
    tenant_ids integer[], ids bigint[], patient boolean, node uuid, fence bigint)
RETURNS TABLE (locked boolean, admitted boolean, id bigint, tenant_id integer, type text, key text, data text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    IF patient THEN
        LOCK TABLE dinedesk_main.pos_sequencing IN SHARE UPDATE EXCLUSIVE MODE;
    ELSE
        BEGIN
            LOCK TABLE dinedesk_main.pos_sequencing IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
        EXCEPTION WHEN lock_not_available THEN
            RETURN QUERY SELECT false, true, NULL::bigint, NULL::integer, NULL::text, NULL::text, NULL::text;
            RETURN;
        END;
    END IF;
    IF ids <> '{}' AND NOT EXISTS (
        SELECT FROM dinedesk_main.pos_doorman AS d WHERE d.node_id = node AND d.fence = pos_take.fence
    ) THEN
        RETURN QUERY SELECT true, false, NULL::bigint, NULL::integer, NULL::text, NULL::text, NULL::text;
        RETURN;
    END IF;
    RETURN QUERY
        WITH taken AS (
            DELETE FROM dinedesk_main.pos_outbox AS o
             USING unnest(tenant_ids, ids) AS s (tenant_id, id)
             WHERE o.tenant_id = s.tenant_id AND o.id = s.id
            RETURNING o.id, o.tenant_id, o.type, o.key,
                      CASE WHEN octet_length(o.data) <= 2097152 THEN o.data END AS data
        )
        SELECT true, true, t.id, t.tenant_id, t.type, t.key, t.data FROM taken AS t ORDER BY t.id;
    IF NOT FOUND THEN
        RETURN QUERY SELECT true, true, NULL::bigint, NULL::integer, NULL::text, NULL::text, NULL::text;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_look(integer, integer[], integer[], integer[], integer),
    dinedesk_main.pos_take(integer[], bigint[], boolean, uuid, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_look(integer, integer[], integer[], integer[], integer),
    dinedesk_main.pos_take(integer[], bigint[], boolean, uuid, bigint) TO posd;
