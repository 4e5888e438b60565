"""Tests of the log lines and metrics of events that were left out, failed, or have warnings."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogPublisher

from posd.monitoring.counters import Counters
from posd.publishing.sequencer import Sequencer
from posd.values import LEFT_OUT, WARNING_CODES
from tests.sequencer_case import GRILL, KITCHEN, SequencerCase, first, order, publication
from tests.shifted_clock import shift

PRIVATE = "Anna Secret"


class JournalCase(SequencerCase):
    def setUp(self) -> None:
        super().setUp()
        self.events: list[dict[str, Any]] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.counters = Counters()

    async def watched(self) -> Sequencer:
        """Return a sequencer with the counters `counters`."""
        sequencer = await self.started()
        self.events.clear()
        sequencer._publishing_log.counters = sequencer._batches.counters = self.counters
        return sequencer

    def counted(self, name: str) -> dict[str, float]:
        """Return the values of a counter that are not zero, by its only label."""
        return {
            next(iter(sample.labels.values()), ""): sample.value
            for family in self.counters.registry.collect()
            for sample in family.samples
            if sample.name == f"posd_{name}_total" and sample.value
        }

    def lines(self, level: LogLevel) -> list[str]:
        """Return the log lines of a level."""
        return [
            formatEvent(event)
            for event in self.events
            if event["log_level"] is level and str(event["log_namespace"]).startswith("posd.publ")
        ]


class LeftOutTests(JournalCase):
    async def test_a_hooked_order_that_becomes_no_event_is_counted_and_logged(self) -> None:
        sequencer = await self.watched()
        insert = (
            "INSERT INTO dinedesk_kitchen.orders (total_amount, status, order_source, created_at)"
            " VALUES (5, %s, %s, now() - %s * interval '1 hour') RETURNING id"
        )
        old = self.admin.value(insert, "confirmed", "online", 25)
        over = self.admin.value(insert, "completed", "online", 0)
        self.admin.value(insert, "confirmed", "dine_in", 0)
        gone = self.admin.value(insert, "confirmed", "online", 0)
        self.admin.run("DELETE FROM dinedesk_kitchen.orders WHERE id = %s", gone)
        await self.emptied(sequencer)
        self.assertEqual(self.log_of(), [])
        self.assertEqual(
            self.counted("orders_left_out"), {"old": 1, "over": 1, "not_online": 1, "gone": 1}
        )
        told = "\n".join(self.lines(LogLevel.info))
        for order_id, reason in ((old, "old"), (over, "over"), (gone, "gone")):
            self.assertIn(f"of tenant kitchen became no event ({reason}): {order_id}", told)
        self.assertNotIn("not_online", told)

    async def test_an_unchanged_order_is_counted_without_a_log_line(self) -> None:
        sequencer = await self.watched()
        await sequencer.publish(publication(order("7")))
        await sequencer.publish(publication(order("7")))
        self.assertEqual(self.counted("orders_left_out"), {"unchanged": 1})
        self.assertEqual(self.lines(LogLevel.info), [])

    async def test_thousands_of_orders_make_one_log_line(self) -> None:
        sequencer = await self.watched()
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.orders (total_amount, status)"
            " SELECT 5, 'completed' FROM generate_series(1, 50)"
        )
        await self.emptied(sequencer)
        self.assertEqual(self.counted("orders_left_out"), {"over": 50})
        self.assertLessEqual(len(self.lines(LogLevel.info)), 5)

    async def test_events_of_a_transaction_that_is_rolled_back_are_not_counted(self) -> None:
        sequencer = await self.watched()
        huge = order("8", note="x" * 5000)
        refused = sequencer.publish(publication(order("7", orderSource="dine_in"), huge))
        with self.assertRaises(Exception):  # noqa: B017
            await refused
        self.assertEqual(self.counted("orders_left_out"), {})


class WarnedTests(JournalCase):
    async def test_warnings_of_all_sources_are_counted_and_logged_with_the_order(self) -> None:
        sequencer = await self.watched()
        data = {"customerName": PRIVATE, "totalAmount": "14,20", "items": [{"quantity": "2 kg"}]}
        await sequencer.publish(publication(order("rest-1", **data)))
        self.publish("new_order", {"orderId": "sql-1", **data})
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.orders (id, total_amount, customer_name) VALUES (77, 5, %s)",
            PRIVATE,
        )
        self.admin.run(
            "INSERT INTO dinedesk_kitchen.order_items (order_id, name, price, quantity, selected_addons)"
            " VALUES (77, 'Soup', 5, 1, '17')"
        )
        await self.emptied(sequencer)
        counted = self.counted("publish_warnings")
        self.assertEqual(counted, {"unreadable": 3, "quantity_replaced": 2, "name_missing": 2})
        lines = self.lines(LogLevel.info)
        for order_id in ("rest-1", "sql-1", "77"):
            self.assertEqual(len([line for line in lines if line.endswith(f"order {order_id}")]), 1)
        self.assertIn("tenant kitchen", lines[0])
        self.assertNotIn(PRIVATE, "".join(lines))
        self.assertNotIn("14,20", "".join(lines))

    async def test_the_log_line_of_a_failed_event_names_its_order(self) -> None:
        sequencer = await self.watched()
        self.publish("New Order", {"orderId": "X-1", "customerName": PRIVATE})
        self.publish("new_order", {"orderId": "X-2", "note": "x" * 5000}, GRILL)
        await self.emptied(sequencer)
        self.assertEqual(self.counted("events_failed"), {"": 2})
        told = "\n".join(self.lines(LogLevel.error))
        self.assertRegex(told, "tenant kitchen failed .* order X-1")
        self.assertRegex(told, "tenant grill failed .* order X-2")
        self.assertNotIn(PRIVATE, told)

    async def test_all_codes_and_reasons_begin_at_zero(self) -> None:
        text = [
            (sample.name, *sample.labels.values())
            for family in self.counters.registry.collect()
            for sample in family.samples
        ]
        for code in WARNING_CODES:
            self.assertIn(("posd_publish_warnings_total", code), text)
        for reason in LEFT_OUT:
            self.assertIn(("posd_orders_left_out_total", reason), text)


class UnreadableTests(JournalCase):
    async def test_a_tenant_that_cannot_be_read_is_logged_and_degrades_the_node(self) -> None:
        sequencer = await self.watched()
        self.assertTrue(sequencer.serves_all)
        self.place_order()
        self.admin.run("ALTER TABLE dinedesk_kitchen.orders RENAME TO put_away")
        await self.rested(sequencer)
        self.assertFalse(sequencer.serves_all)
        (line,) = self.lines(LogLevel.error)
        self.assertIn("order 1 of tenant kitchen cannot be read: relation", line)
        self.assertIn("tries again in 1 s", line)
        self.admin.run("ALTER TABLE dinedesk_kitchen.put_away RENAME TO orders")
        self.clock.advance(2)
        await self.emptied(sequencer)
        self.assertTrue(sequencer.serves_all)


class ClockTests(JournalCase):
    """Tests with a clock of the daemon that is wrong by a day. The clock of the database is right."""

    async def check(self, by: timedelta) -> None:
        sequencer = await self.watched()
        shift(self, by)
        hooked = self.place_order()
        old = self.admin.value(
            "INSERT INTO dinedesk_kitchen.orders (total_amount, created_at)"
            " VALUES (5, now() - interval '25 hours') RETURNING id"
        )
        await self.emptied(sequencer)
        self.assertEqual([each.data["orderId"] for each in self.log_of()], [hooked])
        self.assertEqual(self.counted("orders_left_out"), {"old": 1}, old)
        self.assertEqual(first(await sequencer.publish(publication(order("rest-1")))), 2)
        made = self.admin.value(
            "SELECT now() - (event_data ->> 'createdAt')::timestamptz"
            " FROM dinedesk_kitchen.pos_events WHERE seq = 2"
        )
        self.assertLess(abs(made), timedelta(minutes=5))
        self.assertEqual(self.seqs(KITCHEN), [1, 2])

    async def test_a_clock_that_is_a_day_ahead_leaves_out_no_order(self) -> None:
        await self.check(timedelta(hours=25))

    async def test_a_clock_that_is_a_day_behind_leaves_out_no_order(self) -> None:
        await self.check(timedelta(hours=-25))


class TimeZoneTests(JournalCase):
    async def test_an_unknown_time_zone_is_logged_once(self) -> None:
        sequencer = await self.watched()
        self.admin.run("ALTER TABLE dinedesk_main.tenants DISABLE TRIGGER pos_tenant_zone_update")
        self.admin.run("UPDATE dinedesk_main.tenants SET timezone = 'MST7MDT8' WHERE id = 1")
        for number in range(3):
            self.publish("notice", {"number": number})
            await self.emptied(sequencer)
            self.clock.advance(100)
        told = [line for line in self.lines(LogLevel.error) if "MST7MDT8" in line]
        self.assertEqual(len(told), 1)
        self.assertIn("tenant kitchen", told[0])
