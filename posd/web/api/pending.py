"""`GET /api/{tenant}/orders/pending`: the orders that are still to be made, page by page."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, cast
from uuid import UUID

import msgspec
from attrs import define, field
from msgspec import Meta

from posd.database.keyed_coalescing import KeyedCoalescer
from posd.database.pool import Pool
from posd.errors import BadRequest, TooManyRequests
from posd.events.coercion import NotCoercible, point_in_time
from posd.events.timezones import zone
from posd.protocol import jsontext
from posd.store import orders
from posd.store.orders import OpenOrder, PendingPosition, PendingQuery
from posd.values import Tenant, TenantId
from posd.web.api.events import EventPosition
from posd.web.http.models import (
    UNSET,
    RequestModel,
    SuccessModel,
    Unset,
    schema_reference,
    to_json_members,
)
from posd.web.http.operations import TILLS, DeclaredError, Operation, TenantRequest
from posd.web.http.responses import PreparedText, Response
from posd.web.http.stepwise import run_at_once, run_in_steps

_DEFAULT_LIMIT: Final = 50
_MOST_ORDERS: Final = 500
# Members that are added to a snapshot, its separator, and the members around the list.
_BESIDES_BYTES: Final = 1024
_ANSWER_BYTES: Final = 1024 * 1024 - _BESIDES_BYTES
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", re.ASCII)
_LONGEST_ID: Final = 255
_SHORT_BYTES: Final = 64 * 1024
_MOST_LONG: Final = 4
# In a query an unescaped "+" becomes a space: "…T10:00:00 01:00".
_UNENCODED_PLUS: Final = re.compile(r"(:[0-9.]+) (?=[0-9]{2}:?[0-9]{2}$)")


class PendingRequest(RequestModel, frozen=True):
    """The page of the list, and the oldest change in it."""

    limit: Annotated[
        int,
        Meta(
            description="The maximum number of orders, from 1 to 500. Other values count as 1 or 500."
        ),
    ] = _DEFAULT_LIMIT
    since: (
        Annotated[
            str,
            Meta(
                description="A time or a date. Orders that were last published earlier are left out."
            ),
        ]
        | Unset
    ) = UNSET
    after: (
        Annotated[
            str,
            Meta(
                max_length=2000,
                description="The `next` of the previous page. The answer has the orders after"
                " that page.",
            ),
        ]
        | Unset
    ) = UNSET


class PendingResponse(SuccessModel, frozen=True):
    """Pending orders, oldest first: the data of `new_order` with `id`, `total` and `printStatus`.

    While `hasMore` is true, `next` is the `after` of the next call. The page includes all events up
    to `lastEventId`.
    """

    orders: list[Annotated[dict[str, Any], schema_reference("Order")]]
    count: int
    has_more: bool
    next: str | None
    last_event_id: EventPosition
    stream_id: UUID


@define(eq=False)
class PendingEndpoints:
    """The endpoint."""

    database: Pool
    _long_pages: dict[TenantId, int] = field(factory=dict, init=False)
    """The number of long pages that are being written for each tenant."""
    _pages: KeyedCoalescer[tuple[Tenant, PendingQuery], None, bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._pages = KeyedCoalescer(self.database.clock, self._page)

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/api/{tenant}/orders/pending",
                self.pending,
                "List pending orders",
                TILLS,
                {200: PendingResponse},
                request_model=PendingRequest,
                description="The list has no orders that were printed, completed or "
                "cancelled. A page has up to `limit` orders and up to 1 MiB, and "
                "at least one order. While `hasMore` is true, call again with "
                "`next` as `after`. An order that is placed in the meantime is at"
                " the end of the list, or comes by the stream with an id above "
                "the `lastEventId` of the first page.",
                refusals=(
                    DeclaredError(404, "unknown_tenant", "The tenant was deleted a moment ago."),
                    DeclaredError(
                        429, "too_many_requests", "posd is already writing four long pages."
                    ),
                ),
                tag="Orders",
            ),
        )

    async def pending(self, request: TenantRequest[PendingRequest]) -> Response:
        arguments, tenant = request.arguments, request.tenant
        query = PendingQuery(
            since=None if arguments.since is UNSET else _since(arguments.since, tenant),
            after=None if arguments.after is UNSET else _decode_cursor(arguments.after),
            limit=min(max(arguments.limit, 1), _MOST_ORDERS),
            most_bytes=_ANSWER_BYTES,
        )
        page = tenant, query
        if self._pages.is_asked(page):
            # This request shares a statement with others, so it needs no turn. After an interruption all
            # tills request the same page.
            request.http_request.release_turn()
        return PreparedText({}, text=await self._pages.ask(page, None))

    async def _page(
        self, page: tuple[Tenant, PendingQuery], keys: Sequence[None]
    ) -> Mapping[None, bytes]:
        """Return a page as JSON, for all concurrent requests for it."""
        tenant, query = page
        if self._long_pages.get(tenant.id, 0) >= _MOST_LONG:
            raise TooManyRequests(
                "posd is already writing too many long pages. Try again.", retry_after=1
            )
        executor = self.database.of(tenant.id)
        rows = await orders.pending_orders(executor, tenant, query)
        written = await self._write(tenant.id, rows.orders)
        answer = PendingResponse(
            orders=[],
            count=len(rows.orders),
            has_more=rows.next is not None,
            next=None if rows.next is None else _encode_cursor(rows.next),
            last_event_id=rows.last_seq,
            stream_id=rows.stream_id,
        )
        return dict.fromkeys(keys, jsontext.encode(to_json_members(answer) | {"orders": written}))

    async def _write(self, tenant_id: TenantId, rows: Sequence[OpenOrder]) -> jsontext.RawJSON:
        """Return the orders as JSON. Long pages take time, so a tenant has at most four of them at once."""
        if sum(len(order.snapshot) for order in rows) <= _SHORT_BYTES:
            return run_at_once(_encode_orders(rows))
        self._long_pages[tenant_id] = self._long_pages.get(tenant_id, 0) + 1
        try:
            return await run_in_steps(_encode_orders(rows))
        finally:
            self._long_pages[tenant_id] -= 1
            if not self._long_pages[tenant_id]:
                del self._long_pages[tenant_id]


def _encode_orders(rows: Sequence[OpenOrder]) -> Generator[None, None, jsontext.RawJSON]:
    written = []
    for order in rows:
        written.append(_encoded_order(order))
        yield
    return jsontext.RawJSON(b"[%b]" % b",".join(written))


class _Names(msgspec.Struct, rename="camel"):
    """The members of a stored order whose names `_encoded_order` adds."""

    total_amount: msgspec.Raw | Unset = UNSET
    id: msgspec.Raw | Unset = UNSET
    total: msgspec.Raw | Unset = UNSET
    print_status: msgspec.Raw | Unset = UNSET


_names: Final = msgspec.json.Decoder(_Names)


def _encoded_order(order: OpenOrder) -> bytes:
    """Return an order as JSON with `id`, `total` and `printStatus`, which older tills read.

    These members are appended to the stored text. To parse and encode the text would take seven times as
    long, and is necessary only if the order has members of its own with these names. Numbers keep all digits.
    """
    text = order.snapshot.rstrip().encode()
    known = _names.decode(text)
    if known.id is known.total is known.print_status is UNSET and known.total_amount is not UNSET:
        name = jsontext.encode(order.order_id)
        return b'%b,"id":%b,"total":%b,"printStatus":"%b"}' % (
            *(text[:-1], name, known.total_amount, order.print_status.encode()),
        )
    snapshot = cast("dict[str, object]", jsontext.decode_own(text))
    total = {"total": snapshot["totalAmount"]} if "totalAmount" in snapshot else {}
    names = {"id": order.order_id, **total, "printStatus": order.print_status}
    return jsontext.encode({**snapshot, **names})


def _encode_cursor(position: PendingPosition) -> str:
    """Return a position in the list of open orders as base64url, which needs no escape in a query."""
    text = f"{position.created_at} {position.order_id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> PendingPosition:
    """Return the position that `_encode_cursor` has encoded. Raises `BadRequest` (`invalid_field`)."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        text = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True).decode()
        created_at, _, order_id = text.partition(" ")
        if _TIME.fullmatch(created_at) is None:
            raise ValueError("this is no time")
        datetime.fromisoformat(created_at)
        if not 0 < len(order_id) <= _LONGEST_ID or "\0" in order_id:
            raise ValueError("no order has this id")
    except (binascii.Error, ValueError):
        raise _invalid("after", "must be the `next` of an earlier page") from None
    return PendingPosition(created_at, order_id)


def _since(text: str, tenant: Tenant) -> datetime:
    try:
        read = point_in_time(_UNENCODED_PLUS.sub(r"\1+", text), zone(tenant.timezone))
    except NotCoercible:
        read = None
    if read is None:
        raise _invalid("since", "must be a time or a date")
    return datetime.fromisoformat(read)


def _invalid(name: str, what: str) -> BadRequest:
    return BadRequest(f"{name} {what}.", code="invalid_field", details={"field": name})
