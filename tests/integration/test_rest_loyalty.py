"""Loyalty points by REST, on a running posd: all answers and refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

from tests.integration.harness import Reply
from tests.integration.ledger_case import PHONE, LedgerCase, exact
from tests.integration.wire_case import until

HERE = "loyalty/07700900123"
"""The same customer in different notations."""


class LoyaltyCase(LedgerCase):
    def add(self, points: object, *, once: str | None = None, **more: object) -> Reply:
        return self.post(f"{HERE}/add", {"points": points, **more}, once=once)

    def redeem(self, points: object, *, once: str | None = None, **more: object) -> Reply:
        return self.post(f"{HERE}/redeem", {"points": points, **more}, once=once)

    def set(self, **columns: object) -> None:
        """Change the shop's rules, as an operator does."""
        values = ", ".join(f"loyalty_{name} = %s" for name in columns)
        self.rows(
            f"UPDATE dinedesk_main.tenants SET {values} WHERE slug = '{self.slug}'",
            *columns.values(),
        )

    def moved(self) -> list[tuple[int, int]]:
        return self.balances("pos_loyalty_transactions")


class PointsTests(LoyaltyCase):
    def test_a_customer_has_points(self) -> None:
        self.earn(120, orderId="A-1", reason="lunch")
        self.redeem(20)
        self.rows(
            "UPDATE {schema}.loyalty_accounts SET customer_name = 'Ann', email = 'ann@example.com',"
            " total_spent = 88.5"
        )
        for key in (self.key, self.tenant_key, self.platform):
            answer = self.ask("GET", f"{HERE}/points", key=key)
            self.assertEqual(answer.status, 200)
        self.assert_twice(answer)
        members = exact(answer)["data"]
        self.assertTrue(members.pop("memberSince").endswith("Z"))
        taken, given = members.pop("recentTransactions")
        self.assertEqual((taken["type"], taken["points"], taken["balance"]), ("redeem", -20, 100))
        self.assertIsInstance(given.pop("transactionId"), str)
        self.assertTrue(given.pop("createdAt").endswith("Z"))
        self.assertEqual(
            given,
            {"type": "add", "points": 120, "balance": 120, "orderId": "A-1", "reason": "lunch"},
        )
        self.assertIsInstance(members.pop("customerId"), str)
        self.assertEqual(
            members,
            {
                "phone": PHONE,
                "customerPhone": PHONE,
                "name": "Ann",
                "customerName": "Ann",
                "email": "ann@example.com",
                "loyaltyPoints": 100,
                "points": 100,
                "totalSpent": Decimal("88.50"),
                "settings": {
                    "enabled": True,
                    "pointsPerPound": Decimal("1.00"),
                    "redemptionRate": Decimal("0.0100"),
                    "minimumRedeem": 1,
                    "increment": 1,
                },
            },
        )

    def test_every_way_to_write_a_number_is_one_customer(self) -> None:
        self.earn(5)
        for written in (
            "07700900123",
            "07700%20900%20123",
            PHONE,
            "%2B447700900123",
            "00447700900123",
        ):
            answer = self.ask("GET", f"loyalty/{written}/points")
            self.assertEqual((answer.status, answer.json["points"]), (200, 5), written)

    def test_somebody_new_is_404_in_the_words_of_deployed_platforms(self) -> None:
        reply = self.ask("GET", f"{HERE}/points")
        data = {"phone": PHONE, "points": 0, "isNewCustomer": True}
        self.assert_refused(reply, 404, "unknown_customer", data=data)

    def test_what_is_no_number_is_422(self) -> None:
        for phone in ("12", "nobody", "%2B", "%00", "caf%C3%A9", "0" * 80):
            for method, path, body in (
                ("GET", "points", None),
                ("POST", "add", {"points": 1}),
                ("POST", "redeem", {"points": 1}),
                ("POST", "reverse", {"idempotencyKey": "k"}),
            ):
                with self.subTest(phone=phone, path=path):
                    reply = self.ask(method, f"loyalty/{phone}/{path}", body)
                    self.assert_refused(reply, 422, "invalid_phone")


