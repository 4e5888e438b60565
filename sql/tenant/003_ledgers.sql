-- Gift cards and loyalty points: two append-only ledgers. A row continues its predecessor by a foreign key to the
-- predecessor's number and balance. So no role that may insert can spend an amount twice, or more than the balance,
-- even by mistake. The balance is that of the last row. Constraints enforce this, so no code must be trusted. A
-- NULL passes a CHECK and a foreign key, so all columns but `prev_seq` are NOT NULL. NaN equals itself and is
-- greater than all numbers, so it is excluded explicitly. (numeric(14, 3) cannot store infinity.)
--
-- Existing tables of these names belong to the shop. They stay unchanged, and posd keeps no ledger of that kind:
-- the shop publishes by pos_publish() or REST. The owner of the tables decides whether posd keeps a ledger
-- (dinedesk_main.pos_keeps()), because a shop can create tables, constraints and functions of any name.

-- pos_movement_states() reads the noted rows after the commit. `posd.hooks`: see hooks.sql.
CREATE FUNCTION posd_hooks.note_movements$:shop() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('posd.hooks', true) IS DISTINCT FROM 'off' THEN
        PERFORM posd_hooks.enqueue$:shop(TG_ARGV[0], ARRAY(
            SELECT t.id::text FROM touched AS t WHERE t.transaction_type <> 'tombstone' ORDER BY t.id));
    END IF;
    RETURN NULL;
END
$$;

-- Noted if it changes whether a till can use the card. Changes of its holder are not published.
CREATE FUNCTION posd_hooks.note_cards$:shop() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('posd.hooks', true) IS DISTINCT FROM 'off' THEN
        PERFORM posd_hooks.enqueue$:shop('gift_card'::text, ARRAY(
            SELECT t.card_number FROM touched AS t JOIN before AS b USING (card_number)
             WHERE (t.is_blocked, t.expiry_date) IS DISTINCT FROM (b.is_blocked, b.expiry_date)
               AND b.initial_balance IS NOT NULL));
    END IF;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION posd_hooks.note_movements$:shop(), posd_hooks.note_cards$:shop() FROM PUBLIC;
-- These triggers run in sessions of the daemon. If :"note_role" owned them, as it owns the hooks on `orders`, code
-- of the shop that gets that role's privileges could change them, and would then run with the daemon's privileges.
GRANT CREATE ON SCHEMA posd_hooks TO posd_hook;
ALTER FUNCTION posd_hooks.note_movements$:shop() OWNER TO posd_hook;
ALTER FUNCTION posd_hooks.note_cards$:shop() OWNER TO posd_hook;
REVOKE CREATE ON SCHEMA posd_hooks FROM posd_hook;


DO $ledger$
BEGIN
IF EXISTS (
    SELECT FROM pg_class WHERE relnamespace = ':"schema"'::regnamespace
       AND relname IN ('gift_cards', 'pos_gift_card_transactions')
) THEN
    RETURN;
END IF;

CREATE TABLE :"schema".gift_cards (
    -- Trimmed and in upper case, as all numbers are compared. ASCII only, so that upper case is unambiguous.
    card_number text PRIMARY KEY CONSTRAINT gift_cards_number_form
        CHECK (card_number ~ '^[!-`{-~]([ -`{-~]{0,62}[!-`{-~])?$'),
    -- The amount for which the card was sold; the ledger has the present balance. NULL: the card was never sold,
    -- and only a reversal of a sale has named it, whose call may still arrive.
    initial_balance numeric(14, 3) DEFAULT 0 CHECK (initial_balance >= 0 AND initial_balance <> 'NaN'),
    is_blocked boolean NOT NULL DEFAULT false,
    -- The last instant at which the card is valid.
    expiry_date timestamptz,
    purchased_by text,
    recipient_name text,
    recipient_email text,
    order_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE :"schema".pos_gift_card_transactions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    card_number text NOT NULL REFERENCES :"schema".gift_cards,
    seq integer NOT NULL CHECK (seq > 0),
    prev_seq integer,
    balance_before numeric(14, 3) NOT NULL,
    amount numeric(14, 3) NOT NULL,
    balance_after numeric(14, 3) NOT NULL,
    transaction_type text NOT NULL,
    order_id text CHECK (char_length(order_id) <= 255),
    reference text CHECK (char_length(reference) <= 500),
    -- The caller, who owns the idempotency key: 'platform', 'tenant' or 'device <id>'.
    principal text NOT NULL DEFAULT 'shop' CHECK (principal <> ''),
    idempotency_key text CHECK (idempotency_key !~ '[^\x21-\x7e]' AND char_length(idempotency_key) BETWEEN 1 AND 255),
    device_id text CHECK (char_length(device_id) <= 128),
    reverses_id bigint,
    -- For a sale: the expiry date with which the card was sold, whatever is changed later. Names and addresses of
    -- people are not stored here, because rows of a ledger can be neither corrected nor erased.
    expiry_date timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The two ends of a foreign key which ensures that a reversal reverses the whole of one movement of the same
    -- card, and not another reversal: `reversed` is what this row reverses, `reversible` what can be reversed of
    -- it.
    reversed numeric(14, 3) GENERATED ALWAYS AS (
        CASE WHEN transaction_type = 'reverse' THEN -amount END) STORED,
    reversible numeric(14, 3) GENERATED ALWAYS AS (
        CASE WHEN transaction_type NOT IN ('reverse', 'tombstone') THEN amount END) STORED,

    -- Not NOT IN, because PostgreSQL's stored form of it changes in a dump and restore.
    CONSTRAINT gift_card_numbers
        CHECK (balance_before <> 'NaN' AND amount <> 'NaN' AND balance_after <> 'NaN'),
    CONSTRAINT gift_card_sum CHECK (balance_after = balance_before + amount),
    CONSTRAINT gift_card_not_overdrawn CHECK (balance_after >= 0),
    CONSTRAINT gift_card_begins_at_zero CHECK (seq > 1 OR balance_before = 0),
    CONSTRAINT gift_card_first_follows_none CHECK ((seq = 1) = (prev_seq IS NULL)),
    CONSTRAINT gift_card_follows_the_one_before CHECK (prev_seq = seq - 1),
    CONSTRAINT gift_card_sign CHECK (
        CASE transaction_type
            WHEN 'purchase' THEN amount > 0
            WHEN 'activate' THEN amount > 0
            WHEN 'top_up' THEN amount > 0
            WHEN 'deduct' THEN amount < 0
            WHEN 'reverse' THEN amount <> 0
            WHEN 'tombstone' THEN amount = 0
            ELSE false
        END),
    CONSTRAINT gift_card_reverse_names_its_original
        CHECK ((transaction_type = 'reverse') = (reverses_id IS NOT NULL)),
    CONSTRAINT gift_card_place UNIQUE (card_number, seq),
    CONSTRAINT gift_card_balance UNIQUE (card_number, seq, balance_after),
    CONSTRAINT gift_card_chain FOREIGN KEY (card_number, prev_seq, balance_before)
        REFERENCES :"schema".pos_gift_card_transactions (card_number, seq, balance_after),
    CONSTRAINT gift_card_key UNIQUE (card_number, principal, idempotency_key),
    CONSTRAINT gift_card_reversed_once UNIQUE (reverses_id),
    CONSTRAINT gift_card_reversible UNIQUE (card_number, id, reversible),
    CONSTRAINT gift_card_reverses FOREIGN KEY (card_number, reverses_id, reversed)
        REFERENCES :"schema".pos_gift_card_transactions (card_number, id, reversible)
);
-- If posd generates the number, a repeated call cannot name the card. So the key of a purchase is unique by itself.
CREATE UNIQUE INDEX gift_card_purchase_key ON :"schema".pos_gift_card_transactions (principal, idempotency_key)
    WHERE transaction_type = 'purchase';

