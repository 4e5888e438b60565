-- The doorman and its bell. The node with the lease of the doorman looks at the outbox, has the shops' tables read,
-- and numbers the events. All nodes number events that are published to them by REST, one node at a time
-- (pos_sequencing).

-- A row and not an advisory lock, because any role that can connect can take an advisory lock. An updated row and
-- not an open transaction, because an open transaction keeps vacuum from removing dead rows.
CREATE TABLE dinedesk_main.pos_doorman (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- The node that has the lease. NULL: the last node has released it.
    node_id uuid,
    -- Increases when another node gets the lease. The numbering transaction compares it (pos_take), so that rows
    -- which a node read before it lost the lease are not published after rows which the next node has read.
    fence bigint NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The server process of the connection that renewed the lease. The lease ends when this process ends.
    backend_pid integer,
    -- For operators: the host of the node, and the time at which it got the lease.
    host text,
    since timestamptz
) WITH (fillfactor = 10);
INSERT INTO dinedesk_main.pos_doorman DEFAULT VALUES;

-- Take the lease if no node has it, or renew it. Return its fence, or NULL if another node has it. The lease ends
-- five seconds after its last renewal, by the clock of the database, or when the connection that renewed it ends,
-- so that a restart after a crash need not wait. If another connection has got the same process id, the lease ends
-- after the five seconds.
CREATE FUNCTION dinedesk_main.pos_claim_lease(node uuid, at_host text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own_fence bigint;
BEGIN
    UPDATE dinedesk_main.pos_doorman AS d
       SET lease_until = clock_timestamp() + interval '5 seconds', backend_pid = pg_backend_pid()
     WHERE d.node_id = node RETURNING d.fence INTO own_fence;
    IF FOUND THEN
        -- A lost renewal does no harm, so it waits for neither the disk nor a standby.
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

-- The bell. A transaction that has notified takes a lock of the whole cluster at commit, so shops that all notify
-- commit one after the other. So a transaction that writes to the outbox notifies ("rings") only if the doorman
-- does not poll.
--
-- The doorman shows this by two advisory locks. It holds (7097, 10) while it is asleep: it looks at the outbox when
-- it is notified. A transaction that gets a share of this lock keeps it until it ends, and the doorman cannot fall
-- asleep before. If a transaction stays open, the doorman dozes: it holds (7097, 11), and looks when it is
-- notified. Transactions only test this second lock. A transaction that tested it before the doorman took it does
-- not notify. So the doorman goes on looking for a moment; the poll finds rows that are committed later.
--
-- Any role that can connect can take these locks. It can make transactions notify, or keep the doorman looking.
-- Neither delays an order.
--
-- PREPARE TRANSACTION rejects a transaction that has notified. Sessions that use it `SET posd.notify = 'off'`, and
-- never notify.
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
-- The enqueue functions of the tenants, which this role owns, call it.
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_ring() TO posd_hook;
