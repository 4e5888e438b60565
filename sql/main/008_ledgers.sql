-- Functions that the ledgers of all tenants share (sql/tenant/003_ledgers.sql).

-- Ledgers are append-only. Even their owner cannot change a row without dropping this trigger first.
CREATE FUNCTION dinedesk_main.pos_insert_only() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '%.% is append-only: insert a row that reverses the other one', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_insert_only() FROM PUBLIC;

-- Return true if posd keeps the tenant's gift cards or loyalty accounts: if the table of this name, and the table
-- of its movements, are ordinary tables of posd_owner. Names alone prove nothing, because a shop may have CREATE on
-- its schema: a view in place of `gift_cards` would run the shop's functions with the privileges of the reader.
--
-- PL/pgSQL plans the statement once per session; a function in SQL is planned per call.
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

-- The same check, for the beginning of a statement: it fails with the error of a missing table if posd does not
-- keep the ledger, before the table names that follow are looked up.
CREATE FUNCTION dinedesk_main.pos_check_keeps(shop text, people text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT dinedesk_main.pos_keeps(shop, people) THEN
        RAISE EXCEPTION 'posd does not keep the table % of the schema %', people, shop
            USING ERRCODE = 'undefined_table';
    END IF;
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_keeps(text, text), dinedesk_main.pos_check_keeps(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_keeps(text, text), dinedesk_main.pos_check_keeps(text, text) TO posd;

-- Return the present content of ledger rows that hooks have noted, by tenant, kind and key. posd makes events of
-- them. The key of a 'gift_card_movement' or a 'loyalty_movement' is its id; the key of a changed 'gift_card' is
-- its number. Nothing is returned for a tenant whose ledger posd does not keep, nor for a row that was deleted. The
-- function reads tables of posd_owner only, so it runs no code of a shop.
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
            -- The functions are per tenant, so that their statements are planned once per session.
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

-- The value of redeemed points is stored with the movement: the rate may change, but a repeated call must get the
-- same answer. The trigger has its owner's privileges, because it also fires for movements that a shop inserts by
-- SQL.
CREATE FUNCTION dinedesk_main.pos_value_points() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.discount := CASE WHEN NEW.transaction_type = 'redeem' THEN -NEW.points * (
        SELECT t.loyalty_redemption_rate FROM dinedesk_main.tenants AS t WHERE t.schema_name = TG_TABLE_SCHEMA) END;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_value_points() FROM PUBLIC;
