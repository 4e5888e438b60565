-- The hooks on a shop's `orders` and `order_items`. Applied by `posctl adopt`, and by `posctl tenant add`
-- to the tables that posd makes itself; may be applied again at any time.
--
-- A hook notes which order was touched and reads nothing: a hook that read the order to build its
-- event would fail SERIALIZABLE writers. The content is read after the commit, by pos_read_orders().
-- Rows and keys only, no columns added. A hook on a table that stands alone is called once for a statement;
-- on one that has parts, or is one, once for each row, since only those fire wherever the row is written. A session that loads in bulk may `SET posd.hooks = 'off'`.

CREATE OR REPLACE FUNCTION :"schema".pos_note_orders() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('posd.hooks', true) IS NOT DISTINCT FROM 'off' THEN
        RETURN NULL;
    ELSIF TG_LEVEL = 'ROW' THEN
        PERFORM :"schema".pos_enqueue('order'::text, ARRAY[NEW.id::text]);
    ELSE
        PERFORM :"schema".pos_enqueue('order'::text, ARRAY(SELECT DISTINCT t.id::text FROM touched AS t));
    END IF;
    RETURN NULL;
END
$$;

-- `before` is there in an UPDATE only: an item that moves to another order touches both.
CREATE OR REPLACE FUNCTION :"schema".pos_note_order_items() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('posd.hooks', true) IS NOT DISTINCT FROM 'off' THEN
        RETURN NULL;
    ELSIF TG_LEVEL = 'ROW' THEN
        PERFORM :"schema".pos_enqueue('order'::text, ARRAY(
            SELECT NEW.order_id::text UNION SELECT OLD.order_id::text));
    ELSIF TG_OP = 'UPDATE' THEN
        PERFORM :"schema".pos_enqueue('order'::text, ARRAY(
            SELECT t.order_id::text FROM touched AS t UNION SELECT b.order_id::text FROM before AS b));
    ELSE
        PERFORM :"schema".pos_enqueue('order'::text, ARRAY(SELECT DISTINCT t.order_id::text FROM touched AS t));
    END IF;
    RETURN NULL;
END
$$;

-- Read orders as they are now, with the rights of the tenant's reader: see sql/main/016_adoptions.sql.
CREATE OR REPLACE FUNCTION :"schema".pos_read_orders(keys text[]) RETURNS TABLE (order_id text, content json)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
    SELECT r.order_id, r.content
      FROM (SELECT 1) AS always LEFT JOIN :"schema".pos_adoption AS a ON true
     CROSS JOIN LATERAL dinedesk_main.pos_read_shop(':"schema"', keys, a.timestamps, a.condition, a.columns) AS r
$$;

REVOKE ALL ON FUNCTION :"schema".pos_note_orders(), :"schema".pos_note_order_items(),
    :"schema".pos_read_orders(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION :"schema".pos_read_orders(text[]) TO posd;
GRANT CREATE ON SCHEMA :"schema" TO :"hook_role";
ALTER FUNCTION :"schema".pos_note_orders() OWNER TO :"hook_role";
ALTER FUNCTION :"schema".pos_note_order_items() OWNER TO :"hook_role";
REVOKE CREATE ON SCHEMA :"schema" FROM :"hook_role";

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
                ('orders', 'pos_orders_inserted', 'INSERT', 'NEW TABLE AS touched', 'pos_note_orders'),
                ('orders', 'pos_orders_updated', 'UPDATE', 'NEW TABLE AS touched', 'pos_note_orders'),
                ('order_items', 'pos_items_inserted', 'INSERT', 'NEW TABLE AS touched', 'pos_note_order_items'),
                ('order_items', 'pos_items_updated', 'UPDATE', 'OLD TABLE AS before NEW TABLE AS touched',
                 'pos_note_order_items'),
                ('order_items', 'pos_items_deleted', 'DELETE', 'OLD TABLE AS touched', 'pos_note_order_items')
            ) AS hooks (root, name, event, tables, note) WHERE hooks.root = hooked.root
        LOOP
            IF hooked.by_row THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION :"schema".%I() TO %I', hook.note, hooked.owner);
            END IF;
            EXECUTE format('CREATE OR REPLACE TRIGGER %I AFTER %s ON %s %s EXECUTE FUNCTION :"schema".%I()',
                hook.name, hook.event, hooked.name,
                CASE WHEN hooked.by_row THEN 'FOR EACH ROW'
                     ELSE format('REFERENCING %s FOR EACH STATEMENT', hook.tables) END,
                hook.note);
        END LOOP;
    END LOOP;
END
$hooks$;
