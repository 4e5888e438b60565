-- What the ledgers of all tenants have in common (sql/tenant/003_ledgers.sql).

-- History is not changed, by its owner no more than by others, but for who takes this trigger off first.
CREATE FUNCTION dinedesk_main.pos_insert_only() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '%.% only grows: write a row that takes the other back', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_insert_only() FROM PUBLIC;

-- Whether posd keeps a tenant's gift cards or loyalty accounts: whether the table of this name, and that of its
-- movements, are ordinary tables of posd_owner. Names prove nothing, since a shop may have CREATE on its schema: a
-- view in the place of `gift_cards` runs the shop's functions with the rights of who reads it.
--
-- PL/pgSQL, which plans the statement once for a session; a function in SQL is planned for each call.
CREATE FUNCTION dinedesk_main.pos_keeps(shop text, people text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT count(*) = 2 FROM pg_class AS c
         WHERE c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = shop)
           AND c.relkind = 'r' AND c.relowner = 'posd_owner'::regrole
           AND c.relname = ANY (CASE people WHEN 'gift_cards' THEN '{gift_cards,pos_gift_card_transactions}'
                                            WHEN 'loyalty_accounts' THEN '{loyalty_accounts,pos_loyalty_transactions}'
                                END::name[]));
END
$$;

-- The same, for the beginning of a statement: fails as if there were no such table where posd keeps no such ledger,
-- before the names that follow are looked up.
CREATE FUNCTION dinedesk_main.pos_check_keeps(shop text, people text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT dinedesk_main.pos_keeps(shop, people) THEN
        RAISE EXCEPTION 'posd keeps no % of %', people, shop USING ERRCODE = 'undefined_table';
    END IF;
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_keeps(text, text), dinedesk_main.pos_check_keeps(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_keeps(text, text), dinedesk_main.pos_check_keeps(text, text) TO posd;

-- What the hooks on ledgers have noted, as it is now: by tenant, kind and key what an event is made of.
-- 'gift_card_movement' and 'loyalty_movement' are named by the row's id, a changed 'gift_card' by its number.
-- There is no row for a tenant whose ledger posd does not keep, nor for a row that is gone. Only tables of
-- posd_owner are read, so no code of a shop runs.
CREATE FUNCTION dinedesk_main.pos_movement_states(tenant_ids integer[], kinds text[], keys text[])
RETURNS TABLE (tenant_id integer, kind text, key text, content json, failure text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
    tenant record;
    ledger text;
BEGIN
    FOR tenant IN
        SELECT t.id, t.schema_name, w.kind, array_agg(w.key) AS wanted
          FROM unnest(tenant_ids, kinds, keys) AS w(tenant_id, kind, key)
          JOIN dinedesk_main.tenants AS t ON t.id = w.tenant_id
         GROUP BY t.id, w.kind ORDER BY t.id, w.kind
    LOOP
        ledger := CASE WHEN tenant.kind LIKE 'gift\_card%' THEN 'gift_cards' ELSE 'loyalty_accounts' END;
        CONTINUE WHEN NOT dinedesk_main.pos_keeps(tenant.schema_name, ledger);
        BEGIN
            -- Each tenant has functions of its own, so that what they do is planned once for a session.
            RETURN QUERY EXECUTE format(
                'SELECT $1, $2, s.key, s.content, NULL::text FROM posd_hooks.%I($2, $3) AS s',
                CASE ledger WHEN 'gift_cards' THEN 'card_states$' ELSE 'points_states$' END
                    || substr(tenant.schema_name, length('dinedesk_') + 1))
                USING tenant.id, tenant.kind, tenant.wanted;
        EXCEPTION
            WHEN undefined_table OR undefined_column THEN
                NULL;
            WHEN OTHERS OR query_canceled THEN
                RETURN QUERY SELECT tenant.id, NULL::text, NULL::text, NULL::json, SQLSTATE || ' ' || SQLERRM;
        END;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_movement_states(integer[], text[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_movement_states(integer[], text[], text[]) TO posd;

-- What redeemed points were worth is written down with them: the rate may change, the answer to a call that
-- is made again may not. A shop that writes its movements by SQL gets it too, hence the owner's rights.
CREATE FUNCTION dinedesk_main.pos_value_points() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.discount := CASE WHEN NEW.transaction_type = 'redeem' THEN -NEW.points * (
        SELECT t.loyalty_redemption_rate FROM dinedesk_main.tenants AS t WHERE t.schema_name = TG_TABLE_SCHEMA) END;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_value_points() FROM PUBLIC;
