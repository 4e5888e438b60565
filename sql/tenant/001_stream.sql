-- One tenant's log. `:"schema"`, `:tenant_id` and `:"hook_role"` are filled in by `posctl migrate` wherever
-- they stand, function bodies included.

CREATE TABLE :"schema".pos_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The position, gapless. NULL: not for tills (what a till said, and what could not be published).
    seq bigint UNIQUE CHECK (seq > 0),
    event_type text NOT NULL,
    -- `json`, not `jsonb`: the compact text that the sequencer wrote goes to the tills as it is, with its
    -- members in the contract's order. jsonb would bring back spaces and an order of its own.
    event_data json NOT NULL,
    beside json,
    device_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    failure text,
    CHECK (seq IS NULL OR (failure IS NULL AND device_id IS NULL))
);
CREATE INDEX pos_events_by_age ON :"schema".pos_events (created_at);

CREATE TABLE :"schema".pos_nacks (
    seq bigint NOT NULL,
    device_id text NOT NULL,
    reason text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (seq, device_id)
);

-- The deployed table of this name, as a view: `status` follows from the positions.
CREATE VIEW :"schema".pos_sync_logs AS
    SELECT e.id, e.seq, e.event_type, e.event_data,
           CASE WHEN e.failure IS NOT NULL
                  OR EXISTS (SELECT FROM :"schema".pos_nacks AS n WHERE n.seq = e.seq) THEN 'failed'
                WHEN e.seq IS NULL THEN 'received'
                WHEN e.seq <= h.received_seq THEN 'success'
                WHEN e.seq <= h.sent_seq THEN 'broadcast'
                ELSE 'pending' END AS status,
           e.device_id, e.failure, e.created_at
      FROM :"schema".pos_events AS e
      JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = :tenant_id;

CREATE TABLE :"schema".pos_orders (
    order_id text PRIMARY KEY CHECK (order_id <> ''),
    snapshot json NOT NULL,
    status text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    print_status text NOT NULL DEFAULT 'pending'
        CHECK (print_status IN ('pending', 'sent_to_pos', 'printed', 'failed')),
    print_reason text,
    payment_status text,
    device_id text,
    received_at timestamptz,
    accepted_at timestamptz,
    printed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX pos_orders_by_age ON :"schema".pos_orders (created_at);
CREATE INDEX pos_orders_unprinted ON :"schema".pos_orders (created_at) WHERE print_status <> 'printed';

-- What the hooks call. The tenant is built in, so a hook can only ever speak for its own shop. The NOTIFY
-- only makes it quicker, and a session that uses PREPARE TRANSACTION, which refuses a transaction that has
-- notified, may `SET posd.notify = 'off'`.
CREATE FUNCTION :"schema".pos_enqueue(kind text, keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, key)
    SELECT :tenant_id, kind, k FROM unnest(keys) AS k WHERE k IS NOT NULL;
    IF FOUND AND current_setting('posd.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('posd_outbox', '');
    END IF;
END
$$;
REVOKE ALL ON FUNCTION :"schema".pos_enqueue(text, text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION :"schema".pos_enqueue(text, text[]) TO :"hook_role";

-- What pos_publish() calls, as its owner; nobody else may.
CREATE FUNCTION :"schema".pos_enqueue_event(type text, data jsonb) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    published bigint;
BEGIN
    -- A longer type is as wrong as its beginning.
    INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, data)
    VALUES (:tenant_id, left(pos_enqueue_event.type, 100), pos_enqueue_event.data::text)
    RETURNING id INTO published;
    IF current_setting('posd.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('posd_outbox', '');
    END IF;
    RETURN published;
END
$$;
REVOKE ALL ON FUNCTION :"schema".pos_enqueue_event(text, jsonb) FROM PUBLIC;

-- Reads the shop's orders as they are now. Until `orders` is hooked there is nothing to read.
CREATE FUNCTION :"schema".pos_read_orders(keys text[]) RETURNS TABLE (order_id text, content json)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT NULL::text, NULL::json WHERE false
$$;
REVOKE ALL ON FUNCTION :"schema".pos_read_orders(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION :"schema".pos_read_orders(text[]) TO posd;

GRANT USAGE ON SCHEMA :"schema" TO posd, posd_hook, :"hook_role";
-- A function's new owner must be allowed to make one in its schema, for the moment of the change.
GRANT CREATE ON SCHEMA :"schema" TO posd_hook, :"hook_role";
ALTER FUNCTION :"schema".pos_enqueue(text, text[]) OWNER TO posd_hook;
ALTER FUNCTION :"schema".pos_enqueue_event(text, jsonb) OWNER TO posd_hook;
ALTER FUNCTION :"schema".pos_read_orders(text[]) OWNER TO :"hook_role";
REVOKE CREATE ON SCHEMA :"schema" FROM posd_hook, :"hook_role";

GRANT SELECT, INSERT ON :"schema".pos_events, :"schema".pos_nacks TO posd;
GRANT SELECT ON :"schema".pos_sync_logs TO posd;
GRANT SELECT, INSERT, UPDATE ON :"schema".pos_orders TO posd;
