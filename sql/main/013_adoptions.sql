-- Shops whose own `orders` and `order_items` tables were hooked by `posctl adopt`: the operator's choices, and the
-- columns of the tables at that time. A tenant without a row here has tables that posd created.
CREATE TABLE dinedesk_main.pos_adoptions (
    tenant_id integer PRIMARY KEY REFERENCES dinedesk_main.tenants ON DELETE CASCADE,
    adopted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A boolean SQL expression over the columns of `orders`. An order for which it is not true is published only if
    -- it was published before. NULL: all orders are published.
    condition text CHECK (condition ~ '\S'),
    -- The time zone of `timestamp` columns: the shop's time zone, or UTC. NULL: there is no such column.
    timestamps text CHECK (timestamps IN ('local', 'utc')),
    -- The operator asserts that order ids are unique, although no constraint ensures it.
    unique_ids boolean NOT NULL DEFAULT false,
    -- The columns that events use, with their types: {"orders": {"id": "bigint", …}, "order_items": {…}}.
    tables json NOT NULL
);
GRANT SELECT ON dinedesk_main.pos_adoptions TO posd;

-- Read the present rows of orders of a shop, each with its lines in `items`. The function has the privileges of its
-- caller, read_orders$… of the tenant. `shop` is the name of the schema as an SQL identifier. The other parameters
-- are values of pos_adoptions; they are NULL for tables that posd created. There is one function for all tenants,
-- because a session keeps the plans of all PL/pgSQL functions that it has called.
--
-- The function reads only columns that an event has a member for, and of these only columns that the tables have
-- now. It reads the types from the catalog at each call, so the type of a column may change at any time. `money` is
-- read as numeric. A `timestamp` is read as UTC if `times` says so; otherwise its text has no offset.
--
-- A missing column that is required raises undefined_column. Other columns that existed when the tables were
-- adopted (`known`) and are missing now are listed in the member `lacks`. An order for which `condition` is not
-- true has the member `passed_over`.
--
-- The keys are a literal in the query, which takes the type of orders.id.
--
-- ALTER TABLE … TYPE rewrites a table, and an older snapshot sees no rows in the rewritten table. A reader that
-- waits for the lock of such a statement would conclude that all orders were deleted. So both tables are locked
-- first, and the function is VOLATILE: each of its queries has its own snapshot, taken after the lock.
--
-- If a value makes the query fail, the orders are read again one by one. An order that fails alone has {"failure":
-- "SQLSTATE message"} as its content, and the other orders are returned as usual. Errors about names, privileges,
-- locks and resources concern all orders and are raised. An error that the query raises without any order is also
-- raised, for example if a constant in `condition` does not fit the changed type of a column.
--
-- `content` is JSON text. It is empty for an order of more than 4 MiB. Orders that do not fit into 1 MiB together,
-- in the order of `keys`, have NULL; the first order always fits.
CREATE FUNCTION dinedesk_main.pos_read_shop(
    shop text, keys text[], times text, condition text, known text[])
