-- Erasure of a customer's data: posd replaces texts that identify a person by null in its tables. The content and
-- prices of orders and the positions of events stay.

-- A record of erasures, as evidence. It does not identify the customer.
CREATE TABLE dinedesk_main.pos_erasures (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id integer NOT NULL REFERENCES dinedesk_main.tenants ON DELETE CASCADE,
    erased_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_by text NOT NULL DEFAULT session_user,
    -- For example 'phone …123'.
    sought text NOT NULL,
    events bigint NOT NULL,
    orders bigint NOT NULL,
    answers bigint NOT NULL,
    gift_cards bigint NOT NULL,
    accounts bigint NOT NULL
);
CREATE INDEX pos_erasures_of_tenant ON dinedesk_main.pos_erasures (tenant_id);
GRANT SELECT, INSERT ON dinedesk_main.pos_erasures TO posd;

-- Return true if `now` differs from `was` only by texts that became null and by removed members. Members with the
-- names below must keep their text: these are identifiers, types, statuses and times. Numbers must stay, unless the
-- member's name says that it is a telephone number.
--
-- The function compares JSON texts and not jsonb, which keeps only the last of several members with one name, and
-- treats 1.0 as equal to 1.00. So the order and number of members and the digits of numbers must be the same. Only
-- strings are compared by value, because a string can be written with and without escapes.
CREATE FUNCTION dinedesk_main.pos_only_erased(was json, now json, name text DEFAULT '') RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    plain CONSTANT text := replace(lower(name), '_', '');
    gone CONSTANT boolean := json_typeof(now) = 'null';
BEGIN
    IF was::text = now::text THEN
        RETURN true;
    END IF;
    CASE json_typeof(was)
        WHEN 'object' THEN
            RETURN json_typeof(now) = 'object'
               AND (SELECT count(*) = count(DISTINCT m.name) FROM json_object_keys(was) AS m(name))
               -- The remaining members have the same order. So no name occurs twice, and no name is new.
               AND ARRAY(SELECT n.name FROM json_object_keys(now) WITH ORDINALITY AS n(name, place) ORDER BY n.place)
                 = ARRAY(SELECT m.name FROM json_object_keys(was) WITH ORDINALITY AS m(name, place)
                          WHERE m.name IN (SELECT n.name FROM json_object_keys(now) AS n(name)) ORDER BY m.place)
               AND NOT EXISTS (
                    SELECT FROM json_each(was) AS m(name, value)
                      LEFT JOIN json_each(now) AS n(name, value) ON n.name = m.name
                     WHERE NOT dinedesk_main.pos_only_erased(m.value, coalesce(n.value, 'null'), m.name));
        WHEN 'array' THEN
            RETURN json_typeof(now) = 'array' AND json_array_length(was) = json_array_length(now)
               AND NOT EXISTS (
                    SELECT FROM json_array_elements(was) WITH ORDINALITY AS e(value, place)
                      JOIN json_array_elements(now) WITH ORDINALITY AS n(value, place) USING (place)
                     WHERE NOT dinedesk_main.pos_only_erased(e.value, n.value, pos_only_erased.name));
        WHEN 'string' THEN
            IF NOT gone THEN
                RETURN json_typeof(now) = 'string' AND was #>> '{}' = now #>> '{}';
            END IF;
            RETURN plain <> ALL (
                '{orderid,ordernumber,id,cardnumber,menuitemid,variantid,addonid,type,status,previousstatus,paymentstatus,paymentmethod,ordertype,ordersource,transactiontype,currency,createdat,updatedat,scheduledfor,scheduledtime,purchasedat,expirydate,streamid,timestamp}'::text[]);
        WHEN 'number' THEN
            RETURN gone AND plain ~ 'phone|mobile|^tel';
        ELSE
            RETURN false;
    END CASE;
END
$$;

