"""The types of options and arguments that several commands have."""

from __future__ import annotations

import os
from datetime import datetime
from typing import BinaryIO, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import click

from posd import values
from posd.cli.failures import CommandFailure
from posd.config.types import suggestion
from posd.config.units import DAY, parse_duration
from posd.events.money import is_currency
from posd.events.phones import is_region
from posd.files import decode_secret

_MAX_SECRET_LENGTH: Final = 64 * 1024
"""Bytes. The keys of posd have 68."""


class _SlugParameter(click.ParamType[str]):
    """A tenant's name in URLs and, with underscores for hyphens, in the name of its schema."""

    name = "slug"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if values.SLUG.fullmatch(value) is None:
            self.fail(
                f"{value!r} is not a slug: write up to 48 small letters, digits and hyphens,"
                " without a hyphen at the beginning or end.",
                param,
                ctx,
            )
        if value in values.RESERVED:
            self.fail(f"{value!r} is reserved.", param, ctx)
        return value


class _CurrencyParameter(click.ParamType[str]):
    """An ISO 4217 code."""

    name = "currency"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        code = value.upper()
        if not is_currency(code):
            self.fail(
                f"{value!r} is not a currency: write three letters of ISO 4217, such as GBP.",
                param,
                ctx,
            )
        return code


class _RegionParameter(click.ParamType[str]):
    """A region of ISO 3166 that has telephone numbers."""

    name = "region"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        code = value.upper()
        if not is_region(code):
            self.fail(
                f"{value!r} is not a region: write two letters of ISO 3166, such as GB or FR.",
                param,
                ctx,
            )
        return code


class _TimezoneParameter(click.ParamType[str]):
    """A name of the IANA time zone database."""

    name = "timezone"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            meant = suggestion(value, available_timezones())
            hint = meant or "write a name such as Europe/London."
            self.fail(f"{value!r} is not a time zone: {hint}", param, ctx)
        return value


_LONGEST: Final = 36_500 * DAY
"""Seconds: a hundred years. Python's and PostgreSQL's dates cover such a span."""

_FIRST, _LAST = 1970, 9998
"""Years. Within them, an offset or a time zone cannot lead out of the range of `datetime`."""


class _DurationParameter(click.ParamType[float]):
    """A duration with its unit, such as 90m. Its value is in seconds."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} is not a duration: {error}.", param, ctx)
        if seconds > _LONGEST:
            self.fail(f"{value!r} is too long: the longest is 36500d.", param, ctx)
        return seconds


class _TimestampParameter(click.ParamType[datetime | float]):
    """A date and time, naive if it has no offset, or a duration: so many seconds ago."""

    name = "time"

    def convert(
        self,
        value: str | datetime | float,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime | float:
        if not isinstance(value, str):
            return value
        try:
            seconds = parse_duration(value)
        except ValueError:
            pass
        else:
            if seconds > _LONGEST:
                self.fail(f"{value!r} is too long ago: the longest is 36500d.", param, ctx)
            return seconds
        try:
            moment = datetime.fromisoformat(value)
            if not _FIRST <= moment.year <= _LAST:
                self.fail(f"{value!r} is not in the years {_FIRST} to {_LAST}.", param, ctx)
            return moment
        except ValueError:
            self.fail(
                f"{value!r} is not a time: write 2026-11-25T18:30, with or without an offset, or a"
                " duration before now, such as 90m.",
                param,
                ctx,
            )


SLUG: Final = _SlugParameter()
CURRENCY: Final = _CurrencyParameter()
TIMEZONE: Final = _TimezoneParameter()
REGION: Final = _RegionParameter()
DURATION: Final = _DurationParameter()
MOMENT: Final = _TimestampParameter()
POSITION: Final = click.IntRange(0, 2**63 - 1)
"""A position in a stream: a bigint. 0 is before the first event."""
ID: Final = click.IntRange(1, 2**31 - 1)
"""The id of a row: an integer of PostgreSQL."""


def read_secret(file: BinaryIO, what: str) -> str:
    """Read a file with one secret, and strip a byte order mark and a newline.

    Raises `CommandFailure`, with `what` as the name of the secret, if the file has no secret.
    """
    content = file.read(_MAX_SECRET_LENGTH + 1)
    try:
        text = decode_secret(content)
    except UnicodeDecodeError:
        raise CommandFailure(
            f"{file.name}: {what} must be text, and the file is not", os.EX_DATAERR
        ) from None
    if len(content) > _MAX_SECRET_LENGTH or not text.isprintable():
        raise CommandFailure(
            f"{file.name}: {what} must be one line, and the file has more", os.EX_DATAERR
        )
    if not text:
        raise CommandFailure(
            f"{file.name}: the file is empty, and must contain {what}", os.EX_DATAERR
        )
    return text
