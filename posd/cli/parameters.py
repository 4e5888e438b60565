"""What may stand behind the options and arguments that several commands have."""

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
"""Bytes; posd's own keys have 68."""


class _SlugParameter(click.ParamType[str]):
    """A tenant's name in URLs, and with underscores for hyphens in the names of its schema."""

    name = "slug"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if values.SLUG.fullmatch(value) is None:
            self.fail(
                f"{value!r} is no slug: write up to 48 small letters, digits and hyphens,"
                " and no hyphen at either end.",
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
                f"{value!r} is no currency: write three letters of ISO 4217, such as GBP.",
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
                f"{value!r} is no region: write two letters of ISO 3166, such as GB or FR.",
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
            self.fail(f"{value!r} is no time zone: {hint}", param, ctx)
        return value


_LONGEST: Final = 36_500 * DAY
"""Seconds: a hundred years, which dates of Python and PostgreSQL have room for."""

_FIRST, _LAST = 1970, 9998
"""Years: within them every offset and every zone can be applied to a date."""


class _DurationParameter(click.ParamType[float]):
    """A time with its unit, in seconds."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} is no duration: {error}.", param, ctx)
        if seconds > _LONGEST:
            self.fail(f"{value!r} is too long: the longest is 36500d.", param, ctx)
        return seconds


class _TimestampParameter(click.ParamType[datetime | float]):
    """A point in time: by its date, naive where it has no offset, or so many seconds ago."""

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
                self.fail(f"{value!r} is not within the years {_FIRST} to {_LAST}.", param, ctx)
            return moment
        except ValueError:
            self.fail(
                f"{value!r} is no time: write 2026-11-25T18:30, with or without an offset, or how"
                " long ago it was, such as 90m.",
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
"""A place in a stream: bigint, where 0 is before the first event."""
ID: Final = click.IntRange(1, 2**31 - 1)
"""What the database has given to a row: integer."""


def read_secret(file: BinaryIO, what: str) -> str:
    """Read a file that holds one secret, without the newline or byte order mark around it.

    `what` names it in the `CommandFailure` for a file that holds no such thing.
    """
    content = file.read(_MAX_SECRET_LENGTH + 1)
    try:
        text = decode_secret(content)
    except UnicodeDecodeError:
        raise CommandFailure(
            f"{file.name}: {what} is text, and this file is not", os.EX_DATAERR
        ) from None
    if len(content) > _MAX_SECRET_LENGTH or not text.isprintable():
        raise CommandFailure(
            f"{file.name}: {what} is one line, and this file has more", os.EX_DATAERR
        )
    if not text:
        raise CommandFailure(
            f"{file.name}: the file is empty, and should have {what} in it", os.EX_DATAERR
        )
    return text
