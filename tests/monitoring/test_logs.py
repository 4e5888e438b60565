"""Tests of the output of log observers."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import ILogObserver, Logger, LogLevel
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from posd.errors import BadRequest, InvalidMessage, StartError, StatementFailed
from posd.monitoring import logs
from posd.values import KeyKind

LINE = re.compile(r"<[2-7]>[^\x00-\x08\x0a-\x1f\x7f-\x9f]*")


class Written:
    """A logger with an observer that writes to a stream in memory."""

    def __init__(self, format_name: str, level: str = "debug") -> None:
        self.stream = io.StringIO()
        self.observer = logs.LogObserver(level=level, format_name=format_name, stream=self.stream)
        self.log = Logger(namespace="posd.feed", observer=self.observer)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")[:-1]

    def fail(self) -> None:
        try:
            raise OSError("gone")
        except OSError:
            self.log.failure("Lost after {count} events", count=3)


class EveryFormat(SynchronousTestCase):
    def test_it_is_an_observer(self) -> None:
        for format_name in logs.FORMATS:
            self.assertTrue(verifyObject(ILogObserver, Written(format_name).observer))

    def test_events_below_the_level_are_not_written(self) -> None:
        for format_name in logs.FORMATS:
            written = Written(format_name, "warn")
            written.log.info("quiet")
            self.assertEqual(written.text, "")
            written.log.warn("loud")
            self.assertIn("loud", written.text)

    def test_level_and_format_change_while_it_runs(self) -> None:
        written = Written("journal", "error")
        written.log.info("one")
        written.observer.configure(level="info", format_name="json")
        written.log.info("two")
        self.assertEqual([json.loads(line)["message"] for line in written.lines], ["two"])

    def test_an_unknown_level_or_format_is_refused_and_changes_nothing(self) -> None:
        written = Written("journal", "info")
        for level, format_name in (("loud", "journal"), ("error", "xml")):
            self.assertRaises(
                KeyError, written.observer.configure, level=level, format_name=format_name
            )
        written.log.info("one")
        self.assertEqual(written.text, "<6>posd.feed: one\n")

    def test_levels_are_those_of_twisted(self) -> None:
        self.assertEqual({level.name for level in LogLevel.iterconstants()}, set(logs.LEVELS))

    def test_an_empty_event_is_not_written(self) -> None:
        for format_name in logs.FORMATS:
            written = Written(format_name)
            written.observer({"log_level": LogLevel.info})
            self.assertEqual(written.text, "")

    def test_a_value_that_cannot_be_formatted_is_reported_and_not_raised(self) -> None:
        for format_name in logs.FORMATS:
            written = Written(format_name)
            written.log.info("{absent}")
            self.assertIn("absent", written.text)

    def test_an_event_of_the_old_kind_is_written_too(self) -> None:
        for format_name in logs.FORMATS:
            written = Written(format_name)
            publisher = legacy.LogPublisher(publishPublisher=written.observer)
            publisher.msg("from before", system="old")
            self.assertIn("from before", written.text)
            self.assertEqual(len(written.lines), 1)

    def test_standard_error_is_the_stream_unless_told_otherwise(self) -> None:
        for factory in (logs.journal, logs.json, logs.text):
            stream = io.StringIO()
            self.patch(sys, "stderr", stream)
            observer = factory()
            self.patch(
                sys, "stderr", io.StringIO()
            )  # Twisted replaces sys.stderr when it begins to log.
            Logger(observer=observer).info("here")
            self.assertIn("here", stream.getvalue())


class Journal(SynchronousTestCase):
    def test_a_line_has_its_priority_its_origin_and_its_message(self) -> None:
        written = Written("journal")
        for level in LogLevel.iterconstants():
            written.log.emit(level, "{count} tills", count=2)
        self.assertEqual(
            written.lines, [f"<{priority}>posd.feed: 2 tills" for priority in (7, 6, 4, 3, 2)]
        )

    def test_every_line_of_a_traceback_has_the_priority_too(self) -> None:
        written = Written("journal")
        written.fail()
        self.assertEqual(written.lines[0], "<2>posd.feed: Lost after 3 events")
        self.assertEqual(written.lines[-1], "<2>    builtins.OSError: gone")
        self.assertTrue(all(line.startswith("<2>    ") for line in written.lines[1:]))

    @given(st.text())
    def test_no_value_can_forge_a_line_or_steer_a_terminal(self, value: str) -> None:
        written = Written("journal")
        written.log.info("{value}", value=f"x{value}")
        (line,) = written.lines
        self.assertTrue(LINE.fullmatch(line), line)
        self.assertEqual(len(line.splitlines()), 1)

    @given(st.text())
    def test_no_exception_can_forge_a_priority(self, value: str) -> None:
        written = Written("journal")
        try:
            raise OSError(value)
        except OSError:
            written.log.failure("Lost")
        for line in written.lines:
            self.assertTrue(line.startswith("<2>"), line)
            self.assertTrue(LINE.fullmatch(line), line)


class Json(SynchronousTestCase):
    def test_an_object_has_time_level_origin_message_and_fields(self) -> None:
        written = Written("json")
        written.observer(
            {
                "log_time": 1795341600.25,
                "log_level": LogLevel.info,
                "log_namespace": "posd.session",
                "log_format": "{tenant}: {sent} sent",
                "tenant": "kitchen",
                "sent": 7,
            }
        )
        self.assertEqual(
            json.loads(written.text),
            {
                "time": "2026-11-22T10:00:00.250000Z",
                "level": "info",
                "logger": "posd.session",
                "message": "kitchen: 7 sent",
                "tenant": "kitchen",
                "sent": 7,
            },
        )

    def test_plain_values_keep_their_kind(self) -> None:
        written = Written("json")
        written.log.info(
            "all",
            truth=True,
            ratio=0.5,
            large=2**70,
            kind=KeyKind.DEVICE,
            when=datetime(2026, 11, 22, tzinfo=UTC),
            stream=UUID(int=5),
            file=Path("/etc/posd/posd.toml"),
        )
        record = json.loads(written.text)
        expected = {
            "truth": True,
            "ratio": 0.5,
            "large": 2**70,
            "kind": "device",
            "when": "2026-11-22T00:00:00Z",
            "stream": "00000000-0000-0000-0000-000000000005",
            "file": "/etc/posd/posd.toml",
        }
        self.assertEqual({name: record[name] for name in expected}, expected)

    def test_fields_that_are_not_plain_are_left_out(self) -> None:
        written = Written("json")
        written.log.info("all", payload={"card": "1234"}, body=b"secret", thing=object(), none=None)
        self.assertEqual(set(json.loads(written.text)), {"time", "level", "logger", "message"})

    def test_a_field_cannot_replace_a_member_of_the_observer(self) -> None:
        written = Written("json")
        written.log.info("true", time="then", logger="forged", traceback="forged")
        record = json.loads(written.text)
        self.assertEqual(record["logger"], "posd.feed")
        self.assertNotEqual(record["time"], "then")
        self.assertNotIn("traceback", record)

    def test_a_failure_brings_its_traceback_as_one_field(self) -> None:
        written = Written("json")
        written.fail()
        (line,) = written.lines
        record = json.loads(line)
        self.assertEqual(
            (record["message"], record["level"], record["count"]),
            ("Lost after 3 events", "critical", 3),
        )
        self.assertTrue(record["traceback"].startswith("Traceback"))
        self.assertTrue(record["traceback"].endswith("builtins.OSError: gone"))

    @given(st.text(st.characters(), min_size=1), st.text(st.characters()))
    def test_any_text_is_one_object_on_one_line(self, message: str, value: str) -> None:
        written = Written("json")
        written.log.info("{message}", message=message, value=value)
        (line,) = written.lines
        self.assertEqual(json.loads(line)["logger"], "posd.feed")


class Text(SynchronousTestCase):
    def test_a_line_has_its_time_its_origin_and_its_message(self) -> None:
        written = Written("text")
        written.log.info("{count} tills", count=2)
        self.assertTrue(
            re.fullmatch(
                r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[posd\.feed#info\] 2 tills\n",
                written.text,
            ),
            written.text,
        )

    def test_a_traceback_follows_on_lines_that_begin_with_a_tab(self) -> None:
        written = Written("text")
        written.fail()
        self.assertIn("Lost after 3 events", written.lines[0])
        self.assertEqual(written.lines[-1].strip(), "builtins.OSError: gone")
        self.assertTrue(all(line.startswith("\t") for line in written.lines[1:]))

    @given(st.text())
    def test_no_value_can_steer_a_terminal(self, value: str) -> None:
        written = Written("text")
        written.log.info("{value}", value=f"x{value}")
        self.assertFalse(re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", written.text))


class Failures(SynchronousTestCase):
    """Texts of exceptions, which may contain data."""

    def written(self, error: Exception, format_name: str, *, old: bool = False) -> str:
        written = Written(format_name)
        try:
            raise error
        except type(error):
            if old:
                publisher = legacy.LogPublisher(publishPublisher=written.observer)
                publisher.msg(failure=Failure(), why="It broke", isError=1)
            else:
                written.log.failure("It broke")
        return written.text

    def test_the_traceback_is_written_without_the_text_of_the_exception(self) -> None:
        for error in (
            KeyError("+447700900123"),
            ValueError("could not convert string to float: '+447700900123'"),
            AssertionError("+447700900123"),
            UnicodeEncodeError("ascii", "+447700900123é", 13, 14, "+447700900123"),
            BadRequest("There is no order +447700900123."),
            InvalidMessage("+447700900123"),
            StatementFailed("nobody wants +447700900123", "P0001"),
        ):
            for format_name, old in itertools.product(logs.FORMATS, (False, True)):
                with self.subTest(error=error, format=format_name, old=old):
                    text = self.written(error, format_name, old=old)
                    self.assertNotIn("7700900123", text)
                    self.assertIn("raise error", text)
                    self.assertIn(type(error).__name__, text)
                    self.assertIn("It broke", text)

    def test_texts_of_exceptions_about_the_program_are_written(self) -> None:
        for error in (
            AttributeError("'NoneType' object has no attribute 'slug'"),
            TypeError("f() takes 1 positional argument but 2 were given"),
            OSError(24, "Too many open files"),
            StartError("cannot listen on 'https'"),
            StatementFailed("permission denied for table orders", "42501"),
        ):
            for format_name in logs.FORMATS:
                with self.subTest(error=error, format=format_name):
                    self.assertIn(str(error), self.written(error, format_name))


class Redaction(SynchronousTestCase):
    def test_the_last_four_of_a_card_and_the_last_three_of_a_phone_remain(self) -> None:
        self.assertEqual(logs.card_tail("6034932011112222"), "…2222")
        self.assertEqual(logs.phone_tail("+442079460123"), "…123")

    def test_nothing_of_a_short_number_is_logged(self) -> None:
        self.assertEqual(logs.card_tail("1234567"), "…")
        self.assertEqual(logs.phone_tail("12345"), "…")
        self.assertEqual(logs.card_tail(""), "…")

    @given(st.text())
    def test_at_least_half_is_always_hidden(self, secret: str) -> None:
        for tail, shown in ((logs.card_tail(secret), 4), (logs.phone_tail(secret), 3)):
            kept = tail.removeprefix("…")
            self.assertTrue(secret.endswith(kept))
            self.assertTrue(len(kept) <= min(shown, len(secret) / 2))
