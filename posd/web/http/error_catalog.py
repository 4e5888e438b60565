"""Which refusals an operation may answer with: those of its row, and those that follow from the row.

Whoever asks for a key may refuse it; whoever reads a body may find none in it. What follows is written
down here once, so that a row has only what is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import evolve

from posd.errors import Refusal
from posd.web.http.models import Given, members
from posd.web.http.operations import NOBODY, Operation, Refused


class FieldGiven(Given, frozen=True):
    """The member that the error is about, as a path from the top of the body."""

    field: str


_ALWAYS: Final = (
    Refused(400, "bad_request", "The request is not valid HTTP."),
    Refused(
        403,
        "forbidden",
        "The key is of another kind, or a trusted listener does not permit the request.",
    ),
    Refused(413, "too_large", "The body is longer than the operation allows."),
    Refused(
        429,
        "too_many_requests",
        "The key, or the address of a request without a valid key, exceeds its rate.",
    ),
    Refused(503, "overloaded", "posd is receiving too many long bodies."),
    Refused(500, "internal_error", "A fault of posd. The log of posd has the `requestId`."),
)
_KEY: Final = (
    Refused(401, "unauthorized", "There is no key, or the key is not valid here."),
    Refused(429, "too_many_attempts", "Too many failed attempts from this address."),
)
_DATABASE: Final = (
    Refused(503, "unavailable", "The database is unavailable, or posd is stopping."),
    Refused(503, "busy", "The database took too long."),
)
_DEVICE: Final = Refused(403, "device_disabled", "This device is disabled.")
_MISMATCH: Final = Refused(403, "tenant_mismatch", "`X-Tenant-ID` names another tenant.")
_TENANT: Final = (
    Refused(400, "invalid_tenant", "The name is not the slug of a tenant."),
    Refused(400, "invalid_device", "`X-Device-ID` is not a valid name."),
    _MISMATCH,
    Refused(403, "device_mismatch", "The key belongs to another device."),
    Refused(403, "device_key_required", "This device must use its own key."),
    _DEVICE,
)
_TYPE: Final = Refused(415, "unsupported_media_type", "The body is not `application/json`.")
_BODY: Final = (
    Refused(400, "invalid_json", "The body is not JSON, or not an object."),
    Refused(400, "number_out_of_range", "A number in the body has more than 40 digits."),
)
_PATH: Final = Refused(400, "invalid_path", "The path is not UTF-8.")
_QUERY: Final = Refused(400, "invalid_query", "The query is not UTF-8.")
_MEMBERS: Final = (
    Refused(400, "invalid_field", "A member has an invalid value, or occurs twice.", FieldGiven),
    Refused(400, "missing_field", "A required member is missing.", FieldGiven),
)
_IDEMPOTENT: Final = (
    Refused(400, "invalid_idempotency_key", "`Idempotency-Key` is not valid, or occurs twice."),
    Refused(409, "still_running", "The first call with this `Idempotency-Key` is still running."),
    Refused(422, "idempotency_mismatch", "This `Idempotency-Key` was used for another call."),
)
_MUTATING: Final = Refused(
    503, "outcome_unknown", "The database connection was lost during COMMIT."
)
_AMOUNT: Final = Refused(422, "invalid_amount", "The amount is not valid.", FieldGiven)

EVERYWHERE: Final = frozenset(
    (each.status, each.code, each.when)
    for each in (
        *(*_ALWAYS, *_KEY, *_DATABASE, *_TENANT, _TYPE, *_BODY, _PATH, _QUERY, *_MEMBERS),
        *(*_IDEMPOTENT, _MUTATING, _AMOUNT),
    )
)
"""What follows from rows in general: nothing that a reader has to be told for each of them."""


def every(operation: Operation) -> list[Refused]:
    """All refusals of an operation, by status; its own word counts where a code is general too."""
    found = {(each.status, each.code): each for each in general(operation)}
    found |= {(each.status, each.code): each for each in operation.refusals}
    return sorted(found.values(), key=lambda each: each.status)


def declared(operation: Operation, refusal: Refusal) -> bool:
    """Whether an operation may answer with this."""
    return any(
        (each.status, each.code) == (refusal.status, refusal.code) for each in every(operation)
    )


def general(operation: Operation) -> Iterator[Refused]:
    """What follows from the row."""
    yield from _ALWAYS
    if "{" in operation.path:
        yield _PATH
    at_tenant = "{tenant}" in operation.path
    if operation.kinds != NOBODY:
        yield from _KEY
    if operation.kinds != NOBODY or at_tenant:
        yield from _DATABASE
        if operation.has_body or operation.method == "DELETE":
            yield _MUTATING
    if at_tenant:
        yield from _TENANT
    elif "{slug}" in operation.path:
        yield _MISMATCH
    elif operation.own_keys:
        yield _DEVICE
    yield from _taken(operation)
    if operation.idempotent:
        yield from _IDEMPOTENT


def _taken(operation: Operation) -> Iterator[Refused]:
    """What can be wrong with what is sent."""
    shape = operation.takes
    if operation.has_body:
        yield _TYPE
        if shape is not None or operation.describes is not None:
            yield from _BODY
    elif shape is not None:
        yield _QUERY
    if shape is not None:
        yield from _MEMBERS
        for code in sorted({each.code for each in members(shape) if each.code is not None}):
            yield evolve(_AMOUNT, code=code)
