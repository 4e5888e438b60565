-- Gift cards and loyalty points: two ledgers that only grow. Each row continues the one before it, by a
-- foreign key to that row's number *and* balance, so whoever may insert, and however carelessly, can neither
-- spend the same money twice nor spend what is not there. The balance is the last row's. What a constraint
-- says here, no code has to be trusted with: a NULL makes a CHECK and a foreign key pass, hence NOT NULL
-- everywhere but in `prev_seq`; NaN equals and exceeds everything, hence it is named. (Infinity has no
-- place in numeric(14, 3).)
--
-- Tables of these names that exist already belong to the shop. They stay as they are, and posd keeps no ledger of
-- that kind: the shop publishes by pos_publish() or REST. Whether posd keeps a ledger is decided by who owns its
-- tables (dinedesk_main.pos_keeps()), since a shop can make tables, constraints and functions of any name.

-- What the hooks below say is read after the commit, by pos_movement_states(). `posd.hooks`: see hooks.sql.
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

-- Tills care whether a card can be used. Who owns it is the shop's affair.
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
-- They run in sessions of the daemon. Owned by :"note_role", as the hooks on `orders` are, they could be altered by
-- any code of the shop that ever got that role's rights, and then run with the daemon's.
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
    -- Trimmed and in capitals, as all numbers are compared. ASCII, so that capitals mean one thing.
    card_number text PRIMARY KEY CONSTRAINT gift_cards_number_form
        CHECK (card_number ~ '^[!-`{-~]([ -`{-~]{0,62}[!-`{-~])?$'),
    -- What the card was sold for; what is on it now is in the ledger. NULL: nobody ever sold this card, only
    -- a reversal has named it, of a sale that may still be under way.
    initial_balance numeric(14, 3) DEFAULT 0 CHECK (initial_balance >= 0 AND initial_balance <> 'NaN'),
    is_blocked boolean NOT NULL DEFAULT false,
    -- The last instant at which it is valid.
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
    -- Whose movement it is, and so in whose name a key is remembered: 'platform', 'tenant', 'device <id>'.
    principal text NOT NULL DEFAULT 'shop' CHECK (principal <> ''),
    idempotency_key text CHECK (idempotency_key !~ '[^\x21-\x7e]' AND char_length(idempotency_key) BETWEEN 1 AND 255),
    device_id text CHECK (char_length(device_id) <= 128),
    reverses_id bigint,
    -- Of a sale: until when the card was to be valid as it was sold, whatever is changed later. Names and
    -- addresses of people are not kept here, where they could be neither corrected nor forgotten.
    expiry_date timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The two ends of "a reversal takes back all of one movement of the same card, and no reversal": what
    -- this row takes back, and what can be taken back of it.
    reversed numeric(14, 3) GENERATED ALWAYS AS (
        CASE WHEN transaction_type = 'reverse' THEN -amount END) STORED,
    reversible numeric(14, 3) GENERATED ALWAYS AS (
        CASE WHEN transaction_type NOT IN ('reverse', 'tombstone') THEN amount END) STORED,

    -- Not NOT IN, which PostgreSQL keeps in a form that a dump and its restore would change.
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
-- Who lets posd choose the number knows no card when the call is made again.
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

-- All movements of a card go through its row, one after the other. Each function is VOLATILE plpgsql: what is
-- read after the lock was taken is read as of then, and a call is one round trip. `outcome` says what came of
-- it; `movement` is the row that was written or found, and, where the card's money is the reason for a
-- refusal, its last one.
--
-- card_replay, card_append and card_move take several calls at once, in arrays; `place` is where in the arrays a call
-- stands, from 1. To begin an INSERT, with the constraints and the triggers of this table, takes longer than to
-- insert a row. A card is named by one of the calls at most.

-- A card as it is now, and its last movement, for each of these numbers that is a card's and was sold. The function
-- goes with either table, since it returns their rows.
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

-- What events say of these movements, or, if `kind` is 'gift_card', of these cards: see pos_movement_states().
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

-- What became earlier of movements that name these keys: no row where nothing did. A reversal that came first has
-- left a tombstone; the platform's counts for everybody's key, since it may reverse everybody's movements.
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

-- Append to cards that the caller has locked, and whose use it has judged; here only the balance counts. Calls
-- without a number are passed over.
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

