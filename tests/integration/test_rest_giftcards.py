"""Gift cards by REST, on a running posd: all answers and refusals."""

from __future__ import annotations

from decimal import Decimal

from tests.integration.ledger_case import LedgerCase, exact
from tests.integration.wire_case import until


class BalanceTests(LedgerCase):
    def test_a_card_says_what_is_on_it(self) -> None:
        self.sell("50", recipientName="Tom", expiryDate="2099-11-22")
        for key in (self.key, self.tenant_key, self.platform):
            answer = self.ask("GET", "gift-cards/GC-1/balance", key=key)
            self.assertEqual(answer.status, 200)
        self.assertEqual(
            exact(answer)["data"],
            {
                "cardNumber": "GC-1",
                "balance": Decimal("50.00"),
                "initialBalance": Decimal("50.00"),
                "initialAmount": Decimal("50.00"),
                "status": "active",
                "isExpired": False,
                "expiryDate": "2099-11-22T23:59:59.999Z",
                "recipientName": "Tom",
            },
        )
        self.assertLessEqual(
            {"success", "cardNumber", "balance", "initialBalance", "status", "expiryDate"},
            answer.json.keys(),
        )
        self.assertIn(b'"balance":50.00', answer.content)

    def test_a_number_is_the_same_in_small_letters_and_with_blanks(self) -> None:
        self.sell(card="  gc-1 ")
        self.assertEqual(
            self.ask("GET", "gift-cards/%20gC-1%20/balance").json["cardNumber"], "GC-1"
        )

    def test_the_status_says_whether_it_can_be_used(self) -> None:
        self.sell("5")
        self.assertEqual(self.status(), "active")
        self.post("gift-cards/GC-1/deduct", {"amount": 5})
        self.assertEqual(self.status(), "depleted")
        self.rows("UPDATE {schema}.gift_cards SET expiry_date = now() - interval '1 s'")
        self.assertEqual(self.status(), "expired")
        self.rows("UPDATE {schema}.gift_cards SET is_blocked = true")
        self.assertEqual(self.status(), "blocked")

    def test_an_unknown_card_is_404(self) -> None:
        for number in ("GC-2", "%00", "caf%C3%A9", "x" * 70, "GC%2F1"):
            reply = self.ask("GET", f"gift-cards/{number}/balance")
            self.assert_refused(reply, 404, "unknown_card")

    def test_a_shop_that_keeps_its_own_cards_has_none_here(self) -> None:
        self.rows("DROP TABLE {schema}.pos_gift_card_transactions CASCADE")
        self.assert_refused(self.ask("GET", "gift-cards/GC-1/balance"), 404, "no_ledger")
        reply = self.post("gift-cards/GC-1/reverse", {"transactionId": 1})
        self.assert_refused(reply, 404, "no_ledger")

    def status(self) -> object:
        return self.ask("GET", "gift-cards/GC-1/balance").json["status"]


