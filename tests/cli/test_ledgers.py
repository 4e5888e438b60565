"""posctl card and posctl points, on a real PostgreSQL."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from posd.cli import database
from posd.cli.tenants import find_tenant
from posd.store import loyalty
from posd.store.ledgers import MovementCause
from tests.cli_runner import Ran, execute, migrated_database, posctl

CARD = "GC-7Q4M-2XKD"
PHONE = "07700900123"


class LedgerCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.dsn = migrated_database()

    def call(self, *words: str, tenant: str = "kitchen") -> Ran:
        return posctl(*words, "--tenant", tenant, dsn=self.dsn)

    def members(self, *words: str) -> dict[str, object]:
        ran = self.call(*words, "--json")
        self.assertEqual((ran.code, ran.err), (0, ""))
        assert isinstance(ran.json, dict)
        return ran.json


class CardTests(LedgerCase):
    def test_a_card_is_activated_topped_up_blocked_and_unblocked(self) -> None:
        sold = self.members("card", "activate", CARD, "50")
        self.assertEqual((sold["balance"], sold["status"]), (50, "active"))
        self.assertEqual(self.members("card", "top-up", CARD, "7.50")["balance"], 57.5)
        self.assertEqual(self.members("card", "block", CARD)["status"], "blocked")
        self.assertEqual(self.members("card", "unblock", CARD)["status"], "active")
        self.assertEqual(self.members("card", "show", CARD.lower())["balance"], 57.5)

    def test_people_see_the_currency(self) -> None:
        self.call("card", "activate", CARD, "50")
        self.assertIn("50.00 GBP", self.call("card", "show", CARD).out)

    def test_a_movement_with_an_idempotency_key_is_made_once(self) -> None:
        self.call("card", "activate", CARD, "50")
        for _ in range(2):
            made = self.members("card", "top-up", CARD, "5", "--idempotency-key", "goodwill-88")
            self.assertEqual(made["balance"], 55)

    def test_the_ledger_names_the_operator_and_the_reason(self) -> None:
        self.call("card", "activate", CARD, "50", "--note", "sold by telephone")
        row = execute(
            self.dsn, "SELECT principal, reference FROM dinedesk_kitchen.pos_gift_card_transactions"
        )[0]
        self.assertEqual(row, ("operator", "sold by telephone"))

    def test_an_unknown_card_a_bad_amount_and_a_second_sale_are_refused(self) -> None:
        self.assertEqual(self.call("card", "show", CARD).code, os.EX_DATAERR)
        self.assertEqual(self.call("card", "block", CARD).code, os.EX_DATAERR)
        for amount, code in (("0", os.EX_DATAERR), ("1.234", os.EX_DATAERR), ("many", os.EX_USAGE)):
            with self.subTest(amount=amount):
                self.assertEqual(self.call("card", "activate", CARD, amount).code, code)
        self.call("card", "activate", CARD, "50")
        self.assertEqual(self.call("card", "activate", CARD, "50").code, os.EX_CANTCREAT)


class PointsTests(LedgerCase):
    def setUp(self) -> None:
        super().setUp()
        ran = self.call("points", "show", PHONE)
        self.assertEqual(ran.code, os.EX_DATAERR)
        with database.open_executor(self.dsn) as executor:
            tenant = find_tenant(executor, "kitchen")
            earned = loyalty.add(
                executor, tenant, "+447700900123", 120, MovementCause("platform"), joining=True
            )
            database.run_to_completion(earned)

    def test_points_are_shown_and_adjusted_in_either_direction(self) -> None:
        self.assertEqual(self.members("points", "show", PHONE)["points"], 120)
        self.assertEqual(self.members("points", "adjust", PHONE, "30")["points"], 150)
        self.assertEqual(self.members("points", "adjust", PHONE, "-50")["points"], 100)
        self.assertIn("has 100 points", self.call("points", "show", PHONE).out)

    def test_an_account_cannot_fall_below_zero(self) -> None:
        ran = self.call("points", "adjust", PHONE, "-121")
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertEqual(self.members("points", "show", PHONE)["points"], 120)
