"""Log observers for the systemd journal, for JSON and for a terminal.

Callers log keyword fields with plain values: ids, counts, durations. They never log a key, a payload or a
customer, and of card and phone numbers only the results of `card_tail` and `phone_tail`. The text of an
exception is written only if its class shows that the text cannot contain data.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from io import StringIO
from pathlib import PurePath
from typing import Final, TextIO, cast
from uuid import UUID

import msgspec
from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    formatEventAsClassicLogText,
)
from twisted.python.failure import Failure, format_frames
from twisted.python.reflect import qual, safe_str
from zope.interface import implementer

from posd.errors import InvalidMessage, PosdError, Refusal

LEVELS: Final[Mapping[str, int]] = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
"""The values of `logging.level`, with the priorities of syslog(3) that sd-daemon(3) reads in a line."""

_NOT_FIELDS = frozenset(
    {"format", "isError", "message", "printed", "system", "time", "traceback", "why"}
)
"""Fields that no caller has set: Twisted adds them for legacy observers, or this module writes its own."""

_ORIGIN_FIELDS = ("log_time", "log_level", "log_namespace", "log_system")

_SAFE_ERRORS: Final = (
    *(AttributeError, ImportError, MemoryError, NameError, OSError, RecursionError, TypeError),
    # posd's errors for operators.
    PosdError,
)
_DATA_ERRORS: Final = (Refusal, InvalidMessage, UnicodeError)
_WITHHELD: Final = "(text not logged, because it may contain data)"

_ESCAPES = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}
_LINE_ESCAPES = {**_ESCAPES, ord("\n"): "\\n", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Escapes of control characters, so that a logged value cannot control a terminal or forge a line."""


@implementer(ILogObserver)
class LogObserver:
    """Writes log events of at least `level` to `stream` in one of the `FORMATS`.

    The default stream is `sys.stderr` at the time of construction, before Twisted replaces it by a logger.
    """

    def __init__(
        self, *, level: str = "info", format_name: str = "journal", stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.configure(level=level, format_name=format_name)

    def configure(self, *, level: str, format_name: str) -> None:
        """Change the level and the format. Raises KeyError if LEVELS or FORMATS has no such name."""
        self._priority, self._format = LEVELS[level], FORMATS[format_name]

    def __call__(self, event: LogEvent) -> None:
        if LEVELS[_level(event)] > self._priority:
            return
        text = self._format(event)
        if text:
            # One write, so that lines of different threads do not mix.
            self._stream.write(text + "\n")
            self._stream.flush()


def journal() -> LogObserver:
    """Return an observer for the systemd journal, for `twistd --logger=posd.monitoring.logs.journal`."""
    return LogObserver(format_name="journal")


def json() -> LogObserver:
    """Return an observer that writes JSON lines, for `twistd --logger=posd.monitoring.logs.json`."""
    return LogObserver(format_name="json")


def text() -> LogObserver:
    """Return an observer for a terminal, for `twistd --logger=posd.monitoring.logs.text`."""
    return LogObserver(format_name="text")


def _as_journal(event: LogEvent) -> str:
    """Format an event as one line with its priority, and one indented line per line of a traceback.

    The journal adds the time and the unit.
    """
    message, traceback = _message(event), _traceback(event)
    if not message and not traceback:
        return ""
    prefix = f"<{LEVELS[_level(event)]}>"
    lines = [f"{_namespace(event)}: {message}", *(f"    {line}" for line in traceback.splitlines())]
    return "\n".join(prefix + line.translate(_LINE_ESCAPES) for line in lines)


def _as_json(event: LogEvent) -> str:
    """Format an event as an object: `time` (RFC 3339, UTC), `level`, `logger`, `message`, fields, traceback.

    Fields whose values are not plain are left out, because their text might disclose data.
    """
    message, traceback = _message(event), _traceback(event)
    if not message and not traceback:
        return ""
    record: dict[str, object] = {
        "time": datetime.fromtimestamp(cast(float, event.get("log_time", 0.0)), UTC),
        "level": _level(event),
        "logger": _namespace(event),
        "message": _encodable(message),
    }
    for name, value in event.items():
        if not name.startswith("log_") and name not in _NOT_FIELDS:
            plain = _plain_value(value)
            if plain is not None:
                record.setdefault(_encodable(name), plain)
    if traceback:
        record["traceback"] = _encodable(traceback)
    return msgspec.json.encode(record).decode()


def _as_text(event: LogEvent) -> str:
    """Format an event as Twisted's classic line. Lines of a traceback begin with a tab."""
    output = "\n".join(filter(None, (_message(event), _traceback(event))))
    origin = {name: event[name] for name in _ORIGIN_FIELDS if name in event}
    line = formatEventAsClassicLogText({**origin, "log_format": "{written}", "written": output})
    return "" if line is None else line.rstrip().translate(_ESCAPES)


FORMATS: Final[Mapping[str, Callable[[LogEvent], str]]] = {
    "journal": _as_journal,
    "json": _as_json,
    "text": _as_text,
}
"""The values of `logging.format`."""


def card_tail(number: str) -> str:
    """Return the part of a gift card's number that may be logged: its last four characters at most."""
    return _tail(number, 4)


def phone_tail(number: str) -> str:
    """Return the part of a phone number that may be logged: its last three characters at most."""
    return _tail(number, 3)


def _tail(secret: str, length: int) -> str:
    """Return the last characters of a value. Of a short value, return none."""
    return f"…{secret[-length:]}" if len(secret) >= 2 * length else "…"


def _level(event: LogEvent) -> str:
    return str(event.get("log_level", LogLevel.info).name)


def _namespace(event: LogEvent) -> str:
    return str(event.get("log_namespace", "-"))


def _message(event: LogEvent) -> str:
    """Return the text of an event.

    Twisted's legacy interface puts the whole traceback into the text of a failure, so that text is replaced.
    """
    if "log_text" in event and _failure(event) is not None:
        return str(event.get("why") or "Unhandled error")
    return formatEvent(event)


def _failure(event: LogEvent) -> Failure | None:
    failure = event.get("log_failure", event.get("failure"))
    return failure if isinstance(failure, Failure) else None


def _traceback(event: LogEvent) -> str:
    """Return the traceback of an event's failure without values of variables, or an empty string."""
    failure = _failure(event)
    if failure is None:
        return ""
    output = StringIO()
    if failure.frames:
        output.write("Traceback (most recent call last):\n")
        format_frames(failure.frames, output.write, "default")
    output.write(f"{qual(failure.type or object)}: {_exception_text(failure.value)}")
    return output.getvalue()


def _exception_text(error: object) -> str:
    """Return the text of an exception if its class is about the program and not about data.

    Most exceptions quote the value that caused them, such as `KeyError("+44…")`. The traceback shows where
    the exception was raised.
    """
    if isinstance(error, _DATA_ERRORS) or not isinstance(error, _SAFE_ERRORS):
        return _WITHHELD
    return safe_str(error)


def _plain_value(value: object) -> object | None:
    """Return a value as a JSON scalar, or None if the value is not plain."""
    match value:
        case bool() | float():
            return value
        case enum.Enum():
            return _plain_value(value.value)
        case int():
            return value
        case str():
            return _encodable(value)
        case datetime() | date() | UUID():
            return value
        case PurePath():
            return _encodable(str(value))
        case _:
            return None


def _encodable(text: str) -> str:
    """Escape lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
