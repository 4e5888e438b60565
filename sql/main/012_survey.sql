-- How every tenant stands, for the metrics: what became of its events, what waits and for how long, and which
-- orders nobody has printed.

-- Of up to `most` active tenants after `beyond`, in the order of their ids. The numbers of one tenant are of one
-- moment: a STABLE function looks with the snapshot of the statement that calls it. `published`, `acknowledged`
-- and `expired` are kept in three places, and `waiting` is counted, so that their sum says something.
--
-- `unprinted` are orders of the last day that are still to be made and that no till has printed; `prints` tells
-- whether tills of that shop say so at all, by its last hundred orders. Ages are in seconds, 0 where there is
-- nothing.
CREATE FUNCTION dinedesk_main.pos_survey(beyond integer, most integer, final text[])
RETURNS TABLE (tenant_id integer, slug text, published bigint, acknowledged bigint, expired bigint, waiting bigint,
               undelivered bigint, oldest_unacked double precision, outbox_rows bigint,
               oldest_outbox double precision, unprinted bigint, oldest_unprinted double precision, prints boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    -- The list of words is in the statement, so that PostgreSQL sees that pos_orders_open has these rows.
    RETURN QUERY EXECUTE format(
        'SELECT t.id, t.slug, t.last_seq, t.acknowledged, t.expired,
                (SELECT count(*) FROM dinedesk_main.pos_events AS e
                  WHERE e.tenant_id = t.id AND e.seq > t.received_seq),
                t.last_seq - t.floor,
                greatest(0, extract(epoch FROM now() - (
                    SELECT e.created_at FROM dinedesk_main.pos_events AS e
                     WHERE e.tenant_id = t.id AND e.seq > t.floor ORDER BY e.seq LIMIT 1)))::double precision,
                o.rows, greatest(0, coalesce(extract(epoch FROM now() - o.since), 0))::double precision,
                u.count, greatest(0, extract(epoch FROM now() - u.oldest))::double precision,
                EXISTS (SELECT FROM (SELECT l.print_status FROM dinedesk_main.pos_orders AS l
                                      WHERE l.tenant_id = t.id ORDER BY l.created_at DESC LIMIT 100) AS latest
                         WHERE latest.print_status = ''printed'')
           FROM (SELECT t.id, t.slug, h.last_seq, h.acknowledged, h.expired, h.received_seq,
                        greatest(h.received_seq, h.pruned_seq) AS floor
                   FROM dinedesk_main.tenants AS t JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = t.id
                  WHERE t.is_active AND t.id > $1 ORDER BY t.id LIMIT $2) AS t
          CROSS JOIN LATERAL dinedesk_main.pos_outbox_waiting(t.id) AS o
          CROSS JOIN LATERAL (
                SELECT count(*), min(o.created_at) AS oldest FROM dinedesk_main.pos_orders AS o
                 WHERE o.tenant_id = t.id AND o.print_status <> ''printed'' AND o.status <> ALL (%L::text[])
                   AND o.created_at > now() - interval ''1 day'') AS u
          ORDER BY t.id', final)
        USING beyond, most;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_survey(integer, integer, text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_survey(integer, integer, text[]) TO posd;
