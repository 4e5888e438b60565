"""The `Idempotency-Key` of a call, and what it stands for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from posd.errors import BadRequest
from posd.protocol import json_literals as literals
from posd.protocol import jsontext
from posd.store.idempotency import IdempotencyKey
from posd.values import TenantId
from posd.web.http.http_request import HTTPRequest

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_VOLATILE_MEMBERS: Final = frozenset(("timestamp", "updatedAt", "updated_at"))
"""Members that say when a call was made, not what it moves: an honest retry changes them."""


def requested_key(http_request: HTTPRequest, in_body: str | None = None) -> str | None:
    """The key that a call names, in either header or, for deployed tills, in its body; None for none.

    Raises `BadRequest` (`invalid_idempotency_key`) for two that differ and for what cannot be one.
    """
    keys = {*http_request.headers("idempotency-key"), *http_request.headers("x-idempotency-key")}
    if in_body is not None:
        keys.add(in_body)
    if not keys:
        return None
    key = keys.pop()
    if keys or _KEY.fullmatch(key) is None:
        raise BadRequest(
            "Idempotency-Key must be a single value of 1 to 255 visible ASCII characters.",
            code="invalid_idempotency_key",
        )
    return key


def idempotency_key(
    http_request: HTTPRequest,
    tenant_id: TenantId | None,
    principal: str,
    operation: str,
    content: object,
    *,
    key: str | None = None,
) -> IdempotencyKey | None:
    """What names this call, if anything does.

    The fingerprint covers what is moved, without clocks and in whatever order its members came;
    12.50 is 12.5.
    """
    key = requested_key(http_request, key)
    if key is None:
        return None
    fingerprint = hashlib.sha256(jsontext.encode(_canonical(content))).digest()
    return IdempotencyKey(tenant_id, principal, operation, key, fingerprint)


def _canonical(value: object) -> object:
    """A value without clocks, with its members in one order, and each number in one form."""
    # Nearly all values are texts or numbers, and a class of `abc` takes six times as long to check.
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return _canonical_number(value)
    if isinstance(value, Mapping):
        return {
            name: _canonical(value[name]) for name in sorted(value) if name not in _VOLATILE_MEMBERS
        }
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    return value


def _canonical_number(number: Decimal) -> Decimal | int:
    """12.50 as 12.5, and 1.00 as 1. All digits count, where `Decimal.normalize` would round."""
    digits = literals.plain_number(number)
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return Decimal(digits) or 0
