"""Tests of daily reports: the day, the rounding, and the sums."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import BadRequest, Unprocessable
from posd.events import money
from posd.events.daily_reports import AMOUNTS, DailyReport, ReportFigures, assess, parse_day

NOVEMBER_22 = date(2026, 11, 22)
LONDON, PARIS, NEW_YORK = (
    ZoneInfo(name) for name in ("Europe/London", "Europe/Paris", "America/New_York")
)
TENDERS = ("cash_sales", "card_sales", "gift_card_sales", "online_sales")

amounts = st.decimals(-(10**6), 10**6, places=2)
finer = st.decimals(-(10**6), 10**6, places=5)
currencies = st.sampled_from(["GBP", "JPY", "KWD"])


def report(currency: str = "GBP", /, **sent: str | Decimal) -> DailyReport:
    """Return a report with these amounts and a number of orders."""
    figures = ReportFigures({name: Decimal(amount) for name, amount in sent.items()}, {}, 1)
    return assess(NOVEMBER_22, figures, currency)


def shared(parts: tuple[Decimal, ...]) -> dict[str, str | Decimal]:
    """Return the amounts of each tender."""
    return dict(zip(TENDERS, parts, strict=True))


def oddities(judgement: DailyReport) -> list[tuple[str, str]]:
    return [(issue.kind, issue.field) for issue in judgement.issues]


class DayTests(SynchronousTestCase):
    def test_a_date_is_a_day(self) -> None:
        self.assertEqual(parse_day("2026-11-22", PARIS), NOVEMBER_22)

    def test_a_time_without_an_offset_has_the_written_day(self) -> None:
        for written in ("2026-11-22T23:59:59", "2026-11-22 00:30", "2026-11-22T10:00:00.0000000"):
            self.assertEqual(parse_day(written, NEW_YORK), NOVEMBER_22, written)

    def test_a_time_with_an_offset_has_the_day_in_the_shops_zone(self) -> None:
        self.assertEqual(parse_day("2026-11-21T23:30:00Z", PARIS), NOVEMBER_22)
        self.assertEqual(parse_day("2026-11-23T01:30:00+01:00", LONDON), date(2026, 11, 23))
        self.assertEqual(parse_day("2026-11-23T02:30:00.123Z", NEW_YORK), NOVEMBER_22)

    def test_midnight_with_an_offset_has_the_written_day(self) -> None:
        for written in ("2026-11-22T00:00:00Z", "2026-11-22T00:00:00+09:00"):
            self.assertEqual(parse_day(written, NEW_YORK), NOVEMBER_22, written)

    def test_an_invalid_day_is_refused_with_its_field(self) -> None:
        wrong = ("", "today", "2026-02-30", "22/11/2026", "20261122", "2026-W47-7", "2026-11-22T")
        for written in (*wrong, "2026-11-22T25:00", "٢٠٢٦-11-22", "0001-01-01T00:30:00+01:00"):
            with self.subTest(written=written):
                with self.assertRaises(BadRequest) as caught:
                    parse_day(written, LONDON)
                self.assertEqual(caught.exception.code, "invalid_field")
                self.assertEqual(caught.exception.details, {"field": "reportDate"})

    @given(st.datetimes(datetime(1900, 1, 1), timezones=st.just(UTC)))
    def test_any_time_has_the_day_in_the_shops_zone(self, moment: datetime) -> None:
        self.assertEqual(
            parse_day(moment.isoformat(), NEW_YORK),
            moment.date() if moment.time() == time() else moment.astimezone(NEW_YORK).date(),
        )


class SumTests(SynchronousTestCase):
    def test_a_report_whose_sums_agree_has_no_issues(self) -> None:
        judgement = report(
            total_sales="100",
            cash_sales="10",
            card_sales="60.5",
            gift_card_sales="9.5",
            online_sales="20",
            discounts="5",
            refunds="2.50",
            net_sales="92.50",
        )
        self.assertEqual((judgement.balanced, judgement.issues), (True, ()))

    def test_tenders_that_are_not_the_total_are_flagged(self) -> None:
        judgement = report(
            total_sales="101",
            cash_sales="40",
            card_sales="60",
            gift_card_sales="0",
            online_sales="0",
        )
        self.assertFalse(judgement.balanced)
        self.assertEqual(oddities(judgement), [("disagrees", "totalSales")])
        self.assertEqual(
            judgement.issues[0].message,
            "cashSales + cardSales + giftCardSales + onlineSales is 100.00, and totalSales is 101.00.",
        )

    def test_a_tender_that_was_not_sent_is_unknown_and_not_zero(self) -> None:
        self.assertTrue(report(total_sales="100", cash_sales="40", card_sales="50").balanced)

    def test_some_tenders_cannot_be_more_than_the_total(self) -> None:
        judgement = report(total_sales="100", cash_sales="40", card_sales="61")
        self.assertEqual(oddities(judgement), [("disagrees", "totalSales")])

    def test_net_sales_discounts_and_refunds_have_to_be_the_total(self) -> None:
        judgement = report(total_sales="100", discounts="5", refunds="0", net_sales="94")
        self.assertEqual(oddities(judgement), [("disagrees", "netSales")])

    def test_without_net_sales_a_day_may_have_more_refunds_than_sales(self) -> None:
        self.assertTrue(report(total_sales="10", discounts="0", refunds="50").balanced)

    def test_zero_and_negative_values_are_ordinary(self) -> None:
        closed = dict.fromkeys(AMOUNTS, "0")
        self.assertEqual(report(**closed).issues, ())
        judgement = report(total_sales="-5", cash_sales="-5", card_sales="0", refunds="-0.00")
        self.assertEqual((judgement.balanced, judgement.issues), (True, ()))
        self.assertFalse(judgement.figures.amounts["refunds"].is_signed())

    def test_noise_of_binary_floats_is_no_disagreement(self) -> None:
        judgement = report(
            total_sales="30.299999999999997",
            cash_sales="10.1",
            card_sales="20.2",
            gift_card_sales="0",
            online_sales="0",
        )
        self.assertTrue(judgement.balanced)
        self.assertEqual(oddities(judgement), [("rounded", "totalSales")])

    def test_sums_that_agree_before_the_rounding_are_balanced(self) -> None:
        halves = shared((Decimal("0.005"),) * 4)
        judgement = report(total_sales="0.02", **halves)
        self.assertTrue(judgement.balanced)
        self.assertEqual({kind for kind, _ in oddities(judgement)}, {"rounded"})

    @given(currencies, st.tuples(amounts, amounts, amounts, amounts))
    def test_every_sum_agrees_with_itself(
        self, currency: str, parts: tuple[Decimal, Decimal, Decimal, Decimal]
    ) -> None:
        judgement = report(currency, total_sales=sum(parts, Decimal()), **shared(parts))
        self.assertTrue(judgement.balanced)

    @given(st.tuples(amounts, amounts, amounts, amounts), amounts.filter(bool))
    def test_no_sum_agrees_with_another(
        self, parts: tuple[Decimal, Decimal, Decimal, Decimal], off: Decimal
    ) -> None:
        total = sum(parts, off)
        judgement = report(total_sales=total, **shared(parts))
        self.assertFalse(judgement.balanced)
        self.assertEqual(oddities(judgement), [("disagrees", "totalSales")])

    @given(amounts, amounts, amounts)
    def test_net_sales_agree_only_if_they_are_the_rest(
        self, discounts: Decimal, refunds: Decimal, net: Decimal
    ) -> None:
        total = net + discounts + refunds
        for added, balanced in ((Decimal(), True), (Decimal("0.01"), False)):
            judgement = report(
                total_sales=total + added, discounts=discounts, refunds=refunds, net_sales=net
            )
            self.assertEqual(judgement.balanced, balanced)


class StoredTests(SynchronousTestCase):
    def test_amounts_with_too_many_decimals_are_rounded_with_an_issue(self) -> None:
        for currency, rounded in (("GBP", "12.35"), ("JPY", "12"), ("KWD", "12.345")):
            judgement = report(currency, total_sales="12.345")
            self.assertEqual(judgement.figures.amounts["total_sales"], Decimal(rounded))
            noted = [] if currency == "KWD" else [("rounded", "totalSales")]
            self.assertEqual(oddities(judgement), noted)

    def test_trailing_zeros_are_ignored(self) -> None:
        judgement = report(total_sales="12.3400")
        self.assertEqual(judgement.issues, ())
        self.assertEqual(str(judgement.figures.amounts["total_sales"]), "12.34")

    @given(currencies, finer)
    def test_the_stored_amount_is_the_nearest_one_of_the_currency(
        self, currency: str, amount: Decimal
    ) -> None:
        judgement = report(currency, total_sales=amount)
        stored = judgement.figures.amounts["total_sales"]
        self.assertEqual(stored, money.parse(stored, currency, "total"))
        self.assertLessEqual(abs(stored - amount), Decimal(1).scaleb(-money.decimals(currency)) / 2)
        self.assertEqual(judgement.issues == (), stored == amount)

    def test_amounts_out_of_range_are_refused_with_their_field(self) -> None:
        for amount in ("1E+11", "-1E+11", "99999999999.999", "1E+400", "NaN", "Infinity"):
            with self.subTest(amount=amount):
                with self.assertRaises(Unprocessable) as caught:
                    report(card_sales=amount)
                self.assertEqual(caught.exception.code, "invalid_amount")
                self.assertEqual(caught.exception.details, {"field": "cardSales"})
        self.assertEqual(report(total_sales="-99999999999.99").issues, ())

    def test_an_unlikely_day_is_stored_with_an_issue(self) -> None:
        for day in (
            date(1, 1, 1),
            date(1970, 1, 1),
            date(1999, 12, 31),
            date(2200, 1, 1),
            date(2569, 11, 30),
        ):
            with self.subTest(day=day):
                judgement = assess(day, ReportFigures({"total_sales": Decimal(5)}, {}, 1), "GBP")
                self.assertEqual(oddities(judgement), [("unlikely_day", "reportDate")])
                self.assertTrue(judgement.balanced)
        for day in (date(2000, 1, 1), date(2199, 12, 31)):
            judgement = assess(day, ReportFigures({"total_sales": Decimal(5)}, {}, 1), "GBP")
            self.assertEqual(judgement.issues, ())

    def test_a_report_without_a_total_or_orders_is_stored_with_issues(self) -> None:
        judgement = assess(NOVEMBER_22, ReportFigures({}, {"data": [1]}, None, "closed"), "GBP")
        self.assertEqual(
            oddities(judgement), [("missing", "totalSales"), ("missing", "totalOrders")]
        )
        self.assertTrue(judgement.balanced)
        self.assertEqual(
            (judgement.figures.details, judgement.figures.notes), ({"data": [1]}, "closed")
        )
