"""Tests of `POST /api/{tenant}/reports/daily` with a running posd."""

from __future__ import annotations

import json
from typing import Any

from posd.web.api.reports import ReportRequest
from posd.web.http.models import members
from tests import documents
from tests.documents import words_in_code
from tests.integration.harness import Reply
from tests.integration.leaving import leave
from tests.integration.wire_case import WireCase, until

DAY = {"reportDate": "2026-11-22", "totalSales": 100, "totalOrders": 4}


class ReportsCase(WireCase):
    def report(
        self, body: object = None, *, key: str | None = None, to: str | None = None, **headers: str
    ) -> Reply:
        path = f"/api/{to or self.slug}/reports/daily"
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        body = DAY if body is None else body
        return self.posd.request("POST", path, body, key=key or self.key, headers=sent)

    def stored(self, columns: str, table: str = "pos_daily_reports") -> list[Any]:
        return self.rows(f"SELECT {columns} FROM {{schema}}.{table} ORDER BY report_date, revision")


class SuccessTests(ReportsCase):
    def test_the_first_report_of_a_day_is_created(self) -> None:
        reply = self.report()
        self.assertEqual(reply.status, 200)
        self.assertEqual(
            reply.json,
            {
                "success": True,
                "message": "The report is stored.",
                "data": {
                    "reportDate": "2026-11-22",
                    "totalSales": 100,
                    "totalOrders": 4,
                    "created": True,
                    "balanced": True,
                    "issues": [],
                },
            },
        )

    def test_another_one_replaces_it_and_the_old_one_is_kept(self) -> None:
        self.report()
        reply = self.report(DAY | {"totalSales": 120.5})
        self.assertEqual(
            (reply.json["data"]["created"], reply.json["data"]["totalSales"]), (False, 120.5)
        )
        self.assertIn("amendment", reply.json["message"])
        self.assertEqual(self.stored("total_sales, revision"), [(120.5, 2)])
        self.assertEqual(
            self.stored("total_sales, revision", "pos_daily_report_amendments"), [(100, 1)]
        )

    def test_the_same_again_is_no_amendment(self) -> None:
        self.report()
        reply = self.report(DAY | {"totalSales": 100.0})
        self.assertEqual((reply.status, reply.json["data"]["created"]), (200, False))
        self.assertEqual(self.stored("revision", "pos_daily_report_amendments"), [])

    def test_everything_that_a_till_sends_is_kept_with_the_tills_name(self) -> None:
        key = self.shop.key("device", self.slug, "BAR")
        details = {
            "topItems": [{"name": "Naan", "quantity": 12}],
            "busyHours": {"18": 20},
            "staffShifts": [{"name": "A", "hours": 7.5}],
            "labour": {"cost": 80.25},
            "data": {"z": 1},
        }
        money = {"cashSales": 40, "cardSales": 30, "giftCardSales": 20, "onlineSales": 10}
        rest = {"discounts": 5, "refunds": 0, "netSales": 95, "notes": "Rain."}
        self.assertEqual(self.report({**DAY, **money, **rest, **details}, key=key).status, 200)
        self.assertEqual(
            self.stored(
                "device_id, cash_sales, card_sales, gift_card_sales, online_sales, discounts, refunds,"
                " net_sales, notes, top_items, busy_hours, staff_shifts, labour, data, balanced"
            ),
            [("BAR", *money.values(), 5, 0, 95, "Rain.", *details.values(), True)],
        )

    def test_both_spellings_are_read(self) -> None:
        snake = {
            "report_date": "2026-11-22",
            "total_sales": 100,
            "order_count": 4,
            "cash_sales": 60,
            "gift_card_sales": 40,
            "busy_hours": {"18": 4},
        }
        self.assertTrue(self.report(snake).json["data"]["created"])
        camel = {**DAY, "cashSales": 60, "giftCardSales": 40, "busyHours": {"18": 4}}
        reply = self.report({**camel, **snake})
        self.assertEqual((reply.status, reply.json["data"]["created"]), (200, False))
        self.assertEqual(self.stored("revision, gift_card_sales, total_orders"), [(1, 40, 4)])

    def test_what_deployed_tills_send_is_enough(self) -> None:
        sent = {
            "tenant": self.slug,
            "reportDate": "2026-11-22T00:00:00",
            "totalSales": -12.3400,
            "totalOrders": 0,
            "cashSales": 0,
            "cardSales": -12.34,
            "labour": {},
            "notes": None,
            "topItems": None,
        }
        data = self.report(sent).json["data"]
        self.assertEqual((data["reportDate"], data["totalSales"]), ("2026-11-22", -12.34))
        self.assertEqual((data["balanced"], data["issues"]), (True, []))

    def test_what_does_not_add_up_is_stored_and_flagged(self) -> None:
        sums = {"cashSales": 10, "cardSales": 20, "giftCardSales": 30, "onlineSales": 39.999}
        data = self.report({**DAY, **sums, "totalSales": 99}).json["data"]
        self.assertFalse(data["balanced"])
        self.assertEqual(
            [(issue["kind"], issue["field"]) for issue in data["issues"]],
            [("rounded", "onlineSales"), ("disagrees", "totalSales")],
        )
        ((balanced, issues),) = self.stored("balanced, issues")
        self.assertEqual((balanced, issues), (False, data["issues"]))

    def test_amounts_have_the_decimals_of_the_shops_currency(self) -> None:
        self.rows("UPDATE dinedesk_main.tenants SET currency = 'JPY' WHERE slug = %s", self.slug)
        data = self.report({**DAY, "totalSales": 100.4}).json["data"]
        self.assertEqual((data["totalSales"], data["issues"][0]["kind"]), (100, "rounded"))

    def test_a_client_that_goes_away_has_reported_all_the_same(self) -> None:
        path = f"/api/{self.slug}/reports/daily"
        leave(self.shop, self.posd, f"{self.schema}.pos_daily_reports", path, DAY, self.key)
        until(lambda: self.stored("revision"), "the report is there")


