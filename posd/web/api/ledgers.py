"""Models, refusals and deadlines that the operations of gift cards and of loyalty points share."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from attrs import evolve
from msgspec import Meta, structs

from posd.errors import BadRequest, NotFound
from posd.store import ledgers
from posd.store.idempotency import IdempotentResponse
from posd.store.ledgers import MovementCause
from posd.web.http import idempotency
from posd.web.http.models import (
    UNSET,
    Identity,
    RequestModel,
    ResponseModel,
    Unset,
    also_named,
    to_json_members,
)
from posd.web.http.operations import DeclaredError, TenantRequest, model_response
from posd.web.http.responses import Response

M = TypeVar("M")

MONEY_SECONDS: Final = 7.5
"""Seconds from the request of a movement to the beginning of its COMMIT, which must end within eight seconds.

Tills give up after ten seconds, and many send no key. So a movement must not be committed after that.
"""

_TRANSACTION: Final = re.compile(r"[0-9]{1,19}")

OrderId = Annotated[
    str,
    Meta(extra_json_schema={"maxLength": 255}),
    also_named("order_reference", "orderReference"),
]
Remark = Annotated[
    str, Meta(description="A text for people. posd stores the first 500 characters.")
]
TransactionId = Annotated[str, Meta(description="The id of the movement within the tenant.")]

MISMATCH: Final = DeclaredError(
    422, "idempotency_mismatch", "This Idempotency-Key was used for another movement."
)
REVERSED: Final = DeclaredError(
    409, "reversed", "The movement with this Idempotency-Key was reversed."
)
NO_LEDGER: Final = DeclaredError(
    404, "no_ledger", "The shop manages its gift cards or points elsewhere."
)
LONG_ORDER: Final = DeclaredError(422, "invalid_order", "`orderId` is longer than 255 characters.")
BAD_KEY: Final = DeclaredError(
    400, "invalid_idempotency_key", "`Idempotency-Key` is not valid, or there are two that differ."
)
TOO_MUCH: Final = DeclaredError(422, "invalid_amount", "The balance would exceed its maximum.")
REVERSAL_REFUSALS: Final = (
    DeclaredError(404, "unknown_transaction", "The card or the account has no such movement."),
    DeclaredError(403, "forbidden", "A till can reverse only its own movements."),
    DeclaredError(
        409, "ambiguous_key", "Several movements have this key. Name one by its `transactionId`."
    ),
    DeclaredError(
        409, "still_running", "The first call with this Idempotency-Key is still running."
    ),
    DeclaredError(422, "not_reversible", "A reversal cannot be reversed."),
    MISMATCH,
    NO_LEDGER,
    BAD_KEY,
)


class MovementRequest(RequestModel, frozen=True):
    """The members that every movement can have."""

    order_id: OrderId | Unset | None = UNSET
    idempotency_key: str | Unset | None = UNSET


class ReversalRequest(RequestModel, frozen=True):
    """The movement to reverse, by its key or by its id."""

    # `$` alone permits a line feed at the end.
    idempotency_key: Annotated[str, Meta(pattern=r"^[!-~]{1,255}$(?!\n)")] | Unset | None = UNSET
    transaction_id: Identity | Unset | None = UNSET
    reason: Remark | Unset | None = UNSET

    @property
    def original(self) -> dict[str, Any]:
        """The key or the id of the movement, as an argument for the store. Raises `BadRequest`."""
        if self.idempotency_key and self.transaction_id:
            message = "Send idempotencyKey or transactionId, not both."
            raise BadRequest(message, code="invalid_field", details={"field": "transactionId"})
        if self.idempotency_key:
            return {"key": self.idempotency_key}
        if not self.transaction_id:
            message = "idempotencyKey or transactionId is missing."
            raise BadRequest(message, code="missing_field", details={"field": "idempotencyKey"})
        if _TRANSACTION.fullmatch(self.transaction_id) is None:
            raise ledgers.unknown_transaction()
        return {"transaction_id": int(self.transaction_id)}


class ReversalResponse(ResponseModel, frozen=True, kw_only=True):
    """The result of a reversal.

    If `tombstoned` is true, no movement has the key, and posd refuses later ones. `transactionId`
    is the id of the reversal.
    """

    success: Literal[True] = True
    reversed: bool
    tombstoned: bool
    transaction_id: TransactionId


def movement_cause(
    request: TenantRequest[Any], note: str | Unset | None, *, key: str | None = None
) -> MovementCause:
    """Return the cause of a movement: the caller, the terminal, the order and a note."""
    order_id = getattr(request.arguments, "order_id", None)
    return MovementCause(
        request.actor, key, request.device_id, unset_to_none(order_id), unset_to_none(note)
    )


def requested_key(request: TenantRequest[Any]) -> str | None:
    """Return the `Idempotency-Key` of a movement, from a header or from its body. Raises `BadRequest`."""
    return idempotency.requested_key(
        request.http_request, unset_to_none(request.arguments.idempotency_key)
    )


def deadline(request: TenantRequest[Any]) -> float:
    """Return the deadline of a movement, on the reactor's clock."""
    return request.arrived_at + MONEY_SECONDS


def unset_to_none(value: M | Unset | None) -> M | None:
    """Return the value of an optional member; None if it is absent or null."""
    return None if value is UNSET else value


def duplicated_under_data(
    kind: type[ResponseModel], data: ResponseModel, *, replayed: bool = False
) -> Response:
    """Return an answer with the same members at the top and in `data`, where existing platforms read them."""
    known = structs.asdict(data)
    members = {name: known[name] for name in kind.__struct_fields__ if name in known}
    answer = model_response(kind(**members, data=data), replayed=replayed)
    return evolve(answer, body={"success": True, **answer.body})


async def as_stored(reversal: Awaitable[ResponseModel]) -> tuple[int, Mapping[str, object]]:
    """Return the status and the body of a reversal, which are stored with it."""
    return 200, to_json_members(await reversal)


def from_stored(answered: IdempotentResponse) -> Response:
    """Return the answer from a stored status and body."""
    headers = {"Idempotent-Replayed": "true"} if answered.replayed else {}
    return Response(answered.body, answered.status, headers)


def unknown_customer_error(phone: str) -> NotFound:
    """Return the refusal for a number without an account. Existing platforms read its `data`."""
    details = {"data": {"phone": phone, "points": 0, "isNewCustomer": True}}
    message = "There is no such customer."
    return NotFound(message, code="unknown_customer", details=details)
