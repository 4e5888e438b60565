-- What redeemed points were worth when they were redeemed (sql/main/008_loyalty_settings.sql). Where the shop
-- keeps a loyalty ledger of its own, posd has none.
DO $ledger$
BEGIN
IF NOT dinedesk_main.pos_keeps('dinedesk_:shop', 'loyalty_accounts') THEN
    RETURN;
END IF;
-- With the decimals of the rate, so that it is rounded once, on its way out.
ALTER TABLE :"schema".pos_loyalty_transactions ADD COLUMN discount numeric(20, 4);
CREATE TRIGGER pos_discount BEFORE INSERT ON :"schema".pos_loyalty_transactions
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_value_points();
END
$ledger$;
