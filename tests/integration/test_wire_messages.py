"""Messages of tills, and posd's reactions (wire protocol §1.3)."""

from __future__ import annotations

from typing import Any

from tests.integration.wire import Message, Till
from tests.integration.wire_case import WireCase, until

_KIB = 1024


class MessageCase(WireCase):
    def complaint(self, till: Till, code: str) -> Message:
        """Assert that posd answers the last message with an error, and the connection stays open."""
        said = till.receive()
        self.assertEqual((said["type"], said["code"]), ("error", code))
        self.assertEqual(list(said), ["type", "code", "message"])
        self.assertRegex(said["message"], r"^\S.*\.$")
        self.assertTrue(till.next_is_pong(1))
        return said

    def logged(self, kind: str) -> list[Any]:
        """Return the entries of this type in the shop's log: data, status, and device."""
        return self.rows(
            "SELECT event_data, status, device_id FROM {schema}.pos_sync_logs"
            " WHERE event_type = %s ORDER BY id",
            kind,
        )


class PingTests(MessageCase):
    """Application pings."""

    def answer(self, **members: object) -> Message:
        till = self.dial()
        till.send({"type": "ping", **members})
        said = till.receive()
        self.assertEqual(said.pop("type"), "pong")
        self.assertRegex(said.pop("timestamp"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        return said

    def test_a_ping_is_answered(self) -> None:
        self.assertEqual(self.answer(), {})

    def test_what_it_carries_comes_back(self) -> None:
        self.assertEqual(self.answer(id=7), {"echo": 7})
        self.assertEqual(self.answer(id="a-1"), {"echo": "a-1"})
        self.assertEqual(self.answer(timestamp="10:00"), {"echo": "10:00"})
        both = {"id": 7, "timestamp": 1700000000123}
        self.assertEqual(self.answer(**both), {"echo": both})

    def test_a_pong_is_not_answered(self) -> None:
        till = self.dial()
        till.send({"type": "pong"})
        self.assertTrue(till.next_is_pong(1))

    def test_a_ping_of_the_protocol_is_answered_by_the_protocol(self) -> None:
        till = self.dial()
        self.assertEqual(till.send_ping(b"are you there?"), b"are you there?")
        self.assertEqual(len(till.frames), 1)


class AckTests(MessageCase):
    """Acknowledgements of a terminal."""

    def setUp(self) -> None:
        super().setUp()
        self.till = self.dial(device="POS_BAR_1")
        self.publish(5)
        self.till.take(5)

    def acknowledge(self, position: object) -> None:
        self.till.send({"type": "ack", "id": position})

    def test_an_ack_is_for_everything_up_to_there(self) -> None:
        self.acknowledge(3)
        self.reaches("POS_BAR_1", 3)
        self.assertTrue(self.till.next_is_pong(1))
        received = self.value("SELECT received_seq FROM dinedesk_main.pos_heads WHERE {mine}")
        until(lambda: received == 3 or self.standing() == 3, "the tenant's best is 3")

    def standing(self) -> int:
        return int(self.value("SELECT received_seq FROM dinedesk_main.pos_heads WHERE {mine}"))

    def test_a_cursor_never_moves_backwards(self) -> None:
        self.acknowledge(4)
        self.acknowledge(2)
        self.reaches("POS_BAR_1", 4)
        self.acknowledge(5)
        self.reaches("POS_BAR_1", 5)

    def test_what_is_not_there_yet_cannot_be_acknowledged(self) -> None:
        self.acknowledge(6)
        self.complaint(self.till, "beyond_head")
        self.acknowledge(5)
        self.reaches("POS_BAR_1", 5)

    def test_a_position_is_a_number(self) -> None:
        for position in ("3", None, -1, 2.5, True, [3]):
            self.acknowledge(position)
            self.complaint(self.till, "invalid_message")

    def test_statuses_in_the_log_follow(self) -> None:
        self.acknowledge(2)
        self.reaches("POS_BAR_1", 2)
        statuses = "SELECT status FROM {schema}.pos_sync_logs ORDER BY seq"
        wanted = [("success",)] * 2 + [("broadcast",)] * 3
        until(lambda: self.rows(statuses) == wanted, "two are received, three are sent")

    def test_who_has_no_name_has_no_position(self) -> None:
        till = self.dial(after=0)
        till.take(5)
        for kind in ("ack", "nack"):
            till.send({"type": kind, "id": 5})
            self.complaint(till, "no_device")

    def test_terminals_acknowledge_each_for_itself(self) -> None:
        other = self.dial(device="POS_BAR_2", after=0)
        other.take(5)
        other.send({"type": "ack", "id": 5})
        self.reaches("POS_BAR_2", 5)
        self.acknowledge(1)
        self.reaches("POS_BAR_1", 1)
        self.assertEqual(self.cursor("POS_BAR_2"), 5)


class NackTests(MessageCase):
    """An event that a terminal cannot process counts as handled, and operators see it."""

    def setUp(self) -> None:
        super().setUp()
        self.till = self.dial(device="POS_BAR_1", after=0)
        self.publish(4)
        self.till.take(4)

    def test_the_cursor_passes_it(self) -> None:
        self.till.send({"type": "ack", "id": 1})
        self.till.send({"type": "nack", "id": 2, "reason": "no such printer"})
        self.reaches("POS_BAR_1", 2)
        self.till.leave()
        again = self.dial(device="POS_BAR_1")
        self.assertEqual(again.connected["resumedFrom"], 2)
        self.assert_ids(again.take(2), 3, 4)

    def test_what_was_not_yet_acknowledged_before_it_is_not_skipped(self) -> None:
        self.till.send({"type": "nack", "id": 3, "reason": "too long"})
        self.till.send({"type": "ack", "id": 1})
        self.reaches("POS_BAR_1", 1)
        self.till.send({"type": "ack", "id": 2})
        self.reaches("POS_BAR_1", 3)

    def test_it_is_remembered_over_connections(self) -> None:
        self.till.send({"type": "ack", "id": 1})
        self.till.send({"type": "nack", "id": 3, "reason": "too long"})
        self.till.leave()
        again = self.dial(device="POS_BAR_1")
        self.assertEqual(again.connected["resumedFrom"], 1)
        again.take(3)
        again.send({"type": "ack", "id": 2})
        self.reaches("POS_BAR_1", 3)
        again.leave()
        self.assertEqual(self.dial(device="POS_BAR_1").connected["resumedFrom"], 3)

    def test_operators_are_shown_which_and_why(self) -> None:
        self.till.send({"type": "nack", "id": 2, "reason": "no such printer"})
        refused = "SELECT seq, device_id, reason FROM {schema}.pos_nacks"
        wanted = [(2, "POS_BAR_1", "no such printer")]
        until(lambda: self.rows(refused) == wanted, "the nack is in the books")
        failed = self.rows("SELECT seq FROM {schema}.pos_sync_logs WHERE status = 'failed'")
        self.assertEqual(failed, [(2,)])

    def test_a_reason_need_not_be_given(self) -> None:
        self.till.send({"type": "nack", "id": 1})
        self.reaches("POS_BAR_1", 1)

    def test_what_is_not_there_yet_cannot_be_refused(self) -> None:
        self.till.send({"type": "nack", "id": 5, "reason": "?"})
        self.complaint(self.till, "beyond_head")


class PrintTests(MessageCase):
    """Print reports."""

    def setUp(self) -> None:
        super().setUp()
        self.till = self.dial(device="POS_BAR_1")
        self.shop.order(self.slug)
        self.order = self.till.receive()["data"]["orderId"]

    def printed(self, status: str, **members: object) -> None:
        self.till.send({"type": "print", "orderId": self.order, "status": status, **members})
        self.assertTrue(self.till.next_is_pong(1))

    def standing(self) -> Any:
        return self.rows("SELECT print_status, print_reason, device_id FROM {schema}.pos_orders")[0]

    def test_an_order_is_on_paper(self) -> None:
        self.printed("printed")
        status, _, device = self.standing()
        self.assertEqual((status, device), ("printed", "POS_BAR_1"))

    def test_it_may_fail_and_succeed_later_but_never_the_other_way_round(self) -> None:
        self.printed("failed", reason="out of paper")
        self.assertEqual(self.standing()[:2], ("failed", "out of paper"))
        self.printed("printed")
        self.printed("failed", reason="too late")
        self.assertEqual(self.standing()[0], "printed")

    def test_an_order_that_nobody_knows_is_told(self) -> None:
        self.till.send({"type": "print", "orderId": "no such", "status": "printed"})
        self.complaint(self.till, "unknown_order")

    def test_there_is_no_other_outcome(self) -> None:
        self.till.send({"type": "print", "orderId": self.order, "status": "burnt"})
        self.complaint(self.till, "invalid_message")

    def test_messages_after_it_wait_for_it(self) -> None:
        """The answers have the order of the messages, although a print report needs the database."""
        self.till.send({"type": "print", "orderId": "no such", "status": "printed"})
        self.till.send({"type": "ping", "id": 9})
        self.assertEqual([each["type"] for each in self.till.take(2)], ["error", "pong"])


class OtherMessageTests(MessageCase):
    """All other messages of a till are logged."""

    def test_it_is_in_the_log_under_its_name(self) -> None:
        till = self.dial(device="POS_BAR_1")
        said = {"type": "stock_count", "items": [{"sku": "a", "left": 3}], "by": "Zoë"}
        till.send(said)
        until(lambda: self.logged("pos_stock_count"), "it is written down")
        self.assertEqual(self.logged("pos_stock_count"), [(said, "received", "POS_BAR_1")])
        self.assertTrue(till.next_is_pong(1))

    def test_one_without_a_name_may_talk_too(self) -> None:
        self.dial().send({"type": "hello"})
        until(lambda: self.logged("pos_hello"), "it is written down")
        self.assertEqual(self.logged("pos_hello"), [({"type": "hello"}, "received", None)])

    def test_it_gets_no_position(self) -> None:
        till = self.dial()
        till.send({"type": "hello"})
        until(lambda: self.logged("pos_hello"), "it is written down")
        self.publish(1)
        self.assert_ids([till.receive()], 1, 1)

    def test_of_one_that_never_stops_talking_nothing_is_lost(self) -> None:
        till = self.dial()
        for n in range(600):
            till.send({"type": "chatter", "n": n})
        until(lambda: len(self.logged("pos_chatter")) == 600, "all of it is written down")
        self.assertEqual([data["n"] for data, _, _ in self.logged("pos_chatter")], [*range(600)])


class InvalidMessageTests(MessageCase):
    """Invalid messages."""

    nonsense = (
        b"",
        b"hello",
        b"{",
        b'{"type":"ping"} x',
        b"[]",
        b'"ping"',
        b"{}",
        b'{"type":7}',
        b'{"type":""}',
        b"[" * 5000 + b"]" * 5000,
        b'{"type":"deep","data":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"type":"number","n":NaN}',
    )

    def test_each_is_told_so_and_costs_nothing_else(self) -> None:
        for text in self.nonsense:
            till = self.dial()
            till.send_text(text)
            self.complaint(till, "invalid_message")
            till.hang_up()

    def test_the_tenth_within_a_minute_is_the_last(self) -> None:
        till = self.dial()
        for _ in range(9):
            till.send_text(b"hello")
            self.complaint(till, "invalid_message")
        till.send_text(b"hello")
        self.assert_ended(till.ended(), 1008)

    def test_a_binary_message_is_not_understood(self) -> None:
        till = self.dial()
        till.send_binary(b'{"type":"ping"}')
        self.assert_ended(till.ended(), 1003)

    def test_a_message_may_have_64_kib(self) -> None:
        till = self.dial()
        frame = b'{"type":"long_note","text":"%b"}'
        till.send_text(frame % (b"x" * (64 * _KIB - len(frame) + 2)))
        self.assertTrue(till.next_is_pong(1))
        until(lambda: self.logged("pos_long_note"), "it is written down")

    def test_and_not_one_byte_more(self) -> None:
        till = self.dial()
        frame = b'{"type":"long_note","text":"%b"}'
        till.send_text(frame % (b"x" * (64 * _KIB - len(frame) + 3)))
        self.assert_ended(till.ended(), 1009)

    def test_nor_in_several_frames(self) -> None:
        till = self.dial()
        till.send_fragments(b'{"type":"long_note","text":"', b"x" * 40 * _KIB, b"x" * 40 * _KIB)
        self.assert_ended(till.ended(), 1009)

    def test_a_message_may_come_in_several_frames(self) -> None:
        till = self.dial()
        till.send_fragments(b'{"type":"pi', b'ng","id', b'":5}')
        self.assertEqual(till.receive()["echo"], 5)

    def test_text_is_utf_8(self) -> None:
        till = self.dial()
        till.send_text(b'{"type":"\xff"}')
        self.assert_ended(till.ended(), 1007)

    def test_half_a_character_is_no_utf_8(self) -> None:
        till = self.dial()
        till.send_text('{"type":"ping","id":"Zoë"}'.encode()[:-3])
        self.assert_ended(till.ended(), 1007)

    def test_a_till_that_was_cut_off_does_not_disturb_another(self) -> None:
        other = self.dial()
        till = self.dial()
        till.send_binary(b"\0")
        self.assert_ended(till.ended(), 1003)
        self.publish(1)
        self.assert_ids([other.receive()], 1, 1)