CREATE TRIGGER pos_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON :"schema".pos_gift_card_transactions
    FOR EACH STATEMENT EXECUTE FUNCTION dinedesk_main.pos_insert_only();
CREATE TRIGGER pos_movements_inserted AFTER INSERT ON :"schema".pos_gift_card_transactions
    REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION posd_hooks.note_movements$:shop('gift_card_movement');
CREATE TRIGGER pos_gift_cards_updated AFTER UPDATE ON :"schema".gift_cards
    REFERENCING OLD TABLE AS before NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION posd_hooks.note_cards$:shop();

-- All movements of a card lock its row, so they run one after the other. The functions are VOLATILE PL/pgSQL:
-- statements after the lock see all rows committed before, and a call is one round trip. `outcome` is the result;
-- `movement` is the row that was inserted or found, or, if the call is refused because of the balance, the last row
-- of the card.
--
-- card_replay, card_append and card_move take several calls in arrays; `place` is the index of a call, from 1.
-- Starting an INSERT, with the constraints and triggers of this table, takes longer than inserting a row. At most
-- one of the calls may name a card.

-- Return the present state and the last movement of the cards with these numbers that have been sold. The function
-- depends on both tables, because it returns their rows.
CREATE FUNCTION posd_hooks.card_read$:shop(numbers text[])
RETURNS TABLE (card :"schema".gift_cards, movement :"schema".pos_gift_card_transactions)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT c.card, (SELECT t FROM :"schema".pos_gift_card_transactions AS t
                         WHERE t.card_number = (c.card).card_number ORDER BY t.seq DESC LIMIT 1)
          FROM unnest(numbers) AS n CROSS JOIN LATERAL (
            SELECT g AS card FROM :"schema".gift_cards AS g WHERE g.card_number = n LIMIT 1) AS c
         WHERE (c.card).initial_balance IS NOT NULL;
END
$$;

-- Return the content of events about these movements, or, if `kind` is 'gift_card', about these cards: see
-- pos_movement_states().
CREATE FUNCTION posd_hooks.card_states$:shop(kind text, keys text[])
RETURNS TABLE (key text, content json)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF kind = 'gift_card_movement' THEN
        RETURN QUERY
            SELECT m.id::text, json_build_object(
                       'card_number', m.card_number, 'type', m.transaction_type, 'amount', m.amount,
                       'balance', m.balance_after, 'created_at', m.created_at, 'purchased_by', c.purchased_by,
                       'recipient_name', c.recipient_name, 'recipient_email', c.recipient_email,
                       'expiry_date', c.expiry_date)
              FROM :"schema".pos_gift_card_transactions AS m JOIN :"schema".gift_cards AS c USING (card_number)
             WHERE m.id = ANY (ARRAY(SELECT k::bigint FROM unnest(keys) AS k WHERE k ~ '^[0-9]{1,18}$'));
    ELSE
        RETURN QUERY
            SELECT c.card_number, json_build_object(
                       'card_number', c.card_number, 'balance', coalesce(m.balance_after, 0),
                       'status', CASE WHEN c.is_blocked THEN 'blocked'
                                      WHEN c.expiry_date < clock_timestamp() THEN 'expired'
                                      WHEN m.balance_after > 0 THEN 'active'
                                      ELSE 'depleted' END,
                       'expiry_date', c.expiry_date, 'now', clock_timestamp())
              FROM :"schema".gift_cards AS c
              LEFT JOIN LATERAL (
                    SELECT t.* FROM :"schema".pos_gift_card_transactions AS t
                     WHERE t.card_number = c.card_number ORDER BY t.seq DESC LIMIT 1) AS m ON true
             WHERE c.card_number = ANY (keys);
    END IF;
