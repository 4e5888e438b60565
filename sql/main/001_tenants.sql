-- Tenants, their terminals and everybody's credentials.

CREATE TABLE dinedesk_main.tenants (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slug text NOT NULL CONSTRAINT tenants_slug_unique UNIQUE,
    name text NOT NULL CONSTRAINT tenants_name_given CHECK (name <> ''),
    -- Follows from the slug. pos_publish() and the name of the tenant's role rely on it.
    schema_name text NOT NULL CONSTRAINT tenants_schema_unique UNIQUE
        CONSTRAINT tenants_schema_of_slug CHECK (schema_name = 'dinedesk_' || replace(slug, '-', '_')),
    currency text NOT NULL DEFAULT 'GBP' CONSTRAINT tenants_currency_form CHECK (currency ~ '^[A-Z]{3}$'),
    -- An unknown zone is an error of AT TIME ZONE.
    timezone text NOT NULL DEFAULT 'Europe/London' CHECK (timestamptz 'epoch' AT TIME ZONE timezone IS NOT NULL),
    default_region text NOT NULL DEFAULT 'GB' CHECK (default_region ~ '^[A-Z]{2}$'),
    is_active boolean NOT NULL DEFAULT true,
    tills_sell_gift_cards boolean NOT NULL DEFAULT false,
    -- Holds a preview, never the key: see pos_tenant_key() below.
    pos_api_key text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What loyalty points are worth, and to whom the shop gives any. posd reads these in the transaction of each
    -- movement, so an UPDATE counts at once.
    loyalty_enabled boolean NOT NULL DEFAULT true,
    -- Whether the first points that somebody is given make an account.
    loyalty_opens_accounts boolean NOT NULL DEFAULT true,
    -- For tills, which count the points of a bill; posd does not know what was spent.
    loyalty_points_per_pound numeric(8, 2) NOT NULL DEFAULT 1
        CHECK (loyalty_points_per_pound >= 0 AND loyalty_points_per_pound <> 'NaN'),
    -- What one point is worth when it is redeemed, in the shop's currency.
    loyalty_redemption_rate numeric(8, 4) NOT NULL DEFAULT 0.01
        CHECK (loyalty_redemption_rate >= 0 AND loyalty_redemption_rate <> 'NaN'),
    -- Points are redeemed in multiples of the increment, and no fewer than the minimum.
    loyalty_minimum_redeem integer NOT NULL DEFAULT 1 CHECK (loyalty_minimum_redeem > 0),
    loyalty_increment integer NOT NULL DEFAULT 1 CHECK (loyalty_increment > 0),
    -- See pos_note_change() below.
    changed_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT tenants_slug_form CHECK (slug ~ '^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$'),
    CONSTRAINT tenants_slug_reserved CHECK (
        slug NOT IN ('main', 'pos', 'admin', 'tenant', 'super-admin', 'customer', 'auth', 'health'))
);

CREATE TABLE dinedesk_main.pos_devices (
    tenant_id integer NOT NULL REFERENCES dinedesk_main.tenants ON DELETE CASCADE,
    device_id text NOT NULL CHECK (device_id <> '' AND char_length(device_id) <= 128),
    device_name text,
    -- Whether the device ever had a key of its own; then it is usable only with one.
    has_key boolean NOT NULL DEFAULT false,
    is_active boolean NOT NULL DEFAULT true,
    -- NULL: a legacy terminal, which never acknowledged and never named a position.
    first_acked_at timestamptz,
    last_seen_at timestamptz,
    app_version text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What the terminal tells of itself from time to time, as `app_version`.
    status text,
    pending_acks integer,
    pending_orders integer,
    last_print_at timestamptz,
    PRIMARY KEY (tenant_id, device_id)
);

CREATE TABLE dinedesk_main.pos_api_keys (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL: a platform or admin key of all tenants. Deferred, since a tenant's key may be written
    -- in the INSERT that makes the tenant.
    tenant_id integer REFERENCES dinedesk_main.tenants ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    kind text NOT NULL CHECK (kind IN ('tenant', 'device', 'platform', 'admin')),
    device_id text CHECK (char_length(device_id) <= 128),
    key_sha256 bytea NOT NULL CHECK (octet_length(key_sha256) = 32),
    preview text NOT NULL,
    -- Not one of posd's own (`pos_` and 32 random bytes in hex), so perhaps guessable.
    weak boolean NOT NULL DEFAULT false,
    -- Written into tenants.pos_api_key, and replaced by the next value written there.
    from_column boolean NOT NULL DEFAULT false,
    not_before timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- See pos_note_change() below.
    changed_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CHECK ((kind = 'device') = (device_id IS NOT NULL)),
    CHECK (kind IN ('platform', 'admin') OR tenant_id IS NOT NULL)
);
-- NULLS NOT DISTINCT came with PostgreSQL 15; tenant ids begin at 1.
CREATE UNIQUE INDEX pos_api_keys_one_per_tenant
    ON dinedesk_main.pos_api_keys (key_sha256, (coalesce(tenant_id, 0)));
