-- Every node has the hashes of all keys and the names of all active tenants in memory, so that a key that
-- nobody has costs no statement. What follows lets a node read what has changed since it looked last,
-- whether or not a notification arrived.

-- The transaction that wrote the row, in a form that can be compared with a snapshot: a row is new to a node
-- if its last snapshot did not see that transaction. A counter would make writers wait for each other, and a
-- sequence is ahead of transactions that have not committed.
ALTER TABLE dinedesk_main.pos_api_keys ADD COLUMN changed_in xid8 NOT NULL DEFAULT pg_current_xact_id();
ALTER TABLE dinedesk_main.tenants ADD COLUMN changed_in xid8 NOT NULL DEFAULT pg_current_xact_id();
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
