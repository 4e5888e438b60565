"""What may stand behind the options and arguments that several commands have."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import click

from posd import values
from posd.config.types import suggestion
from posd.config.units import parse_duration
from posd.events.money import is_currency


class _Slug(click.ParamType[str]):
    """A tenant's name in URLs, and with underscores for hyphens in the names of its schema."""

    name = "slug"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if values.SLUG.fullmatch(value) is None:
            self.fail(
                f"{value!r} is no slug: write up to 48 small letters, digits and hyphens,"
                " none of these at either end.",
                param,
                ctx,
            )
        if value in values.RESERVED:
            self.fail(f"{value!r} is reserved.", param, ctx)
        return value


class _Currency(click.ParamType[str]):
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


class _Timezone(click.ParamType[str]):
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


class _Duration(click.ParamType[float]):
    """A time with its unit, in seconds."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} is no duration: {error}.", param, ctx)


class _Moment(click.ParamType[datetime | float]):
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
            return parse_duration(value)
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is no time: write 2026-11-25T18:30, with or without an offset, or how"
                " long ago it was, such as 90m.",
                param,
                ctx,
            )


SLUG: Final = _Slug()
CURRENCY: Final = _Currency()
TIMEZONE: Final = _Timezone()
DURATION: Final = _Duration()
MOMENT: Final = _Moment()