RETURNS TABLE (order_id text, content text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    of_order CONSTANT text[] := '{id,order_number,customer_name,customer_phone,customer_email,order_type,order_source,status,total_amount,total,subtotal,delivery_fee,discount,discount_amount,tax,payment_method,payment_status,amount_paid,voucher_code,currency,special_instructions,notes,delivery_address,address,scheduled_for,scheduled_time,created_at}';
    of_item CONSTANT text[] := '{menu_item_id,name,display_name,variant_id,variant_name,price,quantity,selected_addons,addons,modifiers,extras,toppings,special_instructions,notes,note,instructions,comment,comments}';
    needed CONSTANT text[] := '{orders.id,orders.status,orders.total_amount,orders.created_at,order_items.id,order_items.order_id,order_items.name,order_items.price,order_items.quantity}';
    orders regclass;
    items regclass;
    order_columns text;
    item_columns text;
    present text[];
    lacks text[];
    query_start text;
    ids text[];
    contents json[];
    one text;
    its_ids text[];
    its_contents json[];
BEGIN
    keys := coalesce(keys, '{}');
    BEGIN
        EXECUTE concat('LOCK TABLE ONLY ', shop, '.orders, ONLY ', shop, '.order_items IN ACCESS SHARE MODE');
    EXCEPTION WHEN insufficient_privilege OR wrong_object_type THEN
        -- Column privileges do not allow LOCK. A query takes the same lock, and takes longer.
        EXECUTE concat('SELECT FROM ', shop, '.orders, ', shop, '.order_items WHERE false');
    END;
    orders := concat(shop, '.orders');
    items := concat(shop, '.order_items');
    -- Types of the system have OIDs below 16384, and are not domains. A domain may be based on another domain.
    SELECT array_agg(concat(c.relation, '.', c.name)),
           string_agg(c.expression, ', ' ORDER BY c.place) FILTER (WHERE c.alias = 'o'),
           string_agg(c.expression, ', ' ORDER BY c.place) FILTER (WHERE c.alias = 'i')
      INTO present, order_columns, item_columns
      FROM (SELECT a.relation, a.alias, a.name, a.place, CASE WHEN a.place IS NOT NULL THEN format(
                       CASE WHEN a.type = 'money'::regtype THEN '%1$s.%2$I::numeric AS %2$I'
                            WHEN a.type = 'timestamp'::regtype AND times = 'utc'
                            THEN '%1$s.%2$I AT TIME ZONE ''UTC'' AS %2$I'
                            ELSE '%1$s.%2$I' END, a.alias, a.name) END AS expression
              FROM (SELECT w.relation, w.alias, a.attname AS name, array_position(w.names, a.attname::text) AS place,
                           CASE WHEN a.atttypid < 16384 THEN a.atttypid
                                ELSE (WITH RECURSIVE base AS (
                                          SELECT t.oid, t.typbasetype FROM pg_type AS t WHERE t.oid = a.atttypid
                                           UNION ALL
                                          SELECT t.oid, t.typbasetype
                                            FROM base AS b JOIN pg_type AS t ON t.oid = b.typbasetype)
                                      SELECT b.oid FROM base AS b WHERE b.typbasetype = 0) END AS type
                      FROM (VALUES ('orders', orders, 'o', of_order), ('order_items', items, 'i', of_item))
                           AS w(relation, oid, alias, names)
                      JOIN pg_attribute AS a
                        ON a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped) AS a) AS c;
    lacks := ARRAY(SELECT n.name FROM unnest(needed || known) AS n(name) WHERE n.name <> ALL (present) ORDER BY 1);
    IF lacks && needed THEN
        RAISE EXCEPTION 'there is no column %', (SELECT min(n.name) FROM unnest(lacks) AS n(name) WHERE n.name = ANY (needed))
            USING ERRCODE = 'undefined_column';
    END IF;
    -- The line break ends a comment in the condition.
    query_start := concat(
        'SELECT array_agg(r.order_id), array_agg(r.content)
           FROM (SELECT o.id::text AS order_id, row_to_json(c) AS content
                   FROM ', shop, '.orders AS o CROSS JOIN LATERAL (
                        SELECT ', order_columns, ', coalesce((
                                SELECT json_agg(row_to_json(l) ORDER BY i.id)
                                  FROM ', shop, '.order_items AS i CROSS JOIN LATERAL (SELECT ', item_columns, ') AS l
                                 WHERE i.order_id = o.id), ''[]'') AS items',
        ', NOT coalesce((' || condition || E'\n), false) AS passed_over',
        CASE WHEN lacks <> '{}' THEN concat(', ', quote_literal(lacks), '::text[] AS lacks') END, ') AS c
                  WHERE o.id = ANY (');
    BEGIN
        EXECUTE query_start || quote_literal(keys) || ')) AS r' INTO ids, contents;
    EXCEPTION WHEN OTHERS THEN
        IF keys = '{}' OR SQLSTATE !~ '^(21|22|23|38|39|54|P0|XX)' THEN
            RAISE;
        END IF;
        EXECUTE query_start || '''{}'')) AS r';
        ids := '{}';
        contents := '{}';
        FOREACH one IN ARRAY keys LOOP
            BEGIN
                EXECUTE query_start || quote_literal(ARRAY[one]) || ')) AS r' INTO its_ids, its_contents;
                ids := ids || its_ids;
                contents := contents || its_contents;
            EXCEPTION WHEN OTHERS THEN
                IF SQLSTATE !~ '^(21|22|23|38|39|54|P0|XX)' THEN
                    RAISE;
                END IF;
                ids := ids || one;
                contents := contents || json_build_object('failure', SQLSTATE || ' ' || left(SQLERRM, 1000));
            END;
        END LOOP;
    END;
    -- A view in place of `orders` may return any number of rows for a key, and a cast of the shop may return any
    -- text.
    RETURN QUERY
        SELECT f.order_id, CASE WHEN f.before < 1048576 THEN f.content END
          FROM (SELECT d.*, sum(octet_length(d.content)) OVER (ORDER BY array_position(keys, d.order_id))
                            - octet_length(d.content) AS before
                  FROM (SELECT DISTINCT ON (u.order_id) u.order_id,
                               CASE WHEN octet_length(u.content) <= 4194304 THEN u.content ELSE '' END AS content
                          FROM unnest(ids, contents::text[]) AS u(order_id, content)
                         WHERE u.order_id = ANY (keys)) AS d) AS f;
END
$$;

-- The tenants' reader roles call the function; these roles are created and dropped with tenants. The function gives
-- its caller no additional privilege.
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_read_shop(text, text[], text, text, text[]) TO PUBLIC;