class DocumentTests(ReportsCase):
    """Tests of the examples of docs/tills.md and docs/rest.md."""

    def test_the_reports_of_the_guide_are_answered_as_it_says(self) -> None:
        blocks = documents.blocks("docs/tills.md")
        sent = [block.text for block in blocks if block.of("json", "report")]
        answers = [block.text for block in blocks if block.of("json", "reported")]
        self.assertEqual(len(sent), 2)
        for report, answer in zip(sent, answers, strict=True):
            self.assertEqual(self.report(report.encode()).json, json.loads(answer))

    def test_the_reference_has_every_member_under_every_name(self) -> None:
        shown, given, _ = (
            table for table in documents.tables("docs/rest.md") if "reports/daily" in table.section
        )
        names = {member.name: {*member.aliases} for member in members(ReportRequest)}
        self.assertEqual({row[0].strip("`"): words_in_code(row[1]) for row in shown.rows}, names)
        answered = {name for row in given.rows for name in words_in_code(row[0])}
        self.assertEqual(answered, {*self.report().json["data"]})


class IdempotencyTests(ReportsCase):
    def test_a_repetition_gets_the_first_answer(self) -> None:
        first = self.report(Idempotency_Key="K-1")
        again = self.report(X_Idempotency_Key="K-1")
        self.assertEqual(again.json, first.json)
        self.assertTrue(again.json["data"]["created"])
        self.assertEqual(again.headers.get("idempotent-replayed"), "true")
        self.assertNotIn("idempotent-replayed", first.headers)

    def test_a_key_with_other_figures_is_no_misuse(self) -> None:
        self.report(Idempotency_Key="K-1")
        reply = self.report(DAY | {"totalSales": 101}, Idempotency_Key="K-1")
        self.assertEqual((reply.status, reply.json["data"]["totalSales"]), (200, 101))
        self.assertEqual(self.stored("total_sales"), [(101,)])

    def test_a_late_repetition_does_not_replace_newer_figures(self) -> None:
        self.report(Idempotency_Key="K-1")
        self.report(DAY | {"totalSales": 101}, Idempotency_Key="K-2")
        self.assertEqual(self.report(Idempotency_Key="K-1").json["data"]["totalSales"], 100)
        self.assertEqual(self.stored("total_sales, revision"), [(101, 2)])

    def test_what_cannot_be_a_key_is_refused(self) -> None:
        reply = self.report(Idempotency_Key="K 1")
        self.assertEqual((reply.status, reply.json["code"]), (400, "invalid_idempotency_key"))


class RefusalTests(ReportsCase):
    def assert_refused(
        self, reply: Reply, status: int, code: str, field: str | None = None
    ) -> None:
        self.assertEqual(
            (reply.status, reply.json["code"], reply.json.get("field")), (status, code, field)
        )
        self.assertEqual(self.stored("report_date"), [])

    def test_a_day_is_needed(self) -> None:
        self.assert_refused(self.report({"totalSales": 1}), 400, "missing_field", "reportDate")
        for wrong in ("yesterday", "", 20261122, "2026-11-22" + "0" * 60):
            with self.subTest(day=wrong):
                self.assert_refused(
                    self.report(DAY | {"reportDate": wrong}), 400, "invalid_field", "reportDate"
                )

    def test_an_amount_is_a_number_that_a_shop_may_have(self) -> None:
        for wrong in ("100", True, 1e11, [1]):
            with self.subTest(amount=wrong):
                self.assert_refused(
                    self.report(DAY | {"cashSales": wrong}), 422, "invalid_amount", "cashSales"
                )

    def test_orders_are_counted_in_whole_numbers(self) -> None:
        for wrong in (1.5, "4", 2**60):
            with self.subTest(count=wrong):
                self.assert_refused(
                    self.report(DAY | {"totalOrders": wrong}), 400, "invalid_field", "totalOrders"
                )

    def test_two_spellings_with_different_values_are_refused(self) -> None:
        reply = self.report(DAY | {"order_count": 5})
        self.assert_refused(reply, 400, "invalid_field", "totalOrders")
        reply = self.report(DAY | {"total_sales": 5})
        self.assert_refused(reply, 422, "invalid_amount", "totalSales")

    def test_what_is_no_json_object_is_refused(self) -> None:
        for body in (b"{", b"[]"):
            self.assert_refused(self.report(body), 400, "invalid_json")

    def test_only_tills_report(self) -> None:
        for kind in ("platform", "admin"):
            self.assert_refused(self.report(key=self.shop.key(kind, self.slug)), 403, "forbidden")
        self.assert_refused(self.report(key="no-such-key"), 401, "unauthorized")

    def test_nobody_reports_for_another_shop(self) -> None:
        other = f"{self.slug}-other"
        self.shop.add_tenant(other)
        self.assert_refused(self.report(key=self.shop.key(slug=other)), 401, "unauthorized")
        self.assert_refused(self.report(X_Tenant_ID=other), 403, "tenant_mismatch")