END
$$;

-- Return the earlier results of calls with these keys; no row for a key without a movement. A reversal that arrived
-- first has stored a tombstone. A tombstone of the platform applies to the keys of all principals, because the
-- platform may reverse the movements of all principals.
CREATE FUNCTION posd_hooks.card_replay$:shop(
    numbers text[], kinds text[], changes numeric[], principals text[], call_keys text[])
RETURNS TABLE (place bigint, outcome text, movement :"schema".pos_gift_card_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT a.place,
               CASE WHEN (e.movement).transaction_type = 'tombstone' THEN 'reversed'
                    WHEN (e.movement).transaction_type <> a.kind OR (e.movement).amount <> a.change THEN 'mismatch'
                    WHEN EXISTS (SELECT FROM :"schema".pos_gift_card_transactions AS r
                                  WHERE r.reverses_id = (e.movement).id) THEN 'reversed'
                    ELSE 'replayed' END,
               e.movement
          FROM unnest(numbers, kinds, changes, principals, call_keys) WITH ORDINALITY
               AS a (number, kind, change, made_by, call_key, place)
         CROSS JOIN LATERAL (
            SELECT t AS movement FROM :"schema".pos_gift_card_transactions AS t
             WHERE t.card_number = a.number AND t.principal = ANY (ARRAY[a.made_by, 'platform'])
               AND t.idempotency_key = a.call_key
               AND (t.principal = a.made_by OR t.transaction_type = 'tombstone')
             ORDER BY t.principal = a.made_by DESC LIMIT 1) AS e;
END
$$;

-- Append rows for cards that the caller has locked and has found usable; this function checks the balance only. It
-- skips calls without a number.
CREATE FUNCTION posd_hooks.card_append$:shop(
    numbers text[], kinds text[], changes numeric[], principals text[], call_keys text[], devices text[],
    for_orders text[], notes text[], originals bigint[])
RETURNS TABLE (place bigint, outcome text, movement :"schema".pos_gift_card_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        WITH asked AS MATERIALIZED (
            SELECT a.*, l.movement, coalesce((l.movement).balance_after, 0) AS balance,
                   CASE WHEN coalesce((l.movement).balance_after, 0) + a.change < 0 THEN 'insufficient'
                        WHEN coalesce((l.movement).balance_after, 0) + a.change >= 100000000000 THEN 'too_much'
                        ELSE 'made' END AS outcome
              FROM unnest(numbers, kinds, changes, principals, call_keys, devices, for_orders, notes, originals)
                   WITH ORDINALITY
                   AS a (number, kind, change, made_by, call_key, device, for_order, note, original, place)
              LEFT JOIN LATERAL (
                SELECT t AS movement FROM :"schema".pos_gift_card_transactions AS t
                 WHERE t.card_number = a.number ORDER BY t.seq DESC LIMIT 1) AS l ON true
             WHERE a.number IS NOT NULL
        ), made AS (
            INSERT INTO :"schema".pos_gift_card_transactions AS t (
                card_number, seq, prev_seq, balance_before, amount, balance_after, transaction_type, order_id,
                reference, principal, idempotency_key, device_id, reverses_id, expiry_date)
            SELECT a.number, coalesce((a.movement).seq, 0) + 1, (a.movement).seq, a.balance, a.change,
                   a.balance + a.change, a.kind, a.for_order, a.note, a.made_by, a.call_key, a.device, a.original,
                   CASE WHEN a.kind IN ('purchase', 'activate') THEN (
                       SELECT c.expiry_date FROM :"schema".gift_cards AS c WHERE c.card_number = a.number) END
              FROM asked AS a WHERE a.outcome = 'made'
            RETURNING t AS movement
        )
        SELECT a.place, a.outcome, CASE a.outcome WHEN 'made' THEN m.movement ELSE a.movement END
          FROM asked AS a LEFT JOIN made AS m ON (m.movement).card_number = a.number;
END
$$;

-- `kind`: deduct (with a negative `change`) or top_up. If `patient` is false, a card that another transaction has
-- locked has the outcome `locked` and is not changed; otherwise the function waits for the lock.
CREATE FUNCTION posd_hooks.card_move$:shop(
    numbers text[], kinds text[], changes numeric[], principals text[], call_keys text[], devices text[],
    for_orders text[], notes text[], patient boolean)
RETURNS TABLE (place bigint, outcome text, movement :"schema".pos_gift_card_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    locked text[];
    judged record;
    due text[] := array_fill(NULL::text, ARRAY[cardinality(numbers)]);
BEGIN
    -- Cards are locked in the order of their numbers, so that two calls with the same cards cannot deadlock.
    IF patient THEN
        locked := ARRAY(SELECT c.card_number FROM :"schema".gift_cards AS c WHERE c.card_number = ANY (numbers)
                         ORDER BY c.card_number FOR NO KEY UPDATE);
    ELSE
        locked := ARRAY(SELECT c.card_number FROM :"schema".gift_cards AS c WHERE c.card_number = ANY (numbers)
                         ORDER BY c.card_number FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    FOR judged IN
        -- A repeated call is answered like the first call, whatever the present state of the card.
        SELECT a.place, a.number, r.movement,
               -- A card that was sold after the lock statement looked for it is not locked either.
               CASE WHEN c.card_number IS NULL OR (patient AND a.number <> ALL (locked)) THEN 'unknown'
                    WHEN a.number <> ALL (locked) THEN 'locked'
                    WHEN r.outcome IS NOT NULL THEN r.outcome
                    WHEN c.initial_balance IS NULL THEN 'unknown'
                    WHEN c.is_blocked THEN 'blocked'
                    WHEN c.expiry_date < clock_timestamp() THEN 'expired' END AS outcome
          FROM unnest(numbers) WITH ORDINALITY AS a (number, place)
          LEFT JOIN LATERAL (
            SELECT * FROM :"schema".gift_cards AS g WHERE g.card_number = a.number LIMIT 1) AS c ON true
          LEFT JOIN posd_hooks.card_replay$:shop(numbers, kinds, changes, principals, call_keys) AS r USING (place)
    LOOP
        IF judged.outcome IS NULL THEN
            due[judged.place] := judged.number;
        ELSE
            place := judged.place;
            outcome := judged.outcome;
            movement := judged.movement;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF array_remove(due, NULL) <> '{}' THEN
        RETURN QUERY
            SELECT * FROM posd_hooks.card_append$:shop(
                due, kinds, changes, principals, call_keys, devices, for_orders, notes, NULL);
    END IF;
END
$$;

-- Sell a card: `purchase` creates a new card; `activate` sells a card that has not been sold yet, or creates it. A
-- number whose sale was reversed can be sold again. `chosen`: the caller named the number, so a call with the same
-- key and another number is another call. If posd generated the number, a repeated call is about the card of the
-- first call.
CREATE FUNCTION posd_hooks.card_issue$:shop(
    number text, chosen boolean, kind text, change numeric, made_by text, call_key text, device text,
    for_order text, note text, buyer text, recipient text, email text, valid_until timestamptz,
    OUT outcome text, OUT movement :"schema".pos_gift_card_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    card :"schema".gift_cards;
    step record;
    is_new boolean;
    violated text;
BEGIN
    FOR attempt IN 1 .. 2 LOOP
        IF kind = 'purchase' THEN
            SELECT * INTO movement FROM :"schema".pos_gift_card_transactions AS t
             WHERE t.principal = made_by AND t.idempotency_key = call_key AND t.transaction_type = 'purchase';
            IF FOUND AND movement.card_number <> number THEN
                IF chosen THEN
                    outcome := 'mismatch';
                ELSE
                    SELECT * INTO step FROM posd_hooks.card_replay$:shop(
                        ARRAY[movement.card_number], ARRAY[kind], ARRAY[change], ARRAY[made_by], ARRAY[call_key]);
                    outcome := step.outcome;
                    movement := step.movement;
                END IF;
                RETURN;
            END IF;
        END IF;
        BEGIN
            INSERT INTO :"schema".gift_cards AS c (
                card_number, initial_balance, expiry_date, purchased_by, recipient_name, recipient_email, order_id)
            VALUES (number, change, valid_until, buyer, recipient, email, for_order)
            ON CONFLICT (card_number) DO NOTHING;
            is_new := FOUND;
            SELECT * INTO card FROM :"schema".gift_cards AS c WHERE c.card_number = number FOR NO KEY UPDATE;
            SELECT * INTO step
              FROM posd_hooks.card_replay$:shop(
                ARRAY[number], ARRAY[kind], ARRAY[change], ARRAY[made_by], ARRAY[call_key]);
            outcome := step.outcome;
            movement := step.movement;
            IF outcome IS NOT NULL THEN
                RETURN;
            END IF;
            IF NOT is_new THEN
                outcome := CASE
                    WHEN card.is_blocked THEN 'blocked'
                    WHEN card.expiry_date < clock_timestamp() AND kind = 'activate' THEN 'expired'
                    WHEN kind = 'purchase' AND card.initial_balance IS NOT NULL AND NOT EXISTS (
                        SELECT FROM :"schema".pos_gift_card_transactions AS t WHERE t.card_number = number)
                        THEN 'exists'
                    WHEN EXISTS (
                        SELECT FROM :"schema".pos_gift_card_transactions AS t
                         WHERE t.card_number = number AND t.transaction_type IN ('purchase', 'activate', 'top_up')
                           AND NOT EXISTS (SELECT FROM :"schema".pos_gift_card_transactions AS r
                                            WHERE r.reverses_id = t.id)) THEN 'exists'
                END;
                IF outcome IS NOT NULL THEN
                    RETURN;
                END IF;
                UPDATE :"schema".gift_cards AS c
                   SET initial_balance = change, order_id = for_order,
                       expiry_date = CASE kind WHEN 'purchase' THEN valid_until
                                               ELSE coalesce(valid_until, c.expiry_date) END,
                       purchased_by = coalesce(buyer, c.purchased_by),
                       recipient_name = coalesce(recipient, c.recipient_name),
                       recipient_email = coalesce(email, c.recipient_email)
                 WHERE c.card_number = number;
            END IF;
            SELECT * INTO step FROM posd_hooks.card_append$:shop(
                ARRAY[number], ARRAY[kind], ARRAY[change], ARRAY[made_by], ARRAY[call_key], ARRAY[device],
                ARRAY[for_order], ARRAY[note], NULL);
            outcome := step.outcome;
            movement := step.movement;
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            -- A concurrent equal call, for another number that posd generated, has committed first.
            GET STACKED DIAGNOSTICS violated = CONSTRAINT_NAME;
            IF violated <> 'gift_card_purchase_key' OR attempt = 2 THEN
                RAISE;
            END IF;
        END;
    END LOOP;
END
$$;

-- Reverse the movement with this id or with this key. The platform may reverse the movements of all principals,
-- other callers only their own. If no movement has the key, a tombstone is stored, so that the movement is refused
-- if it still arrives. A tombstone is stored even for a number that no card has, because the movement may be a
-- sale.
CREATE FUNCTION posd_hooks.card_reverse$:shop(
    number text, made_by text, call_key text, original_id bigint, device text, note text,
    OUT outcome text, OUT movement :"schema".pos_gift_card_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    original :"schema".pos_gift_card_transactions;
    originals bigint[];
    step record;
BEGIN
    PERFORM FROM :"schema".gift_cards AS c WHERE c.card_number = number FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        IF call_key IS NULL THEN
            outcome := 'unknown_transaction';
            RETURN;
        END IF;
        INSERT INTO :"schema".gift_cards (card_number, initial_balance) VALUES (number, NULL)
        ON CONFLICT (card_number) DO NOTHING;
        PERFORM FROM :"schema".gift_cards AS c WHERE c.card_number = number FOR NO KEY UPDATE;
    END IF;
    IF original_id IS NULL THEN
        originals := ARRAY(
            SELECT t.id FROM :"schema".pos_gift_card_transactions AS t
             WHERE t.card_number = number AND t.idempotency_key = call_key AND t.principal = made_by);
        IF originals = '{}' AND made_by = 'platform' THEN
            originals := ARRAY(
                SELECT t.id FROM :"schema".pos_gift_card_transactions AS t
                 WHERE t.card_number = number AND t.idempotency_key = call_key
                   AND t.transaction_type <> 'tombstone');
        END IF;
        IF cardinality(originals) > 1 THEN
            outcome := 'ambiguous';
            RETURN;
        ELSIF originals = '{}' THEN
            SELECT * INTO step FROM posd_hooks.card_append$:shop(
                ARRAY[number], '{tombstone}', '{0}', ARRAY[made_by], ARRAY[call_key], ARRAY[device], NULL, ARRAY[note],
                NULL);
            outcome := 'tombstoned';
            movement := step.movement;
            RETURN;
        END IF;
    END IF;
    SELECT * INTO original FROM :"schema".pos_gift_card_transactions AS t
     WHERE t.card_number = number AND t.id = coalesce(original_id, originals[1]);
    IF NOT FOUND THEN
        outcome := 'unknown_transaction';
    ELSIF made_by <> 'platform' AND original.principal <> made_by THEN
        outcome := 'forbidden';
    ELSIF original_id IS NULL AND original.transaction_type = 'tombstone' THEN
        outcome := 'replayed';
        movement := original;
    ELSIF original.reversible IS NULL THEN
        outcome := 'irreversible';
    ELSE
        SELECT * INTO movement FROM :"schema".pos_gift_card_transactions AS t WHERE t.reverses_id = original.id;
        IF FOUND THEN
            outcome := 'replayed';
        ELSE
            SELECT * INTO step FROM posd_hooks.card_append$:shop(
                ARRAY[number], '{reverse}', ARRAY[-original.amount], ARRAY[made_by], NULL, ARRAY[device],
                ARRAY[original.order_id], ARRAY[note], ARRAY[original.id]);
            outcome := step.outcome;
            movement := step.movement;
        END IF;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION
    posd_hooks.card_read$:shop(text[]),
    posd_hooks.card_states$:shop(text, text[]),
    posd_hooks.card_replay$:shop(text[], text[], numeric[], text[], text[]),
    posd_hooks.card_append$:shop(text[], text[], numeric[], text[], text[], text[], text[], text[], bigint[]),
    posd_hooks.card_move$:shop(text[], text[], numeric[], text[], text[], text[], text[], text[], boolean),
    posd_hooks.card_issue$:shop(text, boolean, text, numeric, text, text, text, text, text, text, text, text, timestamptz),
    posd_hooks.card_reverse$:shop(text, text, text, bigint, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    posd_hooks.card_read$:shop(text[]),
    posd_hooks.card_states$:shop(text, text[]),
    posd_hooks.card_replay$:shop(text[], text[], numeric[], text[], text[]),
    posd_hooks.card_append$:shop(text[], text[], numeric[], text[], text[], text[], text[], text[], bigint[]),
    posd_hooks.card_move$:shop(text[], text[], numeric[], text[], text[], text[], text[], text[], boolean),
    posd_hooks.card_issue$:shop(text, boolean, text, numeric, text, text, text, text, text, text, text, text, timestamptz),
    posd_hooks.card_reverse$:shop(text, text, text, bigint, text, text) TO posd;
GRANT SELECT, INSERT ON :"schema".gift_cards, :"schema".pos_gift_card_transactions TO posd;
GRANT UPDATE (initial_balance, is_blocked, expiry_date, purchased_by, recipient_name, recipient_email, order_id)
    ON :"schema".gift_cards TO posd;
END
$ledger$;


DO $ledger$
BEGIN
IF EXISTS (
    SELECT FROM pg_class WHERE relnamespace = ':"schema"'::regnamespace
       AND relname IN ('loyalty_accounts', 'pos_loyalty_transactions')
) THEN
    RETURN;
END IF;

CREATE TABLE :"schema".loyalty_accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- In E.164. NULL: the customer was erased (sql/main/011_erasure.sql).
    phone text UNIQUE CONSTRAINT loyalty_phone_form CHECK (phone ~ '^\+[1-9][0-9]{1,14}$'),
    customer_name text,
    email text,
    -- Maintained by the shop; posd does not know this amount.
    total_spent numeric(14, 3) NOT NULL DEFAULT 0 CHECK (total_spent >= 0 AND total_spent <> 'NaN'),
    -- NULL: no customer has joined with this number; only a reversal has named it.
    member_since timestamptz DEFAULT clock_timestamp(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE :"schema".pos_loyalty_transactions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES :"schema".loyalty_accounts,
    seq integer NOT NULL CHECK (seq > 0),
    prev_seq integer,
    balance_before bigint NOT NULL,
    points bigint NOT NULL,
    balance_after bigint NOT NULL,
    transaction_type text NOT NULL,
    order_id text CHECK (char_length(order_id) <= 255),
    reason text CHECK (char_length(reason) <= 500),
    principal text NOT NULL DEFAULT 'shop' CHECK (principal <> ''),
    idempotency_key text CHECK (idempotency_key !~ '[^\x21-\x7e]' AND char_length(idempotency_key) BETWEEN 1 AND 255),
    device_id text CHECK (char_length(device_id) <= 128),
    reverses_id bigint,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    reversed bigint GENERATED ALWAYS AS (
        CASE WHEN transaction_type = 'reverse' THEN -points END) STORED,
    reversible bigint GENERATED ALWAYS AS (
        CASE WHEN transaction_type NOT IN ('reverse', 'tombstone') THEN points END) STORED,
    -- The value of redeemed points at the time of the redemption (pos_value_points), with the decimals of the rate,
    -- so that it is rounded only once, when it is read.
    discount numeric(20, 4),

    CONSTRAINT loyalty_sum CHECK (balance_after = balance_before + points),
    CONSTRAINT loyalty_not_overdrawn CHECK (balance_after >= 0),
    -- JSON readers lose digits of numbers above 2^53 - 1.
    CONSTRAINT loyalty_readable CHECK (balance_after <= 9007199254740991),
    CONSTRAINT loyalty_begins_at_zero CHECK (seq > 1 OR balance_before = 0),
    CONSTRAINT loyalty_first_follows_none CHECK ((seq = 1) = (prev_seq IS NULL)),
    CONSTRAINT loyalty_follows_the_one_before CHECK (prev_seq = seq - 1),
    CONSTRAINT loyalty_sign CHECK (
        CASE transaction_type
            WHEN 'add' THEN points > 0
            WHEN 'redeem' THEN points < 0
            WHEN 'adjust' THEN points <> 0
            WHEN 'reverse' THEN points <> 0
            WHEN 'tombstone' THEN points = 0
            ELSE false
        END),
    CONSTRAINT loyalty_reverse_names_its_original
        CHECK ((transaction_type = 'reverse') = (reverses_id IS NOT NULL)),
    CONSTRAINT loyalty_place UNIQUE (account_id, seq),
    CONSTRAINT loyalty_balance UNIQUE (account_id, seq, balance_after),
    CONSTRAINT loyalty_chain FOREIGN KEY (account_id, prev_seq, balance_before)
        REFERENCES :"schema".pos_loyalty_transactions (account_id, seq, balance_after),
    CONSTRAINT loyalty_key UNIQUE (account_id, principal, idempotency_key),
    CONSTRAINT loyalty_reversed_once UNIQUE (reverses_id),
    CONSTRAINT loyalty_reversible UNIQUE (account_id, id, reversible),
    CONSTRAINT loyalty_reverses FOREIGN KEY (account_id, reverses_id, reversed)
        REFERENCES :"schema".pos_loyalty_transactions (account_id, id, reversible)
);
-- An order earns points once, whatever the principal and the key.
CREATE UNIQUE INDEX loyalty_earned_once ON :"schema".pos_loyalty_transactions (account_id, order_id)
    WHERE transaction_type = 'add';

CREATE TRIGGER pos_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON :"schema".pos_loyalty_transactions
    FOR EACH STATEMENT EXECUTE FUNCTION dinedesk_main.pos_insert_only();
CREATE TRIGGER pos_discount BEFORE INSERT ON :"schema".pos_loyalty_transactions
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_value_points();
CREATE TRIGGER pos_movements_inserted AFTER INSERT ON :"schema".pos_loyalty_transactions
    REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION posd_hooks.note_movements$:shop('loyalty_movement');

-- Return customers' accounts with their last movements, newest first: one row per movement, or one row without a
-- movement. `earned` and `redeemed` do not count reversed movements; tombstones are left out. The function depends
-- on both tables.
CREATE FUNCTION posd_hooks.points_read$:shop(numbers text[], recent integer)
RETURNS TABLE (
    account :"schema".loyalty_accounts, points bigint, earned bigint, redeemed bigint,
    movement :"schema".pos_loyalty_transactions)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT a.account, coalesce((SELECT t.balance_after FROM :"schema".pos_loyalty_transactions AS t
                                     WHERE t.account_id = (a.account).id ORDER BY t.seq DESC LIMIT 1), 0),
               s.earned, s.redeemed, r.movement
          FROM unnest(numbers) AS n
         CROSS JOIN LATERAL (
            SELECT l AS account FROM :"schema".loyalty_accounts AS l WHERE l.phone = n LIMIT 1) AS a
         CROSS JOIN LATERAL (
            SELECT coalesce(sum(t.points) FILTER (WHERE t.points > 0), 0)::bigint AS earned,
                   coalesce(-sum(t.points) FILTER (WHERE t.points < 0), 0)::bigint AS redeemed
              FROM :"schema".pos_loyalty_transactions AS t
             WHERE t.account_id = (a.account).id AND t.transaction_type IN ('add', 'redeem')
               AND NOT EXISTS (SELECT FROM :"schema".pos_loyalty_transactions AS x WHERE x.reverses_id = t.id)
         ) AS s
          LEFT JOIN LATERAL (
            SELECT t AS movement FROM :"schema".pos_loyalty_transactions AS t
             WHERE t.account_id = (a.account).id AND t.transaction_type <> 'tombstone'
             ORDER BY t.seq DESC LIMIT recent
         ) AS r ON true
         WHERE (a.account).member_since IS NOT NULL
         ORDER BY (a.account).id, (r.movement).seq DESC;
END
$$;

-- Return the content of events about these movements: see pos_movement_states().
CREATE FUNCTION posd_hooks.points_states$:shop(kind text, keys text[]) RETURNS TABLE (key text, content json)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT m.id::text, json_build_object(
                   'account_id', m.account_id, 'phone', a.phone, 'type', m.transaction_type, 'points', m.points,
                   'balance', m.balance_after, 'reason', m.reason, 'created_at', m.created_at)
          FROM :"schema".pos_loyalty_transactions AS m JOIN :"schema".loyalty_accounts AS a ON a.id = m.account_id
         WHERE m.id = ANY (ARRAY(SELECT k::bigint FROM unnest(keys) AS k WHERE k ~ '^[0-9]{1,18}$'));
END
$$;

-- The same functions as for gift cards, in the same order.
CREATE FUNCTION posd_hooks.points_replay$:shop(
    account bigint, kind text, change bigint, made_by text, call_key text,
    OUT outcome text, OUT movement :"schema".pos_loyalty_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT * INTO movement FROM :"schema".pos_loyalty_transactions AS t
     WHERE t.account_id = account AND t.idempotency_key = call_key
       AND (t.principal = made_by OR (t.principal = 'platform' AND t.transaction_type = 'tombstone'))
     ORDER BY t.principal = made_by DESC LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    outcome := CASE
        WHEN movement.transaction_type = 'tombstone' THEN 'reversed'
        WHEN movement.transaction_type <> kind OR movement.points <> change THEN 'mismatch'
        WHEN EXISTS (SELECT FROM :"schema".pos_loyalty_transactions AS r WHERE r.reverses_id = movement.id)
            THEN 'reversed'
        ELSE 'replayed' END;
END
$$;

CREATE FUNCTION posd_hooks.points_append$:shop(
    account bigint, kind text, change bigint, made_by text, call_key text, device text, for_order text, note text,
    original bigint, OUT outcome text, OUT movement :"schema".pos_loyalty_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    balance bigint;
BEGIN
    SELECT * INTO movement FROM :"schema".pos_loyalty_transactions AS t
     WHERE t.account_id = account ORDER BY t.seq DESC LIMIT 1;
    balance := coalesce(movement.balance_after, 0);
    IF balance < -change THEN
        outcome := 'insufficient';
        RETURN;
    ELSIF change > 9007199254740991 - balance THEN
        outcome := 'too_much';
        RETURN;
    ELSIF kind = 'add' AND EXISTS (
        SELECT FROM :"schema".pos_loyalty_transactions AS t
         WHERE t.account_id = account AND t.order_id = for_order AND t.transaction_type = 'add') THEN
        outcome := 'earned';
        RETURN;
    END IF;
    INSERT INTO :"schema".pos_loyalty_transactions AS t (
        account_id, seq, prev_seq, balance_before, points, balance_after, transaction_type, order_id, reason,
        principal, idempotency_key, device_id, reverses_id)
    VALUES (
        account, coalesce(movement.seq, 0) + 1, movement.seq, balance, change, balance + change, kind, for_order, note,
        made_by, call_key, device, original)
    RETURNING t.* INTO movement;
    outcome := 'made';
END
$$;

-- `kind`: add, redeem (with a negative `change`) or adjust. `joining` creates a missing account.
CREATE FUNCTION posd_hooks.points_move$:shop(
    number text, kind text, change bigint, made_by text, call_key text, device text, for_order text, note text,
    joining boolean, OUT outcome text, OUT movement :"schema".pos_loyalty_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    account :"schema".loyalty_accounts;
    step record;
BEGIN
    SELECT * INTO account FROM :"schema".loyalty_accounts AS a WHERE a.phone = number FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        IF NOT joining THEN
            outcome := 'unknown';
            RETURN;
        END IF;
        INSERT INTO :"schema".loyalty_accounts (phone) VALUES (number) ON CONFLICT (phone) DO NOTHING;
        SELECT * INTO account FROM :"schema".loyalty_accounts AS a WHERE a.phone = number FOR NO KEY UPDATE;
    END IF;
    SELECT * INTO step
      FROM posd_hooks.points_replay$:shop(account.id, kind, change, made_by, call_key);
    outcome := step.outcome;
    movement := step.movement;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    IF account.member_since IS NULL THEN
        IF NOT joining THEN
            outcome := 'unknown';
            RETURN;
        END IF;
        UPDATE :"schema".loyalty_accounts AS a SET member_since = clock_timestamp() WHERE a.id = account.id;
    END IF;
    SELECT * INTO step FROM posd_hooks.points_append$:shop(
        account.id, kind, change, made_by, call_key, device, for_order, note, NULL);
    outcome := step.outcome;
    movement := step.movement;
END
$$;

CREATE FUNCTION posd_hooks.points_reverse$:shop(
    number text, made_by text, call_key text, original_id bigint, device text, note text,
    OUT outcome text, OUT movement :"schema".pos_loyalty_transactions)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    account bigint;
    original :"schema".pos_loyalty_transactions;
    originals bigint[];
    step record;
BEGIN
    SELECT a.id INTO account FROM :"schema".loyalty_accounts AS a WHERE a.phone = number FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        IF call_key IS NULL THEN
            outcome := 'unknown_transaction';
            RETURN;
        END IF;
        INSERT INTO :"schema".loyalty_accounts (phone, member_since) VALUES (number, NULL)
        ON CONFLICT (phone) DO NOTHING;
        SELECT a.id INTO account FROM :"schema".loyalty_accounts AS a WHERE a.phone = number FOR NO KEY UPDATE;
    END IF;
    IF original_id IS NULL THEN
        originals := ARRAY(
            SELECT t.id FROM :"schema".pos_loyalty_transactions AS t
             WHERE t.account_id = account AND t.idempotency_key = call_key AND t.principal = made_by);
        IF originals = '{}' AND made_by = 'platform' THEN
            originals := ARRAY(
                SELECT t.id FROM :"schema".pos_loyalty_transactions AS t
                 WHERE t.account_id = account AND t.idempotency_key = call_key
                   AND t.transaction_type <> 'tombstone');
        END IF;
        IF cardinality(originals) > 1 THEN
            outcome := 'ambiguous';
            RETURN;
        ELSIF originals = '{}' THEN
            SELECT * INTO step FROM posd_hooks.points_append$:shop(
                account, 'tombstone', 0, made_by, call_key, device, NULL, note, NULL);
            outcome := 'tombstoned';
            movement := step.movement;
            RETURN;
        END IF;
    END IF;
    SELECT * INTO original FROM :"schema".pos_loyalty_transactions AS t
     WHERE t.account_id = account AND t.id = coalesce(original_id, originals[1]);
    IF NOT FOUND THEN
        outcome := 'unknown_transaction';
    ELSIF made_by <> 'platform' AND original.principal <> made_by THEN
        outcome := 'forbidden';
    ELSIF original_id IS NULL AND original.transaction_type = 'tombstone' THEN
        outcome := 'replayed';
        movement := original;
    ELSIF original.reversible IS NULL THEN
        outcome := 'irreversible';
    ELSE
        SELECT * INTO movement FROM :"schema".pos_loyalty_transactions AS t WHERE t.reverses_id = original.id;
        IF FOUND THEN
            outcome := 'replayed';
        ELSE
            SELECT * INTO step FROM posd_hooks.points_append$:shop(
                account, 'reverse', -original.points, made_by, NULL, device, original.order_id, note, original.id);
            outcome := step.outcome;
            movement := step.movement;
        END IF;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION
    posd_hooks.points_read$:shop(text[], integer),
    posd_hooks.points_states$:shop(text, text[]),
    posd_hooks.points_replay$:shop(bigint, text, bigint, text, text),
    posd_hooks.points_append$:shop(bigint, text, bigint, text, text, text, text, text, bigint),
    posd_hooks.points_move$:shop(text, text, bigint, text, text, text, text, text, boolean),
    posd_hooks.points_reverse$:shop(text, text, text, bigint, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    posd_hooks.points_read$:shop(text[], integer),
    posd_hooks.points_states$:shop(text, text[]),
    posd_hooks.points_replay$:shop(bigint, text, bigint, text, text),
    posd_hooks.points_append$:shop(bigint, text, bigint, text, text, text, text, text, bigint),
    posd_hooks.points_move$:shop(text, text, bigint, text, text, text, text, text, boolean),
    posd_hooks.points_reverse$:shop(text, text, text, bigint, text, text) TO posd;
GRANT SELECT, INSERT ON :"schema".loyalty_accounts, :"schema".pos_loyalty_transactions TO posd;
GRANT UPDATE (customer_name, email, member_since) ON :"schema".loyalty_accounts TO posd;
END
$ledger$;

-- The number of points that a key has added today, for limits.points_per_day_per_till. There is one row per key;
-- the first points of the next day reset it.
CREATE TABLE :"schema".pos_points_given (
    -- `device POS_1` for all keys of a device; `key 7` for a tenant's key.
    giver text PRIMARY KEY CHECK (giver <> '' AND char_length(giver) <= 200),
    -- The day in the shop's time zone.
    day date NOT NULL,
    points bigint NOT NULL CHECK (points >= 0)
);
GRANT SELECT, INSERT, UPDATE ON :"schema".pos_points_given TO posd;
