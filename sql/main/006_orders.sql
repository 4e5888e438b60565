-- Orders on their way to paper: where their events stand in the stream, and what follows for an order when
-- its event was sent, or confirmed.

-- What terminals tell of themselves from time to time, beside `app_version`.
ALTER TABLE dinedesk_main.pos_devices
    ADD COLUMN status text,
    ADD COLUMN pending_acks integer,
    ADD COLUMN pending_orders integer,
    ADD COLUMN last_print_at timestamptz;

-- Up to where everything is confirmed by what tills said about orders, for each of these tenants where that is
-- further than what was acknowledged. Tills that never acknowledge a position say of each order that they have
-- it. That vouches for what came before on the same connection too, but not for another order: some lose one
-- without noticing. So it ends before the first order that is still to be made and that nobody has; one whose
-- event was pruned holds up nothing any more.
CREATE FUNCTION dinedesk_main.pos_confirmed(tenant_ids integer[], final text[])
RETURNS TABLE (tenant_id integer, seq bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    tenant record;
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, greatest(h.received_seq, h.pruned_seq) AS floor
          FROM dinedesk_main.tenants AS t JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = t.id
         WHERE t.id = ANY (tenant_ids)
    LOOP
        RETURN QUERY EXECUTE format(
            'SELECT $1, max(o.first_seq) FROM %1$I.pos_orders AS o
              WHERE o.received_at IS NOT NULL AND o.first_seq > $2
                AND o.first_seq < coalesce((SELECT min(u.first_seq) FROM %1$I.pos_orders AS u
                                             WHERE u.received_at IS NULL AND u.first_seq > $2
                                               AND u.status <> ALL ($3)), 9223372036854775807)
             HAVING max(o.first_seq) IS NOT NULL', tenant.schema_name)
            USING tenant.id, tenant.floor, final;
    END LOOP;
END
$$;

-- Note of the orders of these tenants whose first event was sent meanwhile that they are with the tills, and of
-- those whose first event was acknowledged that they were received. It looks at where the head stands and not at
-- what has changed, so what one call has missed the next one does. It never waits for a row: whoever has it
-- locked is about to print the order, or to publish it once more, and comes here again after that.
--
-- Returns the tenants whose orders could not be written, and why.
CREATE FUNCTION dinedesk_main.pos_mark_orders(tenant_ids integer[])
RETURNS TABLE (tenant_id integer, failure text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
    tenant record;
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, h.sent_seq, h.received_seq
          FROM dinedesk_main.tenants AS t JOIN dinedesk_main.pos_heads AS h ON h.tenant_id = t.id
         WHERE t.id = ANY (tenant_ids) ORDER BY t.id
    LOOP
        BEGIN
            EXECUTE format(
                'UPDATE %1$I.pos_orders AS o
                    SET print_status = CASE o.print_status WHEN ''pending'' THEN ''sent_to_pos''
                                                           ELSE o.print_status END,
                        pushed_at = coalesce(o.pushed_at, now()),
                        received_at = CASE WHEN o.first_seq <= $2 THEN coalesce(o.received_at, now()) END
                  WHERE o.order_id = ANY (
                        ARRAY(SELECT s.order_id FROM %1$I.pos_orders AS s
                               WHERE s.received_at IS NULL AND s.print_status = ''pending''
                                 AND s.first_seq <= greatest($1, $2) FOR UPDATE SKIP LOCKED)
                     || ARRAY(SELECT r.order_id FROM %1$I.pos_orders AS r
                               WHERE r.received_at IS NULL AND r.print_status IN (''sent_to_pos'', ''failed'')
                                 AND r.first_seq <= $2 FOR UPDATE SKIP LOCKED))', tenant.schema_name)
                USING tenant.sent_seq, tenant.received_seq;
        EXCEPTION WHEN OTHERS THEN
            RETURN QUERY SELECT tenant.id, SQLSTATE || ' ' || SQLERRM;
        END;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]), dinedesk_main.pos_mark_orders(integer[])
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_confirmed(integer[], text[]), dinedesk_main.pos_mark_orders(integer[])
    TO posd;
