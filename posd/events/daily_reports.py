"""A shop's day as a till reports it: what of it is stored, and what is odd about it.

To lose a report is worse than to store an odd one. So what is finer than the currency is rounded, what
does not add up is stored as it was sent, and both are noted as issues. Refused are only a day that is
none and amounts that no shop ever had.

Two sums have to agree: cashSales + cardSales + giftCardSales + onlineSales is totalSales, and netSales +
discounts + refunds is totalSales. A part that was not sent is unknown and not zero; then the other parts
may be less than the whole, and not more. A sum agrees if it does either as it was sent or as it is
rounded: many a till adds in binary floats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, tzinfo
from decimal import Decimal
from typing import Final

from attrs import frozen

from posd.errors import BadRequest, Unprocessable
from posd.events import money

AMOUNTS: Final = {
    "total_sales": "totalSales",
    "cash_sales": "cashSales",
    "card_sales": "cardSales",
    "gift_card_sales": "giftCardSales",
    "online_sales": "onlineSales",
    "discounts": "discounts",
    "refunds": "refunds",
    "net_sales": "netSales",
}
"""What has a currency, and under which name it is sent."""
DETAILS: Final = {
    "top_items": "topItems",
    "busy_hours": "busyHours",
    "staff_shifts": "staffShifts",
    "labour": "labour",
    "data": "data",
}
"""What is kept as it is."""

_DAY_PATTERN: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9].{1,40})?", re.ASCII)
_MIDNIGHT: Final = time()
_YEARS: Final = range(2000, 2200)
"""A till with a dead clock reports the year 1 or 1970, one with the Buddhist calendar 2569."""


@frozen
class ReportIssue:
    """Something odd: of which `kind` (`missing`, `rounded`, `disagrees`, `unlikely_day`), about which
    member."""

    kind: str
    field: str
    message: str


@frozen
class ReportFigures:
    """A report's values as a till sent them: those that it did not send are not there.

    Amounts and details by their keys in `AMOUNTS` and `DETAILS`.
    """

    amounts: Mapping[str, Decimal]
    details: Mapping[str, object]
    total_orders: int | None = None
    notes: str | None = None


@frozen
class DailyReport:
    """A report as it is stored: amounts in the decimals of the currency. `balanced`: its sums agree."""

    day: date
    figures: ReportFigures
    balanced: bool
    issues: tuple[ReportIssue, ...]


def parse_day(written: str, zone: tzinfo) -> date:
    """The day that a report is about: a date, or a time of which it is the day.

    A time with an offset is looked at by the shop's clock, but midnight is what programs write that know
    no dates, and then the day is the one that is written. Raises `BadRequest` (`invalid_field`).
    """
    try:
        if _DAY_PATTERN.fullmatch(written) is None:
            raise ValueError(written)
        read = datetime.fromisoformat(written)
        if read.utcoffset() is None or read.time() == _MIDNIGHT:
            return read.date()
        return read.astimezone(zone).date()
    except (ValueError, OverflowError):
        raise BadRequest(
            "reportDate must be a day, such as 2026-11-22.",
            code="invalid_field",
            details={"field": "reportDate"},
        ) from None


def assess(day: date, sent: ReportFigures, currency: str) -> DailyReport:
    """A report in the form in which it is stored, with what is odd about it.

    Raises `Unprocessable` (`invalid_amount`) for an amount beyond what can be stored.
    """
    amounts = {name: _rounded(name, amount, currency) for name, amount in sent.amounts.items()}
    disagreements = tuple(
        issue
        for of_sum, field in ((_TENDERS, "totalSales"), (_DEDUCTIONS, "netSales"))
        if (issue := _sum_issue(of_sum, field, sent.amounts, amounts)) is not None
    )
    stored = ReportFigures(amounts, sent.details, sent.total_orders, sent.notes)
    oddities = *_day_issues(day), *_missing_issues(sent), *_rounding_issues(sent.amounts, amounts)
    return DailyReport(day, stored, not disagreements, (*oddities, *disagreements))


_TOTAL: Final = "total_sales"
_TENDERS: Final = ("cash_sales", "card_sales", "gift_card_sales", "online_sales")
_DEDUCTIONS: Final = ("net_sales", "discounts", "refunds")


def _rounded(name: str, amount: Decimal, currency: str) -> Decimal:
    if amount.is_finite() and abs(amount) < money.LIMIT:
        rounded = money.quantized(amount, currency)
        if abs(rounded) < money.LIMIT:
            # There is no negative nothing in SQL.
            return rounded if rounded else abs(rounded)
    raise Unprocessable(
        f"{AMOUNTS[name]} is beyond all bounds.",
        code="invalid_amount",
        details={"field": AMOUNTS[name]},
    )


def _day_issues(day: date) -> Iterator[ReportIssue]:
    if day.year not in _YEARS:
        message = f"{day} is not a likely day: posd expects the years {_YEARS[0]} to {_YEARS[-1]}."
        yield ReportIssue("unlikely_day", "reportDate", message)


def _missing_issues(sent: ReportFigures) -> Iterator[ReportIssue]:
    there = {AMOUNTS[_TOTAL]: _TOTAL in sent.amounts, "totalOrders": sent.total_orders is not None}
    for field, is_there in there.items():
        if not is_there:
            yield ReportIssue("missing", field, f"{field} was not sent.")


def _rounding_issues(
    sent: Mapping[str, Decimal], stored: Mapping[str, Decimal]
) -> Iterator[ReportIssue]:
    for name, amount in sent.items():
        if amount != stored[name]:
            message = f"{AMOUNTS[name]} was rounded to {stored[name]}."
            yield ReportIssue("rounded", AMOUNTS[name], message)


def _sum_issue(
    parts: tuple[str, ...], field: str, sent: Mapping[str, Decimal], stored: Mapping[str, Decimal]
) -> ReportIssue | None:
    """What is wrong with a sum, if it can be said at all."""
    there = [name for name in parts if name in sent]
    # Without netSales nothing is said about what is deducted: refunds may be more than a day's sales.
    if not there or _TOTAL not in sent or (parts is _DEDUCTIONS and parts[0] not in sent):
        return None
    complete = len(there) == len(parts)
    for amounts in (sent, stored):
        total, stated_total = sum(amounts[name] for name in there), amounts[_TOTAL]
        if total == stated_total or (total < stated_total and not complete):
            return None
    names = " + ".join(AMOUNTS[name] for name in there)
    more = "" if complete else " although not all parts were sent"
    message = f"{names} is {total}, and {AMOUNTS[_TOTAL]} is {stated_total}{more}."
    return ReportIssue("disagrees", field, message)
