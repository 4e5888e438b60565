-- What a shop's loyalty points are worth, and to whom it gives any. Operators write these by UPDATE, as they
-- do with the other columns; posd reads them in the transaction of each movement, so a change counts at once.

ALTER TABLE dinedesk_main.tenants
    ADD COLUMN loyalty_enabled boolean NOT NULL DEFAULT true,
    -- Whether the first points that somebody is given make an account.
    ADD COLUMN loyalty_opens_accounts boolean NOT NULL DEFAULT true,
    -- For tills, which count the points of a bill; posd does not know what was spent.
    ADD COLUMN loyalty_points_per_pound numeric(8, 2) NOT NULL DEFAULT 1
        CHECK (loyalty_points_per_pound >= 0 AND loyalty_points_per_pound <> 'NaN'),
    -- What one point is worth when it is redeemed, in the shop's currency.
    ADD COLUMN loyalty_redemption_rate numeric(8, 4) NOT NULL DEFAULT 0.01
        CHECK (loyalty_redemption_rate >= 0 AND loyalty_redemption_rate <> 'NaN'),
    -- Points are redeemed in multiples of the increment, and no fewer than the minimum.
    ADD COLUMN loyalty_minimum_redeem integer NOT NULL DEFAULT 1 CHECK (loyalty_minimum_redeem > 0),
    ADD COLUMN loyalty_increment integer NOT NULL DEFAULT 1 CHECK (loyalty_increment > 0);

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
