-- A shop's time zone is a name of the IANA database, which PostgreSQL and Python both read. The CHECK on the
-- column takes more: abbreviations (`BST`), rules (`MST7MDT8`) and any case. Python knows none of these, so
-- posd read the shop's times as UTC.
--
-- A name in another case is corrected. Names that only mean "what this machine has" are refused.
CREATE FUNCTION dinedesk_main.pos_tenant_zone() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known text;
BEGIN
    -- The view reads every file of the time zone database, which takes a tenth of a second.
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

-- Other rows that are there already are named by `posctl doctor` and in the log of posd.
UPDATE dinedesk_main.tenants AS t SET timezone = z.name
  FROM pg_timezone_names AS z
 WHERE lower(z.name) = lower(t.timezone) AND z.name !~ '^(posix|right)/'
   AND NOT EXISTS (SELECT FROM pg_timezone_names AS exact WHERE exact.name = t.timezone);
