"""Money as exact decimals, with as many decimals as its currency has.

How many that are says ISO 4217, by a library that follows its amendments. Amounts are stored as
`numeric(14,3)`, so three is the most (a few units of account have four, and no shop is paid in them).
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from functools import cache
from typing import Final

from iso4217 import Currency

from posd.errors import Unprocessable

LIMIT: Final = Decimal(10**11)
"""Amounts stay below it, as in `numeric(14,3)`."""

_MOST_DECIMALS: Final = 3
_USUAL_DECIMALS: Final = 2


def is_currency(code: str) -> bool:
    """Whether a shop can be paid in it: ISO 4217 knows it, and says what decimals it has.

    So gold, and what is there for tests, is none.
    """
    try:
        return Currency(code).exponent is not None
    except ValueError:
        return False


@cache
def decimals(currency: str) -> int:
    """How many decimals amounts of a currency have; two if ISO 4217 does not know it."""
    try:
        exponent = Currency(currency).exponent
    except ValueError:
        return _USUAL_DECIMALS
    return _USUAL_DECIMALS if exponent is None else min(exponent, _MOST_DECIMALS)


def parse(value: object, currency: str, field: str) -> Decimal:
    """An amount of any sign, as `jsontext` reads it, in the decimals of its currency.

    Zeros at the end do not count: `12.3400` is `12.34`. Raises `Unprocessable` (`invalid_amount`)
    with the name of the field for what is no number, not finite, finer than the currency or out of
    bounds. Nothing is ever rounded here.
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
    """As `parse`, but more than nothing."""
    number = parse(value, currency, field)
    if number <= 0:
        raise _invalid(field, "must be more than zero")
    return number


def quantized(number: Decimal, currency: str) -> Decimal:
    """A stored amount on its way out, in the decimals of its currency.

    What is finer, because somebody has written it by SQL, is rounded half up.
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
