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
    """Which member it is about, as a path from the top of what was sent."""

    field: str


_ALWAYS: Final = (
    Refused(400, "bad_request", "This is not HTTP as it should be."),
    Refused(403, "forbidden", "A key of another kind, or nothing for a trusted listener."),
    Refused(413, "too_large", "The body is longer than the operation allows."),
    Refused(429, "too_many_requests", "This key, or this address without one, asks too much."),
    Refused(500, "internal_error", "A bug of posd; its log has the `requestId`."),
)
_KEY: Final = (
    Refused(401, "unauthorized", "There is no key, or none that is valid here."),
    Refused(429, "too_many_attempts", "Too many failed attempts from this address."),
)
_DATABASE: Final = (
    Refused(503, "unavailable", "The database is away, or posd is going down."),
    Refused(503, "busy", "The database took too long."),
)
_DEVICE: Final = Refused(403, "device_disabled", "This device is disabled.")
_MISMATCH: Final = Refused(403, "tenant_mismatch", "`X-Tenant-ID` names another tenant.")
_TENANT: Final = (
    Refused(400, "invalid_tenant", "This is no tenant's name."),
    Refused(400, "invalid_device", "`X-Device-ID` is not a name."),
    _MISMATCH,
    Refused(403, "device_mismatch", "The key belongs to another device than the one named."),
    Refused(403, "device_key_required", "This device has a key of its own."),
    _DEVICE,
)
_TYPE: Final = Refused(415, "unsupported_media_type", "The body is not `application/json`.")
_BODY: Final = (
    Refused(400, "invalid_json", "The body is not JSON, or not an object."),
    Refused(400, "number_out_of_range", "A number in the body has more than 40 digits."),
)
_PATH: Final = Refused(400, "invalid_path", "The address is not UTF-8.")
_QUERY: Final = Refused(400, "invalid_query", "The query is not UTF-8.")
_MEMBERS: Final = (
    Refused(400, "invalid_field", "A member cannot be that, or came twice.", FieldGiven),
    Refused(400, "missing_field", "A member that is needed is not there.", FieldGiven),
)
_IDEMPOTENT: Final = (
    Refused(400, "invalid_idempotency_key", "`Idempotency-Key` is none, or there are two."),
    Refused(409, "still_running", "The first call with this `Idempotency-Key` is not finished."),
    Refused(422, "idempotency_mismatch", "This `Idempotency-Key` was used for another call."),
)
_MUTATING: Final = Refused(503, "outcome_unknown", "The database was lost during the COMMIT.")
_AMOUNT: Final = Refused(422, "invalid_amount", "So much cannot be moved.", FieldGiven)

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