class AdditionTests(LoyaltyCase):
    def test_it_gives_points_and_says_how_many_there_are(self) -> None:
        self.add(7)
        answer = self.add(Decimal("23.00"), orderId=17, reason="order 17")
        self.assertEqual(answer.status, 200)
        self.assert_twice(answer)
        members = exact(answer)["data"]
        self.assertIsInstance(members.pop("transactionId"), str)
        self.assertIsInstance(members.pop("customerId"), str)
        self.assertEqual(members, {"previousPoints": 7, "pointsAdded": 23, "newPoints": 30})
        rows = self.rows(
            "SELECT order_id, reason, device_id FROM {schema}.pos_loyalty_transactions WHERE points > 7"
        )
        self.assertEqual([tuple(row) for row in rows], [("17", "order 17", "POS_1")])

    def test_somebody_new_gets_an_account_if_the_shop_wants_that(self) -> None:
        self.set(opens_accounts=False)
        self.assert_refused(self.add(5), 404, "unknown_customer")
        self.set(opens_accounts=True)
        self.assertEqual(self.add(5).json["newPoints"], 5)
        self.set(opens_accounts=False)
        self.assertEqual(self.add(5).json["newPoints"], 10)

    def test_an_order_earns_once_whatever_key_it_comes_with(self) -> None:
        self.assertEqual(self.add(5, orderId="A-1", once="a").status, 200)
        reply = self.add(5, order_reference="A-1", once="b")
        self.assert_refused(reply, 409, "already_earned")
        self.assertEqual(self.moved(), [(5, 5)])

    def test_what_are_no_points_is_422(self) -> None:
        wrong: list[object] = [0, -1, Decimal("1.5"), 10**9 + 1, 2**53, 10**30, True, "5", None, []]
        for points in wrong:
            for call in (self.add, self.redeem):
                with self.subTest(points=points):
                    self.assert_refused(call(points), 422, "invalid_amount", field="points")
        reply = self.post(f"{HERE}/add", {"reason": "x"})
        self.assert_refused(reply, 400, "missing_field", field="points")
        reply = self.add(1, orderId="A", order_reference="B")
        self.assert_refused(reply, 400, "invalid_field")
        self.assert_refused(self.add(1, orderId="x" * 256), 422, "invalid_order")
        self.assertEqual(self.rows("SELECT 1 FROM {schema}.loyalty_accounts"), [])


class RedemptionTests(LoyaltyCase):
    def test_it_takes_points_and_says_what_they_are_worth(self) -> None:
        self.earn(500)
        self.set(redemption_rate=Decimal("0.0125"))
        answer = self.redeem(150, order_reference="A-2")
        self.assertEqual(answer.status, 200)
        self.assert_twice(answer)
        members = exact(answer)["data"]
        self.assertIsInstance(members.pop("transactionId"), str)
        self.assertEqual(
            members,
            {
                "previousPoints": 500,
                "pointsRedeemed": 150,
                "newPoints": 350,
                "remainingPoints": 350,
                # 1.875, with the decimals of the currency.
                "discountAmount": Decimal("1.88"),
            },
        )

    def test_more_than_there_are_is_400_with_how_many_there_are(self) -> None:
        self.earn(30)
        self.assert_refused(self.redeem(31), 400, "insufficient_points", currentPoints=30)
        reply = self.post("loyalty/07700900999/redeem", {"points": 1})
        self.assert_refused(reply, 404, "unknown_customer")
        self.assertEqual(self.moved(), [(30, 30)])

    def test_fewer_than_the_shops_minimum_or_no_multiple_is_422(self) -> None:
        self.earn(500)
        self.set(minimum_redeem=100, increment=50)
        for points in (50, 99, 120):
            self.assert_refused(self.redeem(points), 422, "invalid_amount", field="points")
        self.assertEqual(self.redeem(150).status, 200)
        self.assertEqual(self.moved(), [(500, 500), (-150, 350)])

    def test_a_shop_without_points_gives_and_takes_none(self) -> None:
        self.earn(500)
        first = self.redeem(5, once="k")
        self.set(enabled=False)
        self.assert_refused(self.redeem(5), 422, "loyalty_disabled")
        self.assert_refused(self.add(5), 422, "loyalty_disabled")
        self.assertIs(self.ask("GET", f"{HERE}/points").json["settings"]["enabled"], False)
        self.assert_replayed(first, self.redeem(5, once="k"))
        self.assertEqual(len(self.moved()), 2)


