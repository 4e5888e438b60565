-- The doorman and its bell. One node has the lease of the doorman: it looks at the outbox, has the shops' tables
-- read, and numbers what was read. All nodes number what comes to them by REST, one at a time (pos_sequencing).

-- A row and not an advisory lock, which anybody who can connect could take. A row that is updated and not an open
-- transaction, which would keep vacuum from removing rows.
CREATE TABLE dinedesk_main.pos_doorman (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- The node that has the lease. NULL: the last one has given it up.
    node_id uuid,
    -- Grows whenever another node gets the lease. The transaction that numbers compares it (pos_take), so that what
    -- a node had read before it lost the lease is not published after what the next node has read.
    fence bigint NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The server process of the connection that has renewed the lease. When it is gone, so is the node's claim.
    backend_pid integer,
    -- Where the node runs, and since when it has the lease: for operators.
    host text,
    since timestamptz
) WITH (fillfactor = 10);
INSERT INTO dinedesk_main.pos_doorman DEFAULT VALUES;

-- Take the lease if no node has it, or renew it: its fence, NULL if another node has it. It lapses after five seconds
-- without renewal by the clock of the database, or when the connection that has renewed it ends. So a restart after a
-- crash does not have to wait. A process of another connection may have the number by now; then the lease lapses.
CREATE FUNCTION dinedesk_main.pos_claim_lease(node uuid, at_host text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own_fence bigint;
BEGIN
    UPDATE dinedesk_main.pos_doorman AS d
       SET lease_until = clock_timestamp() + interval '5 seconds', backend_pid = pg_backend_pid()
     WHERE d.node_id = node RETURNING d.fence INTO own_fence;
    IF FOUND THEN
        -- A renewal that a crash of PostgreSQL loses does no harm. So it waits for no disk and no standby.
        PERFORM set_config('synchronous_commit', 'off', true);
        RETURN own_fence;
    END IF;
    UPDATE dinedesk_main.pos_doorman AS d
       SET node_id = node, fence = d.fence + 1, lease_until = clock_timestamp() + interval '5 seconds',
           backend_pid = pg_backend_pid(), host = at_host, since = clock_timestamp()
     WHERE d.lease_until < clock_timestamp()
        OR NOT EXISTS (SELECT FROM pg_stat_get_activity(d.backend_pid) AS a WHERE a.pid = d.backend_pid)
    RETURNING d.fence INTO own_fence;
    RETURN own_fence;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_claim_lease(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_claim_lease(uuid, text) TO posd;
GRANT SELECT, UPDATE ON dinedesk_main.pos_doorman TO posd;