CREATE INDEX pos_api_keys_of_tenant ON dinedesk_main.pos_api_keys (tenant_id);


-- Operators write `UPDATE tenants SET pos_api_key = '…'`. The statement does what it always did,
-- but what is stored is a hash among the credentials and a preview here. Object-relational mappers
-- write whole rows back, so an unchanged value and anything with an ellipsis in it means nothing.
CREATE FUNCTION dinedesk_main.pos_tenant_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    secret text := NEW.pos_api_key;
    before text := CASE WHEN TG_OP = 'UPDATE' THEN OLD.pos_api_key END;
    key_id integer;
BEGIN
    IF secret IS NOT DISTINCT FROM before OR position('…' IN secret) > 0 THEN
        NEW.pos_api_key := before;
        RETURN NEW;
    END IF;
    IF secret !~ '^[\x21-\x7e]{8,255}$' THEN
        RAISE EXCEPTION 'pos_api_key must be 8 to 255 visible ASCII characters' USING ERRCODE = 'check_violation';
    END IF;
    IF TG_OP = 'INSERT' THEN
        -- Where the slug is taken this row is not stored, and its key comes back in the UPDATE of an
        -- ON CONFLICT clause if there is one. The lock keeps it taken.
        PERFORM FROM dinedesk_main.tenants AS t WHERE t.slug = NEW.slug FOR KEY SHARE;
        IF FOUND THEN
            RETURN NEW;
        END IF;
    END IF;
    UPDATE dinedesk_main.pos_api_keys SET revoked_at = now()
     WHERE tenant_id = NEW.id AND from_column AND revoked_at IS NULL
       AND key_sha256 IS DISTINCT FROM sha256(convert_to(secret, 'UTF8'));
    IF secret IS NOT NULL THEN
        NEW.pos_api_key := left(secret, least(8, char_length(secret) / 8)) || '…'
            || right(secret, least(4, char_length(secret) / 12));
        INSERT INTO dinedesk_main.pos_api_keys AS k (tenant_id, kind, key_sha256, preview, weak, from_column)
        VALUES (NEW.id, 'tenant', sha256(convert_to(secret, 'UTF8')), NEW.pos_api_key,
                secret !~ '^pos_[0-9a-f]{64}$', true)
        ON CONFLICT (key_sha256, (coalesce(tenant_id, 0)))
        DO UPDATE SET revoked_at = NULL, expires_at = NULL, not_before = least(k.not_before, now()),
                      from_column = true
            WHERE k.kind = 'tenant'
        RETURNING k.id INTO key_id;
        IF key_id IS NULL THEN
            RAISE EXCEPTION 'this key belongs to a terminal' USING ERRCODE = 'unique_violation';
        END IF;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER pos_tenant_key_insert BEFORE INSERT ON dinedesk_main.tenants
    FOR EACH ROW WHEN (NEW.pos_api_key IS NOT NULL) EXECUTE FUNCTION dinedesk_main.pos_tenant_key();
CREATE TRIGGER pos_tenant_key_update BEFORE UPDATE OF pos_api_key ON dinedesk_main.tenants
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_tenant_key();

