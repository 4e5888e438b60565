"""Messages to tills (wire protocol §1.2): frames byte by byte, replays, and refused replays."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from uuid import uuid4

from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode

from tests.integration.wire import Message, Till
from tests.integration.wire_case import WireCase

_TIME = rb'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"'
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


class EventCase(WireCase):
    maxDiff = None

    def setUp(self) -> None:
        super().setUp()
        self.platform = self.shop.key("platform", self.slug)

    def post(self, kind: str, data: object, status: int = 201) -> int:
        """Publish by REST. Return the position in the answer."""
        body = {"type": kind, "data": data}
        reply = self.posd.request("POST", f"/api/{self.slug}/events", body, key=self.platform)
        self.assertEqual(reply.status, status, reply.json)
        return int(reply.json.get("id") or 0)

    def text(self, till: Till) -> bytes:
        """Return the next message as it is sent."""
        till.receive()
        return bytes(till.frames[-1].data)

    def assert_text(self, text: bytes, expected: str) -> None:
        """Assert that the message is this text. `NOW` in it stands for a time in the form of the protocol."""
        pattern = re.escape(expected.encode()).replace(b'"NOW"', _TIME)
        if re.fullmatch(pattern, text) is None:
            self.assertEqual(text.decode(), expected)


class FrameTests(EventCase):
    """A message is one unfragmented, uncompressed text frame."""

    def test_compression_is_not_taken_up(self) -> None:
        offers = [ClientPerMessageDeflateFactory(client_max_window_bits=True)]
        till = self.dial(extensions=offers)
        self.publish(3, size=2000)
        till.take(3)
        for frame in till.frames:
            self.assertEqual((frame.opcode, frame.fin, frame.rsv1), (Opcode.TEXT, True, False))

    def test_the_largest_event_is_still_one_frame(self) -> None:
        till = self.dial()
        self.publish(1, size=127 * 1024)
        self.assertEqual(len(till.receive()["data"]["text"]), 127 * 1024)
        self.assertEqual(len(till.frames), 2)
        self.assertTrue(till.frames[-1].fin)

    def test_events_of_one_transaction_are_messages_of_their_own(self) -> None:
        till = self.dial()
        self.publish(30)
        self.assert_ids(till.take(30), 1, 30)
        self.assertEqual(len(till.frames), 31)

    def test_separators_are_compact_and_text_is_raw_utf_8(self) -> None:
        said = {"a": [1, 2, {"b": None}], "text": 'Zoë, "extra" 🍕 \u2028 / <b>', "on": True}
        till = self.dial()
        self.post("kitchen_note", said)
        self.shop.publish(self.slug, "kitchen_note", said)
        texts = [self.text(till), self.text(till)]
        for text in (*texts, bytes(till.frames[0].data)):
            self.assertNotRegex(_STRING.sub(b"", text), rb"\s")
        for text in texts:
            self.assertIn('Zoë, \\"extra\\" 🍕 \u2028 / <b>'.encode(), text)
            self.assertEqual(json.loads(text)["data"], said)


class KnownTypeTests(EventCase):
    """The five types, exactly, each published in a different way."""

    def test_new_order_from_a_shops_own_rows(self) -> None:
        till = self.dial()
        self.rows(
            "WITH placed AS (INSERT INTO {schema}.orders (order_number, customer_name,"
            " customer_phone, order_type, total_amount, subtotal, delivery_fee, discount_amount,"
            " payment_method, payment_status, currency, special_instructions, delivery_address,"
            " scheduled_for) VALUES ('W-17', 'Zoë Ashdown', '+44 20 7946 0018', 'delivery', 23.9,"
            " 22.40, 2.5, 1, 'card', 'paid', 'GBP', 'Ring twice', '4 Mill Lane, Leeds',"
            " '2026-11-22 20:15+01') RETURNING id)"
            " INSERT INTO {schema}.order_items (order_id, menu_item_id, name, price, quantity,"
            " selected_addons, special_instructions) SELECT id, v.* FROM placed, (VALUES"
            ' (\'m7\', \'Pad thai\', 11.20, 1, \'[{{"addon_id": 3, "name": "Tofu", "price": 1.5}}]\'::jsonb,'
            " 'no nuts'), ('m9', 'Spring rolls', 5.6, 2, NULL, NULL))"
            " AS v(menu_item_id, name, price, quantity, selected_addons, special_instructions)"
        )
        self.assert_text(
            self.text(till),
            '{"type":"new_order","id":1,"tenant":"' + self.slug + '","timestamp":"NOW","data":{'
            '"orderId":"1","orderNumber":"W-17","customerName":"Zoë Ashdown",'
            '"customerPhone":"+44 20 7946 0018","customerEmail":null,"orderType":"delivery",'
            '"orderSource":"online","status":"pending","totalAmount":23.90,"subtotal":22.40,'
            '"deliveryFee":2.50,"discount":1.00,"discountAmount":1.00,"paymentMethod":"card",'
            '"paymentStatus":"paid","voucherCode":null,"currency":"GBP","items":['
            '{"id":1,"menuItemId":"m7","name":"Pad thai","price":11.20,"quantity":1,'
            '"selectedAddons":[{"addon_id":"3","name":"Tofu","price":1.5}],'
            '"specialInstructions":"no nuts"},'
            '{"id":2,"menuItemId":"m9","name":"Spring rolls","price":5.60,"quantity":2}],'
            '"specialInstructions":"Ring twice","notes":"Ring twice",'
            '"deliveryAddress":"4 Mill Lane, Leeds","scheduledFor":"2026-11-22T19:15:00.000Z",'
            '"scheduledTime":"2026-11-22T19:15:00.000Z","createdAt":"NOW","version":1}}',
        )

    def test_order_updated_is_the_whole_order_and_repeats_what_old_tills_read(self) -> None:
        self.shop.order(self.slug)
        till = self.dial(after=0)
        order = till.receive()["data"]
        self.rows("UPDATE {schema}.orders SET status = 'preparing'")
        text = self.text(till)
        self.assertRegex(
            text,
            rb'^{"type":"order_updated","id":2,"tenant":"[^"]*","timestamp":'
            + _TIME
            + rb',"order_id":"1","status":"preparing","data":{"orderId":"1",',
        )
        data = json.loads(text, parse_float=Decimal)["data"]
        self.assertRegex(f'"{data.pop("updatedAt")}"'.encode(), _TIME)
        changed = {"status": "preparing", "version": 2, "previousStatus": "pending"}
        self.assertEqual(data, {**order, **changed})

    def test_gift_card_purchased_by_rest(self) -> None:
        till = self.dial()
        self.post(
            "gift_card_purchased",
            {
                "cardNumber": "GC-0042",
                "initialBalance": 50,
                "currentBalance": "50.00",
                "purchasedBy": "Ben",
                "recipientEmail": "eve@example.com",
                "expiryDate": "2027-11-22",
                "purchasedAt": "2026-11-22T10:00:00Z",
            },
        )
        self.assert_text(
            self.text(till),
            '{"type":"gift_card_purchased","id":1,"tenant":"' + self.slug + '","timestamp":"NOW",'
            '"data":{"cardNumber":"GC-0042","initialBalance":50,"currentBalance":50.00,'
            '"purchasedBy":"Ben","recipientName":null,"recipientEmail":"eve@example.com",'
            '"expiryDate":"2027-11-22T23:59:59.999Z","purchasedAt":"2026-11-22T10:00:00.000Z"}}',
        )

    def test_gift_card_updated_by_sql(self) -> None:
        till = self.dial()
        data = {"cardNumber": "GC-0042", "balance": 37.5, "change": -12.5}
        self.shop.publish(
            self.slug, "gift_card_updated", {**data, "transactionType": "redeem", "updatedAt": None}
        )
        self.assert_text(
            self.text(till),
            '{"type":"gift_card_updated","id":1,"tenant":"' + self.slug + '","timestamp":"NOW",'
            '"card_number":"GC-0042","balance":37.5,"data":{"cardNumber":"GC-0042","balance":37.5,'
            '"change":-12.5,"transactionType":"redeem","updatedAt":null}}',
        )

    def test_loyalty_updated_by_the_deployed_broadcaster(self) -> None:
        till = self.dial()
        data = {"customerId": 7, "customerPhone": "+442079460018", "pointsChange": 25}
        event = {
            "type": "loyalty_updated",
            "timestamp": "2026-11-22T10:00:00Z",
            "data": {**data, "newBalance": 125, "transactionType": "add", "reason": "Order W-17"},
        }
        reply = self.posd.request(
            "POST", "/broadcast", {"tenant": self.slug, "event": event}, key=self.platform
        )
        said = {"success": True, "message": f"Event broadcasted to {self.slug}", "connections": 1}
        self.assertEqual((reply.status, reply.json), (200, said))
        self.assert_text(
            self.text(till),
            '{"type":"loyalty_updated","id":1,"tenant":"' + self.slug + '","timestamp":"NOW",'
            '"customer_phone":"+442079460018","points":125,"data":{"customerId":"7",'
            '"customerPhone":"+442079460018","pointsChange":25,"newBalance":125,'
            '"transactionType":"add","reason":"Order W-17","updatedAt":null}}',
        )


class OtherTypeTests(EventCase):
    """Types of a platform's own, and forbidden ones."""

    def test_they_are_delivered_unchanged_in_value(self) -> None:
        data = (
            b'{"weight":0.10,"huge":12345678901234567890123,"tiny":1e-7,"list":[null,{}],"":false}'
        )
        till = self.dial()
        body = b'{"type":"scale_reading","data":%b}' % data
        reply = self.posd.request("POST", f"/api/{self.slug}/events", body, key=self.platform)
        self.assertEqual((reply.status, reply.json["id"]), (201, 1))
        text = self.text(till)
        wanted = json.loads(data, parse_float=Decimal)
        self.assertEqual(json.loads(text, parse_float=Decimal)["data"], wanted)
        self.assertNotIn(b"e-7", text)

    def test_names_that_are_posds_own_are_refused(self) -> None:
        for kind in ("connected", "ping", "pong", "ack", "nack", "error", "pos_heartbeat", "Note"):
            self.post(kind, {}, status=422)

    def test_what_cannot_be_published_gets_no_position_and_stops_nothing(self) -> None:
        till = self.dial()
        for kind in ("kitchen_note", "connected", "pos_note", "Kitchen note", "kitchen_note"):
            self.shop.publish(self.slug, kind, {})
        self.assert_ids(till.take(2), 1, 2)
        failed = "SELECT event_type FROM {schema}.pos_sync_logs WHERE status = 'failed' ORDER BY id"
        self.assertEqual(self.rows(failed), [("connected",), ("pos_note",), ("Kitchen note",)])

    def test_orders_from_elsewhere_than_online_are_pushed_by_no_road(self) -> None:
        till = self.dial()
        self.rows(
            "INSERT INTO {schema}.orders (total_amount, order_source) VALUES (9, 'till'), (9, 'phone')"
        )
        walk_in = {"orderId": "w1", "orderSource": "pos", "totalAmount": 9}
        self.shop.publish(self.slug, "new_order", walk_in)
        self.post("new_order", walk_in, status=200)
        self.post("new_order", {**walk_in, "orderSource": "online"})
        only = till.receive()
        self.assertEqual((only["id"], only["data"]["orderId"]), (1, "w1"))
        self.assertTrue(till.next_is_pong(1))

    def test_two_roads_for_one_order_do_not_print_it_twice(self) -> None:
        till = self.dial()
        order = {"orderId": "w1", "totalAmount": 9, "items": [{"name": "Soup", "price": 9}]}
        self.post("new_order", order)
        self.shop.publish(self.slug, "new_order", order)
        self.post("new_order", order, status=200)
        self.post("kitchen_note", {})
        self.assertEqual([each["type"] for each in till.take(2)], ["new_order", "kitchen_note"])


