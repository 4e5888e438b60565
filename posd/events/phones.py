"""Normalises the telephone numbers of customers to E.164.

`07700 900123`, `0044 7700 900123` and `+447700900123` identify the same customer of a shop in Great Britain.
The rules are those of Google's libphonenumber, in the library `phonenumbers`.
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
"""The limit of a text with invisible characters, which are removed before the number is read."""


def preload() -> None:
    """Import the rules of all regions. Otherwise the first number of each region imports a module.

    The import of about 250 small modules takes 100 ms and 2 MiB.
    """
    for region in phonenumbers.SUPPORTED_REGIONS:
        PhoneMetadata.metadata_for_region(region, None)
    for code in phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS:
        PhoneMetadata.metadata_for_nongeo_region(code, None)


def is_region(code: str) -> bool:
    """Whether the library has rules for the telephone numbers of a region (ISO 3166-1, such as `GB`)."""
    return code in phonenumbers.SUPPORTED_REGIONS


def normalise(text: str, region: str) -> str:
    """Return a number in E.164: `+` and up to 15 digits.

    `region` (ISO 3166-1, such as `GB`) is the region of a number without a country code. The length of the
    number has to be possible. The number need not be in an assigned range, because the library's list of
    ranges is never up to date. Digits may be of any script, and invisible characters are ignored. Raises
    `Unprocessable` (`invalid_phone`, status 422) without the number in its text.
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
    """Return the number in E.164 that the national digits of `number` have in the region `after`.

    `number` was stored when `before` was the region of numbers without a country code. Returns None for a
    number that was typed with its country code: a number of another country, or a number that is assigned in
    its country and would not be assigned in `after`.
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
    """Return all numbers in a text, in E.164. The text may be a number, or contain numbers and words."""
    found = {
        phonenumbers.format_number(match.number, PhoneNumberFormat.E164)
        for match in PhoneNumberMatcher(_visible_text(text), region, leniency=Leniency.POSSIBLE)
    }
    with suppress(Unprocessable):
        found.add(normalise(text, region))
    return frozenset(found)


def _visible_text(text: str) -> str:
    """Return a text without invisible characters, and with compatibility characters as plain ones (NFKC).

    Numbers that were copied from a browser or an address book contain direction marks (U+200E, U+202A),
    no-break spaces and zero-width joiners. Keyboards of East Asia type U+FF10 for 0.
    """
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text)
    return "".join(each for each in plain if unicodedata.category(each) != "Cf")


def _invalid() -> Unprocessable:
    return Unprocessable("This is not a telephone number.", code="invalid_phone")
