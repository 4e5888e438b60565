"""Daily reports of tills: one row per day. Replaced reports are kept as amendments."""

from __future__ import annotations

from typing import Final

from attrs import asdict

from posd.database.reconnecting import Executor
from posd.events.daily_reports import AMOUNTS, DETAILS, DailyReport
from posd.protocol import jsontext
from posd.store import schema
from posd.values import Tenant

# A report with equal figures changes nothing. A trigger of the table keeps the replaced row.
_KEEP: Final = """
    INSERT INTO {schema}.pos_daily_reports AS r
        (report_date, device_id, total_sales, total_orders, cash_sales, card_sales, gift_card_sales,
         online_sales, discounts, refunds, net_sales, top_items, busy_hours, staff_shifts, labour, data,
         notes, balanced, issues)
    VALUES (%(day)s, %(device)s, %(total_sales)s, %(total_orders)s, %(cash_sales)s, %(card_sales)s,
            %(gift_card_sales)s, %(online_sales)s, %(discounts)s, %(refunds)s, %(net_sales)s,
            %(top_items)s, %(busy_hours)s, %(staff_shifts)s, %(labour)s, %(data)s,
            %(notes)s, %(balanced)s, %(issues)s)
    ON CONFLICT (report_date) DO UPDATE SET
        device_id = excluded.device_id, total_sales = excluded.total_sales,
        total_orders = excluded.total_orders, cash_sales = excluded.cash_sales,
        card_sales = excluded.card_sales, gift_card_sales = excluded.gift_card_sales,
        online_sales = excluded.online_sales, discounts = excluded.discounts, refunds = excluded.refunds,
        net_sales = excluded.net_sales, top_items = excluded.top_items, busy_hours = excluded.busy_hours,
        staff_shifts = excluded.staff_shifts, labour = excluded.labour, data = excluded.data,
        notes = excluded.notes, balanced = excluded.balanced, issues = excluded.issues
     WHERE (r.total_sales, r.total_orders, r.cash_sales, r.card_sales, r.gift_card_sales, r.online_sales,
            r.discounts, r.refunds, r.net_sales, r.top_items, r.busy_hours, r.staff_shifts, r.labour,
            r.data, r.notes)
        IS DISTINCT FROM
           (excluded.total_sales, excluded.total_orders, excluded.cash_sales, excluded.card_sales,
            excluded.gift_card_sales, excluded.online_sales, excluded.discounts, excluded.refunds,
            excluded.net_sales, excluded.top_items, excluded.busy_hours, excluded.staff_shifts,
            excluded.labour, excluded.data, excluded.notes)
    RETURNING r.revision
"""


async def store_report(
    executor: Executor, tenant: Tenant, report: DailyReport, device_id: str | None
) -> int | None:
    """Store a report. An earlier report of the same day is kept as an amendment.

    Return the number of the revision, 1 for a day's first report; None if the stored report is equal.
    """
    figures = report.figures
    values: dict[str, object] = {
        "day": report.day,
        "device": device_id,
        "total_orders": figures.total_orders,
        "notes": figures.notes,
        "balanced": report.balanced,
        "issues": _json([asdict(issue) for issue in report.issues]),
    }
    values |= {name: figures.amounts.get(name) for name in AMOUNTS}
    values |= {name: _json(figures.details.get(name)) for name in DETAILS}
    rows = await executor.query(_KEEP.format(schema=schema(tenant)), values)
    return rows[0][0] if rows else None


def _json(value: object) -> str | None:
    return None if value is None else jsontext.encode(value).decode()
