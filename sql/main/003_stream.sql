-- The stream's moving parts: what was published and not yet numbered, where each tenant's stream
-- stands, how far each terminal has come, and who is connected to which node.

-- Filled by pos_publish() and by the hooks inside the shop's own transaction, emptied by the
-- sequencer. No foreign key and no check that reads: a shop's transaction must find nothing here
-- to wait for, to conflict with or to fail by. That is also why vacuum must not truncate it, which
-- takes an exclusive lock.
CREATE TABLE dinedesk_main.pos_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id integer NOT NULL,
    -- With `data` an event type; with `key` the kind of row that was touched: 'order', 'placed' (an order that was
    -- inserted), or that of a ledger.
    type text NOT NULL,
    key text,
    -- JSON, written out by whoever publishes it: in jsonb the number 1e131071 takes some bytes, and as text
    -- a hundred thousand. So its length is known without looking at it, and posd need not write it out.
    data text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The transaction that has inserted the row.
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    -- 'order' and 'placed' are about orders, which are read from the shop's tables. 'plain' rows need no reading.
    kind text COLLATE "C" NOT NULL GENERATED ALWAYS AS (
        CASE WHEN key IS NOT NULL AND type IN ('order', 'placed') THEN type ELSE 'plain' END) STORED,
    CHECK ((key IS NULL) <> (data IS NULL)),
    -- It begins with the transaction, since only the rows of committed ones are read (pos_outbox_transactions).
    PRIMARY KEY (tenant_id, xact, kind, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);

-- Which transactions have rows in the outbox. Each transaction inserts one row here for each tenant and kind, when it
-- inserts its first row of that kind into the outbox. `first_id` is the first of those rows that is still there.
--
-- posd finds the rows of the outbox by way of this table, so it reads the rows of committed transactions only. An index
-- also has entries for the rows of transactions that are open or were rolled back, and PostgreSQL passes over these
-- one by one: 2,000,000 rows of one shop's open transaction made each look take three seconds for all shops. Here such
-- a transaction has three rows at most.
CREATE TABLE dinedesk_main.pos_outbox_transactions (
    tenant_id integer NOT NULL,
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    kind text COLLATE "C" NOT NULL,
    first_id bigint NOT NULL,
    -- A transaction can only conflict with itself, so nobody waits here.
    PRIMARY KEY (tenant_id, xact, kind)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);

-- Whoever has locked this table is the one sequencer at work. Not an advisory lock: anybody who can
-- connect could take that, and hold up every shop.
CREATE TABLE dinedesk_main.pos_sequencing ();

CREATE TABLE dinedesk_main.pos_heads (
    tenant_id integer PRIMARY KEY REFERENCES dinedesk_main.tenants ON DELETE CASCADE,
    -- The present name of the stream: positions are counted in it. pos_stream_epochs has the earlier ones.
    stream_id uuid NOT NULL DEFAULT gen_random_uuid(),
    last_seq bigint NOT NULL DEFAULT 0,
    pruned_seq bigint NOT NULL DEFAULT 0,
    -- The best of all terminals: what was written to a socket, what was acknowledged.
    sent_seq bigint NOT NULL DEFAULT 0,
    received_seq bigint NOT NULL DEFAULT 0,
    -- What became of the events, each counted where it happens: how many a terminal has acknowledged, and how
    -- many were pruned before any had. What is left are the rows above received_seq; the three make last_seq.
    acknowledged bigint NOT NULL DEFAULT 0 CHECK (acknowledged >= 0),
    expired bigint NOT NULL DEFAULT 0 CHECK (expired >= 0),
    -- What was stored before then and was to be pruned, is.
    pruned_before timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (pruned_seq <= last_seq AND sent_seq <= last_seq AND received_seq <= last_seq)
) WITH (fillfactor = 50);

-- The names that a stream has had. A name ends when the database may lack events that tills have seen. Up to
-- `ended_seq` its events are those of the present stream: a later loss lowers it for all earlier names. NULL: it is
-- the present name. tenant_id has no foreign key: after a promotion every tenant gets a row before anything is
-- numbered, and the lookups would be two fifths of the time that this takes.
CREATE TABLE dinedesk_main.pos_stream_epochs (
    tenant_id integer NOT NULL,
    stream_id uuid NOT NULL,
    -- The last event that the stream had when the name began. What a connected terminal without positions of its
    -- own is sent goes on from here.
    began_seq bigint NOT NULL DEFAULT 0 CHECK (began_seq >= 0),
    ended_seq bigint CHECK (ended_seq >= 0),
    began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, stream_id)
);
CREATE UNIQUE INDEX pos_stream_epochs_present ON dinedesk_main.pos_stream_epochs (tenant_id) WHERE ended_seq IS NULL;

