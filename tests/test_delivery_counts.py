"""The counts between the log and a till, and the last log line of a till."""

from __future__ import annotations

import json
import re

from twisted.logger import capturedLogs

from posd.delivery.connection_log import ConnectionLog
from posd.monitoring import logs
from posd.monitoring.counters import Counters
from posd.monitoring.database_clock import DatabaseClock
from tests import documents
from tests.delivery_case import NOON, FakeTransport, SessionCase, session_start, terminal
from tests.scrapes import nonzero_samples


class CountTests(SessionCase):
    """The counts one second after all events were committed."""

    def setUp(self) -> None:
        super().setUp()
        clock = DatabaseClock(lambda: NOON.timestamp() + 1)
        self.channel.counters = self.counters = Counters(clock)

    def count(self, name: str, *labels: str) -> float:
        return nonzero_samples(self.counters.registry).get((f"posd_{name}", *labels), 0)

    def test_an_event_that_comes_is_given_to_each_till_and_timed_once(self) -> None:
        self.named()
        self.begin(terminal("DOOR"), session_start(10, 10), 10, transport=FakeTransport())
        self.channel.wake(self.log.commit(3))
        self.assertEqual(self.count("events_delivered_total", "live"), 6)
        self.assertEqual(self.count("delivery_seconds_count", "socket"), 3)
        self.assertEqual(self.count("delivery_seconds_sum", "socket"), 3)

    def test_nothing_is_timed_that_nobody_was_given(self) -> None:
        self.channel.wake(self.log.commit())
        self.assertEqual(nonzero_samples(self.counters.registry), {})

    def test_what_a_till_is_sent_to_catch_up_is_counted_and_not_timed(self) -> None:
        self.named(acked=4)
        self.assertEqual(self.count("events_delivered_total", "replay"), 6)
        self.assertEqual(self.count("delivery_seconds_count", "socket"), 0)

    def test_the_first_acknowledgement_of_an_event_is_timed_and_no_other(self) -> None:
        bar = self.named()
        door = self.begin(terminal("DOOR"), session_start(10, 10), 10, transport=FakeTransport())
        self.channel.wake(self.log.commit(3))
        self.hear(bar, type="ack", id=12)
        self.hear(door, type="ack", id=13)
        self.hear(bar, type="ack", id=13)
        self.assertEqual(self.count("delivery_seconds_count", "ack"), 3)

    def test_what_was_acknowledged_before_is_not_timed(self) -> None:
        self.hear(self.named(), type="ack", id=10)
        self.assertEqual(self.count("delivery_seconds_count", "ack"), 0)

    def test_an_event_that_a_till_cannot_process_is_counted(self) -> None:
        till = self.named()
        self.channel.wake(self.log.commit())
        self.hear(till, type="nack", id=11, reason="no paper")
        self.assertEqual(self.count("nacks_total"), 1)

    def test_the_end_of_a_connection_is_counted(self) -> None:
        log = ConnectionLog(self.clock.seconds, self.counters)
        for _ in range(100):
            log.ended(self.named(), by="till", code=1000, why="", seconds=1.0)
        self.assertEqual(self.count("connections_ended_total", "till", "closed"), 100)


class LastLineTests(SessionCase):
    def last_line(self) -> dict[str, object]:
        """Return the last line, as JSON, of a till that was sent two events and has acknowledged one."""
        till = self.named()
        self.channel.wake(self.log.commit(2))
        self.hear(till, type="ack", id=11)
        with capturedLogs() as logged:
            ConnectionLog(self.clock.seconds, Counters()).ended(
                till, by="posd", code=1001, why="posd is restarting", seconds=61.25
            )
        (event,) = logged
        written = json.loads(logs.FORMATS["json"](event))
        assert isinstance(written, dict)
        return written

    def test_it_tells_who_why_how_long_and_how_far(self) -> None:
        transport = self.last_line()
        self.assertEqual(
            {
                name: transport[name]
                for name in ("tenant", "device", "by", "code", "reason", "seconds")
            },
            {
                "tenant": "kitchen",
                "device": "BAR",
                "by": "posd",
                "code": 1001,
                "reason": "posd is restarting",
                "seconds": 61.25,
            },
        )
        self.assertEqual(
            (transport["sent"], transport["position"], transport["acked"]), (2, 12, 11)
        )
        self.assertEqual((transport["behind"], transport["unsaid"]), (0, 0))

    def test_a_till_that_flaps_is_logged_within_a_bound_and_by_name(self) -> None:
        log = ConnectionLog(self.clock.seconds, Counters())
        with capturedLogs() as logged:
            for _ in range(600):
                log.ended(self.named(), by="till", code=1006, why="", seconds=0.1)
                log.ended(self.unnamed(), by="till", code=1006, why="", seconds=0.1)
                self.clock.advance(0.5)
            door = self.begin(
                terminal("DOOR"), session_start(10, 10), 10, transport=FakeTransport()
            )
            log.ended(door, by="till", code=1006, why="", seconds=0.1)
        lines = [(event["device"], event["unsaid"]) for event in logged]
        # 600 connections of each kind in five minutes.
        for device in ("BAR", None):
            unsaid = [unsaid for each, unsaid in lines if each == device]
            self.assertEqual(unsaid[:5], [0] * 5)
            self.assertLessEqual(len(unsaid), 10)
            self.assertGreater(sum(unsaid), 450)
        self.assertEqual(lines[-1], ("DOOR", 0))

    def test_it_has_the_fields_that_are_described(self) -> None:
        (row,) = (
            row
            for table in documents.tables("docs/metrics.md")
            for row in table.rows
            if row[0].startswith("`till gone")
        )
        described = set(re.findall(r"`(\w+)`", row[1]))
        always = {"time", "level", "logger", "message"}
        self.assertEqual(self.last_line().keys() - always, described)
