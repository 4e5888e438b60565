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
CREATE OR REPLACE FUNCTION posd_hooks.note_orders$:shop() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys text[];
BEGIN
    IF current_setting('posd.hooks', true) IS NOT DISTINCT FROM 'off' THEN
        RETURN NULL;
    ELSIF TG_LEVEL = 'ROW' THEN
        keys := ARRAY(
            SELECT CASE pg_typeof(k.id) WHEN 'bpchar'::regtype THEN rtrim(concat(k.id)) ELSE concat(k.id) END
              FROM (VALUES (NEW.id)) AS k (id));
    ELSE
        keys := ARRAY(
            SELECT CASE pg_typeof(k.id) WHEN 'bpchar'::regtype THEN rtrim(concat(k.id)) ELSE concat(k.id) END
              FROM (SELECT t.id FROM touched AS t) AS k (id));
    END IF;
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
BEGIN
    IF current_setting('posd.hooks', true) IS NOT DISTINCT FROM 'off' THEN
        RETURN NULL;
    ELSIF TG_LEVEL = 'ROW' THEN
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
    PERFORM posd_hooks.enqueue$:shop('order'::text, ARRAY(SELECT DISTINCT k FROM unnest(keys) AS k));
    RETURN NULL;
END
$$;

-- Read orders as they are now, with the rights of the tenant's reader: see sql/main/016_adoptions.sql.
CREATE OR REPLACE FUNCTION posd_hooks.read_orders$:shop(keys text[]) RETURNS TABLE (order_id text, content json)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
    SELECT r.order_id, r.content
      FROM (SELECT 1) AS always LEFT JOIN :"schema".pos_adoption AS a ON true
     CROSS JOIN LATERAL dinedesk_main.pos_read_shop(':"schema"', keys, a.timestamps, a.condition, a.columns) AS r
$$;

REVOKE ALL ON FUNCTION posd_hooks.note_orders$:shop(), posd_hooks.note_items$:shop(),
    posd_hooks.read_orders$:shop(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION posd_hooks.read_orders$:shop(text[]) TO posd_reader;
GRANT CREATE ON SCHEMA posd_hooks TO :"note_role";
ALTER FUNCTION posd_hooks.note_orders$:shop() OWNER TO :"note_role";
ALTER FUNCTION posd_hooks.note_items$:shop() OWNER TO :"note_role";
REVOKE CREATE ON SCHEMA posd_hooks FROM :"note_role";

-- One trigger for each kind of statement, since transition tables allow no more. Under the same names by row
-- too, since who may make a trigger on a table may replace it but not drop it. PostgreSQL gives those of a
-- partitioned table to its partitions, also to one that is made or attached later, if its owner may execute
-- the function; tables that inherit it leaves to us.
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
        SELECT f.root, f.oid::regclass AS name, pg_get_userbyid(c.relowner) AS owner,
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
            IF hooked.by_row THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION posd_hooks.%I() TO %I', hook.note, hooked.owner);
            END IF;
            EXECUTE format('CREATE OR REPLACE TRIGGER %I AFTER %s ON %s %s EXECUTE FUNCTION posd_hooks.%I()',
                hook.name, hook.event, hooked.name,
                CASE WHEN hooked.by_row THEN 'FOR EACH ROW'
                     ELSE format('REFERENCING %s FOR EACH STATEMENT', hook.tables) END,
                hook.note);
        END LOOP;
    END LOOP;
END
$hooks$;
