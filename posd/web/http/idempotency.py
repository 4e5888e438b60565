"""The `Idempotency-Key` of a call, and the fingerprint of its content."""

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
"""Members with the time of the call. A repeated call has other values, and is still the same call."""


def requested_key(http_request: HTTPRequest, in_body: str | None = None) -> str | None:
    """Return the key of a call, or None. The key is in a header or, with existing tills, in the body.

    Raises `BadRequest` (`invalid_idempotency_key`) for different keys and for an invalid key.
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
    """Return the key and the fingerprint of a call, or None without a key.

    The fingerprint is the same for any order of the members and for equal numbers, such as 12.50 and 12.5. It
    does not depend on `_VOLATILE_MEMBERS`.
    """
    key = requested_key(http_request, key)
    if key is None:
        return None
    fingerprint = hashlib.sha256(jsontext.encode(_canonical(content))).digest()
    return IdempotencyKey(tenant_id, principal, operation, key, fingerprint)


def _canonical(value: object) -> object:
    """Return a value without `_VOLATILE_MEMBERS`, with sorted members, and with numbers in one form."""
    # Texts and numbers come first: nearly all values are, and a check for `Mapping` takes six times as long.
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
    """Return 12.50 as 12.5, and 1.00 as 1. `Decimal.normalize` would round long numbers."""
    digits = literals.plain_number(number)
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return Decimal(digits) or 0
