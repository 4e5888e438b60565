-- A tenant's views of the log, and its functions. `posctl migrate` replaces `:"schema"`, `:tenant_id`,
-- `:"hook_role"`, `:"note_role"` and `:shop` (the schema's name without `dinedesk_`) everywhere, including function
-- bodies.
--
-- posd's functions for a tenant are in the schema posd_hooks, as `<name>$<shop>`. A shop may have CREATE on its own
-- schema: a function of posd there could be hidden by a function of the shop with the same name and better matching
-- arguments, which would then run with posd's privileges.

-- The rows are in dinedesk_main, in tables shared by all tenants. These views show the tenant's rows under the
-- names of the earlier tables. A role with SELECT on them sees no other tenant's rows, and needs no privilege in
-- dinedesk_main: a view reads with the privileges of its owner, posd_owner. security_barrier: a function of the
-- reader in a condition is not evaluated before the condition on `tenant_id`, so it never sees another tenant's row
-- (https://www.postgresql.org/docs/current/rules-privileges.html).
CREATE VIEW :"schema".pos_events WITH (security_barrier) AS
    SELECT e.id, e.seq, e.event_type, e.event_data, e.beside, e.created_at
      FROM dinedesk_main.pos_events AS e WHERE e.tenant_id = :tenant_id;

CREATE VIEW :"schema".pos_nacks WITH (security_barrier) AS
    SELECT n.seq, n.device_id, n.reason, n.created_at
      FROM dinedesk_main.pos_nacks AS n WHERE n.tenant_id = :tenant_id;

CREATE VIEW :"schema".pos_unsequenced WITH (security_barrier) AS
    SELECT u.id, u.event_type, u.event_data, u.device_id, u.failure, u.created_at
      FROM dinedesk_main.pos_unsequenced AS u WHERE u.tenant_id = :tenant_id;

-- The whole log, under the name of an earlier table. `status` is computed from positions. The view reads the views
-- above and not the tables: PostgreSQL pushes conditions into the parts of a UNION ALL although the view is a
-- barrier, so the parts must be barriers themselves.
CREATE VIEW :"schema".pos_sync_logs WITH (security_barrier) AS
    SELECT e.id, e.seq, e.event_type, e.event_data,
           CASE WHEN EXISTS (SELECT FROM dinedesk_main.pos_nacks AS n
                              WHERE n.tenant_id = :tenant_id AND n.seq = e.seq) THEN 'failed'
                WHEN e.seq <= h.received_seq THEN 'success'
                WHEN e.seq <= h.sent_seq THEN 'broadcast'
                ELSE 'pending' END AS status,
           NULL::text AS device_id, NULL::text AS failure, e.created_at
      FROM :"schema".pos_events AS e JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = :tenant_id
    UNION ALL
    SELECT u.id, NULL::bigint, u.event_type, u.event_data,
           CASE WHEN u.failure IS NULL THEN 'received' ELSE 'failed' END, u.device_id, u.failure, u.created_at
      FROM :"schema".pos_unsequenced AS u;

GRANT SELECT ON :"schema".pos_events, :"schema".pos_nacks, :"schema".pos_unsequenced, :"schema".pos_sync_logs
    TO posd;

-- The hooks call this function. The tenant's id is part of it, so a hook can write for its own shop only. Keys are
-- shortened, because a shop determines their length and the sequencer reads the keys of many rows at once; an id
-- may have 255 characters.
CREATE FUNCTION posd_hooks.enqueue$:shop(kind text, keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first_id bigint;
BEGIN
    WITH noted AS (
        INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, key)
        SELECT :tenant_id, kind, left(k, 256) FROM unnest(keys) AS k WHERE k <> ''
        RETURNING id
    )
    SELECT min(n.id) INTO first_id FROM noted AS n;
    IF first_id IS NOT NULL THEN
        INSERT INTO dinedesk_main.pos_outbox_transactions (tenant_id, kind, first_id)
        VALUES (:tenant_id, CASE WHEN kind IN ('order', 'placed') THEN kind ELSE 'plain' END, first_id)
        ON CONFLICT DO NOTHING;
        PERFORM dinedesk_main.pos_ring();
    END IF;
END
$$;
REVOKE ALL ON FUNCTION posd_hooks.enqueue$:shop(text, text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION posd_hooks.enqueue$:shop(text, text[]) TO :"note_role";

-- pos_publish() calls this function as its owner. No other role may call it.
CREATE FUNCTION posd_hooks.enqueue_event$:shop(type text, data jsonb) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    published bigint;
BEGIN
    -- A longer type is as invalid as its beginning.
    INSERT INTO dinedesk_main.pos_outbox (tenant_id, type, data)
    VALUES (:tenant_id, left(enqueue_event$:shop.type, 100), enqueue_event$:shop.data::text)
    RETURNING id INTO published;
    INSERT INTO dinedesk_main.pos_outbox_transactions (tenant_id, kind, first_id)
    VALUES (:tenant_id, 'plain', published) ON CONFLICT DO NOTHING;
    PERFORM dinedesk_main.pos_ring();
    RETURN published;
END
$$;
REVOKE ALL ON FUNCTION posd_hooks.enqueue_event$:shop(text, jsonb) FROM PUBLIC;

-- Reads the present rows of the shop's orders. Until `orders` is hooked, it returns no rows.
CREATE FUNCTION posd_hooks.read_orders$:shop(keys text[]) RETURNS TABLE (order_id text, content text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
END
$$;
REVOKE ALL ON FUNCTION posd_hooks.read_orders$:shop(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION posd_hooks.read_orders$:shop(text[]) TO posd_reader;

GRANT USAGE ON SCHEMA :"schema" TO posd, :"hook_role";
-- ALTER FUNCTION … OWNER requires that the new owner has CREATE on the function's schema. It is granted and revoked
-- in one transaction, so no other session sees it.
GRANT CREATE ON SCHEMA posd_hooks TO posd_hook, :"hook_role";
ALTER FUNCTION posd_hooks.enqueue$:shop(text, text[]) OWNER TO posd_hook;
ALTER FUNCTION posd_hooks.enqueue_event$:shop(text, jsonb) OWNER TO posd_hook;
ALTER FUNCTION posd_hooks.read_orders$:shop(text[]) OWNER TO :"hook_role";
REVOKE CREATE ON SCHEMA posd_hooks FROM posd_hook, :"hook_role";

-- Views of the tenant's orders and of the reports of its terminals, like those above.

CREATE VIEW :"schema".pos_orders WITH (security_barrier) AS
    SELECT o.order_id, o.snapshot, o.status, o.version, o.print_status, o.print_reason, o.payment_status,
           o.device_id, o.received_at, o.accepted_at, o.printed_at, o.created_at, o.updated_at, o.first_seq,
           o.last_seq, o.pushed_at, o.paid_at
      FROM dinedesk_main.pos_orders AS o WHERE o.tenant_id = :tenant_id;

CREATE VIEW :"schema".pos_order_terminals WITH (security_barrier) AS
    SELECT t.order_id, t.device_id, t.received_at, t.accepted_at, t.printed_at, t.failed_at
      FROM dinedesk_main.pos_order_terminals AS t WHERE t.tenant_id = :tenant_id;

GRANT SELECT ON :"schema".pos_orders, :"schema".pos_order_terminals TO posd;
