"""`POST /api/{tenant}/reports/daily`: the daily reports of tills."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

from attrs import define, evolve
from msgspec import Meta

from posd.database.pool import Pool
from posd.events import daily_reports as reports
from posd.events.daily_reports import AMOUNTS, DETAILS, DailyReport, ReportFigures
from posd.events.timezones import zone
from posd.store import idempotency
from posd.store import reports as report_store
from posd.store.idempotency import IdempotencyKey
from posd.web.http.models import (
    UNSET,
    Amount,
    RequestModel,
    ResponseModel,
    SuccessModel,
    Unset,
    also_named,
    to_json_members,
)
from posd.web.http.operations import LONG_BODY_BYTES, TILLS, DeclaredError, Operation, TenantRequest
from posd.web.http.responses import Response

Count = Annotated[int, Meta(gt=-(2**53), lt=2**53)]
"""An integer that a double represents exactly."""
StoredAsIs = Annotated[Any, Meta(description="Stored unchanged.")]
_MESSAGES: Final = {
    1: "The report is stored.",
    None: "This report is already stored.",
}
"""The messages, by the revision of the stored report; None if the report is the same as before."""
_REPLACED: Final = "The report is stored; the earlier one is kept as an amendment."


class ReportRequest(RequestModel, frozen=True):
    """The figures of a day. Only the day is required. Other members may be null, and amounts may be
    zero or negative."""

    report_date: Annotated[
        str, Meta(max_length=60, description="A date, or a time, which counts as its date.")
    ]
    total_sales: Amount | Unset | None = UNSET
    total_orders: Annotated[Count, also_named("order_count", "orderCount")] | Unset | None = UNSET
    cash_sales: Amount | Unset | None = UNSET
    card_sales: Amount | Unset | None = UNSET
    gift_card_sales: Amount | Unset | None = UNSET
    online_sales: Amount | Unset | None = UNSET
    discounts: Amount | Unset | None = UNSET
    refunds: Amount | Unset | None = UNSET
    net_sales: Amount | Unset | None = UNSET
    top_items: StoredAsIs = UNSET
    busy_hours: StoredAsIs = UNSET
    staff_shifts: StoredAsIs = UNSET
    labour: StoredAsIs = UNSET
    data: StoredAsIs = UNSET
    notes: str | Unset | None = UNSET


class IssueEntry(ResponseModel, frozen=True):
    """A problem of a report. `kind` is `missing`, `rounded`, `disagrees` or `unlikely_day`."""

    kind: str
    field: str
    message: str


class ReportData(ResponseModel, frozen=True):
    """A stored report. `created` is true if it is the first one of its day."""

    report_date: Annotated[str, Meta(extra_json_schema={"format": "date"})]
    total_sales: Decimal | None
    total_orders: int | None
    created: bool
    balanced: bool
    issues: list[IssueEntry]


class ReportResponse(SuccessModel, frozen=True):
    """The result of a report."""

    message: str
    data: ReportData


@define(eq=False)
class ReportEndpoints:
    """The endpoint."""

    database: Pool

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/api/{tenant}/reports/daily",
                self.daily,
                "Store a daily report",
                TILLS,
                {200: ReportResponse},
                ReportRequest,
                refusals=(
                    DeclaredError(
                        422, "invalid_amount", "The value is not a number, or is too large."
                    ),
                ),
                idempotent=True,
                body_bytes=LONG_BODY_BYTES,
                tag="Reports",
                description="A shop has one report for each day. A later report of any till "
                "for the same day replaces it, and posd keeps the earlier one as "
                "an amendment. If the sums do not agree, posd stores the report "
                "with `balanced` false and the reasons in `issues`. posd rounds "
                "amounts with more decimals than the currency, and also stores a "
                "day before 2000 or after 2199; both are noted in `issues`.",
                example={
                    "reportDate": "2026-11-22",
                    "totalSales": 1250.75,
                    "totalOrders": 48,
                    "cashSales": 310.25,
                    "cardSales": 640.5,
                    "giftCardSales": 0,
                    "onlineSales": 300,
                },
            ),
        )

    async def daily(self, request: TenantRequest[ReportRequest]) -> Response:
        """Store a report. Repeating it changes nothing, with an `Idempotency-Key` or without one."""
        tenant, arguments = request.tenant, request.arguments
        day = reports.parse_day(arguments.report_date, zone(tenant.timezone))
        report = reports.assess(day, _figures(arguments), tenant.currency)
        idempotency_key = _content_specific_key(request.idempotency_key(_content(report)))

        answered = await self.database.transaction(
            lambda executor: idempotency.run_once_and_render(
                executor,
                idempotency_key,
                lambda: report_store.store_report(executor, tenant, report, request.device_id),
                lambda revision: (200, to_json_members(_answer(report, revision))),
            ),
            tenant=tenant.id,
        )
        headers = {"Idempotent-Replayed": "true"} if answered.replayed else {}
        return Response(answered.body, answered.status, headers)


def _figures(arguments: ReportRequest) -> ReportFigures:
    """Return the figures that were sent and are not null."""
    sent = {
        name: value
        for name in (*AMOUNTS, *DETAILS, "total_orders", "notes")
        if (value := getattr(arguments, name)) is not UNSET and value is not None
    }
    return ReportFigures(
        {name: sent[name] for name in AMOUNTS if name in sent},
        {name: sent[name] for name in DETAILS if name in sent},
        sent.get("total_orders"),
        sent.get("notes"),
    )


def _content(report: DailyReport) -> Mapping[str, object]:
    figures = report.figures
    details = {"totalOrders": figures.total_orders, "notes": figures.notes}
    return {"day": report.day.isoformat(), **figures.amounts, **figures.details, **details}


def _content_specific_key(idempotency_key: IdempotencyKey | None) -> IdempotencyKey | None:
    """Return the idempotency key of the call and of its content.

    If a till sends other figures with the same key, it has counted again: that is another call, not an
    error. A late repetition with the same figures must not replace a newer report.
    """
    if idempotency_key is None:
        return None
    return evolve(
        idempotency_key,
        operation=f"{idempotency_key.operation} {idempotency_key.fingerprint.hex()}",
    )


def _answer(report: DailyReport, revision: int | None) -> ReportResponse:
    figures = report.figures
    return ReportResponse(
        message=_MESSAGES.get(revision, _REPLACED),
        data=ReportData(
            report_date=report.day.isoformat(),
            total_sales=figures.amounts.get("total_sales"),
            total_orders=figures.total_orders,
            created=revision == 1,
            balanced=report.balanced,
            issues=[
                IssueEntry(kind=each.kind, field=each.field, message=each.message)
                for each in report.issues
            ],
        ),
    )
