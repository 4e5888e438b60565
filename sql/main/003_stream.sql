-- The state of streams: the outbox, the heads, the log, the cursors of terminals, and the connections of nodes.

-- The outbox. pos_publish() and the hooks fill it in the shop's own transaction; the sequencer empties it. It has
-- no foreign key and no check that reads a table: a shop's transaction must not wait, conflict or fail here. For
-- the same reason vacuum must not truncate it, which takes an exclusive lock.
CREATE TABLE dinedesk_main.pos_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id integer NOT NULL,
    -- An event type if there is `data`. If there is a `key`, the kind of row that a hook has noted: 'order',
    -- 'placed' (an inserted order), or a kind of ledger row.
    type text NOT NULL,
    key text,
    -- JSON, serialised by the publisher. In jsonb the number 1e131071 takes some bytes, and as text a hundred
    -- thousand. As text its length is known without parsing, and posd need not serialise it.
    data text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The transaction that inserted the row.
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    -- 'order' and 'placed' rows are about orders, which posd reads from the shop's tables. 'plain' rows need no
    -- reading.
    kind text COLLATE "C" NOT NULL GENERATED ALWAYS AS (
        CASE WHEN key IS NOT NULL AND type IN ('order', 'placed') THEN type ELSE 'plain' END) STORED,
    CHECK ((key IS NULL) <> (data IS NULL)),
    -- The key begins with the transaction, because only rows of committed transactions are read
    -- (pos_outbox_transactions).
    PRIMARY KEY (tenant_id, xact, kind, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);

-- The transactions that have rows in the outbox. A transaction inserts one row here per tenant and kind, with its
-- first outbox row of that kind. `first_id` is the lowest id of these outbox rows that is still there.
--
-- posd finds the rows of the outbox by this table, so it reads rows of committed transactions only. An index also
-- has entries for rows of open and of rolled-back transactions, and PostgreSQL skips these one by one: 2,000,000
-- rows of one shop's open transaction made each read take three seconds, for all shops. Such a transaction has
-- three rows here at most.
CREATE TABLE dinedesk_main.pos_outbox_transactions (
    tenant_id integer NOT NULL,
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    kind text COLLATE "C" NOT NULL,
    first_id bigint NOT NULL,
    -- A transaction can conflict only with itself, so no transaction waits here.
    PRIMARY KEY (tenant_id, xact, kind)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);

-- The session that has locked this table is the only active sequencer. It is not an advisory lock, because any role
-- that can connect could take one and block all shops.
CREATE TABLE dinedesk_main.pos_sequencing ();

CREATE TABLE dinedesk_main.pos_heads (
    tenant_id integer PRIMARY KEY REFERENCES dinedesk_main.tenants ON DELETE CASCADE,
    -- The present name of the stream, to which positions belong. pos_stream_epochs has the earlier names.
    stream_id uuid NOT NULL DEFAULT gen_random_uuid(),
    last_seq bigint NOT NULL DEFAULT 0,
    pruned_seq bigint NOT NULL DEFAULT 0,
    -- The highest positions of all terminals: written to a socket, and acknowledged.
    sent_seq bigint NOT NULL DEFAULT 0,
    received_seq bigint NOT NULL DEFAULT 0,
    -- Counters of events: acknowledged by a terminal, and pruned without an acknowledgement. The events above
    -- received_seq are rows. The sum of these three numbers is last_seq.
    acknowledged bigint NOT NULL DEFAULT 0 CHECK (acknowledged >= 0),
    expired bigint NOT NULL DEFAULT 0 CHECK (expired >= 0),
    -- All rows that retention allows to delete and that are older than this time have been deleted.
    pruned_before timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (pruned_seq <= last_seq AND sent_seq <= last_seq AND received_seq <= last_seq)
) WITH (fillfactor = 50);

-- The names that a stream has had. A name ends when the database may lack events that tills have received. Events
-- up to `ended_seq` are also events of the present stream; a later loss lowers it for all earlier names. NULL: the
-- present name. tenant_id has no foreign key: after a promotion all tenants get a row before any event is numbered,
-- and the look-ups would take two fifths of that time.
CREATE TABLE dinedesk_main.pos_stream_epochs (
    tenant_id integer NOT NULL,
    stream_id uuid NOT NULL,
    -- The last event that the stream had when the name began. A connected terminal that does not send positions
    -- continues after it.
    began_seq bigint NOT NULL DEFAULT 0 CHECK (began_seq >= 0),
    ended_seq bigint CHECK (ended_seq >= 0),
    began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, stream_id)
);
CREATE UNIQUE INDEX pos_stream_epochs_present ON dinedesk_main.pos_stream_epochs (tenant_id) WHERE ended_seq IS NULL;