class ReplayTests(EventCase):
    """Replays: the same events, marked."""

    def test_what_is_sent_to_catch_up_says_so_and_is_the_same_otherwise(self) -> None:
        live = self.dial()
        self.shop.order(self.slug)
        live.receive()
        self.publish(2)
        live.take(2)
        late = self.dial(after=0)
        late.take(3)
        for one, other in zip(live.frames[1:], late.frames[1:], strict=True):
            self.assertNotIn(b'"replay"', bytes(one.data))
            self.assertEqual(bytes(other.data).replace(b'"replay":true,', b"", 1), bytes(one.data))
            self.assertIs(json.loads(bytes(other.data))["replay"], True)

    def test_what_happens_after_that_is_not_marked(self) -> None:
        self.publish(2)
        till = self.dial(after=1)
        self.assertIs(till.receive()["replay"], True)
        self.assertTrue(till.next_is_pong(1))
        self.publish(1)
        self.assertNotIn("replay", till.receive())

    def test_a_long_history_is_sent_whole_and_in_order(self) -> None:
        self.publish(1234, size=300)
        till = self.dial(after=7)
        self.assert_ids(till.take(1227), 8, 1234)
        self.assertTrue(till.next_is_pong(1))

    def test_a_position_is_the_same_by_every_road(self) -> None:
        told = [self.post("kitchen_note", {"n": n}) for n in range(3)]
        till = self.dial(after=0)
        self.assertEqual([each["id"] for each in till.take(3)], told)
        logged = self.rows(
            "SELECT seq FROM {schema}.pos_sync_logs WHERE seq IS NOT NULL ORDER BY id"
        )
        self.assertEqual([seq for (seq,) in logged], told)


