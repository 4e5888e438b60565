"""Tests of the allowed changes of the status, and of the conditions for orders by REST."""

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


class StatusTests(SynchronousTestCase):
    def test_a_status_moves_forward_and_may_skip_steps(self) -> None:
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

    def test_a_status_does_not_move_back_or_out_of_the_end(self) -> None:
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

    def test_an_unknown_status_is_an_open_one(self) -> None:
        self.assertTrue(is_allowed("ready", "in_the_oven"))
        for after in ("pending", "ready", "delivered", "cancelled", "on_the_table"):
            self.assertTrue(is_allowed("in_the_oven", after))

    def test_the_finished_stages_have_the_final_statuses(self) -> None:
        over = {word for stage in transitions._AFTER_END for word in STATUS_WORDS[stage]}
        self.assertEqual(over, FINAL_STATUSES)
        self.assertEqual({*STATUS_WORDS}, {*OrderStage})
        self.assertEqual(len(KNOWN), len({*KNOWN}))

    @given(ANY, ANY)
    def test_a_finished_order_never_becomes_open(self, before: str, after: str) -> None:
        if before in FINAL_STATUSES and after not in FINAL_STATUSES:
            self.assertFalse(is_allowed(before, after))

    @given(st.sampled_from(KNOWN), st.sampled_from(KNOWN))
    def test_of_two_stages_only_one_may_follow_the_other(self, one: str, other: str) -> None:
        stages = {word: stage for stage, words in STATUS_WORDS.items() for word in words}
        if stages[one] is not stages[other]:
            self.assertFalse(is_allowed(one, other) and is_allowed(other, one))

    @given(ANY)
    def test_the_same_status_is_always_allowed(self, word: str) -> None:
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
    def test_a_new_order_may_exist_with_the_same_content(self) -> None:
        transitions.require_new(None, change("confirmed"))
        transitions.require_new(stored(), None)
        refusal = self.assertRaises(Conflict, transitions.require_new, stored(), change("ready"))
        self.assertEqual(refusal.code, "order_exists")
        self.assertEqual(refusal.details, {"orderId": "7", "version": 3})

    def test_an_unknown_order_cannot_be_changed(self) -> None:
        judge = transitions.require_change(1)
        self.assertEqual(
            self.assertRaises(NotFound, judge, None, change("ready")).code, "unknown_order"
        )

    def test_the_version_is_checked_before_the_status_and_without_a_change(self) -> None:
        judge = transitions.require_change(2)
        for made in (change("pending"), change("ready"), None):
            refusal = self.assertRaises(Conflict, judge, stored(), made)
            self.assertEqual(refusal.code, "version_mismatch")
            self.assertEqual(refusal.details["order"], {"orderId": "7", "version": 3})

    def test_the_status_is_checked_without_an_expected_version(self) -> None:
        judge = transitions.require_change(None)
        judge(stored(), change("ready"))
        judge(stored(), None)
        refusal = self.assertRaises(Conflict, judge, stored("ready"), change("preparing"))
        self.assertEqual(
            (refusal.code, refusal.details), ("invalid_transition", {"status": "ready"})
        )
