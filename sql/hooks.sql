-- The hooks on a shop's `orders` and `order_items`. Applied by `posctl adopt`, and by `posctl tenant add`
-- to the tables that posd makes itself; may be applied again at any time. `:order_id_type` is the type of
-- orders.id as it is found.
--
-- A hook notes which order was touched and reads nothing: a hook that read the order to build its
-- event would fail SERIALIZABLE writers. The content is read after the commit, by pos_read_orders().
-- Rows and keys only, no columns added. A session that loads in bulk may `SET posd.hooks = 'off'`.

CREATE OR REPLACE FUNCTION :"schema".pos_note_orders() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('posd.hooks', true) IS DISTINCT FROM 'off' THEN
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
    ELSIF TG_OP = 'UPDATE' THEN
        PERFORM :"schema".pos_enqueue('order'::text, ARRAY(
            SELECT t.order_id::text FROM touched AS t UNION SELECT b.order_id::text FROM before AS b));
    ELSE
        PERFORM :"schema".pos_enqueue('order'::text, ARRAY(SELECT DISTINCT t.order_id::text FROM touched AS t));
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION :"schema".pos_read_orders(keys text[]) RETURNS TABLE (order_id text, content json)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
    SELECT o.id::text,
           (to_jsonb(o) || jsonb_build_object('items', coalesce(
               (SELECT jsonb_agg(to_jsonb(i) ORDER BY i.id)
                  FROM :"schema".order_items AS i WHERE i.order_id = o.id), '[]')))::json
      FROM :"schema".orders AS o
     WHERE o.id = ANY (keys:::order_id_type[])
$$;

REVOKE ALL ON FUNCTION :"schema".pos_note_orders(), :"schema".pos_note_order_items(),
    :"schema".pos_read_orders(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION :"schema".pos_read_orders(text[]) TO posd;
GRANT CREATE ON SCHEMA :"schema" TO :"hook_role";
ALTER FUNCTION :"schema".pos_note_orders() OWNER TO :"hook_role";
ALTER FUNCTION :"schema".pos_note_order_items() OWNER TO :"hook_role";
REVOKE CREATE ON SCHEMA :"schema" FROM :"hook_role";

-- One trigger for each kind of statement, since transition tables allow no more.
CREATE OR REPLACE TRIGGER pos_orders_inserted AFTER INSERT ON :"schema".orders
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION :"schema".pos_note_orders();
CREATE OR REPLACE TRIGGER pos_orders_updated AFTER UPDATE ON :"schema".orders
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION :"schema".pos_note_orders();
CREATE OR REPLACE TRIGGER pos_items_inserted AFTER INSERT ON :"schema".order_items
    REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION :"schema".pos_note_order_items();
CREATE OR REPLACE TRIGGER pos_items_updated AFTER UPDATE ON :"schema".order_items
    REFERENCING OLD TABLE AS before NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION :"schema".pos_note_order_items();
CREATE OR REPLACE TRIGGER pos_items_deleted AFTER DELETE ON :"schema".order_items
    REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION :"schema".pos_note_order_items();
