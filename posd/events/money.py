"""Amounts of money as exact decimals, with the decimals of their currency.

The library `iso4217` has the decimals of each currency, and follows the amendments of ISO 4217. Amounts are
stored as `numeric(14,3)`, so three decimals are the limit. Only a few units of account have four, and shops
do not use them.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from functools import cache
from typing import Final

from iso4217 import Currency

from posd.errors import Unprocessable

LIMIT: Final = Decimal(10**11)
"""The limit of amounts, as in `numeric(14,3)`."""

_MOST_DECIMALS: Final = 3
_USUAL_DECIMALS: Final = 2


def is_currency(code: str) -> bool:
    """Whether a code is a currency of ISO 4217 with a number of decimals.

    Gold (`XAU`) and the code for tests (`XTS`) have none, so they are not currencies.
    """
    try:
        return Currency(code).exponent is not None
    except ValueError:
        return False


@cache
def decimals(currency: str) -> int:
    """Return the number of decimals of a currency; two if the currency is not in ISO 4217."""
    try:
        exponent = Currency(currency).exponent
    except ValueError:
        return _USUAL_DECIMALS
    return _USUAL_DECIMALS if exponent is None else min(exponent, _MOST_DECIMALS)


def parse(value: object, currency: str, field: str) -> Decimal:
    """Return an amount of either sign, as decoded by `jsontext`, with the decimals of its currency.

    Trailing zeros are ignored: `12.3400` is `12.34`. The function does not round. Raises `Unprocessable`
    (`invalid_amount`) with the name of the field if the value is not a finite number, has more decimals than
    the currency, or is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _invalid(field, "must be a number")
    number = Decimal(value)
    if not number.is_finite() or not -LIMIT < number < LIMIT:
        raise _invalid(field, "is not an amount")
    exact = number.quantize(_unit(currency))
    if exact != number:
        raise _invalid(field, f"has more decimals than {currency} has")
    return exact


def parse_positive(value: object, currency: str, field: str) -> Decimal:
    """Return `parse` of an amount that has to be greater than zero."""
    number = parse(value, currency, field)
    if number <= 0:
        raise _invalid(field, "must be more than zero")
    return number


def quantized(number: Decimal, currency: str) -> Decimal:
    """Return a stored amount with the decimals of its currency.

    An amount with more decimals, which a shop may have written by SQL, is rounded half up.
    """
    try:
        return number.quantize(_unit(currency), ROUND_HALF_UP)
    except InvalidOperation:
        raise ValueError("Not an amount.") from None


@cache
def _unit(currency: str) -> Decimal:
    return Decimal(1).scaleb(-decimals(currency))


def _invalid(field: str, what: str) -> Unprocessable:
    return Unprocessable(f"{field} {what}.", code="invalid_amount", details={"field": field})