class ResyncTests(EventCase):
    """A partial replay is never presented as a complete one."""

    def setUp(self) -> None:
        super().setUp()
        self.publish(10)
        # Like pruning by posd: events are deleted, and the floor is set.
        self.rows("DELETE FROM {schema}.pos_events WHERE seq <= 6")
        self.rows("UPDATE dinedesk_main.pos_heads SET pruned_seq = 6 WHERE {mine}")

    def assert_resync(self, till: Till, reason: str) -> None:
        said = till.connected
        self.assertEqual((said["resync"], said["resumedFrom"]), (reason, None))
        self.assertEqual(said["lastEventId"], self.head())
        self.assertTrue(till.next_is_pong(1))
        self.assert_ids(self.next(till), said["lastEventId"] + 1, said["lastEventId"] + 1)

    def next(self, till: Till) -> list[Message]:
        """Return the next event, which is live: delivery continues after `lastEventId`."""
        self.publish(1)
        message = till.receive()
        self.assertNotIn("replay", message)
        return [message]

    def test_older_than_what_is_kept(self) -> None:
        for after in (0, 5):
            self.assert_resync(self.dial(after=after), "retention")

    def test_the_last_position_that_was_pruned_misses_nothing(self) -> None:
        till = self.dial(after=6)
        self.assertEqual((till.connected["resync"], till.connected["resumedFrom"]), (None, 6))
        self.assert_ids(till.take(4), 7, 10)

    def test_another_history(self) -> None:
        for after in (0, 6, 10, 99):
            self.assert_resync(self.dial(after=after, stream=str(uuid4())), "reset")

    def test_a_history_that_was_named_anew(self) -> None:
        stream = self.dial().connected["streamId"]
        self.rows("UPDATE dinedesk_main.pos_heads SET stream_id = gen_random_uuid() WHERE {mine}")
        self.assert_resync(self.dial(after=8, stream=stream), "reset")

    def test_beyond_the_head(self) -> None:
        for after in (99, 10**17):
            self.assert_resync(self.dial(after=after), "ahead")

    def test_a_named_till_goes_on_from_there_the_next_time_too(self) -> None:
        for number, (after, stream) in enumerate([(0, None), (99, None), (8, str(uuid4()))]):
            device, head = f"POS_BAR_{number}", self.head()
            self.dial(device=device, after=after, stream=stream).leave()
            self.proves_itself(device)
            self.publish(1)
            till = self.dial(device=device)
            said = till.connected
            self.assertEqual((said["resync"], said["resumedFrom"]), (None, head))
            self.assert_ids([till.receive()], head + 1, head + 1)

    def test_a_named_till_that_was_away_for_too_long_is_told(self) -> None:
        till = self.dial(device="POS_BAR_1")
        till.send({"type": "ack", "id": 10})
        self.proves_itself("POS_BAR_1")
        till.leave()
        self.publish(5)
        self.rows("UPDATE dinedesk_main.pos_heads SET pruned_seq = 12 WHERE {mine}")
        self.assert_resync(self.dial(device="POS_BAR_1"), "retention")