class RepetitionTests(LoyaltyCase):
    def test_a_key_makes_it_safe_to_repeat_under_other_rules_too(self) -> None:
        for call in (self.add, self.redeem):
            first = call(40, once="k" + call.__name__)
            self.set(minimum_redeem=100, redemption_rate=5)
            again = call(40, once="k" + call.__name__, reason="again", orderId="9")
            self.assert_replayed(first, again)
            self.set(minimum_redeem=1, redemption_rate=Decimal("0.01"))
        self.assertEqual(self.moved(), [(40, 40), (-40, 0)])

    def test_the_key_may_stand_in_the_body(self) -> None:
        first = self.add(40, idempotencyKey="k")
        self.assert_replayed(first, self.add(40, idempotency_key="k"))
        self.assert_replayed(first, self.add(40, once="k"))
        reply = self.add(40, idempotencyKey="k", once="other")
        self.assert_refused(reply, 400, "invalid_idempotency_key")

    def test_with_other_points_it_is_422(self) -> None:
        self.add(40, once="k")
        self.assert_refused(self.add(41, once="k"), 422, "idempotency_mismatch")
        self.assert_refused(self.redeem(40, once="k"), 422, "idempotency_mismatch")

    def test_a_client_that_goes_away_undoes_nothing(self) -> None:
        self.earn(100)
        self.send_and_leave(f"{HERE}/redeem", {"points": 30}, once="k")
        until(lambda: len(self.moved()) == 2, "the redemption is there")
        self.send_and_leave(f"{HERE}/add", {"points": 5}, once="m")
        until(lambda: len(self.moved()) == 3, "the points are there")
        for again in (self.redeem(30, once="k"), self.add(5, once="m")):
            self.assertEqual((again.status, again.headers["idempotent-replayed"]), (200, "true"))
        self.assertEqual(self.moved(), [(100, 100), (-30, 70), (5, 75)])


