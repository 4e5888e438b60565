-- Daily reports of tills. There is one report per day, whichever till sends it. Replaced reports are kept as
-- revisions, and only the trigger below can write them.
CREATE TABLE :"schema".pos_daily_reports (
    report_date date PRIMARY KEY,
    revision integer NOT NULL DEFAULT 1 CHECK (revision > 0),
    -- The till that sent the report, if it is known.
    device_id text,
    -- NULL: not sent. With the decimals of the currency; zero and negative values are valid.
    total_sales numeric(14, 3),
    total_orders bigint,
    cash_sales numeric(14, 3),
    card_sales numeric(14, 3),
    gift_card_sales numeric(14, 3),
    online_sales numeric(14, 3),
    discounts numeric(14, 3),
    refunds numeric(14, 3),
    net_sales numeric(14, 3),
    top_items jsonb,
    busy_hours jsonb,
    staff_shifts jsonb,
    labour jsonb,
    data jsonb,
    notes text,
    -- False: sums in the report do not agree. `issues` lists these, and values that were rounded or not sent.
    balanced boolean NOT NULL,
    issues jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE :"schema".pos_daily_report_amendments (
    LIKE :"schema".pos_daily_reports,
    replaced_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (report_date, revision)
);

-- Before a report is changed, its row is kept, also if SQL with the daemon's privileges changes it.
CREATE FUNCTION posd_hooks.keep_report$:shop() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO :"schema".pos_daily_report_amendments SELECT OLD.*;
    NEW.report_date := OLD.report_date;
    NEW.revision := OLD.revision + 1;
    NEW.received_at := clock_timestamp();
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION posd_hooks.keep_report$:shop() FROM PUBLIC;
CREATE TRIGGER pos_keep_report BEFORE UPDATE ON :"schema".pos_daily_reports
    FOR EACH ROW EXECUTE FUNCTION posd_hooks.keep_report$:shop();

GRANT SELECT, INSERT, UPDATE ON :"schema".pos_daily_reports TO posd;
GRANT SELECT ON :"schema".pos_daily_report_amendments TO posd;
