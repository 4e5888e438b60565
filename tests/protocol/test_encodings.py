"""Tests of the wire formats: the same JSON in a frame, in a server-sent event, and alone."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.protocol.encodings import PLAIN, SERVER_SENT, WEBSOCKET
from tests.delivery_case import said
from tests.server_sent import events_in

TEXT = '{"type":"note","id":7,"data":{"name":"Zoë"}}'.encode()


class WireFormatTests(SynchronousTestCase):
    def test_a_websocket_message_is_a_frame(self) -> None:
        self.assertEqual(said(WEBSOCKET.write("note", TEXT, 7)), [json.loads(TEXT)])

    def test_a_message_in_a_poll_is_unchanged(self) -> None:
        self.assertEqual(PLAIN.write("note", TEXT, 7), TEXT)

    def test_a_server_sent_event_has_type_and_position_beside_it(self) -> None:
        self.assertEqual(
            SERVER_SENT.write("note", TEXT, 7), b"id: 7\nevent: note\ndata: " + TEXT + b"\n\n"
        )

    def test_a_message_that_is_no_event_has_no_id(self) -> None:
        self.assertEqual(
            SERVER_SENT.write("connected", b"{}", None), b"event: connected\ndata: {}\n\n"
        )

    @given(text=st.lists(st.sampled_from(["a", "\u2028", "\x85", "\r", "\n", "\r\n", "data: "])))
    def test_line_ends_in_a_text_do_not_end_the_event(self, text: list[str]) -> None:
        (event,) = events_in(SERVER_SENT.write("note", "".join(text).encode() + b".", 7))
        self.assertEqual(
            event.data.split("\n"),
            ("".join(text) + ".").replace("\r\n", "\n").replace("\r", "\n").split("\n"),
        )

    def test_only_server_sent_events_have_a_keepalive(self) -> None:
        self.assertEqual(
            (WEBSOCKET.keepalive_seconds, SERVER_SENT.keepalive_seconds), (float("inf"), 15.0)
        )
