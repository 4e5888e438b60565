"""Checks the daily report of a till, and prepares the values that posd stores.

A lost report is worse than an odd one. So posd rounds amounts with too many decimals, stores sums that do not
agree, and notes both as issues. It refuses only an invalid date and amounts that are out of range.

Two sums are checked: totalSales is cashSales + cardSales + giftCardSales + onlineSales, and totalSales is
netSales + discounts + refunds. A part that was not sent is unknown, not zero; the other parts must then not
exceed the total. A sum agrees if the sent amounts agree or the rounded amounts agree, because many tills add
with binary floats.
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
"""The columns with amounts of money, and their members in a report."""
DETAILS: Final = {
    "top_items": "topItems",
    "busy_hours": "busyHours",
    "staff_shifts": "staffShifts",
    "labour": "labour",
    "data": "data",
}
"""The columns with JSON that posd stores unchanged, and their members in a report."""

_DAY_PATTERN: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9].{1,40})?", re.ASCII)
_MIDNIGHT: Final = time()
_YEARS: Final = range(2000, 2200)
"""The expected years. Tills with a broken clock report 1 or 1970, and those of the Buddhist calendar 2569."""


@frozen
class ReportIssue:
    """An issue of a report. `kind` is `missing`, `rounded`, `disagrees` or `unlikely_day`.

    `field` is the member that the issue is about.
    """

    kind: str
    field: str
    message: str


@frozen
class ReportFigures:
    """The values of a report. Values that the till has not sent are absent.

    The keys of amounts and details are those of `AMOUNTS` and `DETAILS`.
    """

    amounts: Mapping[str, Decimal]
    details: Mapping[str, object]
    total_orders: int | None = None
    notes: str | None = None


@frozen
class DailyReport:
    """A report as posd stores it, with amounts in the currency's decimals. `balanced`: the sums agree."""

    day: date
    figures: ReportFigures
    balanced: bool
    issues: tuple[ReportIssue, ...]


def parse_day(written: str, zone: tzinfo) -> date:
    """Return the day of a report from a date or a point in time.

    The day of a point in time with a UTC offset is the day in the shop's time zone. Midnight is an exception:
    programs without a type for dates write a date as midnight, so the day is the written one. Raises
    `BadRequest` (`invalid_field`).
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
    """Return the report to store, with its issues.

    Raises `Unprocessable` (`invalid_amount`) if an amount is out of range.
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
            # PostgreSQL's numeric has no negative zero.
            return rounded if rounded else abs(rounded)
    raise Unprocessable(
        f"{AMOUNTS[name]} is out of range.",
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
    """Return the issue of a sum; None if the sum agrees, or cannot be checked."""
    there = [name for name in parts if name in sent]
    # Without netSales the deductions cannot be checked: refunds may exceed the sales of a day.
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
