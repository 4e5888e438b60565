"""posd accepts everything that RFC 6455 allows a till to send. The tests are in the order of its sections."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.hostile_case import HostileCase
from tests.integration.peer import CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, Peer, frame

_TEXT = "Bún chả, 2 × 🍜"


def _ping(mark: object) -> bytes:
    return json.dumps({"type": "ping", "id": mark}, ensure_ascii=False).encode()


class FrameTests(HostileCase):
    """Framing and fragments (RFC 6455 §5)."""

    def assert_echoed(self, till: Peer, mark: object) -> None:
        message: dict[str, Any] = till.message()
        self.assertEqual((message["type"], message.get("echo")), ("pong", mark))

    def test_frames_come_in_one_segment_or_in_many(self) -> None:
        till = self.till()
        till.send(b"".join(frame(TEXT, _ping(n)) for n in range(20)))
        for number in range(20):
            self.assert_echoed(till, number)
        for byte in frame(TEXT, _ping(_TEXT)):
            till.send(bytes((byte,)))
        self.assert_echoed(till, _TEXT)

    def test_lengths_of_each_form(self) -> None:
        till = self.till()
        overhead = len(_ping(""))
        for size in (125, 126, 127, 65_535, 65_536):
            mark = "x" * (size - overhead)
            self.assertEqual(len(_ping(mark)), size)
            till.send(frame(TEXT, _ping(mark)))
            self.assert_echoed(till, mark)

    def test_a_message_may_be_cut_anywhere_even_within_a_character(self) -> None:
        till = self.till()
        text = _ping(_TEXT)
        for cut in range(len(text) + 1):
            till.send(frame(TEXT, text[:cut], final=False) + frame(CONTINUATION, text[cut:]))
            self.assert_echoed(till, _TEXT)
        parts = [frame(CONTINUATION, bytes((byte,)), final=False) for byte in text]
        till.send(frame(TEXT, final=False) + b"".join(parts) + frame(CONTINUATION))
        self.assert_echoed(till, _TEXT)

    def test_control_frames_between_fragments_are_answered_first(self) -> None:
        till = self.till()
        text = _ping(_TEXT)
        till.send(frame(TEXT, text[:9], final=False) + frame(PING, b"1") + frame(PONG, b"x"))
        self.assertEqual(till.frame(), Frame(PONG, b"1"))
        till.send(frame(CONTINUATION, final=False) + frame(PING, b"2"))
        self.assertEqual(till.frame(), Frame(PONG, b"2"))
        till.send(frame(CONTINUATION, text[9:]))
        self.assert_echoed(till, _TEXT)

    def test_each_ping_is_answered_with_what_it_carried(self) -> None:
        till = self.till()
        payloads = [bytes(range(size)) for size in (0, 1, 124, 125)]
        till.send(b"".join(frame(PING, payload) for payload in payloads))
        for payload in payloads:
            self.assertEqual(till.frame(), Frame(PONG, payload))

    def test_a_mask_hides_what_is_sent(self) -> None:
        """The masks of the other tests are zero."""
        till = self.till()
        text, mask = _ping(_TEXT), b"\x5a\x00\xff\x81"
        masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(text))
        till.send(bytes((0x81, 0x80 | len(text))) + mask + masked)
        self.assert_echoed(till, _TEXT)

    def test_posd_sends_whole_frames_without_a_mask(self) -> None:
        till = self.till()
        till.send(frame(TEXT, _ping("x" * 70_000)[:60_000] + b'"}'))
        self.assertEqual(till.receive(2), b"\x81\x7e")


class CloseTests(HostileCase):
    """The closing handshake (RFC 6455 §7)."""

    def test_a_close_frame_is_answered_and_the_connection_ended(self) -> None:
        allowed = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
        payloads = [b"", *(code.to_bytes(2, "big") for code in allowed)]
        payloads.append((1000).to_bytes(2, "big") + "bis später ".encode() * 10)
        for payload in payloads:
            with self.subTest(payload=payload):
                till = self.till()
                till.send(frame(CLOSE, payload[:125]))
                self.assertEqual(till.close_code(), 1000)
                till.close()

    def test_what_comes_after_a_close_frame_is_not_heard(self) -> None:
        till = self.till()
        note = frame(TEXT, b'{"type":"note","too":"late"}')
        till.send(frame(CLOSE, (1000).to_bytes(2, "big")) + note * 3 + frame(PING))
        self.assertEqual(till.close_code(), 1000)
        till.rest(5.0)
        count = f"SELECT count(*) FROM {self.schema}.pos_sync_logs"
        self.assertEqual(self.shop.query(count), [(0,)])

    def test_what_comes_before_it_is(self) -> None:
        till = self.till()
        till.send(frame(TEXT, b'{"type":"note"}') * 3 + frame(CLOSE, (1000).to_bytes(2, "big")))
        self.assertEqual(till.close_code(), 1000)
        self.wait_for(f"SELECT id FROM {self.schema}.pos_sync_logs", 3)

    def test_posds_own_close_is_over_as_soon_as_it_is_answered(self) -> None:
        till = self.till()
        till.send(frame(TEXT, b"{") * 10)
        self.assertEqual(till.close_code(), 1008)
        till.send(frame(CLOSE, (1008).to_bytes(2, "big")))
        self.assertEqual(till.rest(5.0), b"")
