from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.client.received import Connected, ReceivedEvent, ServerError, parse_message
from posd.errors import InvalidMessage
from posd.protocol.messages import connected_text, error_text, event_text
from posd.values import Event, Resync

STREAM = UUID("6f1f2c52-8f2d-4b59-9a1b-0f0d6f3f8a11")
NOW = datetime(2026, 11, 22, 10, 0, 0, 123000, tzinfo=UTC)

GREETING = {
    "type": "connected",
    "streamId": str(STREAM),
    "deviceId": None,
    "lastEventId": 1041,
    "resumedFrom": None,
    "resync": None,
    "heartbeatSeconds": 30,
}
EVENT = {"type": "new_order", "id": 1, "timestamp": "2026-11-22T10:00:00Z", "data": {}}


class Understanding(SynchronousTestCase):
    def test_the_connected_message_is_parsed(self) -> None:
        text = connected_text(
            greeting="Hello",
            slug="kitchen",
            connection_id="c1",
            device_id="front",
            stream_id=STREAM,
            last_event_id=1041,
            resumed_from=1030,
            resync=None,
            heartbeat=30,
            now=NOW,
        )
        greeting = parse_message(text)
        self.assertEqual(greeting, Connected(STREAM, 1041, 1030, None, "front", 30))
        assert isinstance(greeting, Connected)
        self.assertEqual(greeting.begins_after, 1030)

    def test_a_connected_message_without_a_replay_begins_at_the_head(self) -> None:
        greeting = parse_message(json.dumps({**GREETING, "resync": "retention"}).encode())
        assert isinstance(greeting, Connected)
        self.assertEqual((greeting.resync, greeting.begins_after), (Resync.RETENTION, 1041))

    def test_an_event_is_parsed(self) -> None:
        event = Event(7, "order_updated", b'{"totalAmount":45.90}', NOW, b'{"order_id":"A-1"}')
        text = event_text(event, "kitchen", replay=True)
        received = parse_message(text)
        assert isinstance(received, ReceivedEvent)
        self.assertEqual((received.id, received.type, received.timestamp), (7, event.type, NOW))
        self.assertEqual(str(received.data["totalAmount"]), "45.90")
        self.assertEqual((received.message["order_id"], received.text), ("A-1", text))
        self.assertTrue(received.replay)

    def test_an_error_message_is_parsed(self) -> None:
        self.assertEqual(
            parse_message(error_text("no_device", "Why.")), ServerError("no_device", "Why.")
        )

    def test_pings_and_pongs_need_no_action(self) -> None:
        self.assertIsNone(parse_message(b'{"type":"ping"}'))
        self.assertIsNone(parse_message(b'{"type":"pong","timestamp":"2026-11-22T10:00:00Z"}'))


class Refusing(SynchronousTestCase):
    def assert_refused(self, message: object) -> None:
        with self.assertRaises(InvalidMessage, msg=repr(message)):
            parse_message(json.dumps(message).encode())

    def test_an_incomplete_connected_message_is_refused(self) -> None:
        for name in ("streamId", "lastEventId", "heartbeatSeconds"):
            self.assert_refused({k: v for k, v in GREETING.items() if k != name})
        for change in (
            {"streamId": "latest"},
            {"lastEventId": -1},
            {"lastEventId": "1041"},
            {"resumedFrom": True},
            {"resumedFrom": 1.5},
            {"resync": "tired"},
            {"heartbeatSeconds": 0},
            {"heartbeatSeconds": None},
        ):
            self.assert_refused({**GREETING, **change})

    def test_an_incomplete_event_is_refused(self) -> None:
        for name in ("id", "timestamp", "data"):
            self.assert_refused({k: v for k, v in EVENT.items() if k != name})
        changes: list[dict[str, object]] = [
            {"id": True},
            {"id": "1"},
            {"timestamp": "today"},
            {"data": []},
        ]
        for change in changes:
            self.assert_refused({**EVENT, **change})

    def test_what_is_not_a_message_is_refused(self) -> None:
        nonsense: list[object] = [[], "new_order", None, {}, {"type": 1}, {"type": None}]
        for message in nonsense:
            self.assert_refused(message)

    @given(
        st.dictionaries(
            st.sampled_from([*GREETING, *EVENT]),
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        ),
        st.sampled_from(["connected", "new_order", "error", "ping", "x"]),
    )
    def test_any_text_is_parsed_or_refused(self, members: dict[str, object], kind: str) -> None:
        with contextlib.suppress(InvalidMessage):
            parse_message(json.dumps({**members, "type": kind}).encode())
