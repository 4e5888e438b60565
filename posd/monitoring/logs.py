"""Log observers: for the journal, for machines that read JSON, and for people at a terminal.

Callers decide what is logged, by keyword fields with plain values: ids, counts, durations. Never a
key, a payload or a customer; of a card or a phone only what `card_tail` and `phone_tail` leave.
What no caller decides is the text of an exception: it is written only where it cannot have data in it.
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
"""What `logging.level` may be, with the syslog(3) priorities that sd-daemon(3) reads in a line."""

_NOT_FIELDS = frozenset(
    {"format", "isError", "message", "printed", "system", "time", "traceback", "why"}
)
"""What is not a caller's field: Twisted adds it for old observers, or this module has its own."""

_ORIGIN_FIELDS = ("log_time", "log_level", "log_namespace", "log_system")

_SAFE_ERRORS: Final = (
    *(AttributeError, ImportError, MemoryError, NameError, OSError, RecursionError, TypeError),
    # All of posd's that are told operators.
    PosdError,
)
_DATA_ERRORS: Final = (Refusal, InvalidMessage, UnicodeError)
_WITHHELD: Final = "(its text is not logged, since data may be in it)"

_ESCAPES = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}
_LINE_ESCAPES = {**_ESCAPES, ord("\n"): "\\n", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Control characters as text: a logged value cannot steer a terminal nor forge another line."""


@implementer(ILogObserver)
class LogObserver:
    """Writes each event of at least `level` to `stream` in one of the `FORMATS`.

    `stream` is by default what is standard error at this moment, before Twisted puts a logger in
    its place. `configure` may be called at any time, as a reload does.
    """

    def __init__(
        self, *, level: str = "info", format_name: str = "journal", stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.configure(level=level, format_name=format_name)

    def configure(self, *, level: str, format_name: str) -> None:
        """Change what is written and how; KeyError for one that LEVELS or FORMATS do not have."""
        self._priority, self._format = LEVELS[level], FORMATS[format_name]

    def __call__(self, event: LogEvent) -> None:
        if LEVELS[_level(event)] > self._priority:
            return
        text = self._format(event)
        if text:
            # One write, so that lines of threads do not mix.
            self._stream.write(text + "\n")
            self._stream.flush()


def journal() -> LogObserver:
    """For the systemd journal, as `twistd --logger=posd.monitoring.logs.journal` wants it."""
    return LogObserver(format_name="journal")


def json() -> LogObserver:
    """One JSON object a line, as `twistd --logger=posd.monitoring.logs.json` wants it."""
    return LogObserver(format_name="json")


def text() -> LogObserver:
    """For a terminal, as `twistd --logger=posd.monitoring.logs.text` wants it."""
    return LogObserver(format_name="text")


def _as_journal(event: LogEvent) -> str:
    """One line with its priority; each line of a traceback is a line of its own, indented.

    The journal knows the time and the unit already.
    """
    message, traceback = _message(event), _traceback(event)
    if not message and not traceback:
        return ""
    prefix = f"<{LEVELS[_level(event)]}>"
    lines = [f"{_namespace(event)}: {message}", *(f"    {line}" for line in traceback.splitlines())]
    return "\n".join(prefix + line.translate(_LINE_ESCAPES) for line in lines)


def _as_json(event: LogEvent) -> str:
    """One object: `time` (RFC 3339, UTC), `level`, `logger`, `message`, the fields, `traceback`.

    Fields whose values are not plain are left out: nobody knows what their text would disclose.
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
    """Twisted's classic line; a traceback follows on lines that begin with a tab."""
    output = "\n".join(filter(None, (_message(event), _traceback(event))))
    origin = {name: event[name] for name in _ORIGIN_FIELDS if name in event}
    line = formatEventAsClassicLogText({**origin, "log_format": "{written}", "written": output})
    return "" if line is None else line.rstrip().translate(_ESCAPES)


FORMATS: Final[Mapping[str, Callable[[LogEvent], str]]] = {
    "journal": _as_journal,
    "json": _as_json,
    "text": _as_text,
}
"""What `logging.format` may be."""


def card_tail(number: str) -> str:
    """A gift card's number as it may be logged: no more than its last four characters."""
    return _tail(number, 4)


def phone_tail(number: str) -> str:
    """A phone number as it may be logged: no more than its last three characters."""
    return _tail(number, 3)


def _tail(secret: str, length: int) -> str:
    """The end of a value; nothing of one so short that its end would be most of it."""
    return f"…{secret[-length:]}" if len(secret) >= 2 * length else "…"


def _level(event: LogEvent) -> str:
    return str(event.get("log_level", LogLevel.info).name)


def _namespace(event: LogEvent) -> str:
    return str(event.get("log_namespace", "-"))


def _message(event: LogEvent) -> str:
    """An event's text. That of a failure which came by Twisted's older interface has it all in it."""
    if "log_text" in event and _failure(event) is not None:
        return str(event.get("why") or "Unhandled error")
    return formatEvent(event)


def _failure(event: LogEvent) -> Failure | None:
    failure = event.get("log_failure", event.get("failure"))
    return failure if isinstance(failure, Failure) else None


def _traceback(event: LogEvent) -> str:
    """The traceback of an event's failure, without values of variables; empty if it has none."""
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
    """An exception's text, where its class says that it is about the program and not about data.

    `KeyError("+44…")`, `ValueError("could not convert string to float: …")`: most have in them what
    they were raised for. The frames above it say where that was.
    """
    if isinstance(error, _DATA_ERRORS) or not isinstance(error, _SAFE_ERRORS):
        return _WITHHELD
    return safe_str(error)


def _plain_value(value: object) -> object | None:
    """A value as JSON can have it, or None for one that is not plain."""
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
    """The text without lone surrogates, which UTF-8 has no bytes for."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