-- The log and the nacks of all tenants. All keys begin with tenant_id: a batch of many tenants is one INSERT,
-- planned once, and each tenant reads its own range of the index. The schema of a tenant has views of its rows
-- (sql/tenant/001_stream.sql). tenant_id has no foreign key, which would cost a look-up and a row lock per row;
-- pos_prune_deleted() deletes the rows of deleted tenants.

-- The common order of pos_events and pos_unsequenced, for the `id` of pos_sync_logs.
CREATE SEQUENCE dinedesk_main.pos_log_id;

CREATE TABLE dinedesk_main.pos_events (
    tenant_id integer NOT NULL,
    -- The position, gapless within a tenant.
    seq bigint NOT NULL CHECK (seq > 0),
    id bigint NOT NULL DEFAULT nextval('dinedesk_main.pos_log_id'),
    event_type text NOT NULL,
    -- `json` and not `jsonb`: tills receive the compact text that the sequencer wrote, with its members in the
    -- documented order. jsonb would change spaces and order.
    event_data json NOT NULL,
    beside json,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, seq)
-- Rows are inserted once, and deleted by retention. The default of a fifth of the table would be too many dead
-- rows.
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.02);
-- Long texts are compressed per row. lz4 takes a fraction of the time of pglz, the default, but some builds of
-- PostgreSQL do not have it.
DO $$
BEGIN
    ALTER TABLE dinedesk_main.pos_events ALTER event_data SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;
CREATE INDEX pos_events_by_age ON dinedesk_main.pos_events (tenant_id, created_at);

-- Entries without a position, which are not sent to tills: messages of tills (`device_id`), and events that could
-- not be published (`failure`).
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

-- Nacks: events that a till could not process.
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
    -- The stream_id in which the terminal acknowledged this position. NULL: the terminal was sent events that the
    -- present stream does not have, and must reload.
    stream_id uuid,
    acked_at timestamptz,
    -- A requested replay: the events after this position are sent again. The cursor moves back only when the
    -- terminal connects, so that no earlier acknowledgement can move it forward again.
    replay_after bigint CHECK (replay_after >= 0),
    replayed_at timestamptz,
    PRIMARY KEY (tenant_id, device_id),
    FOREIGN KEY (tenant_id, device_id) REFERENCES dinedesk_main.pos_devices ON DELETE CASCADE
) WITH (fillfactor = 70);
CREATE INDEX pos_cursors_replayed ON dinedesk_main.pos_cursors (tenant_id) WHERE replay_after IS NOT NULL;

-- A node renews one lease for all its connections; the connections of a dead node end with it. Unlogged: after a
-- crash of PostgreSQL no till is connected, and the nodes insert their rows again.
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
    -- Set when the connection has become the only live connection of its device.
    claimed_at timestamptz
) WITH (fillfactor = 50);
CREATE INDEX pos_connections_of_tenant ON dinedesk_main.pos_connections (tenant_id, device_id);
CREATE INDEX pos_connections_of_node ON dinedesk_main.pos_connections (node_id);

CREATE VIEW dinedesk_main.pos_connected AS
    SELECT c.* FROM dinedesk_main.pos_connections AS c
      JOIN dinedesk_main.pos_nodes AS n USING (node_id)
     WHERE n.lease_until > now();

-- The incarnation of the database. A restored base backup or a promoted standby has another timeline; a restored
-- dump is in another database or cluster.
CREATE TABLE dinedesk_main.pos_incarnation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    fingerprint text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    -- The salt for the hashes that are keys of advisory locks. Any role that can connect can take an advisory lock,
    -- so a shop must not be able to compute the key for another shop's call.
    salt uuid NOT NULL DEFAULT gen_random_uuid()
);

-- The timeline of the WAL that is being written. pg_control_checkpoint() shows the old timeline until the first
-- checkpoint after a promotion, which may take minutes.
CREATE FUNCTION dinedesk_main.pos_fingerprint() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%s/%s/%s', (SELECT system_identifier FROM pg_control_system()),
                  left(pg_walfile_name(pg_current_wal_lsn()), 8),
                  (SELECT oid FROM pg_database WHERE datname = current_database()))
$$;
INSERT INTO dinedesk_main.pos_incarnation (fingerprint) VALUES (dinedesk_main.pos_fingerprint());

-- End the present names of the streams of these tenants and begin new names. `stream_ids` are the names that the
-- caller has seen: a stream with another name is left unchanged, because another caller was faster. The events of
-- the old name up to `ended_seqs` stay events of the stream; the new name begins at `began_seqs`. A NULL array
-- means any name, or the head.
--
-- Returns the tenants whose streams have new names. Names without common events that still exist are deleted.
CREATE FUNCTION dinedesk_main.pos_begin_epochs(
    tenant_ids integer[], stream_ids uuid[], ended_seqs bigint[], began_seqs bigint[])
