"""Telephone numbers as they name customers: in E.164, however they were typed.

`07700 900123`, `0044 7700 900123` and `+447700900123` are one customer of a shop in Great Britain. The
rules are Google's, by a library that follows their amendments.
"""

from __future__ import annotations

from contextlib import suppress

import phonenumbers
from phonenumbers import (
    Leniency,
    NumberParseException,
    PhoneNumberFormat,
    PhoneNumberMatcher,
    ValidationResult,
)

from posd.errors import Unprocessable

_LONGEST = 64


def is_region(code: str) -> bool:
    """Whether it is known how telephone numbers of this region (ISO 3166, `GB`) are written."""
    return code in phonenumbers.SUPPORTED_REGIONS


def normalise(text: str, region: str) -> str:
    """A number in E.164: `+` and up to fifteen digits.

    `region` is where a number without a country code is (ISO 3166, `GB`). A number need only be
    possible, not one that is known to be given out: that list is always behind. Raises
    `Unprocessable` (`invalid_phone`), without the number in its text; 422, since a path with another
    text in this place is understood and leads to nobody.
    """
    if len(text) > _LONGEST:
        raise _invalid()
    try:
        number = phonenumbers.parse(text, region)
    except NumberParseException:
        raise _invalid() from None
    if phonenumbers.is_possible_number_with_reason(number) != ValidationResult.IS_POSSIBLE:
        raise _invalid()
    return phonenumbers.format_number(number, PhoneNumberFormat.E164)


def reread(number: str, before: str, after: str) -> str | None:
    """Return what the digits of a number mean in another region, in E.164.

    `number` was stored while numbers without a country code were read as of `before`. None for a
    number that was typed with its country code: of another country, or one that is given out there
    and would not be one in `after`.
    """
    try:
        parsed = phonenumbers.parse(number)
    except NumberParseException:
        return None
    if parsed.country_code != phonenumbers.country_code_for_region(before):
        return None
    national = phonenumbers.format_number(parsed, PhoneNumberFormat.NATIONAL)
    try:
        elsewhere = phonenumbers.parse(national, after)
    except NumberParseException:
        return None
    is_real_there = phonenumbers.is_valid_number(elsewhere)
    if phonenumbers.is_valid_number(parsed) and not is_real_there:
        return None
    if phonenumbers.is_possible_number_with_reason(elsewhere) != ValidationResult.IS_POSSIBLE:
        return None
    return phonenumbers.format_number(elsewhere, PhoneNumberFormat.E164)


def mentioned(text: str, region: str) -> frozenset[str]:
    """All numbers in a text, in E.164: the text may be one, or have some among other words."""
    found = {
        phonenumbers.format_number(match.number, PhoneNumberFormat.E164)
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.POSSIBLE)
    }
    with suppress(Unprocessable):
        found.add(normalise(text, region))
    return frozenset(found)


def _invalid() -> Unprocessable:
    return Unprocessable("This is not a telephone number.", code="invalid_phone")