class ReversalTests(LoyaltyCase):
    def reverse(self, body: object, **how: str) -> Reply:
        return self.post(f"{HERE}/reverse", body, **how)  # type: ignore[arg-type]  # str or None

    def test_a_movement_is_taken_back_by_its_key_or_by_its_id(self) -> None:
        self.earn(100)
        self.redeem(30, once="k")
        made = self.redeem(10)
        self.assertEqual(self.reverse({"idempotency_key": "k"}).json["newPoints"], 90)
        answer = self.reverse({"transactionId": made.json["transactionId"], "reason": "mistake"})
        self.assertIsInstance(answer.json.pop("transactionId"), str)
        self.assertEqual(
            answer.json,
            {
                "success": True,
                "reversed": True,
                "tombstoned": False,
                "newPoints": 100,
                "remainingPoints": 100,
            },
        )

    def test_said_again_it_is_answered_as_before(self) -> None:
        self.earn(100)
        self.redeem(30, once="k")
        first = self.reverse({"idempotencyKey": "k"}, once="r")
        self.redeem(1)
        self.assertEqual(self.reverse({"idempotencyKey": "k"}).json, first.json)
        self.assert_replayed(first, self.reverse({"idempotencyKey": "k"}, once="r"))
        reply = self.reverse({"idempotencyKey": "m"}, once="r")
        self.assert_refused(reply, 422, "idempotency_mismatch")

    def test_what_comes_after_its_reversal_is_409_for_somebody_new_too(self) -> None:
        early = self.reverse({"idempotencyKey": "k"})
        self.assertEqual((early.json["tombstoned"], early.json["newPoints"]), (True, 0))
        self.assert_refused(self.add(5, once="k"), 409, "reversed")
        self.assert_refused(self.ask("GET", f"{HERE}/points"), 404, "unknown_customer")

    def test_a_till_takes_back_its_own_movements_and_a_platform_all(self) -> None:
        self.earn(100)
        body = {"transactionId": self.redeem(5).json["transactionId"]}
        other = self.shop.key("device", self.slug, "POS_2")
        self.assert_refused(self.reverse(body, key=other), 403, "forbidden")
        self.assertEqual(self.reverse(body, key=self.platform).json["newPoints"], 100)

    def test_what_names_no_movement_or_cannot_be_taken_back_is_refused(self) -> None:
        added = self.add(100, once="k").json["transactionId"]
        self.redeem(1, once="m")
        for body, status, code in (
            ({}, 400, "missing_field"),
            ({"idempotencyKey": "k", "transactionId": added}, 400, "invalid_field"),
            ({"transactionId": "x"}, 404, "unknown_transaction"),
            ({"transactionId": "999999999999"}, 404, "unknown_transaction"),
            ({"transactionId": added}, 400, "insufficient_points"),
        ):
            with self.subTest(body=body):
                self.assert_refused(self.reverse(body), status, code)
        back = self.reverse({"idempotencyKey": "m"}).json["transactionId"]
        self.assert_refused(self.reverse({"transactionId": back}), 422, "not_reversible")
        self.post(f"{HERE}/add", {"points": 1}, once="m", key=self.platform)
        other = self.shop.key("device", self.slug, "POS_2")
        self.post(f"{HERE}/add", {"points": 1}, once="k", key=other)
        reply = self.reverse({"idempotencyKey": "k"}, key=self.platform)
        self.assert_refused(reply, 409, "ambiguous_key")

    def test_a_client_that_goes_away_has_taken_it_back_once(self) -> None:
        self.add(100, once="k")
        self.send_and_leave(f"{HERE}/reverse", {"idempotencyKey": "k"}, once="r")
        until(lambda: len(self.moved()) == 2, "the reversal is there")
        again = self.reverse({"idempotencyKey": "k"}, once="r")
        self.assertEqual((again.headers["idempotent-replayed"], len(self.moved())), ("true", 2))


class KeyTests(LoyaltyCase):
    def test_who_may_do_what(self) -> None:
        self.earn(100)
        admin = self.shop.key("admin", None)
        for method, path, body in (
            ("GET", "points", None),
            ("POST", "add", {"points": 1}),
            ("POST", "redeem", {"points": 1}),
            ("POST", "reverse", {"idempotencyKey": "k"}),
        ):
            for key, status in (
                (self.key, 200),
                (self.tenant_key, 200),
                (self.platform, 200),
                (admin, 403),
                ("pos_wrong", 401),
            ):
                with self.subTest(path=path, status=status):
                    reply = self.ask(method, f"{HERE}/{path}", body, key=key)
                    self.assertEqual(reply.status, status)

    def test_another_tenants_key_sees_nothing(self) -> None:
        made = self.add(100).json["transactionId"]
        self.shop.add_tenant(f"{self.slug}-b")
        theirs = self.shop.key("platform", f"{self.slug}-b")
        self.assertEqual(self.ask("GET", f"{HERE}/points", key=theirs).status, 401)
        place = f"/api/{self.slug}-b/{HERE}"
        reply = self.posd.request("GET", f"{place}/points", key=theirs)
        self.assert_refused(reply, 404, "unknown_customer")
        body = {"transactionId": made}
        reply = self.posd.request("POST", f"{place}/reverse", body, key=theirs)
        self.assert_refused(reply, 404, "unknown_transaction")
        reply = self.ask("GET", f"{HERE}/points", headers={"X-Tenant-ID": "other"})
        self.assert_refused(reply, 403, "tenant_mismatch")

    def test_a_shop_that_keeps_its_own_points_has_none_here(self) -> None:
        self.rows("DROP TABLE {schema}.pos_loyalty_transactions CASCADE")
        self.assert_refused(self.ask("GET", f"{HERE}/points"), 404, "no_ledger")
        for path, body in (
            ("add", {"points": 1}),
            ("redeem", {"points": 1}),
            ("reverse", {"idempotencyKey": "k"}),
        ):
            self.assert_refused(self.post(f"{HERE}/{path}", body), 404, "no_ledger")


