"""Which steps a platform may take with an order, and the conditions that guard them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import Conflict, NotFound
from posd.events import normalise, orders
from posd.events import order_transitions as transitions
from posd.events.order_transitions import STATUS_WORDS, OrderStage, is_allowed
from posd.events.orders import FINAL_STATUSES, OrderChange
from posd.values import StoredOrder

NOW: Final = datetime(2026, 11, 22, 10, tzinfo=UTC)
KNOWN: Final = sorted(word for words in STATUS_WORDS.values() for word in words)
ANY: Final = st.sampled_from(KNOWN) | st.from_regex(r"[a-z]{1,12}", fullmatch=True)


class StepTests(SynchronousTestCase):
    def test_an_order_goes_forward_and_may_leave_steps_out(self) -> None:
        for before, after in (
            ("pending", "confirmed"),
            ("confirmed", "preparing"),
            ("preparing", "ready"),
            ("ready", "out_for_delivery"),
            ("out_for_delivery", "delivered"),
            ("delivered", "completed"),
            ("pending", "completed"),
            ("ready", "cancelled"),
            ("confirmed", "refunded"),
            ("delivered", "refunded"),
            ("completed", "refunded"),
            ("cancelled", "refunded"),
            ("confirmed", "accepted"),
        ):
            with self.subTest(before=before, after=after):
                self.assertTrue(is_allowed(before, after))

    def test_no_step_leads_back_or_out_of_the_end(self) -> None:
        for before, after in (
            ("confirmed", "pending"),
            ("ready", "preparing"),
            ("delivered", "ready"),
            ("completed", "delivered"),
            ("delivered", "cancelled"),
            ("cancelled", "confirmed"),
            ("cancelled", "completed"),
            ("refunded", "cancelled"),
            ("refunded", "completed"),
            ("completed", "in_the_oven"),
        ):
            with self.subTest(before=before, after=after):
                self.assertFalse(is_allowed(before, after))

    def test_a_word_of_the_shops_own_is_for_an_order_that_is_still_made(self) -> None:
        self.assertTrue(is_allowed("ready", "in_the_oven"))
        for after in ("pending", "ready", "delivered", "cancelled", "on_the_table"):
            self.assertTrue(is_allowed("in_the_oven", after))

    def test_what_is_over_here_is_over_everywhere(self) -> None:
        over = {word for stage in transitions._AFTER_END for word in STATUS_WORDS[stage]}
        self.assertEqual(over, FINAL_STATUSES)
        self.assertEqual({*STATUS_WORDS}, {*OrderStage})
        self.assertEqual(len(KNOWN), len({*KNOWN}))

    @given(ANY, ANY)
    def test_who_is_over_never_is_to_be_made_again(self, before: str, after: str) -> None:
        if before in FINAL_STATUSES and after not in FINAL_STATUSES:
            self.assertFalse(is_allowed(before, after))

    @given(st.sampled_from(KNOWN), st.sampled_from(KNOWN))
    def test_of_two_stages_one_can_be_left_for_the_other_only(self, one: str, other: str) -> None:
        stages = {word: stage for stage, words in STATUS_WORDS.items() for word in words}
        if stages[one] is not stages[other]:
            self.assertFalse(is_allowed(one, other) and is_allowed(other, one))

    @given(ANY)
    def test_staying_is_no_step(self, word: str) -> None:
        self.assertTrue(is_allowed(word, word))


def stored(status: str = "confirmed", version: int = 3) -> StoredOrder:
    return StoredOrder("7", {"orderId": "7", "version": version}, status, version)


def change(status: str) -> OrderChange:
    made = orders.change(
        normalise.draft("order_updated", {"orderId": "7", "status": status}), None, NOW
    )
    assert made is not None
    return made


class ConditionTests(SynchronousTestCase):
    def test_a_new_order_may_be_there_with_the_same_in_it(self) -> None:
        transitions.require_new(None, change("confirmed"))
        transitions.require_new(stored(), None)
        refusal = self.assertRaises(Conflict, transitions.require_new, stored(), change("ready"))
        self.assertEqual(refusal.code, "order_exists")
        self.assertEqual(refusal.details, {"orderId": "7", "version": 3})

    def test_an_order_that_is_not_there_cannot_be_changed(self) -> None:
        judge = transitions.require_change(1)
        self.assertEqual(
            self.assertRaises(NotFound, judge, None, change("ready")).code, "unknown_order"
        )

    def test_the_version_is_looked_at_before_the_step_and_where_nothing_is_new(self) -> None:
        judge = transitions.require_change(2)
        for made in (change("pending"), change("ready"), None):
            refusal = self.assertRaises(Conflict, judge, stored(), made)
            self.assertEqual(refusal.code, "version_mismatch")
            self.assertEqual(refusal.details["order"], {"orderId": "7", "version": 3})

    def test_the_step_is_judged_also_where_no_version_is_expected(self) -> None:
        judge = transitions.require_change(None)
        judge(stored(), change("ready"))
        judge(stored(), None)
        refusal = self.assertRaises(Conflict, judge, stored("ready"), change("preparing"))
        self.assertEqual(
            (refusal.code, refusal.details), ("invalid_transition", {"status": "ready"})
        )
