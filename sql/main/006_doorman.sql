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

-- The bell. A transaction that has notified commits under a lock of the whole server, so shops that all notify commit
-- one after the other. So whoever puts a row into the outbox rings only if the doorman does not look by itself.
--
-- The doorman says so by two advisory locks. It holds (7097, 10) while it is asleep: it looks when it is rung. Whoever
-- gets a share of that lock keeps it until the end of the transaction, and so long the doorman cannot fall asleep. If
-- a transaction stays open, the doorman dozes: it holds (7097, 11) and looks when it is rung. That one is only tested.
-- A transaction that has tested it before the doorman took it rings nobody. So the doorman goes on looking for a
-- moment; what is committed later is found by the poll.
--
-- Anybody who can connect can take these locks. Whoever does so makes others ring, or keeps the doorman looking. It
-- delays no order.
--
-- PREPARE TRANSACTION refuses a transaction that has notified. Sessions that use it `SET posd.notify = 'off'`, and
-- never ring.
CREATE FUNCTION dinedesk_main.pos_ring() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_try_advisory_xact_lock_shared(7097, 10) THEN
        IF current_setting('posd.notify', true) IS NOT DISTINCT FROM 'off' THEN
            RETURN;
        ELSIF pg_try_advisory_lock_shared(7097, 11) THEN
            PERFORM pg_advisory_unlock_shared(7097, 11);
            RETURN;
        END IF;
    ELSIF current_setting('posd.notify', true) IS NOT DISTINCT FROM 'off' THEN
        RETURN;
    END IF;
    PERFORM dinedesk_main.pos_notify('posd_outbox', '');
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_ring() FROM PUBLIC;
-- It is called by the enqueue functions of the tenants, which belong to this role.
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_ring() TO posd_hook;
