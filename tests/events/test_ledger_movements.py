"""Tests of the events of ledger movements and changed cards."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal

from twisted.trial.unittest import SynchronousTestCase

from posd.events import ledger_movements
from posd.protocol import jsontext
from posd.publishing import batch
from posd.store.sequencing import OutboxRow
from posd.values import Tenant

AT = "2026-11-22T10:00:00.123456+00:00"
CARD: Mapping[str, object] = {
    "card_number": "GC-1",
    "type": "purchase",
    "amount": Decimal("25.500"),
    "balance": Decimal("25.500"),
    "purchased_by": "Ann",
    "recipient_name": None,
    "recipient_email": None,
    "expiry_date": "2027-11-22T23:59:59+00:00",
    "created_at": AT,
}
POINTS: Mapping[str, object] = {
    "account_id": 7,
    "phone": "+447700900123",
    "type": "add",
    "points": 20,
    "balance": 120,
    "reason": None,
    "created_at": AT,
}


def told(kind: str, row: Mapping[str, object], currency: str = "GBP") -> list[str]:
    """Return the type, the data and the members beside it."""
    draft = ledger_movements.draft(kind, row, currency)
    parts = (jsontext.encode(part).decode() for part in (draft.data, draft.extra_members))
    return [draft.type, *parts]


class DraftTests(SynchronousTestCase):
    def test_a_sale_is_a_purchase(self) -> None:
        for moved in ("purchase", "activate"):
            kind, data, extra_members = told("gift_card_movement", {**CARD, "type": moved})
            self.assertEqual((kind, extra_members), ("gift_card_purchased", "{}"))
            self.assertEqual(
                data,
                '{"cardNumber":"GC-1","initialBalance":25.50,"currentBalance":25.50,'
                '"purchasedBy":"Ann","recipientName":null,"recipientEmail":null,'
                '"expiryDate":"2027-11-22T23:59:59.000Z","purchasedAt":"2026-11-22T10:00:00.123Z"}',
            )

    def test_a_card_may_be_valid_for_centuries(self) -> None:
        row = {"card_number": "GC-1", "balance": 0, "status": "active", "now": AT}
        expiry = "2999-12-31T23:59:59.999+00:00"
        _, data, _ = told("gift_card", {**row, "expiry_date": expiry})
        self.assertIn('"expiryDate":"2999-12-31T23:59:59.999Z"', data)

    def test_other_movements_have_the_change_of_the_balance(self) -> None:
        for moved, amount in (("deduct", "-5.250"), ("top_up", "5.250"), ("reverse", "5.250")):
            row = {**CARD, "type": moved, "amount": Decimal(amount)}
            kind, data, extra_members = told("gift_card_movement", row)
            self.assertEqual(
                (kind, extra_members),
                ("gift_card_updated", '{"card_number":"GC-1","balance":25.50}'),
            )
            self.assertEqual(
                data,
                f'{{"cardNumber":"GC-1","balance":25.50,"change":{amount[:-1]},'
                f'"transactionType":"{moved}","updatedAt":"2026-11-22T10:00:00.123Z"}}',
            )

    def test_amounts_are_in_the_decimals_of_the_shops_currency(self) -> None:
        for currency, stored, shown in (
            ("JPY", "500.000", "500"),
            ("KWD", "500.125", "500.125"),
            ("GBP", "500.000", "500.00"),
        ):
            row = {**CARD, "amount": Decimal(stored), "balance": Decimal(stored)}
            _, data, _ = told("gift_card_movement", row, currency)
            self.assertIn(f'"initialBalance":{shown},"currentBalance":{shown}', data)

    def test_the_event_of_a_changed_card_has_its_status(self) -> None:
        row = {
            "card_number": "GC-1",
            "balance": 0,
            "status": "blocked",
            "expiry_date": None,
            "now": AT,
        }
        kind, data, extra_members = told("gift_card", row)
        self.assertEqual(
            (kind, extra_members), ("gift_card_updated", '{"card_number":"GC-1","balance":0.00}')
        )
        self.assertEqual(
            data,
            '{"cardNumber":"GC-1","balance":0.00,"change":0.00,"transactionType":"status",'
            '"updatedAt":"2026-11-22T10:00:00.123Z","status":"blocked","expiryDate":null}',
        )

    def test_points_are_added_redeemed_or_else_adjusted(self) -> None:
        for moved, shown in (
            *(("add", "add"), ("redeem", "redeem"), ("adjust", "adjust")),
            ("reverse", "adjust"),
        ):
            kind, data, extra_members = told("loyalty_movement", {**POINTS, "type": moved})
            self.assertEqual(
                (kind, extra_members),
                ("loyalty_updated", '{"customer_phone":"+447700900123","points":120}'),
            )
            self.assertEqual(
                data,
                '{"customerId":"7","customerPhone":"+447700900123","pointsChange":20,'
                f'"newBalance":120,"transactionType":"{shown}","reason":null,'
                '"updatedAt":"2026-11-22T10:00:00.123Z"}',
            )


class BatchTests(SynchronousTestCase):
    """Tests of movements in a batch with other items."""

    shops = {1: Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen", currency="JPY")}

    def rows(
        self, *noted: tuple[str, str]
    ) -> list[batch.BatchItem | batch.LedgerChange | batch.RejectedRow]:
        return batch.read([OutboxRow(n, 1, *row, None) for n, row in enumerate(noted)], self.shops)

    def test_each_movement_and_each_changed_card_is_one_item(self) -> None:
        noted = [("gift_card_movement", "1"), ("loyalty_movement", "1"), ("gift_card", "GC-1")]
        self.assertEqual(
            self.rows(*noted, ("gift_card", "GC-1")), [batch.LedgerChange(1, *row) for row in noted]
        )

    def test_movements_are_published_in_order_and_deleted_ones_are_not(self) -> None:
        items = self.rows(("gift_card_movement", "2"), ("gift_card_movement", "1"))
        moved = {(1, "gift_card_movement", "1"): jsontext.encode(CARD).decode()}
        ledger = batch.OrderBatch({}, self.shops, 1000, datetime.now(UTC), moved)
        (entry,) = ledger.outbox_entries(items)
        self.assertEqual((entry.type, entry.failure), ("gift_card_purchased", None))
        self.assertIn('"initialBalance":26,', entry.data)

    def test_a_movement_that_is_too_large_is_logged_as_failed(self) -> None:
        (item,) = self.rows(("loyalty_movement", "1"))
        long = jsontext.encode({**POINTS, "reason": "x" * 400}).decode()
        moved = {(1, "loyalty_movement", "1"): long}
        ledger = batch.OrderBatch({}, self.shops, 300, datetime.now(UTC), moved)
        (entry,) = ledger.outbox_entries([item])
        self.assertRegex(entry.failure or "", "300 are allowed")
        self.assertRegex(entry.data, r'^{"bytes":\d+}$')

    def test_a_movement_that_cannot_become_an_event_is_logged_as_failed(self) -> None:
        (item,) = self.rows(("gift_card", ""))
        row = {"card_number": "", "balance": 0, "status": "active", "expiry_date": None, "now": AT}
        moved = {(1, "gift_card", ""): jsontext.encode(row).decode()}
        ledger = batch.OrderBatch({}, self.shops, 1000, datetime.now(UTC), moved)
        (entry,) = ledger.outbox_entries([item])
        self.assertEqual((entry.type, entry.data), ("gift_card", '{"key":""}'))
        self.assertRegex(entry.failure or "", "no usable cardNumber")
