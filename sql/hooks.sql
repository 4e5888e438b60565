-- The hooks on a shop's `orders` and `order_items`. Applied by `posctl adopt`, and by `posctl tenant add`
-- to the tables that posd makes itself; may be applied again at any time.
--
-- A hook notes which order was touched and reads nothing: a hook that read the order to build its event would
-- fail SERIALIZABLE writers. The content is read after the commit, by read_orders$:shop(). A hook adds no
-- columns. A hook on a table that stands alone is called once for a statement. On a table that has partitions or
-- children, or is one, it is called once for each row, since only row triggers fire wherever the row is written.
-- A session that loads in bulk may `SET posd.hooks = 'off'`.
--
-- A hook runs inside the shop's transaction with the rights of :"note_role". It turns a key into text by concat(),
-- which calls the type's output function: a cast may be a function of the shop's own, and the shop may change the
-- type of the column at any time. Only a superuser can make an output function. concat() keeps the blanks of
-- character(n), and a cast drops them.
--
-- No change of the shop's tables makes a statement of the shop's fail here. If a key cannot be read as it was when
-- the tables were hooked, the hook looks in the catalog for the column that was renamed: the one of the primary key,
-- or of the foreign key to `orders`. Plans that were made for another type are not used then. Without such a column,
-- nothing is noted; `posctl doctor` and `posctl audit` name the column that has gone. A block with an EXCEPTION
-- clause costs a microsecond and no transaction id, since nothing is written in it.
CREATE OR REPLACE FUNCTION posd_hooks.note_orders$:shop() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys text[];
    source text;
BEGIN
    IF current_setting('posd.hooks', true) IS NOT DISTINCT FROM 'off' THEN
        RETURN NULL;
    END IF;
    BEGIN
        IF TG_LEVEL = 'ROW' THEN
            keys := ARRAY(
                SELECT CASE pg_typeof(k.id) WHEN 'bpchar'::regtype THEN rtrim(concat(k.id)) ELSE concat(k.id) END
                  FROM (VALUES (NEW.id)) AS k (id));
        ELSE
            keys := ARRAY(
                SELECT CASE pg_typeof(k.id) WHEN 'bpchar'::regtype THEN rtrim(concat(k.id)) ELSE concat(k.id) END
                  FROM (SELECT t.id FROM touched AS t) AS k (id));
        END IF;
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            SELECT format('SELECT array_agg(CASE pg_typeof(t.%1$I) WHEN ''bpchar''::regtype
                                                 THEN rtrim(concat(t.%1$I)) ELSE concat(t.%1$I) END) FROM ', a.attname)
              INTO source
              FROM pg_attribute AS a
             WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped
               AND (a.attname = 'id' OR a.attnum = (SELECT i.indkey[0] FROM pg_index AS i
                                                     WHERE i.indrelid = TG_RELID AND i.indisprimary
                                                       AND i.indnkeyatts = 1))
             ORDER BY a.attname <> 'id' LIMIT 1;
            IF source IS NULL THEN
                RETURN NULL;
            ELSIF TG_LEVEL = 'ROW' THEN
                EXECUTE source || '(SELECT ($1).*) AS t' INTO keys USING NEW;
            ELSE
                EXECUTE source || 'touched AS t' INTO keys;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RETURN NULL;
        END;
    END;
    PERFORM posd_hooks.enqueue$:shop(CASE TG_OP WHEN 'INSERT' THEN 'placed'::text ELSE 'order'::text END,
                                     ARRAY(SELECT DISTINCT k FROM unnest(keys) AS k));
    RETURN NULL;
END
$$;

-- `before` is there in an UPDATE only: an item that moves to another order touches both.
CREATE OR REPLACE FUNCTION posd_hooks.note_items$:shop() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys text[];
    others text[];
    source text;
BEGIN
    IF current_setting('posd.hooks', true) IS NOT DISTINCT FROM 'off' THEN
        RETURN NULL;
    END IF;
    BEGIN
        IF TG_LEVEL = 'ROW' THEN
            keys := ARRAY(
                SELECT CASE pg_typeof(k.id) WHEN 'bpchar'::regtype THEN rtrim(concat(k.id)) ELSE concat(k.id) END
                  FROM (VALUES (NEW.order_id), (OLD.order_id)) AS k (id));
        ELSIF TG_OP = 'UPDATE' THEN
            keys := ARRAY(
                SELECT CASE pg_typeof(k.id) WHEN 'bpchar'::regtype THEN rtrim(concat(k.id)) ELSE concat(k.id) END
                  FROM (SELECT t.order_id FROM touched AS t UNION ALL SELECT b.order_id FROM before AS b) AS k (id));
        ELSE
            keys := ARRAY(
                SELECT CASE pg_typeof(k.id) WHEN 'bpchar'::regtype THEN rtrim(concat(k.id)) ELSE concat(k.id) END
                  FROM (SELECT t.order_id FROM touched AS t) AS k (id));
        END IF;
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            SELECT format('SELECT array_agg(CASE pg_typeof(t.%1$I) WHEN ''bpchar''::regtype
                                                 THEN rtrim(concat(t.%1$I)) ELSE concat(t.%1$I) END) FROM ', a.attname)
              INTO source
              FROM pg_attribute AS a
             WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped
               AND (a.attname = 'order_id' OR a.attnum = ANY (
                    SELECT f.conkey[1] FROM pg_constraint AS f
                      JOIN pg_class AS o ON o.oid = f.confrelid AND o.relname = 'orders'
                      JOIN pg_class AS i ON i.oid = TG_RELID AND i.relnamespace = o.relnamespace
                     WHERE f.conrelid = TG_RELID AND f.contype = 'f' AND cardinality(f.conkey) = 1))
             ORDER BY a.attname <> 'order_id' LIMIT 1;
            IF source IS NULL THEN
                RETURN NULL;
            ELSIF TG_LEVEL <> 'ROW' THEN
                EXECUTE source || 'touched AS t' INTO keys;
                IF TG_OP = 'UPDATE' THEN
                    EXECUTE source || 'before AS t' INTO others;
                END IF;
            ELSE
                IF TG_OP <> 'DELETE' THEN
                    EXECUTE source || '(SELECT ($1).*) AS t' INTO keys USING NEW;
                END IF;
                IF TG_OP <> 'INSERT' THEN
                    EXECUTE source || '(SELECT ($1).*) AS t' INTO others USING OLD;
                END IF;
            END IF;
            keys := keys || others;
        EXCEPTION WHEN OTHERS THEN
            RETURN NULL;
        END;
    END;
    PERFORM posd_hooks.enqueue$:shop('order'::text, ARRAY(SELECT DISTINCT k FROM unnest(keys) AS k));
    RETURN NULL;