class DeductionTests(LedgerCase):
    def test_it_takes_money_off_a_card_and_says_what_is_left(self) -> None:
        self.sell("50")
        answer = self.post("gift-cards/gc-1/deduct", {"amount": Decimal("12.3400"), "orderId": 7})
        self.assertEqual(answer.status, 200)
        self.assert_twice(answer)
        members = exact(answer)
        self.assertIsInstance(members.pop("transactionId"), str)
        del members["data"]
        self.assertEqual(
            members,
            {
                "success": True,
                "previousBalance": Decimal("50.00"),
                "amountDeducted": Decimal("12.34"),
                "newBalance": Decimal("37.66"),
                "remainingBalance": Decimal("37.66"),
            },
        )
        self.assertIn(b'"newBalance":37.66', answer.content)

    def test_what_it_was_for_is_kept_under_either_spelling(self) -> None:
        self.sell()
        self.post("gift-cards/GC-1/deduct", {"amount": 1, "orderId": "A-1", "notes": "table 4"})
        self.post("gift-cards/GC-1/deduct", {"amount": 1, "order_reference": 8, "reference": "x"})
        self.post("gift-cards/GC-1/deduct", {"amount": 1, "orderId": None, "notes": "y" * 900})
        rows = self.rows(
            "SELECT order_id, left(reference, 8), length(reference), device_id, principal"
            " FROM {schema}.pos_gift_card_transactions WHERE amount < 0 ORDER BY id"
        )
        who = ("POS_1", "device POS_1")
        self.assertEqual(
            [tuple(row) for row in rows],
            [("A-1", "table 4", 7, *who), ("8", "x", 1, *who), (None, "y" * 8, 500, *who)],
        )

    def test_two_spellings_that_differ_are_400(self) -> None:
        self.sell()
        body = {"amount": 1, "orderId": "A", "order_reference": "B"}
        self.assert_refused(self.post("gift-cards/GC-1/deduct", body), 400, "invalid_field")
        self.assertEqual(self.post("gift-cards/GC-1/deduct", body | {"orderId": "B"}).status, 200)

    def test_more_than_there_is_is_400_with_what_there_is(self) -> None:
        self.sell("5.50")
        reply = self.post("gift-cards/GC-1/deduct", {"amount": Decimal("5.51")})
        self.assert_refused(reply, 400, "insufficient_balance", currentBalance=Decimal("5.50"))
        self.assertEqual(len(self.balances()), 1)

    def test_a_card_that_cannot_be_used_is_400(self) -> None:
        self.sell()
        self.rows("UPDATE {schema}.gift_cards SET expiry_date = now() - interval '1 s'")
        reply = self.post("gift-cards/GC-1/deduct", {"amount": 1})
        self.assert_refused(reply, 400, "card_expired")
        self.rows("UPDATE {schema}.gift_cards SET is_blocked = true")
        reply = self.post("gift-cards/GC-1/deduct", {"amount": 1})
        self.assert_refused(reply, 400, "card_blocked")
        self.assert_refused(self.post("gift-cards/GC-2/deduct", {"amount": 1}), 404, "unknown_card")

    def test_what_is_no_amount_is_422_and_which_member_it_is(self) -> None:
        self.sell()
        for amount in (
            b"0",
            b"-1",
            b"0.001",
            b"1e39",
            b"true",
            b'"5"',
            b"null",
            b"[]",
            b"1e11",
            b"1e99",
        ):
            reply = self.posd.request(
                "POST",
                f"/api/{self.slug}/gift-cards/GC-1/deduct",
                b'{"amount":' + amount + b"}",
                key=self.key,
            )
            with self.subTest(amount=amount):
                self.assert_refused(reply, 422, "invalid_amount", field="amount")
        path = f"/api/{self.slug}/gift-cards/GC-1/deduct"
        reply = self.posd.request("POST", path, b'{"amount":1,"note":1e99}', key=self.key)
        self.assert_refused(reply, 400, "number_out_of_range")
        reply = self.post("gift-cards/GC-1/deduct", {})
        self.assert_refused(reply, 400, "missing_field", field="amount")
        self.assertEqual(len(self.balances()), 1)

    def test_an_order_has_a_name_of_up_to_255_characters(self) -> None:
        self.sell()
        reply = self.post("gift-cards/GC-1/deduct", {"amount": 1, "orderId": "x" * 256})
        self.assert_refused(reply, 422, "invalid_order")

    def test_the_decimals_are_those_of_the_currency(self) -> None:
        self.rows(f"UPDATE dinedesk_main.tenants SET currency = 'KWD' WHERE slug = '{self.slug}'")
        self.sell("1.125")
        answer = self.post("gift-cards/GC-1/deduct", {"amount": Decimal("0.001")})
        self.assertIn(b'"newBalance":1.124', answer.content)
        reply = self.post("gift-cards/GC-1/deduct", {"amount": Decimal("0.0001")})
        self.assert_refused(reply, 422, "invalid_amount", field="amount")


