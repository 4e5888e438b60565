"""Tests of the messages between posd and a till, as docs/protocol.md specifies them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.errors import InvalidMessage
from posd.protocol.messages import (
    AckMessage,
    NackMessage,
    OtherMessage,
    PingMessage,
    PongMessage,
    PrintMessage,
    connected_text,
    decode,
    encode,
    error_text,
    event_text,
    parse,
    pong_text,
)
from posd.values import Event, Resync

NOW = datetime(2026, 11, 22, 10, 0, 0, 123456, UTC)


class ParseTests(SynchronousTestCase):
    def refused(self, text: bytes) -> str:
        return str(self.assertRaises(InvalidMessage, parse, text))

    def test_a_ping_may_carry_an_id_and_a_timestamp(self) -> None:
        self.assertEqual(parse(b'{"type":"ping"}'), PingMessage())
        self.assertEqual(
            parse(b'{"type":"ping","id":"a","timestamp":1.5}'), PingMessage("a", Decimal("1.5"))
        )

    def test_a_ping_with_anything_but_a_scalar_is_refused(self) -> None:
        for value in (b"{}", b"[1]", b"true"):
            self.assertIn("ping", self.refused(b'{"type":"ping","id":%b}' % value))

    def test_the_content_of_a_pong_is_ignored(self) -> None:
        self.assertEqual(parse(b'{"type":"pong","id":[]}'), PongMessage())

    def test_an_ack_names_a_position(self) -> None:
        self.assertEqual(parse(b'{"type":"ack","id":1042}'), AckMessage(1042))
        self.assertEqual(parse(b'{"type":"ack","id":0}'), AckMessage(0))
        self.assertEqual(parse(b'{"type":"ack","id":1042.0}'), AckMessage(1042))
        self.assertEqual(parse(b'{"type":"ack","id":9223372036854775807}'), AckMessage(2**63 - 1))

    def test_an_ack_of_anything_else_is_refused(self) -> None:
        for value in (
            b"-1",
            b"1.5",
            b"true",
            b"false",
            b"null",
            b'"1042"',
            b"[1]",
            b"{}",
            b"9223372036854775808",
            b"1e30",
        ):
            self.assertIn("id must be", self.refused(b'{"type":"ack","id":%b}' % value))
        self.assertIn("id must be", self.refused(b'{"type":"ack"}'))

    def test_a_nack_has_a_reason_or_none(self) -> None:
        self.assertEqual(
            parse(b'{"type":"nack","id":7,"reason":"no paper"}'), NackMessage(7, "no paper")
        )
        self.assertEqual(parse(b'{"type":"nack","id":7,"reason":null}'), NackMessage(7))
        self.assertEqual(parse(b'{"type":"nack","id":7}'), NackMessage(7))
        self.refused(b'{"type":"nack","id":7,"reason":1}')
        self.refused(b'{"type":"nack","reason":"no paper"}')

    def test_a_long_reason_is_cut(self) -> None:
        nack = parse(encode({"type": "nack", "id": 7, "reason": "x" * 60_000}))
        self.assertEqual(nack, NackMessage(7, "x" * 500))

    def test_a_print_has_an_order_and_a_status(self) -> None:
        self.assertEqual(
            parse(b'{"type":"print","orderId":"A-1","status":"printed"}'),
            PrintMessage("A-1", "printed"),
        )
        self.assertEqual(
            parse(b'{"type":"print","order_id":17,"status":"failed","reason":"jam"}'),
            PrintMessage("17", "failed", "jam"),
        )
        self.assertEqual(
            parse(b'{"type":"print","orderId":"17","order_id":17,"status":"printed"}'),
            PrintMessage("17", "printed"),
        )

    def test_a_print_of_no_order_or_of_two_is_refused(self) -> None:
        for ids in (
            b'"orderId":null',
            b'"orderId":""',
            b'"orderId":true',
            b'"orderId":1.5',
            b'"orderId":"1","order_id":"2"',
            b'"order":"1"',
        ):
            text = b'{"type":"print","status":"printed",%b}' % ids
            self.assertIn("orderId", self.refused(text))

    def test_a_print_with_another_status_is_refused(self) -> None:
        for status in (b'"Printed"', b"null", b"[]", b'"pending"'):
            text = b'{"type":"print","orderId":"1","status":%b}' % status
            self.assertIn("status", self.refused(text))

    def test_a_message_of_another_type_is_kept_whole(self) -> None:
        other = parse(b' { "type" : "till_opened", "float": 120.50, "by": "A\\u0000" } ')
        self.assertEqual(
            other,
            OtherMessage(
                "till_opened", '{"type":"till_opened","float":120.50,"by":"A\ufffd"}'.encode()
            ),
        )

    def test_a_long_or_unprintable_type_is_refused(self) -> None:
        for name in ("", "x" * 101, "a\nb"):
            self.assertIn("type", self.refused(encode({"type": name})))

    def test_a_message_that_is_no_object_with_a_type_is_refused(self) -> None:
        for text in (
            b"[]",
            b"1",
            b'"ping"',
            b"null",
            b"{}",
            b'{"type":1}',
            b'{"type":null}',
            b"ping",
        ):
            self.refused(text)

    def test_a_message_nested_too_deeply_is_refused(self) -> None:
        text = b'{"type":"note","a":' + b"[" * 31 + b"]" * 31 + b"}"
        self.assertIsInstance(parse(text), OtherMessage)
        self.assertIn("levels", self.refused(text.replace(b"[]", b"[[]]")))

    @given(
        st.dictionaries(
            st.sampled_from(["type", "id", "timestamp", "reason", "orderId", "order_id", "status"]),
            st.sampled_from(["ping", "pong", "ack", "nack", "print", "printed", ""])
            | st.none()
            | st.booleans()
            | st.integers(-5, 2**70)
            | st.decimals(allow_nan=False, allow_infinity=False, places=2)
            | st.lists(st.integers(), max_size=2)
            | st.text(max_size=5),
        )
    )
    def test_any_object_is_a_message_or_is_refused(self, message: dict[str, object]) -> None:
        try:
            text = encode(message)
        except ValueError:
            return
        try:
            parse(text)
        except InvalidMessage as error:
            self.assertTrue(str(error))


class EventTests(SynchronousTestCase):
    event = Event(1042, "new_order", b'{"orderId":"17","totalAmount":12.30}', NOW)

    def test_an_event_message_is_compact_with_its_members_in_order(self) -> None:
        self.assertEqual(
            event_text(self.event, "kitchen"),
            b'{"type":"new_order","id":1042,"tenant":"kitchen",'
            b'"timestamp":"2026-11-22T10:00:00.123Z",'
            b'"data":{"orderId":"17","totalAmount":12.30}}',
        )

    def test_a_replayed_event_has_a_mark(self) -> None:
        message = json.loads(event_text(self.event, "kitchen", replay=True))
        self.assertIs(message["replay"], True)
        self.assertNotIn("replay", json.loads(event_text(self.event, "kitchen")))

    def test_extra_members_are_beside_the_data(self) -> None:
        event = Event(7, "order_updated", b"{}", NOW, b'{"order_id":"17","status":"ready"}')
        self.assertEqual(
            json.loads(event_text(event, "kitchen", replay=True)),
            {
                "type": "order_updated",
                "id": 7,
                "tenant": "kitchen",
                "timestamp": "2026-11-22T10:00:00.123Z",
                "replay": True,
                "order_id": "17",
                "status": "ready",
                "data": {},
            },
        )

    def test_data_is_inserted_unchanged(self) -> None:
        data = '{"note":"Zoë \U0001f355","n":1.0}'.encode()
        self.assertIn(data, event_text(Event(1, "x", data, NOW), "kitchen"))


class AnswerTests(SynchronousTestCase):
    def test_connected_has_all_members_in_order(self) -> None:
        stream = UUID("3f0b6f0e-6c1c-4a53-9a0f-0d7a2b6f9f11")
        text = connected_text(
            greeting="Connected to POS WebSocket",
            slug="kitchen",
            connection_id="c-1",
            device_id="POS_KITCHEN_1",
            stream_id=stream,
            last_event_id=1041,
            resumed_from=1030,
            resync=None,
            heartbeat=30.0,
            now=NOW,
        )
        self.assertEqual(
            text,
            b'{"type":"connected","tenant":"kitchen","message":"Connected to POS WebSocket",'
            b'"timestamp":"2026-11-22T10:00:00.123Z","connectionId":"c-1",'
            b'"deviceId":"POS_KITCHEN_1","streamId":"3f0b6f0e-6c1c-4a53-9a0f-0d7a2b6f9f11",'
            b'"lastEventId":1041,"resumedFrom":1030,"resync":null,"heartbeatSeconds":30}',
        )

    def test_connected_has_the_reason_of_a_resync(self) -> None:
        for reason in Resync:
            message = decode(
                connected_text(
                    greeting="Hello",
                    slug="kitchen",
                    connection_id="c-1",
                    device_id=None,
                    stream_id=UUID(int=1),
                    last_event_id=0,
                    resumed_from=None,
                    resync=reason,
                    heartbeat=2.5,
                    now=NOW,
                )
            )
            assert isinstance(message, dict)
            self.assertEqual(message["resync"], reason.value)
            self.assertIsNone(message["deviceId"])
            self.assertIsNone(message["resumedFrom"])
            self.assertEqual(message["heartbeatSeconds"], Decimal("2.5"))

    def test_a_pong_echoes_the_ping(self) -> None:
        bare = b'{"type":"pong","timestamp":"2026-11-22T10:00:00.123Z"'
        for ping, echo in (
            (PingMessage(), b"}"),
            (PingMessage(id=7), b',"echo":7}'),
            (PingMessage(timestamp="noon"), b',"echo":"noon"}'),
            (PingMessage(0, 0), b',"echo":{"id":0,"timestamp":0}}'),
        ):
            self.assertEqual(pong_text(ping, NOW), bare + echo)

    def test_an_error_has_a_code_and_a_sentence(self) -> None:
        self.assertEqual(
            error_text("invalid_message", 'Not "so".'),
            b'{"type":"error","code":"invalid_message","message":"Not \\"so\\"."}',
        )
