"""Tests of `posd.publishing.batch`, without a database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Conflict, TooLarge
from posd.events import normalise
from posd.events.orders import OrderChange
from posd.publishing import batch
from posd.store.sequencing import LogEntry, OrderState, OutboxRow, StoredText
from posd.values import StoredOrder, Tenant

NOW: Final = datetime(2026, 11, 22, 10, tzinfo=UTC)
SHOPS: Final = {
    1: Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen", "EUR", "Europe/Paris"),
    2: Tenant(2, "grill", "The grill", "dinedesk_grill", "GBP", "no/such zone"),
}
LARGEST: Final = 2000


def row(number: int, kind: str, data: object, tenant_id: int = 1) -> OutboxRow:
    return OutboxRow(number, tenant_id, kind, None, json.dumps(data))


def touched(number: int, order_id: str, tenant_id: int = 1) -> OutboxRow:
    return OutboxRow(number, tenant_id, "order", order_id, None)


def order(order_id: str = "7", **more: object) -> batch.BatchItem:
    return batch.BatchItem(
        1, normalise.draft("new_order", {"orderId": order_id, "totalAmount": 5, **more})
    )


def notice(text: str = "") -> batch.BatchItem:
    return batch.BatchItem(1, normalise.draft("notice", {"text": text}))


def order_batch(states: Mapping[batch.OrderKey, OrderState] = {}) -> batch.OrderBatch:
    return batch.OrderBatch(states, SHOPS, LARGEST, NOW)


def data_of(entry: LogEntry | None) -> dict[str, Any]:
    assert entry is not None
    data = json.loads(entry.data)
    assert isinstance(data, dict)
    return data


class ReadingTests(SynchronousTestCase):
    def test_rows_become_items_in_their_order(self) -> None:
        items = batch.read([row(1, "notice", {"n": 1}), touched(2, "7")], SHOPS)
        kinds = [isinstance(item, batch.BatchItem) and item.touched for item in items]
        self.assertEqual(kinds, [None, "7"])

    def test_several_rows_about_a_touched_order_of_a_tenant_become_one_item(self) -> None:
        rows = [touched(1, "7"), touched(2, "7"), touched(3, "8"), touched(4, "7", tenant_id=2)]
        places = [item.partition_key for item in batch.read(rows, SHOPS)]
        self.assertEqual(places, [(1, "7"), (1, "8"), (2, "7")])

    def test_a_row_that_cannot_become_an_event_is_rejected_with_a_reason(self) -> None:
        items = batch.read(
            [
                row(1, "Not A Type", {}),
                row(2, "notice", "no object"),
                OutboxRow(3, 1, "card", "9", None),
                # The outbox stores keys of this length, which may have been cut.
                touched(4, "x" * 256),
            ],
            SHOPS,
        )
        reasons = [item.reason for item in items if isinstance(item, batch.RejectedRow)]
        self.assertEqual(len(reasons), 4)
        self.assertIn("'card'", reasons[2])
        self.assertIn("more than 255 characters", reasons[3])

    def test_a_date_without_an_offset_is_read_by_the_shops_clock(self) -> None:
        data = {"orderId": "7", "createdAt": "2026-07-01T12:00:00"}
        paris, unknown = batch.read(
            [row(1, "new_order", data), row(2, "new_order", data, tenant_id=2)], SHOPS
        )
        assert isinstance(paris, batch.BatchItem)
        assert isinstance(unknown, batch.BatchItem)
        assert paris.draft is not None
        assert unknown.draft is not None
        self.assertEqual(paris.draft.data["createdAt"], "2026-07-01T10:00:00.000Z")
        self.assertEqual(unknown.draft.data["createdAt"], "2026-07-01T12:00:00.000Z")

    def test_half_of_a_surrogate_pair_is_repaired_with_a_warning(self) -> None:
        text = r'{"orderId": "7", "customerName": "Anna \ud83d", "meta": {"a": "\u0000"}}'
        (item,) = batch.read([OutboxRow(1, 1, "new_order", None, text)], SHOPS)
        state = OrderState(None, text.replace("orderId", "id").replace("customerN", "customer_n"))
        (hooked,) = order_batch({(1, "7"): state}).outbox_entries([batch.BatchItem(1, touched="7")])
        assert isinstance(item, batch.BatchItem)
        assert item.draft is not None
        for told in (item.draft.warnings[:1], hooked.warnings):
            self.assertEqual(
                [(each.member, each.code) for each in told],
                [("customerName", "character_replaced")],
            )
        self.assertEqual(item.draft.warnings[1].member, "meta.a")
        self.assertEqual(item.draft.data["customerName"], "Anna \N{REPLACEMENT CHARACTER}")

    def test_a_rejected_row_is_logged_with_its_data_or_its_size(self) -> None:
        small = batch.RejectedRow(row(1, "Not A Type", {"a": 1}), "bad").entry(LARGEST)
        self.assertEqual((data_of(small), small.failure), ({"a": 1}, "bad"))
        large = batch.RejectedRow(row(1, "x" * 80, {"a": "b" * LARGEST}), "bad").entry(LARGEST)
        self.assertEqual(list(data_of(large)), ["bytes"])
        self.assertEqual(len(large.type), 50)
        nameless = batch.RejectedRow(OutboxRow(1, 1, "", "9", None), "bad").entry(LARGEST)
        self.assertEqual((nameless.type, data_of(nameless)), ("?", {"key": "9"}))


class OrderBatchTests(SynchronousTestCase):
    def test_the_second_event_of_an_order_is_compared_with_the_first(self) -> None:
        book = order_batch()
        first, same, changed = book.request([order(), order(), order(status="ready")])
        self.assertIsNone(same)
        assert first is not None
        assert changed is not None
        self.assertEqual((first.type, first.version), ("new_order", 1))
        self.assertEqual((changed.type, changed.version), ("order_updated", 2))
        self.assertEqual(data_of(changed)["previousStatus"], first.status)
        snapshot = json.loads(changed.snapshot or "")
        self.assertEqual((snapshot["version"], "previousStatus" in snapshot), (2, False))

    def test_an_event_is_compared_with_the_stored_order(self) -> None:
        (entry,) = order_batch().request([order(status="pending")])
        assert entry is not None
        assert entry.snapshot is not None
        stored = OrderState(StoredText(entry.snapshot, "pending", 4), None)
        (changed,) = order_batch({(1, "7"): stored}).request([order(status="ready")])
        assert changed is not None
        self.assertEqual(
            (changed.type, changed.version, changed.status), ("order_updated", 5, "ready")
        )

    def test_a_new_order_without_a_currency_has_the_shops(self) -> None:
        named, unnamed = order_batch().request([order("1", currency="USD"), order("2")])
        self.assertEqual((data_of(named)["currency"], data_of(unnamed)["currency"]), ("USD", "EUR"))

    def test_a_refused_request_changes_no_order(self) -> None:
        book = order_batch()
        with self.assertRaises(TooLarge):
            book.request([order("1"), notice("x" * LARGEST)])
        (entry,) = book.request([order("1")])
        assert entry is not None
        self.assertEqual((entry.type, entry.version), ("new_order", 1))

    def test_a_condition_is_checked_after_the_earlier_items_of_the_batch(self) -> None:
        book = order_batch()
        asked: list[tuple[int | None, str | None]] = []

        def note(stored: StoredOrder | None, change: OrderChange | None) -> None:
            version = None if stored is None else stored.version
            asked.append((version, None if change is None else change.status))

        items = [order(), order(), order(status="ready")]
        book.request([evolve(item, condition=note) for item in items])
        self.assertEqual(asked, [(None, "confirmed"), (1, None), (1, "ready")])
        after = book.order((1, "7"))
        assert after is not None
        self.assertEqual((after.version, after.status), (2, "ready"))

    def test_a_request_that_a_condition_refuses_changes_nothing(self) -> None:
        book = order_batch()
        book.request([order("7")])

        def never(stored: StoredOrder | None, change: OrderChange | None) -> None:
            raise Conflict("no")

        with self.assertRaises(Conflict):
            book.request([order("8"), evolve(order("7", status="ready"), condition=never)])
        kept = book.order((1, "7"))
        assert kept is not None
        self.assertEqual((kept.version, book.order((1, "8"))), (1, None))

    def test_the_limit_counts_bytes_of_utf8(self) -> None:
        (entry,) = order_batch().request([notice("é" * 900)])
        assert entry is not None
        with self.assertRaises(TooLarge) as caught:
            order_batch().request([notice("é" * 1000)])
        self.assertEqual(caught.exception.code, "event_too_large")
        self.assertIn(str(LARGEST), str(caught.exception))

    def test_the_limit_includes_the_members_beside_the_data(self) -> None:
        for text, more, fits in ((900, 900, True), (1200, 1200, False), (10, LARGEST, False)):
            item = notice("x" * text)
            assert item.draft is not None
            item = batch.BatchItem(1, evolve(item.draft, extra_members={"more": "x" * more}))
            with self.subTest(text=text, more=more):
                (entry,) = order_batch().outbox_entries([item])
                self.assertEqual(entry.failure is None, fits)

    def test_an_outbox_row_that_is_too_large_is_logged_and_the_order_stored(self) -> None:
        (entry,) = order_batch().outbox_entries([order(customerName="A" * LARGEST)])
        self.assertIsNotNone(entry.failure)
        self.assertEqual(list(data_of(entry)), ["bytes"])
        self.assertEqual(json.loads(entry.snapshot or "")["customerName"], "A" * LARGEST)

    def test_a_touched_order_is_published_in_its_present_state(self) -> None:
        now = OrderState(None, '{"id": 7, "total_amount": 5, "items": [], "secret": 1}')
        (entry,) = order_batch({(1, "7"): now}).outbox_entries([batch.BatchItem(1, touched="7")])
        self.assertEqual((entry.type, data_of(entry)["orderId"]), ("new_order", "7"))
        self.assertNotIn("secret", data_of(entry))

    def test_a_deleted_order_publishes_nothing(self) -> None:
        self.assertEqual(order_batch().outbox_entries([batch.BatchItem(1, touched="7")]), [])
        gone = {(1, "7"): OrderState(None, None)}
        self.assertEqual(order_batch(gone).outbox_entries([batch.BatchItem(1, touched="7")]), [])

    def test_an_order_that_cannot_be_read_is_logged_and_the_others_published(self) -> None:
        odd = {(1, "7"): OrderState(None, '{"total_amount": 5}')}
        failed, good = order_batch(odd).outbox_entries(
            [batch.BatchItem(1, touched="7"), notice("hello")]
        )
        self.assertIn("orderId", failed.failure or "")
        self.assertEqual(data_of(failed), {"orderId": "7"})
        self.assertIsNone(good.failure)