END
$$;

-- Read orders as they are now, with the rights of the tenant's reader: see sql/main/013_adoptions.sql, also for why it
-- is VOLATILE.
CREATE OR REPLACE FUNCTION posd_hooks.read_orders$:shop(keys text[]) RETURNS TABLE (order_id text, content text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    timestamps text;
    condition text;
    columns text[];
BEGIN
    SELECT a.timestamps, a.condition, a.columns INTO timestamps, condition, columns FROM :"schema".pos_adoption AS a;
    RETURN QUERY
        SELECT r.order_id, r.content
          FROM dinedesk_main.pos_read_shop(':"schema"', keys, timestamps, condition, columns) AS r;
END
$$;

REVOKE ALL ON FUNCTION posd_hooks.read_orders$:shop(text[]) FROM PUBLIC;
-- PostgreSQL gives the hooks of a partitioned table to a new partition only if the role that makes it may execute
-- the functions, and this may be another role than the one that owned the table when it was hooked. A trigger
-- function cannot be called, and to make a trigger of it by name takes USAGE on posd_hooks.
GRANT EXECUTE ON FUNCTION posd_hooks.note_orders$:shop(), posd_hooks.note_items$:shop() TO PUBLIC;
GRANT EXECUTE ON FUNCTION posd_hooks.read_orders$:shop(text[]) TO posd_reader;
GRANT CREATE ON SCHEMA posd_hooks TO :"note_role";
ALTER FUNCTION posd_hooks.note_orders$:shop() OWNER TO :"note_role";
ALTER FUNCTION posd_hooks.note_items$:shop() OWNER TO :"note_role";
REVOKE CREATE ON SCHEMA posd_hooks FROM :"note_role";

-- One trigger for each kind of statement, since transition tables allow no more. Under the same names by row
-- too, since who may make a trigger on a table may replace it but not drop it. PostgreSQL gives those of a
-- partitioned table to its partitions, also to one that is made or attached later. It does not give them to tables
-- that inherit.
DO $hooks$
DECLARE
    hooked record;
    hook record;
BEGIN
    FOR hooked IN
        WITH RECURSIVE family AS (
            SELECT c.oid, c.relname AS root FROM pg_class AS c
             WHERE c.relnamespace = ':"schema"'::regnamespace AND c.relname IN ('orders', 'order_items')
             UNION
            SELECT c.oid, f.root FROM family AS f JOIN pg_inherits AS i ON i.inhparent = f.oid
              JOIN pg_class AS c ON c.oid = i.inhrelid WHERE NOT c.relispartition
        )
        SELECT f.root, f.oid::regclass AS name,
               c.relkind = 'p' OR EXISTS (SELECT FROM pg_inherits WHERE f.oid IN (inhrelid, inhparent)) AS by_row
          FROM family AS f JOIN pg_class AS c ON c.oid = f.oid
    LOOP
        FOR hook IN
            SELECT * FROM (VALUES
                ('orders', 'pos_orders_inserted', 'INSERT', 'NEW TABLE AS touched', 'note_orders$:shop'),
                ('orders', 'pos_orders_updated', 'UPDATE', 'NEW TABLE AS touched', 'note_orders$:shop'),
                ('order_items', 'pos_items_inserted', 'INSERT', 'NEW TABLE AS touched', 'note_items$:shop'),
                ('order_items', 'pos_items_updated', 'UPDATE', 'OLD TABLE AS before NEW TABLE AS touched',
                 'note_items$:shop'),
                ('order_items', 'pos_items_deleted', 'DELETE', 'OLD TABLE AS touched', 'note_items$:shop')
            ) AS hooks (root, name, event, tables, note) WHERE hooks.root = hooked.root
        LOOP
            EXECUTE format('CREATE OR REPLACE TRIGGER %I AFTER %s ON %s %s EXECUTE FUNCTION posd_hooks.%I()',
                hook.name, hook.event, hooked.name,
                CASE WHEN hooked.by_row THEN 'FOR EACH ROW'
                     ELSE format('REFERENCING %s FOR EACH STATEMENT', hook.tables) END,
                hook.note);
        END LOOP;
    END LOOP;
END
$hooks$;
