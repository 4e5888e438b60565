"""What the schema itself refuses to a writer of ledgers with the rights of the daemon."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

import psycopg2
from psycopg2 import errors

from posd.database import provisioning as provision
from tests.schema_case import SchemaCase, add, at_once

CARDS: Final = "dinedesk_kitchen.pos_gift_card_transactions"
POINTS: Final = "dinedesk_kitchen.pos_loyalty_transactions"


class LedgerCase(SchemaCase):
    """A writer with the rights of the daemon, two cards and two accounts.

    The first of each has 30 from two movements, the other 50 from one.
    """

    def setUp(self) -> None:
        super().setUp()
        self.daemon = self.connect("posd")
        self.daemon.run("INSERT INTO dinedesk_kitchen.gift_cards VALUES ('GC-1'), ('GC-2')")
        self.daemon.run(
            "INSERT INTO dinedesk_kitchen.loyalty_accounts (phone) VALUES ('+441'), ('+442')"
        )
        for owner in (1, 2):
            self.card(**FIRST, card_number=f"GC-{owner}")
            self.account(**FIRST_POINTS, account_id=owner)
        self.card()
        self.account()

    def card(self, **columns: object) -> int:
        """Write a movement, by default the second of the first card. Return its id."""
        return self._write(CARDS, {**SECOND, **columns})

    def account(self, **columns: object) -> int:
        return self._write(POINTS, {**SECOND_POINTS, **columns})

    def _write(self, table: str, row: Mapping[str, object]) -> int:
        marks = ", ".join(["%s"] * len(row))
        return int(
            self.daemon.value(
                f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks}) RETURNING id",
                *row.values(),
            )
        )

    def refused(self, constraint: str, **columns: object) -> None:
        """Assert that a constraint refuses such a movement in both ledgers. Amounts are for both."""
        names = {"amount": "points"}
        types = {"deduct": "redeem", "purchase": "add", "top_up": "adjust"}
        points = {
            names.get(name, name): types.get(str(value), value)
            for name, value in columns.items()
            if name != "card_number"
        }
        if "card_number" in columns:
            points["account_id"] = {"GC-1": 1, "GC-2": 2}.get(str(columns["card_number"]), 99)
        with self.subTest(ledger="cards", **columns):
            error = self.assertRaises(psycopg2.IntegrityError, self.card, **{**THIRD, **columns})
            self.assertIn(error.diag.constraint_name, (f"gift_card_{constraint}", constraint))
        with self.subTest(ledger="points", **points):
            error = self.assertRaises(
                psycopg2.IntegrityError, self.account, **{**THIRD_POINTS, **points}
            )
            self.assertIn(error.diag.constraint_name, (f"loyalty_{constraint}", constraint))


def row(
    seq: int, prev: int | None, before: int, amount: int, after: int, kind: str
) -> Mapping[str, object]:
    return {
        "seq": seq,
        "prev_seq": prev,
        "balance_before": before,
        "amount": amount,
        "balance_after": after,
        "transaction_type": kind,
    }


def in_points(movement: Mapping[str, object], kind: str) -> Mapping[str, object]:
    points = {**movement, "points": movement["amount"], "transaction_type": kind}
    del points["amount"], points["card_number"]
    return {"account_id": 1, **points}


FIRST: Final = row(1, None, 0, 50, 50, "purchase")
SECOND: Final = {"card_number": "GC-1", **row(2, 1, 50, -20, 30, "deduct")}
THIRD: Final = {"card_number": "GC-1", **row(3, 2, 30, -10, 20, "deduct")}
FIRST_POINTS: Final = {
    k: v for k, v in in_points({"card_number": "", **FIRST}, "add").items() if k != "account_id"
}
SECOND_POINTS: Final = in_points(SECOND, "redeem")
THIRD_POINTS: Final = in_points(THIRD, "redeem")


class ChainTests(LedgerCase):
    def test_a_movement_that_continues_its_chain_is_taken(self) -> None:
        self.card(**THIRD)
        self.account(**THIRD_POINTS)

    def test_a_chain_has_no_fork_no_gap_and_one_beginning(self) -> None:
        self.refused("place", **row(2, 1, 50, -10, 40, "deduct"))
        self.refused("place", **row(1, None, 0, 10, 10, "purchase"))
        self.refused("chain", **row(4, 3, 30, -10, 20, "deduct"))
        self.refused("follows_the_one_before", **row(4, 2, 30, -10, 20, "deduct"))
        self.refused("follows_the_one_before", **row(3, 1, 50, -10, 40, "deduct"))

    def test_a_chain_goes_on_from_what_there_is(self) -> None:
        self.refused("chain", **row(3, 2, 50, -10, 40, "deduct"))
        self.refused("chain", card_number="GC-2")
        self.refused("sum", **row(3, 2, 30, -10, 29, "deduct"))
        self.refused("not_overdrawn", **row(3, 2, 30, -31, -1, "deduct"))

    def test_a_chain_begins_with_nothing(self) -> None:
        self.daemon.run("INSERT INTO dinedesk_kitchen.gift_cards VALUES ('NEW')")
        first = {"card_number": "NEW", **row(1, None, 1000, -1000, 0, "deduct")}
        error = self.assertRaises(errors.CheckViolation, self.card, **first)
        self.assertEqual(error.diag.constraint_name, "gift_card_begins_at_zero")
        for seq in (0, -1):
            before = row(seq, seq - 1, 1000, -1000, 0, "deduct")
            self.assertRaises(errors.CheckViolation, self.card, **{**first, **before})

    def test_a_link_that_is_null_is_no_way_around(self) -> None:
        self.refused("first_follows_none", prev_seq=None)
        self.refused("first_follows_none", **row(1, 2, 0, 10, 10, "purchase"))
        for column in SECOND.keys() - {"prev_seq"}:
            with self.subTest(column=column):
                self.assertRaises(errors.NotNullViolation, self.card, **{**THIRD, column: None})
        for column in SECOND_POINTS.keys() - {"prev_seq"}:
            with self.subTest(column=column):
                self.assertRaises(
                    errors.NotNullViolation, self.account, **{**THIRD_POINTS, column: None}
                )

    def test_a_card_and_an_account_have_to_be_there(self) -> None:
        for write, owner, first in (
            (self.card, {"card_number": "NONE"}, FIRST),
            (self.account, {"account_id": 99}, FIRST_POINTS),
        ):
            self.assertRaises(errors.ForeignKeyViolation, write, **{**first, **owner})

    def test_what_is_no_number_is_no_amount(self) -> None:
        nan = dict.fromkeys(("balance_before", "amount", "balance_after"), "NaN")
        first = row(1, None, 0, 0, 0, "purchase")
        self.daemon.run("INSERT INTO dinedesk_kitchen.gift_cards VALUES ('NEW')")
        for columns in ({**THIRD, **nan}, {**first, "card_number": "NEW", "amount": "NaN"}, {
            **first, "card_number": "NEW", "amount": "NaN", "balance_after": "NaN"
        }):  # fmt: skip
            self.assertRaises(errors.CheckViolation, self.card, **columns)
        infinite = {**THIRD, "amount": "Infinity", "balance_after": "Infinity"}
        self.assertRaises(errors.NumericValueOutOfRange, self.card, **infinite)
        self.assertRaises(
            errors.CheckViolation,
            self.daemon.run,
            "INSERT INTO dinedesk_kitchen.gift_cards VALUES ('X', 'NaN')",
        )

    def test_a_movement_does_what_its_type_says(self) -> None:
        gain, loss, none = (
            row(3, 2, 30, 5, 35, ""),
            row(3, 2, 30, -5, 25, ""),
            row(3, 2, 30, 0, 30, ""),
        )
        for kind, wrong in (
            ("deduct", gain),
            ("deduct", none),
            ("purchase", loss),
            ("purchase", none),
            ("top_up", none),
            ("tombstone", gain),
            ("tombstone", loss),
            ("gift", gain),
        ):
            self.refused("sign", **{**wrong, "transaction_type": kind})
        for kind in ("activate", "top_up"):
            self.assertRaises(
                errors.CheckViolation, self.card, **{**loss, "transaction_type": kind}
            )

    def test_a_key_is_used_once_by_each_who_uses_it(self) -> None:
        self.card(**THIRD, principal="tenant", idempotency_key="k")
        self.account(**THIRD_POINTS, principal="tenant", idempotency_key="k")
        fourth = row(4, 3, 20, -5, 15, "deduct")
        self.refused("key", **fourth, principal="tenant", idempotency_key="k")
        self.card(**fourth, principal="platform", idempotency_key="k")

    def test_an_order_earns_once(self) -> None:
        gain = {**THIRD_POINTS, "points": 5, "balance_after": 35, "transaction_type": "add"}
        self.account(**gain, order_id="17", idempotency_key="one")
        again = {**gain, "seq": 4, "prev_seq": 3, "balance_before": 35, "balance_after": 40}
        error = self.assertRaises(
            errors.UniqueViolation, self.account, **again, order_id="17", idempotency_key="two"
        )
        self.assertEqual(error.diag.constraint_name, "loyalty_earned_once")
        self.account(**again, order_id="18")

    def test_what_the_database_counts_and_computes_is_not_given(self) -> None:
        for column in ("id", "reversed", "reversible"):
            with self.subTest(column=column):
                self.assertRaises(errors.GeneratedAlways, self.card, **THIRD, **{column: 7})
                self.assertRaises(
                    errors.GeneratedAlways, self.account, **THIRD_POINTS, **{column: 7}
                )


class ReversalTests(LedgerCase):
    """The second movement of each chain has the id 3, because the first ones of both chains came before."""

    def test_a_movement_is_reversed_wholly_and_once(self) -> None:
        whole = row(3, 2, 30, 20, 50, "reverse")
        self.refused("reverses", **row(3, 2, 30, 19, 49, "reverse"), reverses_id=3)
        self.refused("reverses", **row(3, 2, 30, -20, 10, "reverse"), reverses_id=3)
        self.card(**whole, reverses_id=3)
        self.account(**in_points({**SECOND, **whole}, "reverse"), reverses_id=3)
        self.refused("reversed_once", **row(4, 3, 50, 20, 70, "reverse"), reverses_id=3)

    def test_only_movements_of_the_same_chain_are_reversed(self) -> None:
        other = row(2, 1, 50, 20, 70, "reverse")
        self.refused("reverses", **other, card_number="GC-2", reverses_id=3)
        self.refused("reverses", **row(3, 2, 30, 20, 50, "reverse"), reverses_id=99)

    def test_a_reversal_is_not_reversed(self) -> None:
        whole = row(3, 2, 30, 20, 50, "reverse")
        card = self.card(**whole, reverses_id=3)
        account = self.account(**in_points({**SECOND, **whole}, "reverse"), reverses_id=3)
        self.assertEqual(card, account)
        self.refused("reverses", **row(4, 3, 50, -20, 30, "reverse"), reverses_id=card)
        # It cannot reverse itself either: a refusal has used up one id, so its own can be guessed.
        self.refused("reverses", **row(4, 3, 50, 20, 70, "reverse"), reverses_id=card + 2)

    def test_a_reversal_names_what_it_reverses_and_nothing_else_does(self) -> None:
        self.refused("reverse_names_its_original", **row(3, 2, 30, 20, 50, "reverse"))
        self.refused("reverse_names_its_original", reverses_id=3)


class HistoryTests(LedgerCase):
    def test_the_daemon_changes_no_history(self) -> None:
        for table in (CARDS, POINTS):
            for statement in (
                f"UPDATE {table} SET balance_after = 1000 WHERE seq = 2",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
                f"ALTER TABLE {table} DISABLE TRIGGER pos_insert_only",
                f"DROP TABLE {table}",
                "SET session_replication_role = replica",
                f"INSERT INTO {table} DEFAULT VALUES ON CONFLICT (id) DO UPDATE SET seq = 9",
            ):
                with (
                    self.subTest(statement=statement),
                    self.assertRaises(errors.InsufficientPrivilege),
                ):
                    self.daemon.run(statement)

    def test_its_owner_changes_none_by_mistake(self) -> None:
        for table in (CARDS, POINTS):
            for statement in (
                f"UPDATE {table} SET device_id = 'x'",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
            ):
                with self.subTest(statement=statement), self.assertRaises(errors.RestrictViolation):
                    self.admin.run(statement)

    def test_a_card_and_an_account_with_a_history_stay(self) -> None:
        for statement in (
            "DELETE FROM dinedesk_kitchen.gift_cards",
            "UPDATE dinedesk_kitchen.gift_cards SET card_number = card_number || 'X'",
            "DELETE FROM dinedesk_kitchen.loyalty_accounts",
        ):
            with self.subTest(statement=statement):
                self.assertRaises(errors.InsufficientPrivilege, self.daemon.run, statement)
                self.assertRaises(errors.ForeignKeyViolation, self.admin.run, statement)

    def test_no_constraint_can_be_put_off(self) -> None:
        with self.assertRaises(errors.ForeignKeyViolation), self.daemon.transaction():
            self.daemon.run("SET CONSTRAINTS ALL DEFERRED")
            self.card(**{**THIRD, "balance_before": 50, "balance_after": 40})


class FormTests(LedgerCase):
    def test_a_cards_number_is_what_it_is_compared_by(self) -> None:
        for number in ("", " A", "A ", "gc-3", "Ä", "A\nB", "A" * 65):
            with self.subTest(number=number), self.assertRaises(errors.CheckViolation):
                self.daemon.run("INSERT INTO dinedesk_kitchen.gift_cards VALUES (%s)", number)
        self.daemon.run("INSERT INTO dinedesk_kitchen.gift_cards VALUES (%s)", "12 34/`{~")

    def test_a_telephone_number_is_in_e164(self) -> None:
        for phone in ("07700900123", "+0123", "+44 77", "", "+" + "1" * 16):
            with self.subTest(phone=phone), self.assertRaises(errors.CheckViolation):
                self.daemon.run(
                    "INSERT INTO dinedesk_kitchen.loyalty_accounts (phone) VALUES (%s)", phone
                )


class CarelessTests(SchemaCase):
    def test_a_client_that_reads_and_then_writes_cannot_overspend(self) -> None:
        """Many clients with the rights of the daemon and without locks: only the chain protects."""
        self.admin.run("INSERT INTO dinedesk_kitchen.gift_cards VALUES ('GC-1')")
        self.admin.run(
            f"INSERT INTO {CARDS} (card_number, seq, balance_before, amount, balance_after, transaction_type)"
            " VALUES ('GC-1', 1, 0, 1000, 1000, 'purchase')"
        )

        def spends(number: int) -> int:
            client, dice, spent = self.connect("posd"), random.Random(number), 0
            for _ in range(40):
                ((seq, balance),) = client.rows(
                    f"SELECT seq, balance_after FROM {CARDS} ORDER BY seq DESC LIMIT 1"
                )
                amount = dice.randint(1, 90)
                try:
                    client.run(
                        f"INSERT INTO {CARDS} (card_number, seq, prev_seq, balance_before, amount,"
                        " balance_after, transaction_type) VALUES ('GC-1', %s, %s, %s, %s, %s, 'deduct')",
                        *(seq + 1, seq, balance, -amount, balance - amount),
                    )
                except psycopg2.IntegrityError:
                    continue
                spent += amount
            return spent

        spent = at_once(*[lambda n=n: spends(n) for n in range(8)])
        left = self.admin.value(f"SELECT balance_after FROM {CARDS} ORDER BY seq DESC LIMIT 1")
        self.assertEqual(sum(spent) + left, 1000)
        self.assertGreater(sum(spent), 900)


class AdoptedTests(SchemaCase):
    def test_what_a_shop_has_already_stays_and_the_other_ledger_is_made(self) -> None:
        for slug, own, other in (
            ("cafe", "gift_cards", "loyalty_accounts"),
            ("diner", "loyalty_accounts", "gift_cards"),
        ):
            with self.subTest(own=own):
                self.admin.run(f"CREATE SCHEMA dinedesk_{slug} AUTHORIZATION posd_owner")
                self.admin.run(f"CREATE TABLE dinedesk_{slug}.{own} (code text, value numeric)")
                add(self.admin.connection, slug)
                tables = self.admin.rows(
                    "SELECT relname::text FROM pg_class WHERE relkind = 'r'"
                    " AND relnamespace = %s::regnamespace AND relname ~ 'gift|loyalty'",
                    f"dinedesk_{slug}",
                )
                ledger = (
                    "pos_gift_card_transactions" if "gift" in other else "pos_loyalty_transactions"
                )
                self.assertEqual({name for (name,) in tables}, {own, other, ledger})
                self.admin.run(f"INSERT INTO dinedesk_{slug}.{own} VALUES ('x', 5)")
        self.assertEqual(provision.migrate(self.admin.connection).failed, {})
