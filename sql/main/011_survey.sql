-- How every tenant stands, for the metrics: what became of its events, what waits and for how long, and which
-- orders nobody has printed.

-- Of up to `most` active tenants after `beyond`, in the order of their ids. The numbers of one tenant are of one
-- moment: a STABLE function looks with the snapshot of the statement that calls it. `published`, `acknowledged`
-- and `expired` are kept in three places, and `waiting` is counted, so that their sum says something.
--
-- `unprinted` are orders of the last day that are still to be made and that no till has printed; `prints` tells
-- whether tills of that shop say so at all, by its last hundred orders. Ages are in seconds, 0 where there is
-- nothing. A tenant whose tables cannot be read has a `failure`, and stops nothing.
CREATE FUNCTION dinedesk_main.pos_survey(beyond integer, most integer, final text[])
RETURNS TABLE (tenant_id integer, slug text, published bigint, acknowledged bigint, expired bigint, waiting bigint,
               undelivered bigint, oldest_unacked double precision, outbox_rows bigint,
               oldest_outbox double precision, unprinted bigint, oldest_unprinted double precision, prints boolean,
               failure text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    tenant record;
BEGIN
    FOR tenant IN
        SELECT t.id, t.slug, t.schema_name, h.last_seq, h.acknowledged, h.expired, h.received_seq,
               greatest(h.received_seq, h.pruned_seq) AS floor, o.rows, o.oldest
          FROM dinedesk_main.tenants AS t JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = t.id
          LEFT JOIN LATERAL (SELECT count(*) AS rows, extract(epoch FROM now() - min(b.created_at)) AS oldest
                               FROM dinedesk_main.pos_outbox AS b WHERE b.tenant_id = t.id) AS o ON true
         WHERE t.is_active AND t.id > beyond ORDER BY t.id LIMIT most
    LOOP
        BEGIN
            -- The list of words is in the statement, so that PostgreSQL sees that pos_orders_open has these rows.
            RETURN QUERY EXECUTE format(
                'SELECT $1, $2, $3, $4, $5,
                        (SELECT count(*) FROM %1$I.pos_events AS e WHERE e.seq > $6), $3 - $7,
                        greatest(0, extract(epoch FROM now() - (
                            SELECT e.created_at FROM %1$I.pos_events AS e
                             WHERE e.seq > $7 ORDER BY e.seq LIMIT 1)))::double precision,
                        $8, $9, u.count, greatest(0, extract(epoch FROM now() - u.oldest))::double precision,
                        EXISTS (SELECT FROM (SELECT l.print_status FROM %1$I.pos_orders AS l
                                              ORDER BY l.created_at DESC LIMIT 100) AS latest
                                 WHERE latest.print_status = ''printed''), NULL::text
                   FROM (SELECT count(*), min(o.created_at) AS oldest FROM %1$I.pos_orders AS o
                          WHERE o.print_status <> ''printed'' AND o.status <> ALL (%2$L::text[])
                            AND o.created_at > now() - interval ''1 day'') AS u',
                tenant.schema_name, final)
            USING tenant.id, tenant.slug, tenant.last_seq, tenant.acknowledged, tenant.expired,
                  tenant.received_seq, tenant.floor, tenant.rows,
                  greatest(0, tenant.oldest)::double precision;
        EXCEPTION WHEN OTHERS THEN
            RETURN QUERY SELECT tenant.id, tenant.slug, tenant.last_seq, tenant.acknowledged, tenant.expired,
                                NULL::bigint, tenant.last_seq - tenant.floor, NULL::double precision, tenant.rows,
                                greatest(0, tenant.oldest)::double precision, NULL::bigint, NULL::double precision,
                                NULL::boolean, SQLSTATE || ' ' || SQLERRM;
        END;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_survey(integer, integer, text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_survey(integer, integer, text[]) TO posd;
