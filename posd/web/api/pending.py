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

from posd.database.gathering import Gathering
from posd.database.pool import Database
from posd.errors import BadRequest, TooManyRequests
from posd.events.coercion import Unreadable, moment
from posd.events.timezones import zone
from posd.protocol import jsontext
from posd.store import orders
from posd.store.orders import Open, PendingPosition, Wanted
from posd.values import Tenant, TenantId
from posd.web.api.events import EventPosition
from posd.web.http.models import UNSET, Success, Taken, Unset, component, plain
from posd.web.http.operations import TILLS, Operation, Refused, TenantAsk
from posd.web.http.pieces import at_once, in_pieces
from posd.web.http.requests import Answer, Document

_LIMIT: Final = 50
_MOST: Final = 500
# Names beside a snapshot, its separator, and the members around the list.
_BESIDES_BYTES: Final = 1024
_ANSWER_BYTES: Final = 1024 * 1024 - _BESIDES_BYTES
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", re.ASCII)
_LONGEST_ID: Final = 255
_SHORT_BYTES: Final = 64 * 1024
_MOST_LONG: Final = 4
# A "+" that was not written %2B is a space when a query is read: "…T10:00:00 01:00".
_UNENCODED_PLUS: Final = re.compile(r"(:[0-9.]+) (?=[0-9]{2}:?[0-9]{2}$)")


class PendingTaken(Taken, frozen=True):
    """The page of the list, and the oldest change in it."""

    limit: Annotated[
        int,
        Meta(
            description="The maximum number of orders, from 1 to 500. Other values count as 1 or 500."
        ),
    ] = _LIMIT
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


class PendingGiven(Success, frozen=True):
    """Pending orders, oldest first: the data of `new_order` with `id`, `total` and `printStatus`.

    While `hasMore` is true, `next` is the `after` of the next call. The page includes all events up
    to `lastEventId`.
    """

    orders: list[Annotated[dict[str, Any], component("Order")]]
    count: int
    has_more: bool
    next: str | None
    last_event_id: EventPosition
    stream_id: UUID


@define(eq=False)
class PendingOrders:
    """The endpoint."""

    database: Database
    _long: dict[TenantId, int] = field(factory=dict, init=False)
    """How many long pages are being written for whom."""
    _pages: Gathering[tuple[Tenant, Wanted], None, bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._pages = Gathering(self.database.clock, self._page)

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET",
                "/api/{tenant}/orders/pending",
                self.pending,
                "List pending orders",
                TILLS,
                {200: PendingGiven},
                takes=PendingTaken,
                description="The list has no orders that were printed, completed or "
                "cancelled. A page has up to `limit` orders and up to 1 MiB, and "
                "at least one order. While `hasMore` is true, call again with "
                "`next` as `after`. An order that is placed in the meantime is at"
                " the end of the list, or comes by the stream with an id above "
                "the `lastEventId` of the first page.",
                refusals=(
                    Refused(404, "unknown_tenant", "The tenant was deleted a moment ago."),
                    Refused(429, "too_many_requests", "posd is already writing four long pages."),
                ),
                tag="Orders",
            ),
        )

    async def pending(self, ask: TenantAsk[PendingTaken]) -> Answer:
        taken, tenant = ask.taken, ask.tenant
        wanted = Wanted(
            since=None if taken.since is UNSET else _since(taken.since, tenant),
            after=None if taken.after is UNSET else _place(taken.after),
            limit=min(max(taken.limit, 1), _MOST),
            most_bytes=_ANSWER_BYTES,
        )
        page = tenant, wanted
        if self._pages.is_asked(page):
            # It waits for what others wait for too: tills that come back all ask for the same page.
            ask.call.give_turn()
        return Document({}, text=await self._pages.ask(page, None))

    async def _page(
        self, page: tuple[Tenant, Wanted], keys: Sequence[None]
    ) -> Mapping[None, bytes]:
        """A page as it is sent, for all who ask for it at once."""
        tenant, wanted = page
        if self._long.get(tenant.id, 0) >= _MOST_LONG:
            raise TooManyRequests(
                "posd is already writing too many long pages. Try again.", retry_after=1
            )
        session = self.database.of(tenant.id)
        found = await orders.still_open(session, tenant, wanted)
        written = await self._write(tenant.id, found.orders)
        answer = PendingGiven(
            orders=[],
            count=len(found.orders),
            has_more=found.next is not None,
            next=None if found.next is None else _cursor(found.next),
            last_event_id=found.last_seq,
            stream_id=found.stream_id,
        )
        return dict.fromkeys(keys, jsontext.encode(plain(answer) | {"orders": written}))

    async def _write(self, tenant_id: TenantId, found: Sequence[Open]) -> jsontext.Written:
        """The orders as JSON. A long page takes a while, and a tenant has few of those at a time."""
        if sum(len(order.snapshot) for order in found) <= _SHORT_BYTES:
            return at_once(_all_written(found))
        self._long[tenant_id] = self._long.get(tenant_id, 0) + 1
        try:
            return await in_pieces(_all_written(found))
        finally:
            self._long[tenant_id] -= 1
            if not self._long[tenant_id]:
                del self._long[tenant_id]


def _all_written(found: Sequence[Open]) -> Generator[None, None, jsontext.Written]:
    written = []
    for order in found:
        written.append(_written(order))
        yield
    return jsontext.Written(b"[%b]" % b",".join(written))


class _Names(msgspec.Struct, rename="camel"):
    """What an order's text says under the names that are added to it."""

    total_amount: msgspec.Raw | Unset = UNSET
    id: msgspec.Raw | Unset = UNSET
    total: msgspec.Raw | Unset = UNSET
    print_status: msgspec.Raw | Unset = UNSET


_names: Final = msgspec.json.Decoder(_Names)


def _written(order: Open) -> bytes:
    """An order as a till has it, digit for digit, under the names that older tills read too.

    The text goes out as it was stored, with those names behind it. To read it and write it again takes
    seven times as long. It has to be read where the shop's own members have one of the names.
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


def _cursor(place: PendingPosition) -> str:
    """A place among the open orders, in letters that stand in a query as they are."""
    text = f"{place.created_at} {place.order_id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _place(cursor: str) -> PendingPosition:
    """What `_cursor` has written. Raises `BadRequest` (`invalid_field`)."""
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


def _since(told: str, tenant: Tenant) -> datetime:
    try:
        read = moment(_UNENCODED_PLUS.sub(r"\1+", told), zone(tenant.timezone))
    except Unreadable:
        read = None
    if read is None:
        raise _invalid("since", "must be a time or a date")
    return datetime.fromisoformat(read)


def _invalid(name: str, what: str) -> BadRequest:
    return BadRequest(f"{name} {what}.", code="invalid_field", details={"field": name})