RETURNS SETOF integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids integer[];
    ended bigint[];
    began bigint[];
BEGIN
    -- All functions that lock several heads lock them in this order.
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

-- Return true if the database is the same as before. If not, give all streams new names, once: events that tills
-- have received after the last event in this database may be lost. The function is called in the transaction that
-- numbers events, before they are numbered, because a pooler may have moved a connection to the new primary.
--
-- After recovery, a server process stays on one database and one timeline. So it checks once, which takes half a
-- millisecond, and then remembers the result in a setting. A rollback also reverts the setting.
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
    -- The first of several concurrent callers changes the row. The others wait here for it, and then find nothing
    -- to change.
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

-- The rows that belong to a new tenant and to a new device key.
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
    -- Nodes may have cached that the device can use the tenant's key.
    PERFORM dinedesk_main.pos_tell('tenant ' || NEW.tenant_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER pos_begin_device AFTER INSERT ON dinedesk_main.pos_api_keys
    FOR EACH ROW WHEN (NEW.kind = 'device') EXECUTE FUNCTION dinedesk_main.pos_begin_device();

-- Publish an event by SQL, in the caller's transaction. The sequencer validates the event after the commit: an
-- invalid event becomes `failed`, and does not fail the caller's transaction.
--
-- The function finds the tenant in the system catalogs, where SERIALIZABLE transactions cannot conflict. If it read
-- `tenants`, a shop's transaction could fail because another session changes a tenant. Only posd_owner can create
-- functions in posd_hooks.
CREATE FUNCTION dinedesk_main.pos_publish(slug text, type text, data jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- translate() and not replace(), so that only one slug leads to a schema.
    shop text := 'dinedesk_' || translate(slug, '-_', '_-');
    enqueue text := 'enqueue_event$' || translate(slug, '-_', '_-');
    published bigint;
BEGIN
    -- An unknown tenant and another shop's tenant cause the same error.
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
-- ALTER FUNCTION … OWNER requires that the new owner has CREATE on the schema; it is revoked below.
GRANT CREATE ON SCHEMA dinedesk_main TO posd_hook;
ALTER FUNCTION dinedesk_main.pos_publish(text, text, jsonb) OWNER TO posd_hook;
REVOKE CREATE ON SCHEMA dinedesk_main FROM posd_hook;
GRANT INSERT ON dinedesk_main.pos_outbox TO posd_hook;
-- INSERT … RETURNING needs SELECT on the returned column.
GRANT SELECT (id) ON dinedesk_main.pos_outbox TO posd_hook;
-- ON CONFLICT without columns needs no SELECT.
GRANT INSERT ON dinedesk_main.pos_outbox_transactions TO posd_hook;

-- The positions of terminals, by tenant and device id; the device id is NULL for a terminal without one. `known`:
-- the device has a row; `spoke`: it has acknowledged an event; `recalled`: a replay has been requested; `astray`:
-- its cursor belongs to an earlier stream_id, which ended below the cursor; `renamed_ago`: the seconds since that
-- stream_id ended. It runs with the caller's privileges.
--
-- Every till that connects causes a call. Planning the statement takes six times as long as executing it, so it is
-- planned once per connection to the database. The settings restrict the plan to indexes, because tables may be
-- small when the plan is made.
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
-- LOCK TABLE requires this privilege.
GRANT UPDATE ON dinedesk_main.pos_sequencing TO posd;
-- Only pos_prune() can move pruned_seq, and only pos_begin_epochs() can end a name.
GRANT SELECT, UPDATE (last_seq, sent_seq, received_seq, acknowledged) ON dinedesk_main.pos_heads TO posd;
GRANT SELECT ON dinedesk_main.pos_stream_epochs TO posd;
GRANT USAGE ON SEQUENCE dinedesk_main.pos_log_id TO posd;
GRANT SELECT, INSERT ON dinedesk_main.pos_events, dinedesk_main.pos_unsequenced, dinedesk_main.pos_nacks TO posd;
GRANT SELECT, INSERT, UPDATE ON dinedesk_main.pos_cursors TO posd;
GRANT SELECT, INSERT, UPDATE, DELETE ON dinedesk_main.pos_nodes, dinedesk_main.pos_connections TO posd;
GRANT SELECT ON dinedesk_main.pos_connected TO posd;
GRANT SELECT ON dinedesk_main.pos_incarnation TO posd;