-- The log and the refusals of all tenants. Every key begins with tenant_id: a batch of many tenants is one
-- INSERT, planned once, and each tenant reads its own range of the index. Each tenant's schema has views of its
-- own rows (sql/tenant/001_stream.sql). tenant_id has no foreign key, which would cost a lookup and a row lock
-- for every row; pos_prune_deleted() removes the rows of tenants that were deleted.

-- The order in which rows came into pos_events and pos_unsequenced, for the `id` of pos_sync_logs.
CREATE SEQUENCE dinedesk_main.pos_log_id;

CREATE TABLE dinedesk_main.pos_events (
    tenant_id integer NOT NULL,
    -- The position, gapless within a tenant.
    seq bigint NOT NULL CHECK (seq > 0),
    id bigint NOT NULL DEFAULT nextval('dinedesk_main.pos_log_id'),
    event_type text NOT NULL,
    -- `json`, not `jsonb`: the compact text that the sequencer wrote goes to the tills as it is, with its
    -- members in the contract's order. jsonb would bring back spaces and an order of its own.
    event_data json NOT NULL,
    beside json,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, seq)
-- Rows are inserted once and deleted by retention. A fifth of a table of all tenants would be too many dead rows.
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.02);
-- A long text is compressed for each row. lz4 takes a fraction of the time of pglz, the default, and is not in
-- every build of PostgreSQL.
DO $$
BEGIN
    ALTER TABLE dinedesk_main.pos_events ALTER event_data SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;
CREATE INDEX pos_events_by_age ON dinedesk_main.pos_events (tenant_id, created_at);

-- What has no position and goes to no till: what a till said (`device_id`), and what could not be published
-- (`failure`).
CREATE TABLE dinedesk_main.pos_unsequenced (
    tenant_id integer NOT NULL,
    id bigint NOT NULL DEFAULT nextval('dinedesk_main.pos_log_id'),
    event_type text NOT NULL,
    event_data json NOT NULL,
    device_id text,
    failure text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX pos_unsequenced_by_age ON dinedesk_main.pos_unsequenced (tenant_id, created_at);

-- Events that a till could not process.
CREATE TABLE dinedesk_main.pos_nacks (
    tenant_id integer NOT NULL,
    seq bigint NOT NULL,
    device_id text NOT NULL,
    reason text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, seq, device_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE dinedesk_main.pos_cursors (
    tenant_id integer NOT NULL,
    device_id text NOT NULL,
    acked_seq bigint NOT NULL CHECK (acked_seq >= 0),
    -- The name of the stream in which the terminal said so. NULL: a node knows that the terminal was sent events
    -- which the present stream does not have, and so it has to reload.
    stream_id uuid,
    acked_at timestamptz,
    -- What an operator wants: all after this again. The cursor goes back when the terminal comes for it, so that
    -- nothing that it has said before can take it forward again.
    replay_after bigint CHECK (replay_after >= 0),
    replayed_at timestamptz,
    PRIMARY KEY (tenant_id, device_id),
    FOREIGN KEY (tenant_id, device_id) REFERENCES dinedesk_main.pos_devices ON DELETE CASCADE
) WITH (fillfactor = 70);
CREATE INDEX pos_cursors_replayed ON dinedesk_main.pos_cursors (tenant_id) WHERE replay_after IS NOT NULL;

-- A node renews one lease for all its connections; a dead node's connections end with it. Unlogged:
-- after a crash of PostgreSQL nobody is connected, and the nodes write it anew.
CREATE UNLOGGED TABLE dinedesk_main.pos_nodes (
    node_id uuid PRIMARY KEY,
    lease_until timestamptz NOT NULL
);
CREATE UNLOGGED TABLE dinedesk_main.pos_connections (
    connection_id uuid PRIMARY KEY,
    node_id uuid NOT NULL REFERENCES dinedesk_main.pos_nodes ON DELETE CASCADE,
    tenant_id integer NOT NULL,
    device_id text,
    connected_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    sent_seq bigint NOT NULL DEFAULT 0,
    -- Set when the connection has become its device's one live connection.
    claimed_at timestamptz
) WITH (fillfactor = 50);
CREATE INDEX pos_connections_of_tenant ON dinedesk_main.pos_connections (tenant_id, device_id);
CREATE INDEX pos_connections_of_node ON dinedesk_main.pos_connections (node_id);

CREATE VIEW dinedesk_main.pos_connected AS
    SELECT c.* FROM dinedesk_main.pos_connections AS c
      JOIN dinedesk_main.pos_nodes AS n USING (node_id)
     WHERE n.lease_until > now();

-- Which incarnation of the database this is. A base backup that was restored, or a standby that was
-- promoted, has another timeline; a dump that was loaded has another database or cluster.
CREATE TABLE dinedesk_main.pos_incarnation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    fingerprint text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    -- What the keys of advisory locks are hashed with. Any role that can connect can take an advisory lock, so a shop
    -- must not be able to compute the key of another shop's call.
    salt uuid NOT NULL DEFAULT gen_random_uuid()
);

-- The timeline is that of the log being written. pg_control_checkpoint() would still name the old one
-- until the first checkpoint after a promotion, which may take minutes.
CREATE FUNCTION dinedesk_main.pos_fingerprint() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%s/%s/%s', (SELECT system_identifier FROM pg_control_system()),
                  left(pg_walfile_name(pg_current_wal_lsn()), 8),
                  (SELECT oid FROM pg_database WHERE datname = current_database()))