class RepetitionTests(LedgerCase):
    def test_a_key_makes_it_safe_to_repeat_by_whichever_way_it_comes(self) -> None:
        self.sell()
        first = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k-1")
        ways: tuple[tuple[dict[str, object], dict[str, str]], ...] = (
            ({"amount": 5}, {"X-Idempotency-Key": "k-1"}),
            ({"amount": 5, "idempotencyKey": "k-1"}, {}),
            ({"amount": Decimal("5.00"), "idempotency_key": "k-1"}, {"Idempotency-Key": "k-1"}),
            # Clocks, texts and references differ between honest repetitions.
            ({"amount": 5, "notes": "again", "orderId": "9"}, {"Idempotency-Key": "k-1"}),
        )
        for body, headers in ways:
            again = self.post("gift-cards/gc-1/deduct", body, headers=headers)
            self.assert_replayed(first, again)
        self.assertEqual(len(self.balances()), 2)

    def test_it_is_answered_as_before_whatever_has_become_of_the_card(self) -> None:
        self.sell()
        first = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        self.post("gift-cards/GC-1/deduct", {"amount": 45})
        self.rows("UPDATE {schema}.gift_cards SET is_blocked = true")
        self.assert_replayed(first, self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k"))

    def test_another_amount_with_the_same_key_is_422(self) -> None:
        self.sell()
        self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        reply = self.post("gift-cards/GC-1/deduct", {"amount": 6}, once="k")
        self.assert_refused(reply, 422, "idempotency_mismatch")

    def test_a_key_belongs_to_the_terminal_that_used_it(self) -> None:
        self.sell()
        other = self.shop.key("device", self.slug, "POS_2")
        for key in (self.key, other, self.tenant_key, self.platform):
            reply = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k", key=key)
            self.assertNotIn("idempotent-replayed", reply.headers)
        self.assertEqual(self.balances()[-1][1], 30)

    def test_what_cannot_be_a_key_is_400(self) -> None:
        self.sell()
        for headers, more in (
            ({"Idempotency-Key": "two words"}, {}),
            ({"Idempotency-Key": "a", "X-Idempotency-Key": "b"}, {}),
            ({"Idempotency-Key": "a"}, {"idempotencyKey": "b"}),
            ({}, {"idempotencyKey": "é"}),
        ):
            reply = self.post("gift-cards/GC-1/deduct", {"amount": 5, **more}, headers=headers)
            self.assert_refused(reply, 400, "invalid_idempotency_key")
        self.assertEqual(len(self.balances()), 1)

    def test_a_client_that_goes_away_undoes_nothing(self) -> None:
        self.sell()
        self.send_and_leave("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        until(lambda: len(self.balances()) == 2, "the deduction is there")
        again = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        self.assertEqual(again.headers.get("idempotent-replayed"), "true")
        self.assertEqual((again.json["newBalance"], len(self.balances())), (45, 2))


class SaleTests(LedgerCase):
    def test_a_platform_sells_a_card_with_a_number_of_its_own(self) -> None:
        body = {
            "cardNumber": " gc-7 ",
            "amount": Decimal("50"),
            "purchased_by": "Maya Stone",
            "recipientName": "Tom",
            "recipientEmail": "tom@example.com",
            "expiryDate": "2099-06-01",
            "orderId": "A-1",
        }
        answer = self.post("gift-cards", body, key=self.platform)
        members = exact(answer)
        self.assertIsInstance(members.pop("transactionId"), str)
        self.assertTrue(members.pop("createdAt").endswith("Z"))
        self.assertEqual(
            (answer.status, members),
            (
                201,
                {
                    "success": True,
                    "cardNumber": "GC-7",
                    "balance": Decimal("50.00"),
                    "initialBalance": Decimal("50.00"),
                    "status": "active",
                    # The end of that day in London, in summer.
                    "expiryDate": "2099-06-01T22:59:59.999Z",
                    "purchasedBy": "Maya Stone",
                    "recipientName": "Tom",
                    "recipientEmail": "tom@example.com",
                    "orderId": "A-1",
                },
            ),
        )

    def test_without_a_number_posd_makes_one_that_can_be_read_and_not_guessed(self) -> None:
        numbers = {self.sell(card=None) for _ in range(5)}
        self.assertEqual(len(numbers), 5)
        for number in numbers:
            self.assertRegex(number, "^[2-9A-HJ-NP-Z]{16}$")

    def test_made_again_it_is_answered_as_it_was_sold_whatever_has_become_of_it(self) -> None:
        body = {"amount": 20, "cardNumber": "GC-7", "expiryDate": "2099-06-01", "orderId": "A-1"}
        first = self.post("gift-cards", body, key=self.platform, once="s")
        self.post("gift-cards/GC-7/deduct", {"amount": 20})
        for change in (
            "is_blocked = true",
            "is_blocked = false, expiry_date = '2000-01-01'",
            "expiry_date = NULL, order_id = 'B-2'",
        ):
            with self.subTest(change=change):
                self.rows(f"UPDATE {{schema}}.gift_cards SET {change}")
                again = self.post("gift-cards", body, key=self.platform, once="s")
                self.assert_replayed(first, again)

    def test_made_again_it_does_not_bring_back_a_person_who_was_forgotten(self) -> None:
        body = {"amount": 20, "recipientName": "Tom", "recipientEmail": "tom@example.com"}
        first = self.post("gift-cards", body, key=self.platform, once="s")
        self.rows("UPDATE {schema}.gift_cards SET recipient_name = NULL, recipient_email = NULL")
        again = self.post("gift-cards", body, key=self.platform, once="s")
        forgotten = {"recipientName": None, "recipientEmail": None}
        self.assertEqual(again.json, {**first.json, **forgotten})

    def test_made_again_it_is_the_same_card(self) -> None:
        first, again = (
            self.post("gift-cards", {"amount": 20}, key=self.platform, once="s") for _ in range(2)
        )
        self.assert_replayed(first, again)
        self.assertEqual(len(self.balances()), 1)
        for body in ({"amount": 21}, {"amount": 20, "cardNumber": "GC-9"}):
            reply = self.post("gift-cards", body, key=self.platform, once="s")
            self.assert_refused(reply, 422, "idempotency_mismatch")

    def test_a_number_is_sold_once(self) -> None:
        self.sell(card="GC-1")
        reply = self.post("gift-cards", {"amount": 5, "cardNumber": "gc-1"}, key=self.platform)
        self.assert_refused(reply, 409, "card_exists")

    def test_what_can_be_no_card_is_refused(self) -> None:
        for body, status, code in (
            ({"amount": 5, "cardNumber": "caf\u00e9"}, 422, "invalid_card"),
            ({"amount": 5, "cardNumber": ""}, 422, "invalid_card"),
            ({"amount": 0}, 422, "invalid_amount"),
            ({"cardNumber": "GC-1"}, 400, "missing_field"),
            ({"amount": 5, "expiryDate": "next summer"}, 400, "invalid_field"),
            ({"amount": 5, "expiryDate": "2020-01-01"}, 400, "card_expired"),
        ):
            with self.subTest(body=body):
                reply = self.post("gift-cards", body, key=self.platform)
                self.assert_refused(reply, status, code)
        self.assertEqual(self.rows("SELECT 1 FROM {schema}.gift_cards"), [])

    def test_a_blocked_card_is_not_sold(self) -> None:
        self.rows("INSERT INTO {schema}.gift_cards (card_number, is_blocked) VALUES ('GC-1', true)")
        reply = self.post("gift-cards", {"amount": 5, "cardNumber": "GC-1"}, key=self.platform)
        self.assert_refused(reply, 400, "card_blocked")

    def test_a_buyer_that_goes_away_has_bought_one_card(self) -> None:
        body = {"amount": 20}
        self.send_and_leave("gift-cards", body, once="s", key=self.platform)
        until(lambda: len(self.balances()) == 1, "the card is there")
        again = self.post("gift-cards", body, key=self.platform, once="s")
        self.assertEqual((again.status, again.headers["idempotent-replayed"]), (201, "true"))
        self.assertEqual(len(self.balances()), 1)


class ReversalTests(LedgerCase):
    def test_a_movement_is_taken_back_by_its_key_or_by_its_id(self) -> None:
        self.sell("50")
        self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        made = self.post("gift-cards/GC-1/deduct", {"amount": 7})
        by_key = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"})
        by_id = self.post("gift-cards/gc-1/reverse", {"transaction_id": made.json["transactionId"]})
        members = exact(by_id)
        self.assertNotEqual(members.pop("transactionId"), made.json["transactionId"])
        self.assertEqual(
            members,
            {
                "success": True,
                "reversed": True,
                "tombstoned": False,
                "newBalance": Decimal("50.00"),
                "remainingBalance": Decimal("50.00"),
            },
        )
        self.assertEqual((by_key.status, exact(by_key)["newBalance"]), (200, 43))

    def test_said_again_it_is_answered_as_before(self) -> None:
        self.sell()
        self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        first = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"}, once="r")
        self.post("gift-cards/GC-1/deduct", {"amount": 1})
        without = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"})
        self.assertEqual((without.status, without.json), (200, first.json))
        again = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"}, once="r")
        self.assert_replayed(first, again)
        reply = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "other"}, once="r")
        self.assert_refused(reply, 422, "idempotency_mismatch")

    def test_what_comes_after_its_reversal_is_409(self) -> None:
        self.sell()
        early = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"})
        self.assertEqual((early.json["reversed"], early.json["tombstoned"]), (False, True))
        self.assertEqual(early.json["newBalance"], 50)
        late = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        self.assert_refused(late, 409, "reversed")
        self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="m")
        self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "m"})
        again = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="m")
        self.assert_refused(again, 409, "reversed")

    def test_a_till_takes_back_its_own_movements_and_a_platform_all(self) -> None:
        self.sell()
        made = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        body = {"transactionId": made.json["transactionId"]}
        other = self.shop.key("device", self.slug, "POS_2")
        reply = self.post("gift-cards/GC-1/reverse", body, key=other)
        self.assert_refused(reply, 403, "forbidden")
        reply = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"}, key=self.platform)
        self.assertEqual((reply.status, reply.json["newBalance"]), (200, 50))

    def test_what_names_no_movement_is_refused(self) -> None:
        self.sell("50", "GC-2")
        self.sell("50")
        moved = self.post("gift-cards/GC-2/deduct", {"amount": 1}).json["transactionId"]
        for body, status, code in (
            ({}, 400, "missing_field"),
            ({"idempotencyKey": "k", "transactionId": 1}, 400, "invalid_field"),
            ({"idempotencyKey": "two words"}, 400, "invalid_field"),
            ({"idempotencyKey": "k\n"}, 400, "invalid_field"),
            ({"transactionId": "first"}, 404, "unknown_transaction"),
            ({"transactionId": "9" * 19}, 404, "unknown_transaction"),
            ({"transactionId": moved}, 404, "unknown_transaction"),
        ):
            with self.subTest(body=body):
                reply = self.post("gift-cards/GC-1/reverse", body)
                self.assert_refused(reply, status, code)
        self.assert_refused(
            self.post("gift-cards/%00/reverse", {"idempotencyKey": "k"}), 404, "unknown_card"
        )

    def test_a_reversal_stays_and_spent_money_too(self) -> None:
        self.sell()
        sale = self.rows("SELECT min(id) FROM {schema}.pos_gift_card_transactions")[0][0]
        self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        reply = self.post("gift-cards/GC-1/reverse", {"transactionId": sale}, key=self.platform)
        self.assert_refused(reply, 400, "insufficient_balance", currentBalance=Decimal("45.00"))
        back = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"}).json["transactionId"]
        reply = self.post("gift-cards/GC-1/reverse", {"transactionId": back})
        self.assert_refused(reply, 422, "not_reversible")

    def test_a_key_of_several_movements_names_none(self) -> None:
        self.sell()
        for key in (self.key, self.shop.key("device", self.slug, "POS_2")):
            self.post("gift-cards/GC-1/deduct", {"amount": 1}, once="k", key=key)
        reply = self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"}, key=self.platform)
        self.assert_refused(reply, 409, "ambiguous_key")

    def test_a_client_that_goes_away_has_taken_it_back_once(self) -> None:
        self.sell()
        self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        body = {"idempotencyKey": "k"}
        self.send_and_leave("gift-cards/GC-1/reverse", body, once="r")
        until(lambda: len(self.balances()) == 3, "the reversal is there")
        again = self.post("gift-cards/GC-1/reverse", body, once="r")
        self.assertEqual(again.headers["idempotent-replayed"], "true")
        self.assertEqual(len(self.balances()), 3)


