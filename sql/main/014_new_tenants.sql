-- Operations for operators while posd runs: disable a terminal, and create a tenant.

-- When a terminal is disabled or enabled, nodes drop what they have cached about the keys of its tenant, and check
-- its connections.
CREATE FUNCTION dinedesk_main.pos_tell_of_device() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM dinedesk_main.pos_tell('tenant ' || NEW.tenant_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER pos_tell_of_device AFTER UPDATE OF is_active ON dinedesk_main.pos_devices
    FOR EACH ROW WHEN (OLD.is_active IS DISTINCT FROM NEW.is_active)
    EXECUTE FUNCTION dinedesk_main.pos_tell_of_device();
CREATE INDEX pos_devices_disabled ON dinedesk_main.pos_devices (tenant_id) WHERE NOT is_active;

-- The SQL that creates a tenant's schema: sql/tenant/ and the hooks, as stored by the last `posctl migrate`. Only
-- posd_owner can read and write it, so no other role can determine what pos_create_tenant() executes.
CREATE TABLE dinedesk_main.pos_tenant_files (
    position integer PRIMARY KEY,
    file text NOT NULL UNIQUE,
    checksum text NOT NULL,
    content text NOT NULL
);

-- Create a tenant in one transaction: its row, its roles and its schema. This is the only way in which the daemon
-- can change the structure of the database, and it determines only the name. An existing schema may have a shop's
-- tables in it; only `posctl tenant add` adopts it.
--
-- The SET clauses keep settings of the caller from changing the meaning of the SQL.
CREATE FUNCTION dinedesk_main.pos_create_tenant(
    slug text, name text, currency text, timezone text, default_region text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = 'on' AS $$
DECLARE
    shop text := replace(slug, '-', '_');
    shop_schema text := 'dinedesk_' || replace(slug, '-', '_');
    new_id integer;
    source record;
BEGIN
    -- The lock that `posctl` holds while it changes schemas.
    LOCK TABLE dinedesk_main.schema_changes IN EXCLUSIVE MODE NOWAIT;
    IF NOT EXISTS (SELECT FROM dinedesk_main.pos_tenant_files) THEN
        RAISE EXCEPTION 'no tenant can be created before `posctl migrate` has been run'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- The constraints allow only lower-case letters, digits and hyphens in the slug. All names are derived from it.
    INSERT INTO dinedesk_main.tenants (slug, name, schema_name, currency, timezone, default_region)
    VALUES (pos_create_tenant.slug, pos_create_tenant.name, shop_schema, pos_create_tenant.currency,
            pos_create_tenant.timezone, pos_create_tenant.default_region)
    RETURNING id INTO new_id;
    EXECUTE format('CREATE SCHEMA %I', shop_schema);
    PERFORM dinedesk_main.pos_make_roles(shop);
    FOR source IN SELECT f.file, f.checksum, f.content FROM dinedesk_main.pos_tenant_files AS f ORDER BY f.position
    LOOP
        EXECUTE replace(replace(replace(replace(replace(source.content,
            ':"schema"', '"' || shop_schema || '"'),
            ':"hook_role"', '"posd_hook_' || shop || '"'),
            ':"note_role"', '"posd_note_' || shop || '"'),
            ':shop', shop),
            ':tenant_id', new_id::text);
        INSERT INTO dinedesk_main.schema_versions (schema_name, file, checksum)
        VALUES (shop_schema, source.file, source.checksum);
    END LOOP;
    RETURN new_id;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_tell_of_device(),
    dinedesk_main.pos_create_tenant(text, text, text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_create_tenant(text, text, text, text, text) TO posd;