$$;
INSERT INTO dinedesk_main.pos_incarnation (fingerprint) VALUES (dinedesk_main.pos_fingerprint());

-- End the present names of these tenants' streams and begin others. `stream_ids` are the names that the caller has
-- seen: a stream with another one is left as it is, since somebody else was faster. `ended_seqs` is how far the
-- events of the old name are still those of the stream, `began_seqs` from where on the stream has the new name;
-- where one is NULL, the name does not matter, or the head is meant.
--
-- Returns the tenants whose stream has a new name. Names of which everything in common is pruned are forgotten.
CREATE FUNCTION dinedesk_main.pos_begin_epochs(
    tenant_ids integer[], stream_ids uuid[], ended_seqs bigint[], began_seqs bigint[])
RETURNS SETOF integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids integer[];
    ended bigint[];
    began bigint[];
BEGIN
    -- In the order in which everybody locks several heads.
    PERFORM FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = ANY (tenant_ids)
      ORDER BY h.tenant_id FOR NO KEY UPDATE;
    SELECT array_agg(h.tenant_id), array_agg(least(w.ended_seq, h.last_seq)),
           array_agg(least(w.began_seq, h.last_seq))
      INTO ids, ended, began
      FROM unnest(tenant_ids, stream_ids, ended_seqs, began_seqs) AS w(tenant_id, stream_id, ended_seq, began_seq)
      JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
     WHERE w.stream_id IS NULL OR w.stream_id = h.stream_id;
    -- least() ignores NULL.
    UPDATE dinedesk_main.pos_stream_epochs AS e SET ended_seq = least(e.ended_seq, c.ended_seq)
      FROM unnest(ids, ended) AS c(tenant_id, ended_seq)
     WHERE e.tenant_id = c.tenant_id AND (e.ended_seq IS NULL OR e.ended_seq > c.ended_seq);
    DELETE FROM dinedesk_main.pos_stream_epochs AS e USING dinedesk_main.pos_heads AS h
     WHERE e.tenant_id = ANY (ids) AND h.tenant_id = e.tenant_id AND e.ended_seq < h.pruned_seq;
    UPDATE dinedesk_main.pos_heads AS h SET stream_id = gen_random_uuid() WHERE h.tenant_id = ANY (ids);
    INSERT INTO dinedesk_main.pos_stream_epochs (tenant_id, stream_id, began_seq)
    SELECT h.tenant_id, h.stream_id, c.began_seq
      FROM unnest(ids, began) AS c(tenant_id, began_seq) JOIN dinedesk_main.pos_heads AS h USING (tenant_id);
    RETURN QUERY SELECT unnest(ids);
END
$$;