class KeyTests(LedgerCase):
    def test_who_may_do_what(self) -> None:
        self.sell()
        admin = self.shop.key("admin", None)
        sale = ("POST", "gift-cards", {"amount": 5})
        for method, path, body in (
            ("GET", "gift-cards/GC-1/balance", None),
            ("POST", "gift-cards/GC-1/deduct", {"amount": 1}),
            ("POST", "gift-cards/GC-1/reverse", {"idempotencyKey": "k"}),
            sale,
        ):
            tills = 403 if path == "gift-cards" else 200
            for key, status in (
                (self.key, tills),
                (self.tenant_key, tills),
                (self.platform, 201 if path == "gift-cards" else 200),
                (admin, 403),
                ("pos_wrong", 401),
            ):
                with self.subTest(path=path, status=status):
                    self.assertEqual(self.ask(method, path, body, key=key).status, status)

    def test_another_tenants_key_sees_nothing(self) -> None:
        self.sell()
        made = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        self.shop.add_tenant(f"{self.slug}-b")
        theirs = self.shop.key("platform", f"{self.slug}-b")
        self.assertEqual(self.ask("GET", "gift-cards/GC-1/balance", key=theirs).status, 401)
        other = self.posd.request(
            "POST",
            f"/api/{self.slug}-b/gift-cards/GC-1/reverse",
            {"transactionId": made.json["transactionId"]},
            key=theirs,
        )
        self.assert_refused(other, 404, "unknown_transaction")
        reply = self.ask("GET", "gift-cards/GC-1/balance", headers={"X-Tenant-ID": "other"})
        self.assert_refused(reply, 403, "tenant_mismatch")


class PushTests(LedgerCase):
    def test_the_other_tills_hear_of_every_movement(self) -> None:
        till = self.dial(key=self.tenant_key, device="POS_9")
        self.sell("50", recipientName="Tom")
        sold = till.receive()
        self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        spent = till.receive()
        self.post("gift-cards/GC-1/reverse", {"idempotencyKey": "k"})
        back = till.receive()
        self.assertEqual(
            [each["type"] for each in (sold, spent, back)],
            ["gift_card_purchased", "gift_card_updated", "gift_card_updated"],
        )
        self.assertEqual(
            (sold["data"]["cardNumber"], sold["data"]["recipientName"]), ("GC-1", "Tom")
        )
        self.assertEqual(
            (spent["card_number"], spent["balance"], spent["data"]["change"]), ("GC-1", 45, -5)
        )
        self.assertEqual((back["balance"], back["data"]["change"]), (50, 5))