class PushTests(LoyaltyCase):
    def test_the_other_tills_hear_of_every_movement(self) -> None:
        till = self.dial(key=self.tenant_key, device="POS_9")
        self.add(100, reason="lunch")
        self.redeem(30, once="k")
        self.post(f"{HERE}/reverse", {"idempotencyKey": "k"})
        heard = till.take(3)
        self.assertEqual({each["type"] for each in heard}, {"loyalty_updated"})
        self.assertEqual([each["points"] for each in heard], [100, 70, 100])
        self.assertEqual([each["data"]["pointsChange"] for each in heard], [100, -30, 30])
        self.assertEqual({each["customer_phone"] for each in heard}, {PHONE})
        self.assertEqual(heard[0]["data"]["reason"], "lunch")


class DailyLimitTests(LoyaltyCase):
    """A till may add 100,000 points per day, to any customers."""

    def give(self, points: int, customer: int, key: str | None = None, **more: str) -> Reply:
        path = f"loyalty/+4477009001{customer:02}/add"
        return self.ask("POST", path, {"points": points}, key=key, headers=more)

    def given(self) -> int:
        rows = self.rows(
            "SELECT coalesce(sum(points), 0)::int FROM {schema}.pos_loyalty_transactions"
        )
        return int(rows[0][0])

    def test_a_till_that_adds_more_is_refused_until_the_next_day(self) -> None:
        self.assertEqual([self.give(50_000, each).status for each in (1, 2)], [200, 200])
        refused = self.give(1, 3)
        self.assertEqual((refused.status, refused.json["code"]), (429, "too_many_points"))
        self.assertEqual(refused.json["pointsPerDay"], 100_000)
        self.assertTrue(0 < int(refused.headers["retry-after"]) <= 86_400)
        self.assertEqual(self.given(), 100_000)
        accounts = "SELECT 1 FROM {schema}.loyalty_accounts WHERE phone = '+447700900103'"
        self.assertEqual(self.rows(accounts), [])
        self.rows("UPDATE {schema}.pos_points_given SET day = day - 1")
        self.assertEqual(self.give(100_000, 3).status, 200)
        self.assertEqual(self.give(1, 3).status, 429)

    def test_more_at_once_than_a_day_has_is_refused(self) -> None:
        self.assertEqual(self.give(100_001, 1).status, 429)
        self.assertEqual(self.give(100_000, 1).status, 200)

    def test_another_till_and_the_platform_are_not_concerned(self) -> None:
        self.assertEqual(self.give(100_000, 1).status, 200)
        other = self.shop.key("device", self.slug, "POS_2")
        self.assertEqual(self.give(100_000, 1, other).status, 200)
        for _ in range(2):
            self.assertEqual(self.give(100_000, 2, self.platform).status, 200)

    def test_a_tenants_key_is_one_whatever_its_tills_call_themselves(self) -> None:
        statuses = [
            self.give(40_000, each, self.tenant_key, **{"X-Device-ID": f"till {each}"}).status
            for each in range(4)
        ]
        self.assertEqual(statuses, [200, 200, 429, 429])

    def test_a_call_that_is_repeated_counts_once(self) -> None:
        for _ in range(3):
            self.assertEqual(self.give(60_000, 1, **{"Idempotency-Key": "one"}).status, 200)
        self.assertEqual(self.give(40_000, 2).status, 200)
        # Even when nothing is left.
        self.assertEqual(self.give(60_000, 1, **{"Idempotency-Key": "one"}).status, 200)

    def test_calls_at_the_same_time_count_each_other(self) -> None:
        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(lambda each: self.give(30_000, each), range(12)))
        self.assertEqual(sorted(each.status for each in replies), [200] * 3 + [429] * 9)
        self.assertEqual(self.given(), 90_000)