-- Whether this is the database that it was. If not, all streams get new names, once: what was numbered after the
-- last event that is here, tills may have seen, and it may be lost. It is called in the transaction that numbers,
-- before anything is numbered: a pooler may have moved a connection to the new primary meanwhile.
--
-- A server process sees one database on one timeline for all its life, once recovery is over. So it looks once,
-- which takes half a millisecond, and then remembers that it has. What a transaction sets that is rolled back is
-- forgotten with it.
CREATE FUNCTION dinedesk_main.pos_recognise() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fingerprint_now text;
BEGIN
    IF current_setting('posd.recognised', true) = 'yes' THEN
        RETURN true;
    END IF;
    fingerprint_now := dinedesk_main.pos_fingerprint();
    PERFORM set_config('posd.recognised', 'yes', false);
    PERFORM FROM dinedesk_main.pos_incarnation AS i WHERE i.fingerprint = fingerprint_now;
    IF FOUND THEN
        RETURN true;
    END IF;
    -- Of several callers the first one changes the row; the others wait for it here, and find nothing to change.
    UPDATE dinedesk_main.pos_incarnation AS i SET fingerprint = fingerprint_now, since = now()
     WHERE i.fingerprint <> fingerprint_now;
    IF NOT FOUND THEN
        RETURN true;
    END IF;
    PERFORM dinedesk_main.pos_begin_epochs((SELECT array_agg(h.tenant_id) FROM dinedesk_main.pos_heads AS h),
                                           NULL, NULL, NULL);
    RETURN false;
END
$$;

-- What a new tenant and a new device key begin with.
CREATE FUNCTION dinedesk_main.pos_begin_stream() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WITH head AS (
        INSERT INTO dinedesk_main.pos_heads (tenant_id) VALUES (NEW.id) RETURNING tenant_id, stream_id
    )
    INSERT INTO dinedesk_main.pos_stream_epochs (tenant_id, stream_id) SELECT h.tenant_id, h.stream_id FROM head AS h;
    RETURN NULL;
END
$$;
CREATE TRIGGER pos_begin_stream AFTER INSERT ON dinedesk_main.tenants
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_begin_stream();

