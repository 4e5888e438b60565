"""Frames that RFC 6455 forbids, and messages that are too large, too many or invalid."""

from __future__ import annotations

import itertools
import json

from tests.integration.hostile_case import HostileCase
from tests.integration.peer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Peer,
    frame,
)
from tests.integration.wire_case import until

_KIB = 1024
_MOST = 64 * _KIB


def _close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


class ForbiddenFrameTests(HostileCase):
    """posd fails the connection with the code of RFC 6455 §7.4.1, and soon closes it."""

    def assert_failed(self, code: int, *wrongs: bytes) -> None:
        """Assert that each fails its connection. The peers do not answer the Close frames; posd closes
        nevertheless.
        """
        tills = [(wrong, self.till()) for wrong in wrongs]
        for wrong, till in tills:
            till.send(wrong)
        for wrong, till in tills:
            self.assertEqual((wrong[:20], till.close_code()), (wrong[:20], code))
        for _, till in tills:
            till.rest(5.0)

    def test_frames_that_break_the_protocol(self) -> None:
        unfinished = frame(TEXT, b"{", final=False)
        long_ping = frame(PING, bytes(126))
        self.assert_failed(
            1002,
            frame(TEXT, b"{}", masked=False),
            frame(PING, masked=False),
            *(frame(TEXT, b"{}", reserved=bits) for bits in (1, 2, 4, 7)),
            *(frame(opcode, b"{}") for opcode in (3, 7, 11, 15)),
            long_ping,
            frame(PONG, bytes(126)),
            frame(PING, final=False),
            frame(CLOSE, b"\x03"),
            frame(CLOSE, bytes(126)),
            frame(CONTINUATION, b"{}"),
            unfinished + frame(TEXT, b"}"),
            b"\x81\xfe\x00\x02" + bytes(4) + b"{}",
            b"\x81\xff" + bytes(7) + b"\x02" + bytes(4) + b"{}",
            b"\x81\xff\x80" + bytes(7) + bytes(4),
        )

    def test_codes_that_no_close_frame_may_have(self) -> None:
        codes = (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535)
        self.assert_failed(1002, *(_close(code) for code in codes))
        self.assert_failed(1007, _close(1000, b"\xff"))

    def test_text_that_is_no_utf_8(self) -> None:
        wrong = (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82")
        self.assert_failed(
            1007,
            *(frame(TEXT, b'{"type":"' + text + b'"}') for text in wrong),
            frame(TEXT, b"\xe2", final=False) + frame(CONTINUATION, b"x"),
            frame(TEXT, b'{"type":"\xe2\x82'),
        )

    def test_binary_messages(self) -> None:
        whole = frame(BINARY, b'{"type":"ping"}')
        self.assert_failed(1003, whole, frame(BINARY, final=False) + frame(CONTINUATION))


class SizeTests(HostileCase):
    """A message may have 64 KiB and not one byte more, and uses no more memory than that."""

    def setUp(self) -> None:
        super().setUp()
        self.before = self.memory()
        self.addCleanup(lambda: self.assertLess(self.memory() - self.before, 12))

    def test_the_largest_message_is_taken(self) -> None:
        till = self.till()
        text = json.dumps({"type": "note", "text": self.secret.ljust(_MOST - 28, "x")}).encode()
        self.assertEqual(len(text), _MOST)
        till.send(frame(TEXT, text))
        self.assert_alive(till)
        sql = f"SELECT count(*) FROM {self.schema}.pos_sync_logs WHERE event_type = 'pos_note'"
        until(lambda: self.shop.query(sql) == [(1,)], "the message in the log")

    def test_one_byte_more_is_too_much(self) -> None:
        till = self.till()
        till.send(frame(TEXT, bytes(_MOST + 1)))
        self.assertEqual(till.close_code(), 1009)

    def test_a_length_is_enough_to_be_refused_for(self) -> None:
        for length in (10 * _KIB * _KIB, 2**32, 2**62):
            till = self.till()
            till.send(frame(TEXT, length=length))
            self.assertEqual(till.close_code(), 1009)

    def test_ten_mebibytes_in_one_frame(self) -> None:
        till = self.till()
        till.send(frame(TEXT, bytes(10 * _KIB * _KIB)))
        self.assertEqual(till.close_code(), 1009)

    def test_fragments_that_add_up(self) -> None:
        for size, count in ((10 * _KIB, 1000), (200, 50_000), (1, 50_000), (0, 500_000)):
            with self.subTest(size=size):
                till = self.till()
                part = frame(CONTINUATION, bytes(size), final=False)
                till.send(frame(TEXT, b"", final=False) + part * count)
                self.assertEqual(till.close_code(), 1009)

    def test_pings_between_fragments_do_not_hide_them(self) -> None:
        till = self.till()
        part = frame(CONTINUATION, final=False) + frame(PING)
        till.send(frame(TEXT, final=False) + part * 20_000)
        self.assertEqual(till.close_code(), 1009)

    def test_a_message_in_many_fragments_is_a_message(self) -> None:
        till = self.till()
        text = b'{"type":"ping","id":"' + b"x" * 400 + b'"}'
        head, tail = frame(TEXT, text[:1], final=False), frame(CONTINUATION, text[-1:])
        parts = (frame(CONTINUATION, text[n : n + 1], final=False) for n in range(1, len(text) - 1))
        till.send(head + b"".join(parts) + tail)
        self.assertEqual(till.message()["echo"], "x" * 400)


class FloodTests(HostileCase):
    """A till that sends without end, or does not read, affects only itself."""

    def flood(self, *frames: bytes, device: str = "till-1") -> Peer:
        """Let a till send this repeatedly until posd reads no more. It reads nothing."""
        till, neighbour = self.till(headers={"X-Device-ID": device}), self.neighbours_till()
        before = self.memory()
        chunk = b"".join(frames)
        till.send_endlessly(
            itertools.repeat(chunk * (1 + 65536 // len(chunk)), 300), 2.0, stalled=0.3
        )
        self.assert_served(neighbour)
        self.assertLess(self.memory() - before, 24)
        return till

    def test_pings(self) -> None:
        self.flood(frame(PING))

    def test_large_pings(self) -> None:
        self.flood(frame(PING, bytes(125)))

    def test_pongs_that_nobody_asked_for(self) -> None:
        self.flood(frame(PONG, b"?"))

    def test_acknowledgements(self) -> None:
        self.flood(frame(TEXT, b'{"type":"ack","id":0}'))

    def test_refusals(self) -> None:
        self.flood(frame(TEXT, b'{"type":"nack","id":1,"reason":"%b"}' % self.secret.encode()))

    def test_prints(self) -> None:
        self.flood(frame(TEXT, b'{"type":"print","orderId":"1","status":"printed"}'))

    def test_questions_whose_answers_are_longer(self) -> None:
        self.flood(frame(TEXT, b'{"type":"ping","id":"%b"}' % (b"x" * 60_000)))

    def test_large_messages(self) -> None:
        self.flood(frame(TEXT, json.dumps({"type": "note", "text": self.secret * 1000}).encode()))

    def test_ten_invalid_messages_are_enough(self) -> None:
        till = self.till()
        till.send(frame(TEXT, b"{") * 10)
        for _ in range(10):
            self.assertEqual(till.message()["code"], "invalid_message")
        self.assertEqual(till.close_code(), 1008)

    def test_nine_invalid_messages_are_forgiven(self) -> None:
        till = self.till()
        till.send(frame(TEXT, b"{") * 9)
        for _ in range(9):
            self.assertEqual(till.message()["code"], "invalid_message")
        self.assert_alive(till)

    def test_acknowledgements_that_are_none(self) -> None:
        for kind in ("ack", "nack"):
            till = self.till(headers={"X-Device-ID": f"till-{kind}"})
            for wrong, code in (
                ("1", "beyond_head"),
                ("9223372036854775807", "beyond_head"),
                ("9223372036854775808", "invalid_message"),
                ("-1", "invalid_message"),
                ("0.5", "invalid_message"),
                ("true", "invalid_message"),
                ('"0"', "invalid_message"),
                ("1e999999", "invalid_message"),
                ("9" * 10_000, "invalid_message"),
            ):
                till.send(frame(TEXT, f'{{"type":"{kind}","id":{wrong}}}'.encode()))
                self.assertEqual(till.message()["code"], code, wrong)
            self.assert_alive(till)
        cursors = (
            "SELECT acked_seq FROM dinedesk_main.pos_cursors WHERE tenant_id ="
            " (SELECT id FROM dinedesk_main.tenants WHERE slug = %s)"
        )
        self.assertEqual(self.shop.query(cursors, (self.slug,)), [(0,), (0,)])

    def test_an_order_that_is_another_tenants_is_none(self) -> None:
        self.shop.publish(self.neighbour, "new_order", {"orderId": "stolen-1", "items": []})
        till = self.till()
        for order in ("stolen-1", "'; DELETE FROM orders; --", "x" * 255, "\x00", "%"):
            message = {"type": "print", "orderId": order, "status": "printed"}
            till.send(frame(TEXT, json.dumps(message).encode()))
            self.assertEqual(till.message()["code"], "unknown_order", order)
        self.assert_alive(till)


class DeafTillTests(HostileCase):
    """A till that does not read uses the memory of its send queue, and delays no other till."""

    def test_what_a_deaf_till_costs(self) -> None:
        deaf = [self.till(headers={"X-Device-ID": f"deaf-{n}"}) for n in range(8)]
        reading, neighbour = self.till(), self.neighbours_till()
        before = self.memory()
        for number in range(60):
            self.publish({"n": number, "text": "x" * 100_000})
            while (message := reading.message())["type"] != "note":
                pass
            self.assertEqual(message["data"]["n"], number)
        self.assert_served(neighbour)
        # Of 6 MB for each of eight tills, only the send queues and the buffers of TLS and TCP.
        self.assertLess(self.memory() - before, 10)
        # A till that reads again receives everything, in order.
        for till in deaf[:2]:
            numbers = [till.message()["data"]["n"] for _ in range(60)]
            self.assertEqual(numbers, list(range(60)))