-- NOTIFY, unless the queue of notifications is half full. Any role that can connect can fill the queue: a session that
-- listens and stays in a transaction keeps everything in it. A NOTIFY into a full queue fails the transaction at its
-- COMMIT, so every shop's orders would fail. A notification only makes things quicker: posd looks at the tables too.
-- It has its caller's rights only, and the callers are triggers that any role may fire which changes a row.
CREATE FUNCTION dinedesk_main.pos_notify(channel text, payload text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify(channel, payload);
    END IF;
END
$$;

-- What nodes have to know at once: `key id`, `keys` (some are new), `tenant id`, `superseded id` and `disconnect id` of
-- a connection, `erased id` of a tenant. Nodes read the rows that are new to them when they are notified, and at the
-- poll. The notification has no payload, since anybody who can connect hears it, and can send one. Unlogged: after a
-- crash of PostgreSQL nobody is connected. Rows are deleted after some minutes.
CREATE UNLOGGED TABLE dinedesk_main.pos_control (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    what text NOT NULL,
    changed_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
    told_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION dinedesk_main.pos_tell(what text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO dinedesk_main.pos_control (what) VALUES (pos_tell.what);
    PERFORM dinedesk_main.pos_notify('posd_control', '');
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_tell(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_tell(text) TO posd;
GRANT SELECT, DELETE ON dinedesk_main.pos_control TO posd;

-- Every node drops what it has cached of a tenant or a key as soon as that changes or goes, and closes
-- the connections that stand on it. `last_used_at` is not news.
CREATE FUNCTION dinedesk_main.pos_tell_nodes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM dinedesk_main.pos_tell(TG_ARGV[0] || ' ' || CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END);
    RETURN NULL;
END
$$;
CREATE TRIGGER pos_tell_nodes AFTER INSERT OR DELETE ON dinedesk_main.tenants
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_tell_nodes('tenant');
CREATE TRIGGER pos_tell_nodes_update AFTER UPDATE ON dinedesk_main.tenants
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION dinedesk_main.pos_tell_nodes('tenant');
CREATE TRIGGER pos_tell_nodes AFTER DELETE ON dinedesk_main.pos_api_keys
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_tell_nodes('key');
CREATE TRIGGER pos_tell_nodes_update AFTER UPDATE ON dinedesk_main.pos_api_keys
    FOR EACH ROW WHEN (
        -- Not as rows, which PostgreSQL keeps in a form that a dump and its restore would change.
        OLD.tenant_id IS DISTINCT FROM NEW.tenant_id
        OR OLD.kind IS DISTINCT FROM NEW.kind
        OR OLD.device_id IS DISTINCT FROM NEW.device_id
        OR OLD.key_sha256 IS DISTINCT FROM NEW.key_sha256
        OR OLD.not_before IS DISTINCT FROM NEW.not_before
        OR OLD.expires_at IS DISTINCT FROM NEW.expires_at
        OR OLD.revoked_at IS DISTINCT FROM NEW.revoked_at
    ) EXECUTE FUNCTION dinedesk_main.pos_tell_nodes('key');

-- For platform code that used to compare the column itself. The caller must be allowed into that
-- tenant's schema, so one shop's role cannot try keys of another.
CREATE FUNCTION dinedesk_main.pos_key_ok(slug text, key text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM dinedesk_main.tenants AS t
          JOIN dinedesk_main.pos_api_keys AS k ON k.tenant_id = t.id
         WHERE t.slug = pos_key_ok.slug AND t.is_active
           AND k.key_sha256 = sha256(convert_to(pos_key_ok.key, 'UTF8')) AND k.kind IN ('tenant', 'device')
           AND k.revoked_at IS NULL AND k.not_before <= now() AND (k.expires_at IS NULL OR k.expires_at > now())
           AND has_schema_privilege(session_user, to_regnamespace(quote_ident(t.schema_name)), 'USAGE')
    )
$$;

-- A daemon that was taken over cannot bring a revoked key back. pos_tenant_key() can, for an operator.
CREATE FUNCTION dinedesk_main.pos_keep_revoked() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_has_role('posd_owner', 'MEMBER') THEN
        RAISE EXCEPTION 'the key % is revoked and stays so', OLD.id USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER pos_keep_revoked BEFORE UPDATE OF revoked_at ON dinedesk_main.pos_api_keys
    FOR EACH ROW WHEN (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at)
    EXECUTE FUNCTION dinedesk_main.pos_keep_revoked();

-- What keys open at the doors of tenants, one row for each that fits, by the `number` of its slug in the array: the key,
-- whether it is of all tenants, for how many seconds it is still valid, what is known of the device that the key or the
-- caller names, the migrations of the tenant's schema, and the tenant. A key of a tenant and the same key of all tenants
-- can both exist; the narrower one speaks. It runs with the caller's rights. One key may be of many tenants, so each is
-- looked for by both columns of its index.
--
-- Every caller whose key is not remembered asks this. It is planned once for each connection to the database, and by
-- indexes, for the reasons that pos_places() has (003_stream.sql).
CREATE FUNCTION dinedesk_main.pos_credentials(slugs text[], hashes bytea[], devices text[])
RETURNS TABLE (
    number bigint, key_id integer, kind text, device_id text, everywhere boolean, seconds float8, has_key boolean,
    active boolean, applied text[], tenant_id integer, slug text, name text, schema_name text, currency text,
    timezone text, default_region text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT wanted.number, k.id, k.kind, k.device_id, k.tenant_id IS NULL,
               extract(epoch FROM k.expires_at - clock_timestamp())::float8,
               coalesce(d.has_key, false), coalesce(d.is_active, true),
               (SELECT array_agg(v.file) FROM dinedesk_main.schema_versions AS v
                 WHERE v.schema_name = t.schema_name),
               t.id, t.slug, t.name, t.schema_name, t.currency, t.timezone, t.default_region
          FROM unnest(slugs, hashes, devices) WITH ORDINALITY AS wanted(slug, sha256, device, number)
          JOIN dinedesk_main.tenants AS t ON t.slug = wanted.slug AND t.is_active
         CROSS JOIN LATERAL (
            SELECT * FROM (
                SELECT own.* FROM dinedesk_main.pos_api_keys AS own
                 WHERE own.key_sha256 = wanted.sha256 AND coalesce(own.tenant_id, 0) = t.id
                UNION ALL
                SELECT of_all.* FROM dinedesk_main.pos_api_keys AS of_all
                 WHERE of_all.key_sha256 = wanted.sha256 AND coalesce(of_all.tenant_id, 0) = 0) AS each
             WHERE each.revoked_at IS NULL AND each.not_before <= now()
               AND (each.expires_at IS NULL OR each.expires_at > now())
             ORDER BY each.tenant_id NULLS LAST LIMIT 1) AS k
          LEFT JOIN LATERAL (
            SELECT f.has_key, f.is_active FROM dinedesk_main.pos_devices AS f
             WHERE f.tenant_id = t.id AND f.device_id = coalesce(k.device_id, wanted.device) LIMIT 1) AS d ON true;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_tenant_key(), dinedesk_main.pos_tell_nodes(),
    dinedesk_main.pos_keep_revoked(), dinedesk_main.pos_credentials(text[], bytea[], text[]),
    dinedesk_main.pos_key_ok(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_credentials(text[], bytea[], text[]) TO posd;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_key_ok(text, text) TO posd, posd_publisher;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_notify(text, text) TO PUBLIC;

GRANT SELECT ON dinedesk_main.tenants TO posd;
GRANT SELECT, INSERT, UPDATE ON dinedesk_main.pos_devices TO posd;
GRANT SELECT, INSERT ON dinedesk_main.pos_api_keys TO posd;
GRANT UPDATE (revoked_at, last_used_at) ON dinedesk_main.pos_api_keys TO posd;

-- Every node has the hashes of all keys and the names of all active tenants in memory, so that a key that
-- nobody has costs no statement. What follows lets a node read what has changed since it looked last,
-- whether or not a notification arrived.

-- `changed_in` is the transaction that wrote the row, in a form that can be compared with a snapshot: a row is new to a node
-- if its last snapshot did not see that transaction. A counter would make writers wait for each other, and a
-- sequence is ahead of transactions that have not committed.
CREATE INDEX pos_api_keys_changed ON dinedesk_main.pos_api_keys (changed_in);
CREATE INDEX tenants_changed ON dinedesk_main.tenants (changed_in);

CREATE FUNCTION dinedesk_main.pos_note_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.changed_in := pg_current_xact_id();
    RETURN NEW;
END
$$;
CREATE TRIGGER pos_note_change_insert BEFORE INSERT ON dinedesk_main.pos_api_keys
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_note_change();
-- `last_used_at` is written often, and changes nothing for anybody.
CREATE TRIGGER pos_note_change_update BEFORE UPDATE ON dinedesk_main.pos_api_keys
    FOR EACH ROW WHEN (
        OLD.tenant_id IS DISTINCT FROM NEW.tenant_id
        OR OLD.kind IS DISTINCT FROM NEW.kind
        OR OLD.key_sha256 IS DISTINCT FROM NEW.key_sha256
        OR OLD.expires_at IS DISTINCT FROM NEW.expires_at
        OR OLD.revoked_at IS DISTINCT FROM NEW.revoked_at
    ) EXECUTE FUNCTION dinedesk_main.pos_note_change();
CREATE TRIGGER pos_note_change_insert BEFORE INSERT ON dinedesk_main.tenants
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_note_change();
CREATE TRIGGER pos_note_change_update BEFORE UPDATE ON dinedesk_main.tenants
    FOR EACH ROW WHEN (OLD.slug IS DISTINCT FROM NEW.slug OR OLD.is_active IS DISTINCT FROM NEW.is_active)
    EXECUTE FUNCTION dinedesk_main.pos_note_change();

-- New keys. One notification for a statement: a hundred thousand keys may be imported by one.
CREATE FUNCTION dinedesk_main.pos_tell_of_keys() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM dinedesk_main.pos_tell('keys');
    RETURN NULL;
END
$$;
CREATE TRIGGER pos_tell_of_keys AFTER INSERT ON dinedesk_main.pos_api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION dinedesk_main.pos_tell_of_keys();

REVOKE ALL ON FUNCTION dinedesk_main.pos_note_change(), dinedesk_main.pos_tell_of_keys() FROM PUBLIC;
