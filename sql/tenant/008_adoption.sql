-- What read_orders$:shop() needs to know of the tenant's adoption (sql/main/016_adoptions.sql). No row: the tables
-- were made by posd.
CREATE VIEW :"schema".pos_adoption WITH (security_barrier) AS
    SELECT a.condition, a.timestamps,
           ARRAY(SELECT concat(t.key, '.', c.name)
                   FROM json_each(a.tables) AS t CROSS JOIN json_object_keys(t.value) AS c(name)) AS columns
      FROM dinedesk_main.pos_adoptions AS a WHERE a.tenant_id = :tenant_id;
GRANT SELECT ON :"schema".pos_adoption TO :"hook_role";
GRANT USAGE ON SCHEMA dinedesk_main, posd_hooks TO :"hook_role";

-- What the shop's orders are like, for `posctl adopt`, which calls it before the tables are hooked: how many of the
-- newest `most` orders have each status, for how many of these the condition is true, and the newest `created_at`,
-- as text. It reads with the rights of the tenant's reader, and fails as read_orders$:shop() would. Only its owner and
-- posd_owner may call it: the condition is SQL, and would give a daemon that was taken over the reader's rights.
CREATE FUNCTION posd_hooks.look_at_orders$:shop(most integer, condition text)
RETURNS TABLE (status text, orders bigint, met bigint, newest text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    EXECUTE 'SELECT FROM :"schema".orders AS o JOIN :"schema".order_items AS i ON i.order_id = o.id LIMIT 0';
    -- The line break ends a comment in the condition.
    RETURN QUERY EXECUTE concat(
        'SELECT o.status::text, count(*), count(*) FILTER (WHERE (', coalesce(condition, 'true'), E'\n)),
                max(o.created_at)::text
           FROM :"schema".orders AS o
          WHERE o.id IN (SELECT n.id FROM :"schema".orders AS n ORDER BY n.created_at DESC NULLS LAST LIMIT $1)
          GROUP BY o.status::text ORDER BY 2 DESC, 1') USING most;
END
$$;
REVOKE ALL ON FUNCTION posd_hooks.look_at_orders$:shop(integer, text) FROM PUBLIC;
GRANT CREATE ON SCHEMA posd_hooks TO :"hook_role";
ALTER FUNCTION posd_hooks.look_at_orders$:shop(integer, text) OWNER TO :"hook_role";
GRANT EXECUTE ON FUNCTION posd_hooks.look_at_orders$:shop(integer, text) TO posd_owner;
REVOKE CREATE ON SCHEMA posd_hooks FROM :"hook_role";