-- Replace texts by texts that differ only by erased data, and return the keys of the replaced ones. A text that has
-- changed since it was read is left unchanged. The values of `place` and their keys: 'event' and 'beside' with the
-- position, 'message' with the id (pos_unsequenced), 'order' with its id, 'outbox' with the id, and 'answer' with
-- principal, operation and key, separated by \x01. 'call' deletes a stored answer whose path identifies a customer.
-- 'refusal', with position and device separated by \x01, removes the reason of a nack (pos_nacks). Nodes are told
-- to drop events that they hold in memory for tills that catch up.
CREATE FUNCTION dinedesk_main.pos_erase(tenant integer, place text, keys text[], texts text[]) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' SET enable_seqscan = off AS $$
BEGIN
    CASE place
        WHEN 'event' THEN
            RETURN QUERY
                UPDATE dinedesk_main.pos_events AS e SET event_data = n.text::json
                  FROM unnest(keys::bigint[], texts) AS n(key, text)
                 WHERE e.tenant_id = tenant AND e.seq = n.key
                   AND dinedesk_main.pos_only_erased(e.event_data, n.text::json)
                RETURNING e.seq::text;
        WHEN 'beside' THEN
            RETURN QUERY
                UPDATE dinedesk_main.pos_events AS e SET beside = n.text::json
                  FROM unnest(keys::bigint[], texts) AS n(key, text)
                 WHERE e.tenant_id = tenant AND e.seq = n.key
                   AND dinedesk_main.pos_only_erased(e.beside, n.text::json)
                RETURNING e.seq::text;
        WHEN 'message' THEN
            RETURN QUERY
                UPDATE dinedesk_main.pos_unsequenced AS u SET event_data = n.text::json
                  FROM unnest(keys::bigint[], texts) AS n(key, text)
                 WHERE u.tenant_id = tenant AND u.id = n.key
                   AND dinedesk_main.pos_only_erased(u.event_data, n.text::json)
                RETURNING u.id::text;
        WHEN 'order' THEN
            RETURN QUERY
                UPDATE dinedesk_main.pos_orders AS o SET snapshot = n.text::json
                  FROM unnest(keys, texts) AS n(key, text)
                 WHERE o.tenant_id = tenant AND o.order_id = n.key
                   AND dinedesk_main.pos_only_erased(o.snapshot, n.text::json)
                RETURNING o.order_id;
        WHEN 'answer' THEN
            RETURN QUERY
                UPDATE dinedesk_main.idempotency_keys AS i SET answer = n.text::json
                  FROM unnest(keys, texts) AS n(key, text)
                 WHERE coalesce(i.tenant_id, 0) = tenant
                   AND (i.principal, i.operation, i.key)
                     = (split_part(n.key, E'\x01', 1), split_part(n.key, E'\x01', 2), split_part(n.key, E'\x01', 3))
                   AND dinedesk_main.pos_only_erased(i.answer, n.text::json)
                RETURNING n.key;
        WHEN 'call' THEN
            RETURN QUERY
                DELETE FROM dinedesk_main.idempotency_keys AS i USING unnest(keys) AS n(key)
                 WHERE coalesce(i.tenant_id, 0) = tenant
                   AND (i.principal, i.operation, i.key)
                     = (split_part(n.key, E'\x01', 1), split_part(n.key, E'\x01', 2), split_part(n.key, E'\x01', 3))
                   AND i.operation ~ '/loyalty/'
                RETURNING n.key;
        WHEN 'outbox' THEN
            RETURN QUERY
                UPDATE dinedesk_main.pos_outbox AS o SET data = n.text
                  FROM unnest(keys::bigint[], texts) AS n(key, text)
                 WHERE -o.id = -n.key AND o.tenant_id = tenant
                   AND dinedesk_main.pos_only_erased(o.data::json, n.text::json)
                RETURNING o.id::text;
        WHEN 'refusal' THEN
            RETURN QUERY
                UPDATE dinedesk_main.pos_nacks AS r SET reason = NULL FROM unnest(keys) AS n(key)
                 WHERE r.tenant_id = tenant AND r.reason IS NOT NULL
                   AND r.seq = split_part(n.key, E'\x01', 1)::bigint AND r.device_id = split_part(n.key, E'\x01', 2)
                RETURNING n.key;
    END CASE;
    IF FOUND AND place IN ('event', 'beside') THEN
        PERFORM dinedesk_main.pos_tell('erased ' || tenant);
    END IF;
END
$$;

-- Erase personal data of gift cards and loyalty accounts, and return the number of each. An account without a
-- telephone number belongs to no customer, and its ledger stays. The shop's own tables of these names are not
-- changed.
CREATE FUNCTION dinedesk_main.pos_erase_people(tenant integer, cards text[], account_ids bigint[])
RETURNS TABLE (gift_cards bigint, accounts bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
    shop text := (SELECT t.schema_name FROM dinedesk_main.tenants AS t WHERE t.id = tenant);
BEGIN
    gift_cards := 0;
    accounts := 0;
    IF cards <> '{}' AND dinedesk_main.pos_keeps(shop, 'gift_cards') THEN
        EXECUTE format(
            'UPDATE %I.gift_cards SET purchased_by = NULL, recipient_name = NULL, recipient_email = NULL
              WHERE card_number = ANY ($1)', shop) USING cards;
        GET DIAGNOSTICS gift_cards = ROW_COUNT;
    END IF;
    IF account_ids <> '{}' AND dinedesk_main.pos_keeps(shop, 'loyalty_accounts') THEN
        EXECUTE format(
            'UPDATE %I.loyalty_accounts SET phone = NULL, customer_name = NULL, email = NULL
              WHERE id = ANY ($1)', shop) USING account_ids;
        GET DIAGNOSTICS accounts = ROW_COUNT;
    END IF;
    RETURN NEXT;
END
$$;

REVOKE ALL ON FUNCTION dinedesk_main.pos_only_erased(json, json, text),
    dinedesk_main.pos_erase(integer, text, text[], text[]),
    dinedesk_main.pos_erase_people(integer, text[], bigint[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_erase(integer, text, text[], text[]),
    dinedesk_main.pos_erase_people(integer, text[], bigint[]) TO posd;
