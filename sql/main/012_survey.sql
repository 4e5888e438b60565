-- The survey of all tenants for the metrics: counters of events, waiting rows and their ages, and unprinted orders.

-- Return a row for each of up to `most` active tenants with ids above `beyond`, by id. The numbers of a tenant have
-- the same snapshot: a STABLE function uses the snapshot of the calling statement. `published`, `acknowledged` and
-- `expired` are counters that different statements maintain, and `waiting` is counted from rows, so comparing their
-- sum is a check.
--
-- `unprinted` counts orders of the last day that are still to be prepared and that no till has printed. `prints`
-- says whether tills of the shop report printed orders, according to the last hundred orders. Ages are in seconds;
-- the age is 0 if there is no such row.
CREATE FUNCTION dinedesk_main.pos_survey(beyond integer, most integer, final text[])
RETURNS TABLE (tenant_id integer, slug text, published bigint, acknowledged bigint, expired bigint, waiting bigint,
               undelivered bigint, oldest_unacked double precision, outbox_rows bigint,
               oldest_outbox double precision, unprinted bigint, oldest_unprinted double precision, prints boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    -- The statuses are literals, so that PostgreSQL can use the partial index pos_orders_open.
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
