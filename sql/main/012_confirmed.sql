-- One tenant whose tables cannot be read, or are locked, must not keep the others' heads from moving: each tenant
-- is read by itself, waits for no lock for long, and `failure` has the SQLSTATE and message where it failed.
DROP FUNCTION dinedesk_main.pos_confirmed(integer[], text[]);

CREATE FUNCTION dinedesk_main.pos_confirmed(tenant_ids integer[], final text[])
RETURNS TABLE (tenant_id integer, seq bigint, failure text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
    tenant record;
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, greatest(h.received_seq, h.pruned_seq) AS floor
          FROM dinedesk_main.tenants AS t JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = t.id
         WHERE t.id = ANY (tenant_ids)
    LOOP
        BEGIN
            RETURN QUERY EXECUTE format(
                'SELECT $1, max(o.first_seq), NULL::text FROM %1$I.pos_orders AS o
                  WHERE o.received_at IS NOT NULL AND o.first_seq > $2
                    AND o.first_seq < coalesce((SELECT min(u.first_seq) FROM %1$I.pos_orders AS u
                                                 WHERE u.received_at IS NULL AND u.first_seq > $2
                                                   AND u.status <> ALL ($3)), 9223372036854775807)
                 HAVING max(o.first_seq) IS NOT NULL', tenant.schema_name)
                USING tenant.id, tenant.floor, final;
        EXCEPTION WHEN OTHERS THEN
            RETURN QUERY SELECT tenant.id, NULL::bigint, SQLSTATE || ' ' || SQLERRM;
        END;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]) TO posd;
