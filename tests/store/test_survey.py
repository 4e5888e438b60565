"""The survey of all tenants on a real database: event counters, and unprinted orders."""

from __future__ import annotations

from posd.events.orders import FINAL_STATUSES
from posd.store import survey
from posd.store.survey import ShopSurvey, TenantSurveyRow
from tests.schema_case import Entry
from tests.store_case import StoreCase

HEAD = "UPDATE dinedesk_main.pos_heads SET received_seq = %s, acknowledged = %s WHERE tenant_id = 1"


class SurveyTests(StoreCase):
    def record(self, *order_ids: str) -> None:
        for order_id in order_ids:
            order = Entry(1, order_id=order_id, snapshot="{}", status="confirmed", version=1)
            self.admin.record(order)

    def age(self, table: str, column: str, value: object, seconds: int) -> None:
        """Set the age of rows."""
        self.admin.run(
            f"UPDATE dinedesk_kitchen.{table} SET created_at = now() - %s * interval '1 second'"
            f" WHERE {column} = %s",
            seconds,
            value,
        )

    async def surveyed(self, most: int = 10) -> list[TenantSurveyRow]:
        return await survey.survey_tenants(await self.executor(), most, FINAL_STATUSES)

    async def kitchen(self) -> tuple[TenantSurveyRow, ShopSurvey]:
        found = (await self.surveyed())[0]
        return found, found.shop

    async def test_where_nothing_has_happened_there_is_nothing(self) -> None:
        nothing = ShopSurvey(0, 0.0, 0, 0.0, False)
        self.assertEqual(
            await self.surveyed(),
            [
                TenantSurveyRow(slug, 0, 0, 0, 0, 0, 0.0, shop=nothing)
                for slug in ("kitchen", "grill")
            ],
        )

    async def test_what_waits_is_counted_in_the_log(self) -> None:
        self.record("a", "b", "c")
        self.admin.run(HEAD, 1, 1)
        self.age("pos_events", "seq", 2, seconds=90)
        found, shop = await self.kitchen()
        self.assertEqual((found.published, found.acknowledged, shop.waiting), (3, 1, 2))
        self.assertEqual(found.undelivered, 2)
        self.assertGreaterEqual(shop.oldest_unacked, 90)

    async def test_an_event_that_is_gone_from_the_log_is_missed(self) -> None:
        self.record("a", "b", "c")
        self.admin.run("DELETE FROM dinedesk_kitchen.pos_events WHERE seq = 2")
        found, shop = await self.kitchen()
        self.assertEqual(found.published - found.acknowledged - found.expired - shop.waiting, 1)

    async def test_what_is_pruned_before_any_till_had_it_has_expired_and_is_not_missed(
        self,
    ) -> None:
        self.record("a", "b", "c")
        self.admin.run(HEAD, 1, 1)
        for seq in (1, 2):
            self.age("pos_events", "seq", seq, seconds=7200)
        hour_ago = "now() - interval '90 minutes'"
        self.admin.run(f"SELECT dinedesk_main.pos_prune(1, {hour_ago}, '{{}}', 100)")
        found, shop = await self.kitchen()
        self.assertEqual(
            (found.published, found.acknowledged, found.expired, shop.waiting), (3, 1, 1, 1)
        )
        self.assertEqual(found.undelivered, 1)

    async def test_what_has_no_position_yet_waits_in_the_outbox(self) -> None:
        self.admin.value("SELECT dinedesk_main.pos_publish('kitchen', 'note', '{}')")
        found, _ = await self.kitchen()
        self.assertEqual(found.outbox_rows, 1)
        self.assertGreater(found.oldest_outbox, 0)

    async def test_orders_that_nobody_has_printed_are_those_that_are_still_to_be_made(self) -> None:
        self.record("a", "b", "c", "d")
        change = "UPDATE dinedesk_kitchen.pos_orders SET {} WHERE order_id = %s"
        self.admin.run(change.format("print_status = 'printed'"), "a")
        self.admin.run(change.format("status = 'cancelled'"), "b")
        self.admin.run(change.format("print_status = 'failed'"), "c")
        self.age("pos_orders", "order_id", "c", seconds=700)
        _, shop = await self.kitchen()
        self.assertEqual((shop.unprinted, shop.prints), (2, True))
        self.assertGreaterEqual(shop.oldest_unprinted, 700)

    async def test_an_order_of_yesterday_is_nobodys_trouble_any_more(self) -> None:
        self.record("a")
        self.age("pos_orders", "order_id", "a", seconds=25 * 3600)
        _, shop = await self.kitchen()
        self.assertEqual((shop.unprinted, shop.oldest_unprinted), (0, 0))

    async def test_a_shop_whose_tills_never_say_that_they_print_is_known_by_that(self) -> None:
        self.record("a", "b")
        _, shop = await self.kitchen()
        self.assertFalse(shop.prints)

    async def test_a_tenant_that_is_disabled_is_not_looked_at(self) -> None:
        self.admin.run("UPDATE dinedesk_main.tenants SET is_active = false WHERE slug = 'kitchen'")
        self.assertEqual([each.slug for each in await self.surveyed()], ["grill"])

    async def test_it_goes_on_from_portion_to_portion_up_to_as_many_as_are_wanted(self) -> None:
        self.patch(survey, "_PORTION", 1)
        self.assertEqual([each.slug for each in await self.surveyed()], ["kitchen", "grill"])
        self.assertEqual([each.slug for each in await self.surveyed(1)], ["kitchen"])

    async def test_open_orders_are_found_without_looking_at_those_of_all_times(self) -> None:
        self.admin.run("SET enable_seqscan = off")
        words = self.admin.value("SELECT %s::text[]::text", sorted(FINAL_STATUSES))
        plan = self.admin.rows(
            "EXPLAIN SELECT count(*) FROM dinedesk_main.pos_orders"
            " WHERE tenant_id = 1 AND print_status <> 'printed'"
            f" AND status <> ALL ('{words}'::text[]) AND created_at > now() - interval '1 day'"
        )
        self.assertIn("pos_orders_open", "\n".join(line for (line,) in plan))
