"""Telephone numbers as they name customers: in E.164, however they were typed.

`07700 900123`, `0044 7700 900123` and `+447700900123` are one customer of a shop in Great Britain. The
rules are Google's, by a library that follows their amendments.
"""

from __future__ import annotations

import unicodedata
from contextlib import suppress

import phonenumbers
from phonenumbers import (
    Leniency,
    NumberParseException,
    PhoneMetadata,
    PhoneNumberFormat,
    PhoneNumberMatcher,
    ValidationResult,
)

from posd.errors import Unprocessable

_LONGEST = 64
_LONGEST_COPIED = 4 * _LONGEST
"""With invisible characters."""


def preload() -> None:
    """Import the rules of all regions. Otherwise the first number of a region imports a module.

    There are some 250 small modules, which takes a tenth of a second and two mebibytes.
    """
    for region in phonenumbers.SUPPORTED_REGIONS:
        PhoneMetadata.metadata_for_region(region, None)
    for code in phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS:
        PhoneMetadata.metadata_for_nongeo_region(code, None)


def is_region(code: str) -> bool:
    """Whether it is known how telephone numbers of this region (ISO 3166, `GB`) are written."""
    return code in phonenumbers.SUPPORTED_REGIONS


def normalise(text: str, region: str) -> str:
    """A number in E.164: `+` and up to fifteen digits.

    `region` is where a number without a country code is (ISO 3166, `GB`). A number need only be
    possible, not one that is known to be given out: that list is always behind. Digits may be of any
    script, and invisible characters do not count. Raises `Unprocessable` (`invalid_phone`), without
    the number in its text; 422, since a path with another text in this place is understood and leads
    to nobody.
    """
    if len(text) > _LONGEST_COPIED or len(visible := _visible_text(text)) > _LONGEST:
        raise _invalid()
    try:
        number = phonenumbers.parse(visible, region)
    except NumberParseException:
        raise _invalid() from None
    if phonenumbers.is_possible_number_with_reason(number) != ValidationResult.IS_POSSIBLE:
        raise _invalid()
    return phonenumbers.format_number(number, PhoneNumberFormat.E164)


def reinterpret(number: str, before: str, after: str) -> str | None:
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


def numbers_in(text: str, region: str) -> frozenset[str]:
    """All numbers in a text, in E.164: the text may be one, or have some among other words."""
    found = {
        phonenumbers.format_number(match.number, PhoneNumberFormat.E164)
        for match in PhoneNumberMatcher(_visible_text(text), region, leniency=Leniency.POSSIBLE)
    }
    with suppress(Unprocessable):
        found.add(normalise(text, region))
    return frozenset(found)


def _visible_text(text: str) -> str:
    """A text without what cannot be seen, and with each wide or small form as its plain character.

    Numbers copied from a browser or an address book carry marks of direction (U+200E, U+202A), no-break
    spaces and zero-width joiners; keyboards of East Asia type U+FF10 for 0.
    """
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text)
    return "".join(each for each in plain if unicodedata.category(each) != "Cf")


def _invalid() -> Unprocessable:
    return Unprocessable("This is not a telephone number.", code="invalid_phone")
