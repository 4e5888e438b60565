"""The refusals of operations: those that an operation declares, and those that its properties imply.

For example, an operation that requires a key can answer `unauthorized`, and one that has a body can answer
`invalid_json`. The implied refusals are defined here, so that an operation declares only its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import evolve

from posd.errors import Refusal
from posd.web.http.models import ResponseModel, members
from posd.web.http.operations import NOBODY, DeclaredError, Operation


class FieldDetails(ResponseModel, frozen=True):
    """The member that the error is about, as a path from the top of the body."""

    field: str


_ALWAYS: Final = (
    DeclaredError(400, "bad_request", "The request is not valid HTTP."),
    DeclaredError(
        403,
        "forbidden",
        "The key is of another kind, or a trusted listener does not permit the request.",
    ),
    DeclaredError(413, "too_large", "The body is longer than the operation allows."),
    DeclaredError(
        429,
        "too_many_requests",
        "The key, or the address of a request without a valid key, exceeds its rate.",
    ),
    DeclaredError(503, "overloaded", "posd is receiving too many long bodies."),
    DeclaredError(500, "internal_error", "A fault of posd. The log of posd has the `requestId`."),
)
_KEY: Final = (
    DeclaredError(401, "unauthorized", "There is no key, or the key is not valid here."),
    DeclaredError(429, "too_many_attempts", "Too many failed attempts from this address."),
)
_DATABASE: Final = (
    DeclaredError(503, "unavailable", "The database is unavailable, or posd is stopping."),
    DeclaredError(503, "busy", "The database took too long."),
)
_DEVICE: Final = DeclaredError(403, "device_disabled", "This device is disabled.")
_MISMATCH: Final = DeclaredError(403, "tenant_mismatch", "`X-Tenant-ID` names another tenant.")
_TENANT: Final = (
    DeclaredError(400, "invalid_tenant", "The name is not the slug of a tenant."),
    DeclaredError(400, "invalid_device", "`X-Device-ID` is not a valid name."),
    _MISMATCH,
    DeclaredError(403, "device_mismatch", "The key belongs to another device."),
    DeclaredError(403, "device_key_required", "This device must use its own key."),
    _DEVICE,
)
_TYPE: Final = DeclaredError(415, "unsupported_media_type", "The body is not `application/json`.")
_BODY: Final = (
    DeclaredError(400, "invalid_json", "The body is not JSON, or not an object."),
    DeclaredError(400, "number_out_of_range", "A number in the body has more than 40 digits."),
)
_PATH: Final = DeclaredError(400, "invalid_path", "The path is not UTF-8.")
_QUERY: Final = DeclaredError(400, "invalid_query", "The query is not UTF-8.")
_MEMBERS: Final = (
    DeclaredError(
        400, "invalid_field", "A member has an invalid value, or occurs twice.", FieldDetails
    ),
    DeclaredError(400, "missing_field", "A required member is missing.", FieldDetails),
)
_IDEMPOTENT: Final = (
    DeclaredError(
        400, "invalid_idempotency_key", "`Idempotency-Key` is not valid, or occurs twice."
    ),
    DeclaredError(
        409, "still_running", "The first call with this `Idempotency-Key` is still running."
    ),
    DeclaredError(422, "idempotency_mismatch", "This `Idempotency-Key` was used for another call."),
)
_MUTATING: Final = DeclaredError(
    503, "outcome_unknown", "The database connection was lost during COMMIT."
)
_AMOUNT: Final = DeclaredError(422, "invalid_amount", "The amount is not valid.", FieldDetails)

COMMON_ERRORS: Final = frozenset(
    (each.status, each.code, each.when)
    for each in (
        *(*_ALWAYS, *_KEY, *_DATABASE, *_TENANT, _TYPE, *_BODY, _PATH, _QUERY, *_MEMBERS),
        *(*_IDEMPOTENT, _MUTATING, _AMOUNT),
    )
)
"""The implied refusals, which `/docs` describes once for all operations."""


def all_errors(operation: Operation) -> list[DeclaredError]:
    """Return all refusals of an operation, by status. A declared refusal replaces an implied one."""
    found = {(each.status, each.code): each for each in implied_errors(operation)}
    found |= {(each.status, each.code): each for each in operation.refusals}
    return sorted(found.values(), key=lambda each: each.status)


def is_declared(operation: Operation, refusal: Refusal) -> bool:
    """Return whether an operation may answer with this refusal."""
    return any(
        (each.status, each.code) == (refusal.status, refusal.code) for each in all_errors(operation)
    )


def implied_errors(operation: Operation) -> Iterator[DeclaredError]:
    """Yield the refusals that the properties of an operation imply."""
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
    elif operation.checks_key_itself:
        yield _DEVICE
    yield from _argument_errors(operation)
    if operation.idempotent:
        yield from _IDEMPOTENT


def _argument_errors(operation: Operation) -> Iterator[DeclaredError]:
    """Yield the refusals of the body or of the query."""
    shape = operation.request_model
    if operation.has_body:
        yield _TYPE
        if shape is not None or operation.body_model is not None:
            yield from _BODY
    elif shape is not None:
        yield _QUERY
    if shape is not None:
        yield from _MEMBERS
        for code in sorted({each.code for each in members(shape) if each.code is not None}):
            yield evolve(_AMOUNT, code=code)
