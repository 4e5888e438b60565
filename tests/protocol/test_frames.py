"""Tests of frames with an independent implementation of RFC 6455."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

from posd.protocol.frames import close_frame, ping_frame, text_frame


def read(raw: bytes) -> Frame:
    """Parse the frame in `raw` as a client, and check that it is unmasked and that no bytes follow."""
    reader = StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    parsing = Frame.parse(reader.read_exact, mask=False)
    try:
        next(parsing)
    except StopIteration as done:
        frame = done.value
    assert isinstance(frame, Frame)
    leftover = reader.read_to_eof(1)
    try:
        next(leftover)
    except StopIteration as done:
        assert done.value == b""
    return frame


class FrameTests(SynchronousTestCase):
    def test_a_text_frame_is_final_uncompressed_and_whole_at_every_length(self) -> None:
        for length in (0, 1, 125, 126, 127, 65_535, 65_536, 200_000):
            frame = read(text_frame(b"x" * length))
            self.assertEqual(
                (frame.opcode, frame.fin, frame.rsv1, frame.rsv2, frame.rsv3),
                (Opcode.TEXT, True, False, False, False),
            )
            self.assertEqual(frame.data, b"x" * length)

    def test_the_shortest_length_field_is_used(self) -> None:
        heads = {125: 2, 126: 4, 65_535: 4, 65_536: 10}
        for length, head in heads.items():
            self.assertEqual(len(text_frame(b"x" * length)), head + length)

    def test_a_ping_carries_its_payload(self) -> None:
        frame = read(ping_frame(b"beat"))
        self.assertEqual((frame.opcode, frame.data), (Opcode.PING, b"beat"))
        self.assertRaises(ValueError, ping_frame, b"x" * 126)

    def test_a_close_frame_carries_code_and_reason(self) -> None:
        for code in (1000, 1001, 1003, 1008, 1009, 1013, 4001, 4009):
            frame = read(close_frame(code, "superseded"))
            frame.check()
            self.assertEqual(Close.parse(bytes(frame.data)), Close(code, "superseded"))

    def test_a_code_that_must_not_be_sent_is_refused(self) -> None:
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000):
            self.assertRaises(ValueError, close_frame, code)

    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
    def test_a_long_reason_is_cut_between_characters(self, reason: str) -> None:
        frame = read(close_frame(4001, reason))
        frame.check()
        sent = Close.parse(bytes(frame.data)).reason
        self.assertTrue(reason.startswith(sent))
        self.assertTrue(sent == reason or len(sent.encode()) > 119)