-- `kind`: deduct (a negative `change`) or top_up. Where it is not `patient`, a card that another transaction has locked
-- has the outcome `locked`, and nothing is done with it; else it is waited for.
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
    -- In the order of their numbers: of two calls that want the same cards, one waits for the other.
    IF patient THEN
        locked := ARRAY(SELECT c.card_number FROM :"schema".gift_cards AS c WHERE c.card_number = ANY (numbers)
                         ORDER BY c.card_number FOR NO KEY UPDATE);
    ELSE
        locked := ARRAY(SELECT c.card_number FROM :"schema".gift_cards AS c WHERE c.card_number = ANY (numbers)
                         ORDER BY c.card_number FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    FOR judged IN
        -- A retry is answered as the first call was, whatever has become of the card since.
        SELECT a.place, a.number, r.movement,
               -- A card that was sold after the lock statement has looked for it is not locked either.
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

-- Put a card on sale: `purchase` makes a new one; `activate` takes one that nobody has sold yet, or makes it. A
-- number whose sale was reversed can be sold again. `chosen`: the caller named the number, so a retry with
-- another one is another call; else posd did, and a retry is for the card of the first call.
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
            -- The same call was made at the same time, for a number that posd chose, and was quicker.
            GET STACKED DIAGNOSTICS violated = CONSTRAINT_NAME;
            IF violated <> 'gift_card_purchase_key' OR attempt = 2 THEN
                RAISE;
            END IF;
        END;
    END LOOP;
END
$$;

-- Take back a movement: the one of this id, or that of this key. The platform may take back anybody's, all
-- others their own. A key that no movement has is kept as a tombstone, so that the movement, should it still
-- come, comes too late; even on a number that no card has yet, since it may be a sale that is on its way.
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
    -- E.164. NULL: who that was is forgotten (sql/main/011_erasure.sql).
    phone text UNIQUE CONSTRAINT loyalty_phone_form CHECK (phone ~ '^\+[1-9][0-9]{1,14}$'),
    customer_name text,
    email text,
    -- The shop's to count; posd does not know what was spent.
    total_spent numeric(14, 3) NOT NULL DEFAULT 0 CHECK (total_spent >= 0 AND total_spent <> 'NaN'),
    -- NULL: nobody ever joined under this number, only a reversal has named it.
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
    -- What redeemed points were worth when they were redeemed (pos_value_points), with the decimals of the rate, so
    -- that it is rounded once, on its way out.
    discount numeric(20, 4),

    CONSTRAINT loyalty_sum CHECK (balance_after = balance_before + points),
    CONSTRAINT loyalty_not_overdrawn CHECK (balance_after >= 0),
    -- Beyond 2^53 - 1 readers of JSON lose digits.
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
-- An order earns once, whoever says so and with whatever key.
CREATE UNIQUE INDEX loyalty_earned_once ON :"schema".pos_loyalty_transactions (account_id, order_id)
    WHERE transaction_type = 'add';

CREATE TRIGGER pos_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON :"schema".pos_loyalty_transactions
    FOR EACH STATEMENT EXECUTE FUNCTION dinedesk_main.pos_insert_only();
CREATE TRIGGER pos_discount BEFORE INSERT ON :"schema".pos_loyalty_transactions
    FOR EACH ROW EXECUTE FUNCTION dinedesk_main.pos_value_points();
CREATE TRIGGER pos_movements_inserted AFTER INSERT ON :"schema".pos_loyalty_transactions
    REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION posd_hooks.note_movements$:shop('loyalty_movement');

-- Customers' accounts, each with its last movements, newest first: a row for each movement, or one without. `earned`
-- and `redeemed` count what was not reversed; a tombstone says nothing to anybody. The function goes with either table.
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

-- What events say of these movements: see pos_movement_states().
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

-- The same as those of the gift cards, in the same order.
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

-- `kind`: add, redeem (a negative `change`) or adjust. `joining` makes an account where there is none.
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

-- How many points a key has added today, for limits.points_per_day_per_till. One row for each key, which the
-- first points of the next day begin anew.
CREATE TABLE :"schema".pos_points_given (
    -- `device POS_1` for a device's key, whichever that is; `key 7` for a tenant's key.
    giver text PRIMARY KEY CHECK (giver <> '' AND char_length(giver) <= 200),
    -- The shop's day.
    day date NOT NULL,
    points bigint NOT NULL CHECK (points >= 0)
);
GRANT SELECT, INSERT, UPDATE ON :"schema".pos_points_given TO posd;