CREATE FUNCTION dinedesk_main.pos_begin_device() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id, has_key)
    VALUES (NEW.tenant_id, NEW.device_id, true)
    ON CONFLICT (tenant_id, device_id) DO UPDATE SET has_key = true, is_active = true;
    INSERT INTO dinedesk_main.pos_cursors (tenant_id, device_id, acked_seq, stream_id)
    SELECT h.tenant_id, NEW.device_id, h.last_seq, h.stream_id
      FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = NEW.tenant_id
    ON CONFLICT (tenant_id, device_id) DO NOTHING;
    -- Nodes may have cached that the device can be used with the tenant's key.
    PERFORM dinedesk_main.pos_tell('tenant ' || NEW.tenant_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER pos_begin_device AFTER INSERT ON dinedesk_main.pos_api_keys
    FOR EACH ROW WHEN (NEW.kind = 'device') EXECUTE FUNCTION dinedesk_main.pos_begin_device();

-- Publishing by SQL. Runs in the caller's transaction: rolled back with it, visible with it. Whether
-- the event can be one is judged by the sequencer, after the commit: a bad one becomes `failed`
-- there and costs the caller nothing here.
--
-- The tenant is found in the system catalogs, where SERIALIZABLE transactions cannot conflict: having
-- read `tenants`, a shop's transaction could fail because somebody changes a tenant. Only posd_owner can make
-- a function in posd_hooks.
CREATE FUNCTION dinedesk_main.pos_publish(slug text, type text, data jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- translate() and not replace(), so that only one slug leads to a schema.
    shop text := 'dinedesk_' || translate(slug, '-_', '_-');
    enqueue text := 'enqueue_event$' || translate(slug, '-_', '_-');
    published bigint;
BEGIN
    -- One answer for a tenant that is not there and one that is somebody else's.
    IF NOT EXISTS (
        SELECT FROM pg_namespace AS n
          JOIN pg_proc AS p ON p.pronamespace = 'posd_hooks'::regnamespace AND p.proname = enqueue
         WHERE n.nspname = shop AND n.nspowner = 'posd_owner'::regrole
           AND has_schema_privilege(session_user, n.oid, 'USAGE')
    ) THEN
        RAISE EXCEPTION 'no tenant % that % may publish for', slug, session_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'The role needs USAGE on the schema of the tenant.';
    END IF;
    EXECUTE format('SELECT posd_hooks.%I($1, $2)', enqueue) INTO published
      USING coalesce(type, ''), coalesce(data, 'null');
    RETURN published;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_publish(text, text, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_publish(text, text, jsonb) TO posd, posd_publisher;
-- A function's new owner must be allowed to make one in its schema, for the moment of the change.
GRANT CREATE ON SCHEMA dinedesk_main TO posd_hook;
ALTER FUNCTION dinedesk_main.pos_publish(text, text, jsonb) OWNER TO posd_hook;
REVOKE CREATE ON SCHEMA dinedesk_main FROM posd_hook;
GRANT INSERT ON dinedesk_main.pos_outbox TO posd_hook;
-- INSERT … RETURNING reads the column it returns.
GRANT SELECT (id) ON dinedesk_main.pos_outbox TO posd_hook;
-- ON CONFLICT without columns reads none.
GRANT INSERT ON dinedesk_main.pos_outbox_transactions TO posd_hook;

-- Where terminals stand: each by its tenant and its name, NULL for one without a name. `known`: the device has a row;
-- `spoke`: it has acknowledged something; `recalled`: events are to be sent to it again; `astray`: its cursor is of an
-- earlier stream, which has ended before it; `renamed_ago`: the seconds since that stream was replaced. It runs with
-- the caller's rights.
--
-- Every till that connects asks this. To plan the statement takes six times as long as to run it, so it is planned once
-- for each connection to the database. The settings keep the plan to indexes: tables may be small when it is made.
CREATE FUNCTION dinedesk_main.pos_places(tenant_ids integer[], device_ids text[])
RETURNS TABLE (
    tenant_id integer, device_id text, stream_id uuid, last_seq bigint, pruned_seq bigint, read_at timestamptz,
    known boolean, spoke boolean, acked_seq bigint, recalled boolean, astray boolean, renamed_ago float8)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT h.tenant_id, w.device_id, h.stream_id, h.last_seq, h.pruned_seq, clock_timestamp(),
               d.device_id IS NOT NULL, d.first_acked_at IS NOT NULL, c.acked_seq, c.replay_after IS NOT NULL,
               NOT coalesce(c.stream_id = h.stream_id OR c.acked_seq <= e.ended_seq, c.device_id IS NULL),
               CASE WHEN c.stream_id <> h.stream_id
                    THEN extract(epoch FROM clock_timestamp() - p.began_at)::float8 END
          FROM unnest(tenant_ids, device_ids) AS w(tenant_id, device_id)
          JOIN dinedesk_main.pos_heads AS h USING (tenant_id)
          LEFT JOIN dinedesk_main.pos_devices AS d USING (tenant_id, device_id)
          LEFT JOIN dinedesk_main.pos_cursors AS c USING (tenant_id, device_id)
          LEFT JOIN dinedesk_main.pos_stream_epochs AS e
            ON e.tenant_id = c.tenant_id AND e.stream_id = c.stream_id
          LEFT JOIN dinedesk_main.pos_stream_epochs AS p
            ON p.tenant_id = h.tenant_id AND p.stream_id = h.stream_id;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_begin_stream(), dinedesk_main.pos_begin_device(),
    dinedesk_main.pos_fingerprint(), dinedesk_main.pos_recognise(),
    dinedesk_main.pos_begin_epochs(integer[], uuid[], bigint[], bigint[]),
    dinedesk_main.pos_places(integer[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_fingerprint(), dinedesk_main.pos_recognise(),
    dinedesk_main.pos_begin_epochs(integer[], uuid[], bigint[], bigint[]),
    dinedesk_main.pos_places(integer[], text[]) TO posd;

GRANT SELECT, DELETE ON dinedesk_main.pos_outbox TO posd;
GRANT SELECT, UPDATE (first_id), DELETE ON dinedesk_main.pos_outbox_transactions TO posd;
-- What LOCK TABLE asks for.
GRANT UPDATE ON dinedesk_main.pos_sequencing TO posd;
-- Nobody but pos_prune() says that events are gone, and nobody but pos_begin_epochs() that a name has ended.
GRANT SELECT, UPDATE (last_seq, sent_seq, received_seq, acknowledged) ON dinedesk_main.pos_heads TO posd;
GRANT SELECT ON dinedesk_main.pos_stream_epochs TO posd;
GRANT USAGE ON SEQUENCE dinedesk_main.pos_log_id TO posd;
GRANT SELECT, INSERT ON dinedesk_main.pos_events, dinedesk_main.pos_unsequenced, dinedesk_main.pos_nacks TO posd;
GRANT SELECT, INSERT, UPDATE ON dinedesk_main.pos_cursors TO posd;
GRANT SELECT, INSERT, UPDATE, DELETE ON dinedesk_main.pos_nodes, dinedesk_main.pos_connections TO posd;
GRANT SELECT ON dinedesk_main.pos_connected TO posd;
GRANT SELECT ON dinedesk_main.pos_incarnation TO posd;
