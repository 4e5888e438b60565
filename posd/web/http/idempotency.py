"""The `Idempotency-Key` of a call, and what it stands for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from posd.errors import BadRequest
from posd.protocol import jsontext, literals
from posd.store.idempotency import Idempotency
from posd.values import TenantId
from posd.web.http.call import Call

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_CLOCKS: Final = frozenset(("timestamp", "updatedAt", "updated_at"))
"""Members that say when a call was made, not what it moves: an honest retry changes them."""


def key_of(call: Call, in_body: str | None = None) -> str | None:
    """The key that a call names, in either header or, for deployed tills, in its body; None for none.

    Raises `BadRequest` (`invalid_idempotency_key`) for two that differ and for what cannot be one.
    """
    keys = {*call.headers("idempotency-key"), *call.headers("x-idempotency-key")}
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


def named(
    call: Call,
    tenant_id: TenantId | None,
    principal: str,
    operation: str,
    moved: object,
    *,
    key: str | None = None,
) -> Idempotency | None:
    """What names this call, if anything does.

    The fingerprint covers what is moved, without clocks and in whatever order its members came;
    12.50 is 12.5.
    """
    key = key_of(call, key)
    if key is None:
        return None
    fingerprint = hashlib.sha256(jsontext.encode(_moved(moved))).digest()
    return Idempotency(tenant_id, principal, operation, key, fingerprint)


def _moved(value: object) -> object:
    """A value without clocks, with its members in one order, and each number in one form."""
    # Nearly all values are texts or numbers, and a class of `abc` takes six times as long to check.
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return _shortest(value)
    if isinstance(value, Mapping):
        return {name: _moved(value[name]) for name in sorted(value) if name not in _CLOCKS}
    if isinstance(value, list | tuple):
        return [_moved(each) for each in value]
    return value


def _shortest(number: Decimal) -> Decimal | int:
    """12.50 as 12.5, and 1.00 as 1. All digits count, where `Decimal.normalize` would round."""
    digits = literals.plain_number(number)
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return Decimal(digits) or 0
