"""The path parameters and headers of the API, as OpenAPI parameter objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from posd.values import SLUG
from posd.web.http.operations import TILLS, Operation

Parameter = dict[str, Any]


def _in_path(name: str, description: str, example: str, **schema: object) -> Parameter:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1, **schema},
        "example": example,
    }


def _in_header(name: str, description: str, example: str, **schema: object) -> Parameter:
    return {
        "name": name,
        "in": "header",
        "description": description,
        "schema": {"type": "string", **schema},
        "example": example,
    }


_SLUG: Final = {"pattern": f"^{SLUG.pattern}$", "maxLength": 48}
PATH: Final = {
    each["name"]: each
    for each in (
        _in_path("tenant", "The slug of the tenant.", "kitchen", **_SLUG),
        _in_path("slug", "The slug of the tenant.", "kitchen", **_SLUG),
        _in_path(
            "cardNumber",
            "The number of a gift card. Surrounding spaces and the case of letters are ignored.",
            "GC-7Q4M-2XKD",
            maxLength=64,
        ),
        _in_path(
            "phone",
            "The telephone number of a customer, in the international form or in the form"
            " of the shop's country.",
            "+447700900123",
            maxLength=40,
        ),
        _in_path("orderId", "The id that the platform gave to the order.", "A-2", maxLength=255),
        _in_path("deviceId", "The name of the terminal.", "POS_1", maxLength=128),
        _in_path("date", "A day of the shop.", "2026-11-22", format="date"),
    )
}
"""All path parameters, by name."""

TENANT_ID: Final = _in_header(
    "X-Tenant-ID",
    "If it is sent, it must be the tenant of the call.",
    "kitchen",
    minLength=1,
)
DEVICE_ID: Final = _in_header(
    "X-Device-ID",
    "The name of the terminal. With a device key it must be the name of the key.",
    "POS_1",
    minLength=1,
    maxLength=128,
)
LAST_EVENT_ID: Final = _in_header(
    "Last-Event-ID",
    "The same as the parameter `last_event_id`, up to 18 digits. The header takes precedence.",
    "1042",
)
IDEMPOTENCY_KEY: Final = _in_header(
    "Idempotency-Key",
    "The key of this call. If the call is sent again with the same key, it has no second "
    "effect and gets the first answer. `X-Idempotency-Key` is the same.",
    "5f1c9a52-9c55-4f4b-8c0f-1d0c3a2f7b11",
    minLength=1,
    maxLength=255,
    pattern="^[!-~]+$",
)


def path_of(operation: Operation) -> Iterator[Parameter]:
    """Yield the path parameters of an operation."""
    for part in operation.segments:
        if part.startswith("{"):
            yield PATH[part.strip("{}")]


def headers_of(operation: Operation) -> Iterator[Parameter]:
    """Yield the headers that an operation uses, except those with the key."""
    if "{tenant}" in operation.path or operation.checks_key_itself:
        yield TENANT_ID
    if "{tenant}" in operation.path and operation.kinds & TILLS:
        yield DEVICE_ID
    if operation.media_type == "text/event-stream":
        yield LAST_EVENT_ID
    if operation.idempotent:
        yield IDEMPOTENCY_KEY
