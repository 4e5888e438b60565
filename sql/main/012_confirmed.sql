-- Up to where everything is confirmed by what tills said about orders, for each of these tenants where that is
-- further than what was acknowledged. Tills that never acknowledge a position say of each order that they have
-- it. That vouches for what came before on the same connection too, but not for another order: some lose one
-- without noticing. So it ends before the first order that is still to be made and that nobody has; one whose
-- event was pruned holds up nothing any more.
CREATE FUNCTION dinedesk_main.pos_confirmed(tenant_ids integer[], final text[])
RETURNS TABLE (tenant_id integer, seq bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT t.tenant_id, c.seq
          FROM (SELECT h.tenant_id, greatest(h.received_seq, h.pruned_seq) AS floor
                  FROM dinedesk_main.pos_heads AS h WHERE h.tenant_id = ANY (tenant_ids)) AS t
         CROSS JOIN LATERAL (
            SELECT max(o.first_seq) AS seq FROM dinedesk_main.pos_orders AS o
             WHERE o.tenant_id = t.tenant_id AND o.received_at IS NOT NULL AND o.first_seq > t.floor
               AND o.first_seq < coalesce((SELECT min(u.first_seq) FROM dinedesk_main.pos_orders AS u
                                            WHERE u.tenant_id = t.tenant_id AND u.received_at IS NULL
                                              AND u.first_seq > t.floor AND u.status <> ALL (final)),
                                          9223372036854775807)) AS c
         WHERE c.seq IS NOT NULL;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]) TO posd;
