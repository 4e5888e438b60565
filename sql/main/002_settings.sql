-- The settings of a tenant: their allowed values, and a record of changes.

-- A shop's time zone is a name in the IANA database, which PostgreSQL and Python both read. The CHECK on the column
-- also accepts abbreviations (`BST`), rules (`MST7MDT8`) and any case. Python knows none of these, so posd would
-- read the shop's times as UTC.
--
-- This trigger corrects the case of a name, and rejects names that mean the time zone of the machine.
CREATE FUNCTION dinedesk_main.pos_tenant_zone() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known text;
BEGIN
    -- The view reads all files of the time zone database, which takes a tenth of a second.
    IF NEW.timezone = 'Europe/London' THEN
        RETURN NEW;
    END IF;
    SELECT z.name INTO known FROM pg_timezone_names AS z
     WHERE lower(z.name) = lower(NEW.timezone)
       AND z.name !~ '^(posix|right)/|^(localtime|posixrules|Factory)$'
     ORDER BY z.name <> NEW.timezone, z.name LIMIT 1;
    IF known IS NULL THEN
        RAISE EXCEPTION 'there is no time zone %', NEW.timezone
            USING ERRCODE = 'check_violation', CONSTRAINT = 'tenants_timezone_known',
                  HINT = 'Use a name of the IANA database, such as Europe/London.';
    END IF;
    NEW.timezone := known;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_tenant_zone() FROM PUBLIC;

CREATE TRIGGER pos_tenant_zone_insert BEFORE INSERT ON dinedesk_main.tenants
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_tenant_zone();
CREATE TRIGGER pos_tenant_zone_update BEFORE UPDATE OF timezone ON dinedesk_main.tenants
    FOR EACH ROW WHEN (OLD.timezone IS DISTINCT FROM NEW.timezone)
    EXECUTE FUNCTION dinedesk_main.pos_tenant_zone();

-- Changes of a tenant's settings: old value, new value, time and login. The settings decide how posd reads
-- telephone numbers, amounts and times, so older rows may need the settings of their time.
CREATE TABLE dinedesk_main.pos_tenant_changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id integer NOT NULL REFERENCES dinedesk_main.tenants ON DELETE CASCADE,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_by text NOT NULL DEFAULT session_user,
    setting text NOT NULL CHECK (setting IN ('default_region', 'currency', 'timezone', 'is_active')),
    before text NOT NULL,
    after text NOT NULL
);
CREATE INDEX pos_tenant_changes_of_tenant ON dinedesk_main.pos_tenant_changes (tenant_id, id);

-- A trigger, so that a manual UPDATE is recorded too. It runs with its owner's privileges, so that a role that
-- changes a tenant needs no privilege on this table.
CREATE FUNCTION dinedesk_main.pos_note_tenant_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO dinedesk_main.pos_tenant_changes (tenant_id, setting, before, after)
    SELECT NEW.id, changed.setting, changed.before, changed.after
      FROM (VALUES ('default_region', OLD.default_region, NEW.default_region),
                   ('currency', OLD.currency::text, NEW.currency::text),
                   ('timezone', OLD.timezone, NEW.timezone),
                   ('is_active', OLD.is_active::text, NEW.is_active::text)
           ) AS changed (setting, before, after)
     WHERE changed.before <> changed.after;
    RETURN NULL;
END
$$;
-- The function compares the columns. pg_dump writes a WHEN clause that compares rows in another form, so `posctl
-- audit` would report it after a restore.
CREATE TRIGGER pos_note_tenant_change
    AFTER UPDATE OF default_region, currency, timezone, is_active ON dinedesk_main.tenants
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_note_tenant_change();

REVOKE ALL ON FUNCTION dinedesk_main.pos_note_tenant_change() FROM PUBLIC;
GRANT SELECT ON dinedesk_main.pos_tenant_changes TO posd;
