"""All possible damages of ledgers; see `tests.audit_damages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.audit_damages import Damage, damage, without

CARDS: Final = "pos_gift_card_transactions"
POINTS: Final = "pos_loyalty_transactions"


def in_both(
    check: str,
    cards: Mapping[str, str],
    points: Mapping[str, str],
    *statements: str,
    also: str = "",
) -> tuple[Damage, Damage]:
    """Return the same damage for both ledgers. `{t}` is the table; `{amount}` and `{owner}` are columns."""
    found = []
    for name, table, amount, owner, prefix, rows in (
        ("gift cards", CARDS, "amount", "card_number", "gift_card", cards),
        ("points", POINTS, "points", "account_id", "loyalty", points),
    ):
        ledger = {"t": table, "amount": amount, "owner": owner, "prefix": prefix}
        found.append(
            damage(
                f"{check} of {name}".replace("calls of", "calls for"),
                {f"{table} id {row}": what for row, what in rows.items()},
                *(each.format(**ledger) for each in statements),
                also=also.replace("<ledger>", name),
            )
        )
    return found[0], found[1]


# Drop all that could refuse a row, except what a generated column needs.
BARE: Final = (
    "ALTER TABLE {t} DROP CONSTRAINT {prefix}_sum, DROP CONSTRAINT {prefix}_not_overdrawn,"
    " DROP CONSTRAINT {prefix}_begins_at_zero, DROP CONSTRAINT {prefix}_first_follows_none,"
    " DROP CONSTRAINT {prefix}_follows_the_one_before, DROP CONSTRAINT {prefix}_sign,"
    " DROP CONSTRAINT {prefix}_place, DROP CONSTRAINT {prefix}_balance CASCADE, DROP CONSTRAINT {prefix}_key,"
    " DROP CONSTRAINT {prefix}_reversed_once, DROP CONSTRAINT {prefix}_reverse_names_its_original,"
    " ALTER prev_seq DROP NOT NULL, ALTER balance_before DROP NOT NULL"
)

LEDGERS: Final = (
    *in_both(
        "chains",
        {"4, seq 3": "a number is missing"},
        {"4, seq 3": "a number is missing"},
        BARE,
        "UPDATE {t} SET balance_before = NULL WHERE id = 4",
    ),
    *in_both(
        "chains",
        {
            "4, seq 2": "another movement has this place in the chain too",
            "5, seq 4": "follows seq 2",
        },
        {
            "4, seq 2": "another movement has this place in the chain too",
            "5, seq 4": "follows seq 2",
        },
        BARE,
        "UPDATE {t} SET seq = 2 WHERE id = 4",
    ),
    *in_both(
        "chains",
        {"4, seq 3": "follows seq 1"},
        {"4, seq 3": "follows seq 1"},
        "DELETE FROM {t} WHERE id = 3",
        also="reversals of <ledger>",
    ),
    *in_both(
        "chains",
        {"3, seq 2": "follows nothing"},
        {"3, seq 2": "follows nothing"},
        "DELETE FROM {t} WHERE id = 1",
    ),
    *in_both(
        "chains",
        {"4, seq 3": "says that it follows seq 1"},
        {"4, seq 3": "says that it follows seq 1"},
        BARE,
        "UPDATE {t} SET prev_seq = 1 WHERE id = 4",
    ),
    *in_both(
        "chains",
        {"4, seq 3": "says that it follows nothing"},
        {"4, seq 3": "says that it follows nothing"},
        BARE,
        "UPDATE {t} SET prev_seq = NULL WHERE id = 4",
    ),
    *in_both(
        "chains",
        {"4, seq 3": r"begins with 25(\.000)?, and the chain had 20\.000"},
        {"4, seq 3": "begins with 65, and the chain had 60"},
        "UPDATE {t} SET balance_before = balance_before + 5, balance_after = balance_after + 5"
        " WHERE id = 4",
        "UPDATE {t} SET balance_before = balance_before + 5,"
        " balance_after = balance_after + 5 WHERE id IN (5, 6)",
    ),
    *in_both(
        "chains",
        {"6, seq 5": r"60\.000 and 0\.000 are not 61\.000"},
        {"6, seq 5": "95 and 0 are not 96"},
        BARE,
        "UPDATE {t} SET balance_after = balance_after + 1 WHERE id = 6",
    ),
    *in_both(
        "chains",
        {"2, seq 1": r"leaves -1\.000"},
        {"2, seq 1": "leaves -1"},
        BARE,
        "UPDATE {t} SET {amount} = -1, balance_after = -1 WHERE id = 2",
        also="types of <ledger>",
    ),
    damage(
        "chains of gift cards",
        {f"{CARDS} id 2, seq 1": "an amount is no number"},
        without(CARDS, "gift_card_numbers"),
        f"UPDATE {CARDS} SET amount = 'NaN', balance_after = 'NaN' WHERE id = 2",
    ),
    damage(
        "chains of points",
        {f"{POINTS} id 2, seq 1": "leaves more than there can be"},
        without(POINTS, "loyalty_readable"),
        f"UPDATE {POINTS} SET points = 9007199254740992, balance_after = 9007199254740992 WHERE id = 2",
    ),
    damage(
        "types of gift cards",
        {f"{CARDS} id 2, seq 1": "has no owner: there is no such row of gift_cards"},
        "DELETE FROM gift_cards WHERE card_number = 'GIFT-CARD-2'",
    ),
    damage(
        "types of points",
        {f"{POINTS} id 2, seq 1": "has no owner: there is no such row of loyalty_accounts"},
        "DELETE FROM loyalty_accounts WHERE id = 2",
    ),
    *in_both(
        "types",
        {"6, seq 5": "is a tombstone of no call"},
        {"6, seq 5": "is a tombstone of no call"},
        "UPDATE {t} SET idempotency_key = NULL WHERE id = 6",
    ),
    damage(
        "types of gift cards",
        {f"{CARDS} id 2, seq 1": "is a purchase, and its row of gift_cards was never in use"},
        "UPDATE gift_cards SET initial_balance = NULL WHERE card_number = 'GIFT-CARD-2'",
    ),
    damage(
        "types of points",
        {f"{POINTS} id 2, seq 1": "is a add, and its row of loyalty_accounts was never in use"},
        "UPDATE loyalty_accounts SET member_since = NULL WHERE id = 2",
    ),
    damage(
        "types of gift cards",
        {f"{CARDS} id 3, seq 2": r"is a top_up of -30\.000"},
        without(CARDS, "gift_card_sign"),
        f"UPDATE {CARDS} SET transaction_type = 'top_up' WHERE id = 3",
    ),
    damage(
        "types of points",
        {f"{POINTS} id 3, seq 2": "is a gift of -40"},
        without(POINTS, "loyalty_sign"),
        f"UPDATE {POINTS} SET transaction_type = 'gift' WHERE id = 3",
    ),
    *in_both(
        "reversals",
        {"5, seq 4": "takes nothing back"},
        {"5, seq 4": "takes nothing back"},
        BARE,
        "UPDATE {t} SET reverses_id = NULL WHERE id = 5",
    ),
    *in_both(
        "reversals",
        {"6, seq 5": "is a tombstone, and takes id 4 back"},
        {"6, seq 5": "is a tombstone, and takes id 4 back"},
        BARE,
        "UPDATE {t} SET reverses_id = 4 WHERE id = 6",
    ),
    *in_both(
        "reversals",
        {"5, seq 4": "takes id 99 back, which is not there"},
        {"5, seq 4": "takes id 99 back, which is not there"},
        "UPDATE {t} SET reverses_id = 99 WHERE id = 5",
    ),
    *in_both(
        "reversals",
        {"5, seq 4": "takes id 2 back, which is of another chain"},
        {"5, seq 4": "takes id 2 back, which is of another chain"},
        "UPDATE {t} SET reverses_id = 2 WHERE id = 5",
    ),
    *in_both(
        "reversals",
        {"5, seq 4": "takes id 6 back, a tombstone"},
        {"5, seq 4": "takes id 6 back, a tombstone"},
        "UPDATE {t} SET reverses_id = 6 WHERE id = 5",
    ),
    *in_both(
        "reversals",
        {"5, seq 4": r"takes 30\.000 back of 10\.000, id 4"},
        {"5, seq 4": "takes 40 back of -5, id 4"},
        "UPDATE {t} SET reverses_id = 4 WHERE id = 5",
    ),
    *in_both(
        "reversals",
        {"5, seq 2": "takes id 3 back, which comes after it"},
        {"5, seq 2": "takes id 3 back, which comes after it"},
        BARE,
        "UPDATE {t} SET seq = CASE id WHEN 3 THEN 4 ELSE 2 END WHERE id IN (3, 5)",
        also="chains of <ledger>",
    ),
    *in_both(
        "reversals",
        {f"{n}, seq {n - 1}": "takes id 3 back, as another reversal does" for n in (5, 6)},
        {f"{n}, seq {n - 1}": "takes id 3 back, as another reversal does" for n in (5, 6)},
        BARE,
        "UPDATE {t} SET transaction_type = 'reverse', reverses_id = 3, {amount} ="
        " (SELECT {amount} FROM {t} WHERE id = 5) WHERE id = 6",
        also="chains of <ledger>",
    ),
    *in_both(
        "calls",
        {
            f"{n}, seq {s}": "another movement of the chain is of the same call"
            for n, s in ((1, 1), (6, 5))
        },
        {
            f"{n}, seq {s}": "another movement of the chain is of the same call"
            for n, s in ((1, 1), (6, 5))
        },
        BARE,
        "UPDATE {t} SET idempotency_key = 'k' WHERE id IN (1, 6)",
    ),
    *in_both(
        "calls",
        {"5, seq 4": "is of a call that was taken back before"},
        {"5, seq 4": "is of a call that was taken back before"},
        BARE,
        "UPDATE {t} SET transaction_type = 'tombstone', idempotency_key = 'k' WHERE id = 4",
        "UPDATE {t} SET principal = 'tenant', idempotency_key = 'k' WHERE id = 5",
        also="types of <ledger>",
    ),
    damage(
        "sales of gift cards",
        {f"{CARDS} id {n}, seq 1": "another card was sold by the same call" for n in (1, 2)},
        "DROP INDEX gift_card_purchase_key",
        f"UPDATE {CARDS} SET idempotency_key = 'k' WHERE id IN (1, 2)",
    ),
    damage(
        "earnings of points",
        {
            f"{POINTS} id {n}, seq {s}": "order 1 has earned another time"
            for n, s in ((1, 1), (6, 5))
        },
        "DROP INDEX loyalty_earned_once",
        without(POINTS, "loyalty_sign"),
        f"UPDATE {POINTS} SET transaction_type = 'add', order_id = '1' WHERE id = 6",
        also="types of points",
    ),
)
