"""The generated day of `tests.integration.test_shop_day`: whether it tests enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import asdict
from twisted.trial.unittest import SynchronousTestCase

from tests.integration.test_shop_day import SEEDS
from tests.shop_books import CARDS, POINTS, SHOP, TENDERS
from tests.shop_day import ShopDay
from tests.shop_deeds import (
    TILLS,
    Changed,
    Happening,
    Malformed,
    Moved,
    Placed,
    Road,
    Said,
    TakenBack,
    Walked,
)

_REFUSALS = {
    *("insufficient_balance", "insufficient_points", "card_blocked", "card_exists", "reversed"),
    *("already_earned", "order_exists", "version_mismatch", "invalid_transition"),
}


def _subject(happening: Happening) -> str | None:
    """Return the order, card, customer or till of a deed, or None for an invalid call."""
    deed = happening.deed
    if isinstance(deed, Placed | Changed | Said):
        return deed.order_id
    if isinstance(deed, Moved | TakenBack):
        return deed.subject
    return happening.actor if isinstance(deed, Walked) else getattr(deed, "number", None)


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _values(each)
    else:
        yield value


class ShopDayTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.days = [ShopDay.of(seed) for seed in SEEDS]
        self.happenings = [each for day in self.days for each in day.happenings]

    def test_a_seed_makes_the_same_day_again_and_another_seed_another(self) -> None:
        for seed, day in zip(SEEDS, self.days, strict=True):
            self.assertEqual(ShopDay.of(seed).moments, day.moments)
        self.assertNotEqual(*(day.moments for day in self.days))

    def test_no_two_happenings_of_one_moment_are_about_the_same(self) -> None:
        for moment in (each for day in self.days for each in day.moments):
            subjects = [each for each in map(_subject, moment.happenings) if each is not None]
            self.assertEqual(len(subjects), len(set(subjects)), moment)

    def test_orders_are_placed_and_changed_on_every_road(self) -> None:
        for kind in (Placed, Changed):
            made = {
                each.deed.road
                for each in self.happenings
                if isinstance(each.deed, kind) and each.outcome.code == "made"
            }
            self.assertEqual(made, {Road.REST, Road.SQL, Road.BROADCAST}, kind)

    def test_both_ledgers_are_moved_and_reversed_by_calls_and_by_sql(self) -> None:
        for kind in (Moved, TakenBack):
            made = {
                (each.deed.ledger, each.actor == SHOP)
                for each in self.happenings
                if isinstance(each.deed, kind) and each.outcome.code == "made"
            }
            ways = {(ledger, is_sql) for ledger in (CARDS, POINTS) for is_sql in (True, False)}
            self.assertEqual(made, ways, kind)

    def test_everything_is_refused_that_can_be(self) -> None:
        refused = {
            each.outcome.code
            for each in self.happenings
            if each.outcome.is_refusal and not isinstance(each.deed, Malformed)
        }
        self.assertLessEqual(_REFUSALS, refused)

    def test_printing_is_said_to_have_failed_after_it_went_well(self) -> None:
        for day in self.days:
            said = [each.deed for each in day.happenings if isinstance(each.deed, Said)]
            late = [
                each.order_id
                for number, each in enumerate(said)
                if each.word == "failed"
                and (each.order_id, "printed")
                in {(one.order_id, one.word) for one in said[:number]}
            ]
            self.assertTrue(late)

    def test_calls_are_lost_and_repeated_and_tills_leave_and_come_back(self) -> None:
        self.assertGreater(sum(each.is_lost for each in self.happenings), 10)
        self.assertGreater(sum(each.repeats > 0 for each in self.happenings), 50)
        for day in self.days:
            walks = [
                (each.actor, each.deed.is_back)
                for each in day.happenings
                if isinstance(each.deed, Walked)
            ]
            gone = [till for till, is_back in walks if not is_back]
            back = [till for till, is_back in walks if is_back]
            self.assertEqual(sorted(gone), sorted(back))
            self.assertLess(set(gone), set(TILLS))
            self.assertTrue(gone)

    def test_no_amount_is_a_binary_float(self) -> None:
        for happening in self.happenings:
            kinds = {type(each) for each in _values(asdict(happening))}
            self.assertNotIn(float, kinds, happening)

    def test_a_day_is_paid_by_every_tender_and_some_of_it_given_back(self) -> None:
        for day in self.days:
            sales = day.books.sales()
            self.assertTrue(all(sales[name] > 0 for name in (*TENDERS.values(), "refunds")))
            self.assertEqual(sum(sales[name] for name in TENDERS.values()), sales["totalSales"])
